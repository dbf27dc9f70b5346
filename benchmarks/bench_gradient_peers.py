"""Loss and gradient of one chain on a mini-batch, against the strongest stock peers.

pytest benchmarks/bench_gradient_peers.py --benchmark-only

All peers have the masked-row saving (peers.py, peers_jax.py). Every contender is held to the
float64 loss and gradient before it is timed; then all alternate in one process (peer_times.py), and
medians and medians of ratios are printed, at 1 and 2 threads each. Once more with MKL's vendor
check lifted (mkl_unlocked.py), since the processor's maker should not decide the comparison; JAX
has no MKL and is timed once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import mkl_unlocked
import peers
import pytest
from gradient_problem import gradient_problem
from measure import torch_threads

from thermosphere import _core
from thermosphere.models.named import NAMES


@cache
def measured(threads: int, unlocked: bool, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """What peer_times.py prints, by network."""
    environment = mkl_unlocked.environment(folder) if unlocked else dict(os.environ)
    script = Path(__file__).with_name("peer_times.py")
    command = [sys.executable, str(script), f"--threads={threads}"]
    command += ["--no-jax"] if unlocked else []
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    results = [json.loads(line) for line in child.stdout.splitlines()]
    return {result["model"]: result for result in results}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("unlocked", [False, True], ids=["stock", "unlocked"])
def test_gradient_peers(
    benchmark, capsys, tmp_path_factory, name: str, threads: int, unlocked: bool
) -> None:
    if unlocked and mkl_unlocked.obstacle() is not None:
        pytest.skip(f"MKL's vendor check cannot be lifted: {mkl_unlocked.obstacle()}")
    result = measured(threads, unlocked, tmp_path_factory.getbasetemp())[name]
    with torch_threads(threads):
        fused = peers.fused(gradient_problem(name))
        benchmark.pedantic(fused, rounds=10, warmup_rounds=1)
    benchmark.extra_info.update(result, isa=_core.isa_chosen())
    others = "; ".join(
        f"{contender} {ms:.2f} ({result['ratio'][contender]:.1f}×)"
        for contender, ms in result["ms"].items()
        if contender != "fused"
    )
    skipped = "".join(f"; {peer} skipped: {why}" for peer, why in result["skipped"].items())
    with capsys.disabled():
        print(
            f"\ngradient_peers {name}, {threads} thread(s), {_core.isa_chosen()}, MKL "
            f"{result['mkl']}: ours {result['ms']['fused']:.2f} ms; {others}{skipped}"
        )
