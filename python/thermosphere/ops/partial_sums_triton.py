"""Sums of partial results in a fixed order: no atomics, so the same bits in every run."""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

BLOCK = 512


def rows_per_group(rows: int, chains: int) -> int:
    """Rows whose slopes of the weights one program sums, of `rows` a chain: 64 … 512, so that about
    256 programs, two for each multiprocessor of a large GPU, share the rows of all chains."""
    share = max(1, rows * chains // 256)
    return min(512, max(64, 1 << (share.bit_length() - 1)))


@triton.jit
def sum_partials_kernel(
    partial,  # (C, G, size)
    out,  # (C, stride), the first `size` of each row written
    size,
    stride,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chain = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < size
    total = tl.zeros((BLOCK,), partial.dtype.element_ty)
    for group in range(GROUPS):
        at = partial + (chain * GROUPS + group) * size + element
        total += tl.load(at, mask=inside, other=0.0)
    tl.store(out + chain * stride + element, total, mask=inside)


@triton.jit
def sum_segments_kernel(
    partial,  # every segment's (C, G, size), one after another
    table,  # (blocks, 5) int64: where a block of a segment begins, its G, size, length, and place
    out,  # (C, stride)
    stride,
    MOST: tl.constexpr,  # the largest G
    BLOCK: tl.constexpr,
):
    chain = tl.program_id(1).to(tl.int64)
    table += tl.program_id(0) * 5
    begin = tl.load(table)
    groups = tl.load(table + 1)
    size = tl.load(table + 2)
    length = tl.load(table + 3)
    place = tl.load(table + 4)
    element = tl.arange(0, BLOCK)
    inside = element < length
    partial += begin + chain * groups * size
    total = tl.zeros((BLOCK,), tl.float32)
    for group in range(MOST):
        if group < groups:
            total += tl.load(partial + group * size + element, mask=inside, other=0.0)
    tl.store(out + chain * stride + place + element, total, mask=inside)


class Segment(NamedTuple):
    """A run of the gradient, size elements from `place` of each row, that is a sum over groups."""

    place: int
    size: int
    groups: int


class SegmentSums:
    """Partial sums of all segments of a (C, N) gradient, added up in one launch."""

    def __init__(self, segments: list[Segment], chains: int, device: torch.device) -> None:
        sizes = [chains * segment.groups * segment.size for segment in segments]
        flat = torch.empty(sum(sizes), dtype=torch.float32, device=device)
        parts = flat.split(sizes)
        self.partials = [  # one (C, G, size) a segment
            part.view(chains, segment.groups, segment.size)
            for part, segment in zip(parts, segments, strict=True)
        ]
        blocks = [
            (
                partial.storage_offset() + begin,
                groups,
                size,
                min(BLOCK, size - begin),
                place + begin,
            )
            for partial, (place, size, groups) in zip(self.partials, segments, strict=True)
            for begin in range(0, size, BLOCK)
        ]
        self._flat = flat
        self._table = torch.tensor(blocks, dtype=torch.int64).to(device)
        self._most = max(segment.groups for segment in segments)

    def launch(self, out: torch.Tensor) -> None:
        """out (C, N): every segment = Σ_g of its partial, in the order of g."""
        grid = (len(self._table), len(out))
        sum_segments_kernel[grid](
            self._flat, self._table, out, out.stride(0), MOST=self._most, BLOCK=BLOCK
        )


def sum_partials(partial: torch.Tensor, out: torch.Tensor) -> None:
    """out (C, size) = Σ_g partial (C, G, size) in the order of g; rows of `out` may be strided."""
    chains, groups, size = partial.shape
    grid = (triton.cdiv(size, BLOCK), chains)
    sum_partials_kernel[grid](partial, out, size, out.stride(0), GROUPS=groups, BLOCK=BLOCK)


def summed_parts(partial: torch.Tensor, like: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Σ_g partial (C, G, size), cut into tensors of the shapes of `like`, each (C, ...)."""
    chains, _, size = partial.shape
    total = partial.new_empty(chains, size)
    sum_partials(partial, total)
    parts = total.split([tensor[0].numel() for tensor in like], dim=1)
    # copies: results of an operator must not share memory
    return tuple(part.clone().view(one.shape) for part, one in zip(parts, like, strict=True))
