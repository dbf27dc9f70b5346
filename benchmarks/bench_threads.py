"""The fused gradient's threads beside PyTorch's: do the two pools fight, and what do threads gain?

pytest benchmarks/bench_threads.py --benchmark-only

64 draws of 1,000 sequences, on 2 threads, on the OpenMP runtime of torch and on std::thread. The
backend is chosen when the extension loads, so each is measured in a process of its own; the table's
time is that process's. First the gradient is held to float64, and to its bits on one thread, from
two Python threads at once and after a torch operation. Then blocks of calls alternate: alone, each
after a torch operation on both threads (a product 512 × 512 and an addition over 4 MB), on one
thread. Medians of ratios within a round of blocks; in turn with torch should be at most 1.2×.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from gradient_problem import DRAWN, SEQUENCES, make_sequences
from measure import seconds

from thermosphere import _core
from thermosphere.models.named import named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.minibatch import draw_minibatch

THREADS, BLOCKS, CALLS = 2, 30, 20


def median_seconds(call: Callable[[], object], before: Callable[[], object] | None = None) -> float:
    """Of a block of calls, each after `before`, whose time does not count."""
    times = []
    for _ in range(CALLS):
        if before is not None:
            before()
        times.append(seconds(call))
    return statistics.median(times)


def on_threads(threads: int, call: Callable[[], float]) -> float:
    torch.set_num_threads(threads)
    try:
        return call()
    finally:
        torch.set_num_threads(THREADS)


def at_once(call: Callable[[], torch.Tensor]) -> tuple[list[torch.Tensor], float]:
    """Results of CALLS calls from each of two Python threads together, and the time a call."""
    results: list[torch.Tensor] = []
    start = threading.Barrier(3)

    def work() -> None:
        start.wait()
        results.extend([call() for _ in range(CALLS)])

    callers = [threading.Thread(target=work) for _ in range(2)]
    for caller in callers:
        caller.start()
    start.wait()
    begun = time.perf_counter()
    for caller in callers:
        caller.join()
    return results, (time.perf_counter() - begun) / (2 * CALLS)


def fork_join_seconds() -> float:
    """What one parallel loop costs: two tasks of almost no work, on two threads and on one."""
    ones, sums = torch.ones(2, 16), torch.zeros(6, dtype=torch.float64)

    def loops(threads: int) -> None:
        for _ in range(200):
            _core.metric_sums(
                chains=2,
                parameters=16,
                weights=ones.data_ptr(),
                inverse_masses=ones.data_ptr(),
                partial_sums=sums.data_ptr(),
                metric=sums.data_ptr(),
                threads=threads,
            )

    return statistics.median(
        (seconds(lambda: loops(THREADS)) - seconds(lambda: loops(1))) / 200 for _ in range(BLOCKS)
    )


def measure(name: str) -> dict[str, object]:
    model = named_model(name)
    sequences = make_sequences()
    potential = MaskedLanguagePotential(model, sequences, backend="fused")
    exact = MaskedLanguagePotential(model, sequences, backend="autograd")
    weights = model.initial(1, torch.Generator().manual_seed(0))
    batch = draw_minibatch(
        seed=0, step=0, chain_ids=torch.zeros(1, dtype=torch.int64), batch=DRAWN, examples=SEQUENCES
    )
    left, right, large = torch.ones(512, 512), torch.ones(512, 512), torch.ones(1_000_000)

    def gradient() -> torch.Tensor:
        return potential(weights, batch)[1]

    def torch_operation() -> None:
        torch.mm(left, right)
        large.add_(1.0)

    # Right before fast.
    torch.set_num_threads(1)
    alone = gradient().clone()
    torch.set_num_threads(THREADS)
    expected = exact(weights.double(), batch)[1]
    assert float((alone - expected).norm() / expected.norm()) < 1e-5
    together, together_seconds = at_once(gradient)
    assert len(together) == 2 * CALLS
    assert all(torch.equal(result, alone) for result in together)
    torch_operation()
    assert torch.equal(gradient(), alone)

    blocks: list[tuple[float, float, float, float]] = []
    for _ in range(BLOCKS):
        blocks.append(
            (
                median_seconds(gradient),
                median_seconds(gradient, before=torch_operation),
                on_threads(1, lambda: median_seconds(gradient)),
                median_seconds(torch_operation, before=gradient) / median_seconds(torch_operation),
            )
        )
    return {
        "backend": _core.parallel_backend(),
        "isa": _core.isa_chosen(),
        "ms": 1e3 * statistics.median(two for two, _, _, _ in blocks),
        "beside_torch": statistics.median(beside / two for two, beside, _, _ in blocks),
        "torch_beside_ours": statistics.median(ratio for _, _, _, ratio in blocks),
        "speed_up": statistics.median(one / two for two, _, one, _ in blocks),
        "ms_from_two_python_threads": 1e3 * together_seconds,
        "fork_join_us": 1e6 * fork_join_seconds(),
    }


@pytest.mark.parametrize("backend", ["openmp", "std"])
@pytest.mark.parametrize("name", ["tf1", "tf1-small"])
def test_threads(benchmark, capsys, name: str, backend: str) -> None:
    run = benchmark.pedantic(
        lambda: subprocess.run(
            [sys.executable, __file__, name],
            env={**os.environ, "THERMOSPHERE_THREADING": backend},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ),
        rounds=1,
    )
    result = json.loads(run.stdout)
    benchmark.extra_info.update(result)
    with capsys.disabled():
        print(
            f"\nthreads, {name}, {THREADS} threads, {result['backend']}, {result['isa']}: "
            f"{result['ms']:.2f} ms; {result['beside_torch']:.2f}× of it in turn with torch "
            f"(torch: {result['torch_beside_ours']:.2f}×); {result['speed_up']:.2f}× as fast as on "
            f"one thread; {result['ms_from_two_python_threads']:.2f} ms a call from two Python "
            f"threads; fork and join {result['fork_join_us']:.1f} µs"
        )


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
