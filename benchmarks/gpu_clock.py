"""The device's clock and its rates: what gpu.py and its parts measure with."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

COPIED = 2**28  # floats, 1 GiB: far past any cache
MATRIX = 8192  # rows and columns of the product that measures the matrix rate


def capture(run: Callable[[], object], warm_ups: int = 1) -> torch.cuda.CUDAGraph:
    """The calls as a CUDA graph, none of which may wait for the device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_ups):
            run()  # compiles and loads the kernels
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph, stream=side):
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return graph


def event_seconds(run: Callable[[], object]) -> float:
    """Device time of one call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def device_times(
    calls: dict[str, Callable[[], object]], rounds: int = 20
) -> dict[str, list[float]]:
    """Seconds of each call: one warm-up of each, then all in turn, `rounds` times."""
    for call in calls.values():
        event_seconds(call)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(event_seconds(call))
    return times


def median_seconds(run: Callable[[], object], rounds: int = 20) -> float:
    """Median device time of a call."""
    return statistics.median(device_times({"": run}, rounds)[""])


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy of 1 GiB."""
    source, target = (torch.zeros(COPIED, device=device) for _ in range(2))
    return 8 * COPIED / median_seconds(lambda: target.copy_(source))


def matrix_rate(device: torch.device) -> float:
    """Operations a second of a large product of tf32."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return 2 * MATRIX**3 / median_seconds(lambda: torch.mm(a, b))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
