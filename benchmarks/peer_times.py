r"""Times the fused gradient and its peers in a process of their own, one line of JSON a network.

    python benchmarks/peer_times.py --threads 2 --models tf1 ff \
        --modes default max-autotune-no-cudagraphs

A process of their own, because the size of XLA's thread pool and MKL's choice of kernels
(mkl_unlocked.py) are settled when they are loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics

import mkl_unlocked
import peers
import torch
import torch._inductor.config
from gradient_problem import GradientProblem, gradient_problem
from measure import alternating, median_ratio, seconds, torch_threads

from thermosphere.models.named import NAMES

SECONDS = 2.0  # of timing a network, where five rounds do not take longer


def contenders(
    problem: GradientProblem, modes: list[str], with_jax: bool
) -> tuple[dict[str, peers.Call], dict[str, str]]:
    """The calls by name, each held to float64, and why others are missing."""
    calls = {"fused": peers.fused(problem), **peers.eager(problem)}
    skipped: dict[str, str] = {}
    for mode in modes:
        name = "compiled" if mode == "default" else f"compiled {mode}"
        try:
            call = peers.compiled(problem, mode)
            call()
        except torch._dynamo.exc.TorchDynamoException as error:  # no compiler, for one
            skipped[name] = str(error).splitlines()[0]
        else:
            calls[name] = call
    if with_jax:
        try:
            import peers_jax
        except ImportError as error:
            skipped["jax"] = f"{error}; pip install '.[bench]'"
        else:
            calls["jax"] = peers_jax.jitted(problem)
    for name, call in calls.items():
        problem.hold(name, *call())
    return calls, skipped


def times(name: str, modes: list[str], with_jax: bool) -> dict[str, object]:
    """Median milliseconds of every contender, and its ratio to the fused gradient.

    Each is called twice and the second call timed: idle threads of one runtime spin on for a
    millisecond or two and would slow the next."""
    problem = gradient_problem(name)
    calls, skipped = contenders(problem, modes, with_jax)
    pairs = {}
    for contender, call in calls.items():
        pairs |= {contender + ", settling": call, contender: call}
    round_seconds = sum(seconds(call) for call in pairs.values())
    result = alternating(pairs, max(5, min(50, int(SECONDS / round_seconds))))
    return {
        "model": name,
        "ms": {c: 1e3 * statistics.median(result[c]) for c in calls},
        "ratio": {c: median_ratio(result[c], result["fused"]) for c in calls},
        "skipped": skipped,
        "mkl": mkl_unlocked.code_path(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--models", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--modes", nargs="*", default=["default"], help="of torch.compile")
    parser.add_argument("--no-jax", action="store_true")
    arguments = parser.parse_args()
    os.environ["NPROC"] = str(arguments.threads)  # read when XLA makes its thread pool
    # One compilation serves any number of threads; as fast as one for each (within 5 %).
    torch._inductor.config.cpp.dynamic_threads = True
    with torch_threads(arguments.threads):
        for name in arguments.models:
            result = times(name, arguments.modes, not arguments.no_jax)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
