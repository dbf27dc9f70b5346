"""A finished run of two models on a hairpin that the tests make, and what was published of it:
what tests of publications read (the fixtures are in conftest.py)."""

from __future__ import annotations

import csv
from pathlib import Path

from thermosphere.cli import main
from thermosphere.runs.config import Config
from thermosphere.runs.config_reading import load_config

SITES = 22
MODELS = ("tf1-small", "ff")
SHORT = (
    *("--preset", "smoke", "--quiet", "--set", "models.ff={}"),
    *("--set", "training.max_epochs=2", "--set", "training.reference_epochs=40"),
)
NAMES = """ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL"""


def hairpin(path: Path) -> Path:
    """Two antiparallel strands of alpha carbons, 3.8 Å a step and 3.6 Å apart: residue k touches
    residue 21 − k."""
    lines = []
    for k in range(SITES):
        first = k < SITES // 2
        x = 3.8 * (k if first else SITES - 1 - k)
        y = 0.0 if first else 3.6
        lines.append(
            f"ATOM  {k + 1:5d}  CA  {NAMES.split()[k % 20]} B{k + 1:4d}    {x:8.3f}{y:8.3f}{0:8.3f}"
            f"{1:6.2f}{0:6.2f}          {'C':>2s}"
        )
    path.write_text("\n".join([*lines, "END", ""]))
    return path


def run_hairpin(folder: Path) -> Path:
    """A finished run of two models on the hairpin."""
    structure = hairpin(folder / "hairpin.pdb")
    arguments = ["--structure", str(structure), "--chain", "B", "-o", str(folder / "run")]
    assert main(["run", *SHORT, *arguments]) == 0
    return folder / "run"


def published_of(finished: Path) -> Path:
    assert main(["publish", "-o", str(finished), "--quiet"]) == 0
    return finished / "study"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def smoke_config(run: Path) -> Config:
    return load_config((run / "config.toml").read_text(), where="config.toml")
