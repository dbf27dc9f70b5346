"""A run killed at any moment and resumed has the same bits as an unbroken one."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import xarray as xr

from thermosphere.archive import read_archive
from thermosphere.runs.sample import CHECKPOINT

SETTINGS = [
    "--preset",
    "smoke",
    "--quiet",
    "--threads",
    "1",
    "--set",
    "training.max_epochs=12",
    "--set",
    "sampling.draws=30",
    "--set",
    "sampling.checkpoint_seconds=0.4",
    "--set",
    "sequences.checkpoint_seconds=0.0",
]
STAGES = ("contacts", "sequences", "dataset", "train", "sample")


def command(stage: str, directory: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "thermosphere.cli",
        stage,
        *SETTINGS,
        "-o",
        str(directory),
        "--resume",
    ]


def files_and_times(directory: Path) -> dict[Path, int]:
    """Every file of a run and when it was last written; those that go while one looks, not."""
    seen = {}
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            seen[path] = path.stat().st_mtime_ns
    return seen


@pytest.mark.slow
def test_killed_runs_end_with_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for stage in STAGES:
        subprocess.run(command(stage, unbroken), check=True)

    chance = random.Random(20261122)
    kills = 0
    for stage in STAGES:
        for _ in range(3 if stage in ("train", "sample") else 1):
            written = files_and_times(broken)
            process = subprocess.Popen(command(stage, broken))
            while process.poll() is None and files_and_times(broken) == written:
                time.sleep(0.005)  # until it has written something, however quick the machine is
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=chance.uniform(0.0, 0.3))
            if process.poll() is not None:
                assert process.returncode == 0
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        subprocess.run(command(stage, broken), check=True)
    assert kills >= 3  # else nothing was shown

    for name in ("stage1.safetensors", "references.safetensors"):
        one, two = ((d / "tf1-small" / name).read_bytes() for d in (unbroken, broken))
        assert one == two, name
    states = [
        read_archive(d / "tf1-small" / "checkpoint.safetensors", CHECKPOINT)
        for d in (unbroken, broken)
    ]
    assert states[0][1] == states[1][1]
    assert states[0][0].keys() == states[1][0].keys()
    for name, tensor in states[0][0].items():
        assert torch.equal(tensor, states[1][0][name]), name
    one, two = (xr.open_zarr(d / "tf1-small" / "samples.zarr").load() for d in (unbroken, broken))
    xr.testing.assert_identical(one.drop_attrs(), two.drop_attrs())
    assert not one.isnull().any().to_array().any()
