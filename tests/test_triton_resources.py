"""Triton's kernels compiled ahead of time, as a GPU would run them: what the interpreter accepts
must also compile, without spills, within the shared memory of a multiprocessor, and without warps
that repeat each other's products. `benchmarks/triton_resources.py` does all published shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "triton_resources.py"
# A program's share of shared memory with which two fit on an A100 (163 kB) or an H100 (227 kB).
SHARED = 80_000
COMPILED = [("tf1", 80), ("ff", 90)]


@pytest.fixture(scope="module")
def tables() -> dict[tuple[str, int], list[list[str]]]:
    """Lines of the benchmark's table for each of COMPILED, made beside one another, and not
    interpreted."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(BENCHMARK), "--chains", "64"]
    runs = {
        (model, arch): subprocess.Popen(
            [*command, "--model", model, "--arch", str(arch)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for model, arch in COMPILED
    }
    tables = {}
    for key, run in runs.items():
        text, _ = run.communicate()
        assert run.returncode == 0, key
        tables[key] = [line.split() for line in text.splitlines()[2:]]
    return tables


@pytest.mark.parametrize(("model", "arch"), COMPILED)
def test_kernels_compile_and_fit(
    model: str, arch: int, tables: dict[tuple[str, int], list[list[str]]]
) -> None:
    lines = tables[model, arch]
    assert len(lines) >= 12
    for kernel, _, _, _, *numbers in lines:
        registers, spilled, shared, repeated = map(int, numbers)
        assert 0 < registers <= 255, kernel
        assert spilled == 0, kernel
        assert shared <= SHARED, kernel
        assert repeated == 1, kernel
