"""What the benchmarks share: the clock, the processor's peak, calls in turn and their ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from thermosphere import _core


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def peak_rate() -> float:
    """Highest floating-point operations a second of one core's vector multiply-adds, on the
    instruction set in use."""
    return max(
        _core.fma_operations(200_000) / seconds(lambda: _core.fma_operations(200_000))
        for _ in range(5)
    )


def peak_beside() -> float:
    """The same at the clock that the processor has at this moment, to be called right after what is
    measured: heavy vector code lowers the clock, and multiply-adds in registers alone do less."""
    _core.fma_operations(10_000)  # the first after other work is slow
    return _core.fma_operations(1) * 50_000 / seconds(lambda: _core.fma_operations(50_000))


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """n threads for PyTorch and for the ops, which take theirs from it."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def alternating(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` of them: one warm-up of each, then all in turn, so that a
    neighbour on the machine slows all alike."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return times


def median_ratio(a: list[float], b: list[float]) -> float:
    """Median over the rounds of a / b."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))
