"""Ctrl-C between moves, not within one: what is changed together stays together."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Uninterrupted:
    """A block that a first SIGINT does not cut: its handler is called at the end of the block. A
    second one is not held back.

    Only in the main thread, where Python delivers signals; elsewhere, and where SIGINT has no
    handler of Python's, it does nothing.
    """

    def __enter__(self) -> None:
        self._held: tuple[int, FrameType | None] | None = None
        self._handler = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._hold)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        assert self._handler is not None
        if self._held is not None:
            self._handler(number, frame)
        self._held = number, frame

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handler is None:
            return
        signal.signal(signal.SIGINT, self._handler)
        if self._held is not None and not isinstance(error, KeyboardInterrupt):
            self._handler(*self._held)
