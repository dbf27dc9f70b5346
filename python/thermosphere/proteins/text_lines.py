"""A text file cut into lines, of which many are parsed by NumPy in one call.

Files of couplings have millions of lines: those of one kind are picked by their first byte and go
to ``np.loadtxt`` together.  A Python loop over the lines is run only to find the one that is wrong.
"""

from __future__ import annotations

import codecs
import gzip
import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def unpacked(path: Path, where: str) -> bytes:
    """A file's bytes, of a .gz what is in it. ValueError, beginning with ``where``, for a damaged
    one."""
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{where}: not a gzip file ({error})") from None


class Lines(NamedTuple):
    """The lines of a file, by their bounds in its bytes."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]  # behind the newline
    first: NDArray[np.uint8]  # first byte that is no space, 0 for a blank line

    @classmethod
    def of(cls, path: Path, where: str) -> Lines:
        text = unpacked(path, where).removeprefix(codecs.BOM_UTF8)
        data = np.frombuffer(text, dtype=np.uint8)
        ends = np.flatnonzero(data == ord("\n")) + 1
        if data.size and (not ends.size or ends[-1] < data.size):
            ends = np.append(ends, data.size)
        starts = np.concatenate([np.zeros(min(1, len(ends)), dtype=np.int64), ends[:-1]])
        first, at = data[starts], starts.copy()
        while len(indented := np.flatnonzero((first <= ord(" ")) & (at < ends - 1))):
            at[indented] += 1
            first[indented] = data[at[indented]]
        return cls(data, starts, ends, np.where(first <= ord(" "), np.uint8(0), first))

    def words(self, k: int) -> list[str]:
        text = self.data[self.starts[k] : self.ends[k]].tobytes()
        return text.decode("utf-8", errors="replace").split()

    def wrong(self, k: int, where: str, expected: str) -> ValueError:
        got = " ".join(self.words(k))
        shown = got if len(got) <= 60 else got[:60] + "…"
        return ValueError(f"{where} line {k + 1}: expected {expected}, got {shown!r}")

    def table(
        self,
        chosen: NDArray[np.int64],
        dtype: np.dtype[Any],
        where: str,
        expected: str,
        fits: Callable[[list[str]], bool],
    ) -> NDArray[Any]:
        """The chosen lines as an array; ``fits`` says of the words of one whether they do."""
        kept = np.zeros(len(self.starts), dtype=bool)
        kept[chosen] = True
        text = self.data[np.repeat(kept, self.ends - self.starts)].tobytes()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                return np.loadtxt(
                    io.BytesIO(text), dtype, comments=None, ndmin=1 if dtype.names else 2
                )
        except (ValueError, OverflowError, Warning) as error:
            for k in chosen.tolist():
                if not fits(self.words(k)):
                    raise self.wrong(k, where, expected) from None
            raise ValueError(f"{where}: {error}") from None


def are_numbers(words: list[str]) -> bool:
    """Whether there are words and all of them are numbers."""
    try:
        list(map(float, words))
    except ValueError:
        return False
    return bool(words)
