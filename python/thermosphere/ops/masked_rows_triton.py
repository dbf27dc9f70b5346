"""Which rows of a batch a stage works on, listed on the GPU: no host in the way.

Chain c has `capacity` row slots. Sequence b of its batch owns the slots first[c, b] …
first[c, b + 1]; slot i stands for row source[c, i] = b·n + site of the chain's X (B·n, d). The
number of masked sites varies (12.9 ± 3.3 of 86), so slots are packed without gaps; a sequence of
weight zero, a repeated draw, has none.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class RowSlots(NamedTuple):
    """Rows as kernels read them. `first` None: every sequence owns `most` slots; `source` None:
    those are its n sites in order."""

    first: torch.Tensor | None  # (C, B + 1) int32
    source: torch.Tensor | None  # (C, capacity) int32
    most: int  # slots of a sequence, the most of any one where `first` is given
    capacity: int  # slots of a chain


def row_slots(rows: torch.Tensor | None, chains: int, batch: int, n: int) -> RowSlots:
    """Rows (C, B, r) int64, positions in [0, n), as many of every sequence; None: all."""
    if rows is None:
        return RowSlots(None, None, n, batch * n)
    first = torch.arange(0, batch * n, n, device=rows.device)
    source = (rows + first[:, None]).to(torch.int32).view(chains, -1)
    return RowSlots(None, source, rows.shape[2], source.shape[1])


class MaskedRows(NamedTuple):
    """The masked rows of a batch, and the loss after them."""

    first: torch.Tensor  # (C, B + 1) int32
    source: torch.Tensor  # (C, capacity) int32
    target: torch.Tensor  # (C, capacity) int32
    weight: torch.Tensor  # (C, capacity) float32, weight of the sequence / its masked sites


@triton.jit
def list_masked_rows_kernel(
    indices,  # (C, B) int64
    shares,  # (C, B) float32
    set_first,  # (S + 1) int64
    set_site,  # (M) int32
    set_target,  # (M) int32
    first,
    source,
    target,
    weight,
    batch,
    capacity,
    n: tl.constexpr,
    MOST: tl.constexpr,  # masked sites of one sequence, a power of two
    BLOCKS: tl.constexpr,  # of SEQUENCES sequences
    SEQUENCES: tl.constexpr,
):
    chain = tl.program_id(0).to(tl.int64)
    first += chain * (batch + 1)
    begin = 0
    for block in range(BLOCKS):
        b = block * SEQUENCES + tl.arange(0, SEQUENCES)
        inside = b < batch
        share = tl.load(shares + chain * batch + b, mask=inside, other=0.0)
        sequence = tl.load(indices + chain * batch + b, mask=inside, other=0)
        taken = inside & (share != 0.0)
        at = tl.load(set_first + sequence, mask=taken, other=0)
        count = (tl.load(set_first + sequence + 1, mask=taken, other=0) - at).to(tl.int32)
        end = begin + tl.cumsum(count, axis=0)
        tl.store(first + 1 + b, end, mask=inside)
        k = tl.arange(0, MOST)
        real = k[None, :] < count[:, None]
        slot = chain * capacity + (end - count)[:, None] + k[None, :]
        site = tl.load(set_site + at[:, None] + k[None, :], mask=real, other=0)
        residue = tl.load(set_target + at[:, None] + k[None, :], mask=real, other=0)
        tl.store(source + slot, b[:, None] * n + site, mask=real)
        tl.store(target + slot, residue, mask=real)
        each = (share / tl.maximum(count, 1).to(tl.float32))[:, None]
        tl.store(weight + slot, tl.broadcast_to(each, (SEQUENCES, MOST)), mask=real)
        begin += tl.sum(count)
    tl.store(first, 0)


def list_masked_rows(
    indices: torch.Tensor,
    shares: torch.Tensor,
    set_first: torch.Tensor,
    set_site: torch.Tensor,
    set_target: torch.Tensor,
    rows: MaskedRows,
    n: int,
    most: int,
) -> None:
    """Fill `rows` for the batch indices (C, B) int64 with weights shares (C, B) float32.

    `set_first` (S + 1) int64, `set_site`, `set_target` (M) int32 list the masked sites of the set,
    `most` of them at most in one sequence; `rows` must have capacity B · most.
    """
    chains, batch = indices.shape
    width = triton.next_power_of_2(most)
    sequences = min(triton.next_power_of_2(batch), max(1, 2048 // width))
    list_masked_rows_kernel[(chains,)](
        indices,
        shares,
        set_first,
        set_site,
        set_target,
        *rows,
        batch,
        rows.source.shape[1],
        n=n,
        MOST=width,
        BLOCKS=triton.cdiv(batch, sequences),
        SEQUENCES=sequences,
    )
