"""Where a run's results came from: DIR/provenance.csv, a row for every stage that was done.

    stage,models,started,seconds,version,commit,machine

models are those that the stage went through, empty for what all of them share; started is UTC. A
stage done in parts (a kill, then --resume) has a row for each part that ended by itself or by an
interrupt; one that was kept has a row of a second or less.
"""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from thermosphere import __version__, _core

FILE = "provenance.csv"
COLUMNS = ("stage", "models", "started", "seconds", "version", "commit", "machine")
Row = dict[str, str]

KEPT = 1.0  # seconds; a stage that took less did nothing but look


@dataclass(frozen=True)
class StageTime:
    """All that one stage of a run took, for the same models."""

    stage: str
    models: str  # "tf1-small tf1"; empty for what all of them share
    seconds: float
    started: str  # of its first part
    commits: tuple[str, ...]  # different ones, in order
    machines: tuple[str, ...]


def machine() -> str:
    """Processor, threads and instruction set, in one line."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{_core.isa_chosen()}"
    )


def commit() -> str:
    """The commit of the source tree this package runs from, with -dirty where files differ from it;
    empty outside a git tree."""
    here = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    tracked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        for asked in (
            tracked,
            command,
        ):  # an installed package may lie in some other project's tree
            found = subprocess.run(asked, capture_output=True, text=True, cwd=here, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


@contextmanager
def recorded(directory: Path, stage: str, models: Sequence[str] = ()) -> Iterator[None]:
    """Write down how long the stage took, also where it failed or was interrupted on the way."""
    started, clock = datetime.now(UTC), time.monotonic()
    running = commit()  # now: the tree may be another by the end
    done = False
    try:
        yield
        done = True
    finally:
        seconds = time.monotonic() - clock
        if done or seconds >= KEPT:  # a refusal is no part of the run
            when = started.strftime("%Y-%m-%dT%H:%M:%SZ")
            took, own = f"{seconds:.1f}", " ".join(models)
            values = (stage, own, when, took, __version__, running, machine())
            _append(directory / FILE, dict(zip(COLUMNS, values, strict=True)))


def _append(path: Path, row: Row) -> None:
    columns: Sequence[str] = COLUMNS
    if path.exists():  # a record of before stages named their models goes on without
        with path.open(newline="", encoding="utf-8") as file:
            columns = next(csv.reader(file), COLUMNS)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        if not file.tell():
            writer.writeheader()
        writer.writerow(row)


def rows_of(directory: Path, model: str) -> list[Row]:
    """What was recorded of stages of one model and of stages of none; empty without a record.

    ValueError for a record that is not one.
    """
    return [row for row in _rows(directory / FILE) if not row["models"] or model in _named(row)]


def save(rows: Sequence[Row], directory: Path) -> None:
    """DIR/provenance.csv of these rows alone; none where there is no row."""
    if not rows:
        return
    with (directory / FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def stage_times(*directories: Path) -> list[StageTime]:
    """The stages of a run in the order they were first done, or of parts of it, whose common rows
    count once; empty for a run without a record.

    ValueError for a record that is not one.
    """
    seen: dict[tuple[str, ...], Row] = {}
    for directory in directories:
        seen |= {tuple(sorted(row.values())): row for row in _rows(directory / FILE)}
    parts: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(seen.values(), key=lambda row: row["started"]):
        before = [models for stage, models in parts if stage == row["stage"]]
        known = "" in before or set(_named(row)) <= set(" ".join(before).split(" "))
        if float(row["seconds"]) >= KEPT or not (before and known):
            parts.setdefault((row["stage"], row["models"]), []).append(row)
    return [
        StageTime(
            stage=stage,
            models=models,
            seconds=sum(float(row["seconds"]) for row in rows),
            started=rows[0]["started"],
            commits=tuple(dict.fromkeys(row["commit"] for row in rows if row["commit"])),
            machines=tuple(dict.fromkeys(row["machine"] for row in rows)),
        )
        for (stage, models), rows in parts.items()
    ]


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{"models": "", **row} for row in csv.DictReader(file)]
    for number, row in enumerate(rows, start=2):
        try:
            float(row["seconds"])
            good = set(row) == set(COLUMNS) and None not in row.values()
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise ValueError(
                f"{path}, line {number}: expected {', '.join(COLUMNS)}, got {list(row.values())}"
            )
    return rows


def _named(row: Row) -> list[str]:
    return row["models"].split(" ")
