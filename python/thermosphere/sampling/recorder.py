"""How a fixed sequence of calls is made again and again: as a CUDA graph on a GPU, and as the plain
calls on the CPU, which is how the same control flow is tested without a GPU.

The calls work on buffers that stay where they are and wait for nothing; what differs from one time
to the next (the move's number, failures) is in those buffers too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Call = Callable[[], None]


class Recorder(Protocol):
    """Records calls to be replayed."""

    backend: str  # of the step and of mini-batch draws in what is recorded (ops/backends.py)

    def record(self, calls: Sequence[Call], times: int) -> Call:
        """A call that makes `calls` one after another, and that `times` times.

        Makes each once at once, to warm up: the caller sees to it that this leaves no trace.
        """


class GraphRecorder:
    """A CUDA graph on one device.

    The warm-up compiles and loads every kernel, which no capture allows. What the calls allocate
    while they are captured stays with the graph.
    """

    def __init__(self, device: torch.device, backend: str = "auto") -> None:
        self.device = device
        self.backend = backend

    def record(self, calls: Sequence[Call], times: int) -> Call:
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for call in calls:
                    call()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread's transfer, a writer's say, does not end the capture
            # And on that stream: the one that torch would choose is of the first graph's device.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                for _ in range(times):
                    for call in calls:
                        call()
        return graph.replay


class CallRecorder:
    """The calls themselves: the twin of :class:`GraphRecorder` for tensors on the CPU."""

    def __init__(self, backend: str = "auto") -> None:
        self.backend = backend

    def record(self, calls: Sequence[Call], times: int) -> Call:
        kept = tuple(calls)

        def replay() -> None:
            for _ in range(times):
                for call in kept:
                    call()

        for call in kept:
            call()
        return replay
