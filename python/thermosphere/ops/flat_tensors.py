"""Where the tensors of a network lie in its flat vector, and views of them for all chains."""

from __future__ import annotations

import math

import torch


class FlatTensors:
    """Tensors appended one after another, as models/layout.py packs them."""

    def __init__(self) -> None:
        self.size = 0  # N once all are appended
        self._tensors: list[tuple[int, tuple[int, ...]]] = []

    def add(self, *shapes: tuple[int, ...]) -> slice:
        """Append tensors of these shapes; which ones they are."""
        first = len(self._tensors)
        for shape in shapes:
            self._tensors.append((self.size, shape))
            self.size += math.prod(shape)
        return slice(first, len(self._tensors))

    def extent(self, which: slice) -> tuple[int, int]:
        """Offset and size of a run of tensors."""
        tensors = self._tensors[which]
        begin, (last, shape) = tensors[0][0], tensors[-1]
        return begin, last + math.prod(shape) - begin

    def offsets(self, which: slice, begin: int) -> list[int]:
        """Offset of each tensor from `begin`."""
        return [offset - begin for offset, _ in self._tensors[which]]

    def views(self, flat: torch.Tensor, which: slice) -> list[torch.Tensor]:
        """(C, *shape) views of flat (C, N); the stride from chain to chain is N."""
        return [
            flat[:, offset : offset + math.prod(shape)].unflatten(1, shape)
            for offset, shape in self._tensors[which]
        ]
