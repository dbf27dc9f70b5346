"""Logits of masked rows, their loss, errors and slopes on a GPU, all chains in one launch (see
masked_cross_entropy.py; the formula is in masked_cross_entropy_ref.py).

The slopes are those by each chain's own loss and are formed beside it, while the logits are on the
chip: a slope of a function of the losses is a multiple of them. Losses and errors are summed in
float64, in groups of rows, and the groups in their order.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from thermosphere.ops.layer_norm_triton import tile_width
from thermosphere.ops.partial_sums_triton import rows_per_group, sum_partials, summed_parts

ROWS, WARPS = 16, {16: 1, 32: 1, 64: 4, 128: 4}  # by the width of a tile


@triton.jit
def masked_cross_entropy_kernel(
    x,  # (C, capacity, d)
    total,  # (C,) int32 with total_stride: rows of a chain; None: all of capacity
    target,  # (C, capacity) integers
    weight,  # (C, capacity)
    output,  # V × d, output_stride from chain to chain
    output_bias,  # V, bias_stride from chain to chain
    sums,  # (C, G, 2) float64: loss and error
    x_slope,  # (C, capacity, d)
    partial,  # (C, G, partial_stride): slopes of output and output_bias, at the two offsets
    capacity,
    total_stride,
    output_stride,
    bias_stride,
    partial_stride,
    output_at,
    bias_at,
    d: tl.constexpr,
    tokens: tl.constexpr,
    WITH_SLOPES: tl.constexpr,
    CHUNKS: tl.constexpr,  # of ROWS rows in a group
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chain = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0)
    own = capacity
    if total is not None:
        own = tl.load(total + chain * total_stride)
    k = tl.arange(0, WIDE)
    v = tl.arange(0, TOKENS)
    inside = (k < d)[None, :]
    known = v < tokens
    both = known[:, None] & inside
    both_turned = known[None, :] & (k < d)[:, None]
    output += chain * output_stride
    shift = tl.load(output_bias + chain * bias_stride + v, mask=known, other=0.0)
    loss = tl.zeros((ROWS,), tl.float64)
    error = tl.zeros((ROWS,), tl.float64)
    output_slope = tl.zeros((TOKENS, WIDE), tl.float32)
    bias_slope = tl.zeros((TOKENS,), tl.float32)
    for chunk in tl.range(0, CHUNKS, disable_licm=True):
        start = (group * CHUNKS + chunk) * ROWS
        if start < own:
            row = start + tl.arange(0, ROWS)
            real = row < own
            slot = chain * capacity + row
            at = slot[:, None] * d + k[None, :]
            rows = tl.load(x + at, mask=real[:, None] & inside, other=0.0)
            truth = tl.load(target + slot, mask=real, other=0)
            share = tl.load(weight + slot, mask=real, other=0.0)
            table = tl.load(output + v[None, :] * d + k[:, None], mask=both_turned, other=0.0)
            logits = tl.dot(rows, table, input_precision=PRECISION) + shift[None, :]
            logits = tl.where(known[None, :], logits, float("-inf"))
            largest = tl.max(logits, axis=1)
            powers = tl.exp(logits - largest[:, None])
            powers_sum = tl.sum(powers, axis=1)
            right = v[None, :] == truth[:, None]
            chosen = tl.sum(tl.where(right, logits, 0.0), axis=1)
            surprise = tl.log(powers_sum) + largest - chosen
            loss += tl.where(real, (share * surprise).to(tl.float64), 0.0)
            wrong = tl.argmax(logits, axis=1) != truth
            error += tl.where(real & wrong, share, 0.0).to(tl.float64)
            if WITH_SLOPES:
                slope = powers / powers_sum[:, None] - right.to(tl.float32)
                slope = tl.where(real[:, None], slope * share[:, None], 0.0)
                table = tl.load(output + v[:, None] * d + k[None, :], mask=both, other=0.0)
                back = tl.dot(slope, table, input_precision=PRECISION)
                tl.store(x_slope + at, back, mask=real[:, None] & inside)
                output_slope = tl.dot(
                    tl.trans(slope), rows, output_slope, input_precision=PRECISION
                )
                bias_slope += tl.sum(slope, axis=0)
    groups = tl.num_programs(0)
    sums += (chain * groups + group) * 2
    tl.store(sums, tl.sum(loss))
    tl.store(sums + 1, tl.sum(error))
    if WITH_SLOPES:
        partial += (chain * groups + group) * partial_stride
        at = output_at + v[:, None] * d + k[None, :]
        tl.store(partial + at, output_slope, mask=both)
        tl.store(partial + bias_at + v, bias_slope, mask=known)


class MaskedCrossEntropySlopes(NamedTuple):
    """Slopes by a chain's own loss: of x, and of the weights summed over the rows of a group."""

    x: torch.Tensor  # (C, R, d)
    partial: torch.Tensor  # (C, G, ·)
    output_at: int  # offset of the output's V × d in a row of partial
    bias_at: int


def launch(
    x: torch.Tensor,
    total: torch.Tensor | None,
    target: torch.Tensor,
    weight: torch.Tensor,
    output: torch.Tensor,
    output_bias: torch.Tensor,
    sums: torch.Tensor,
    slopes: MaskedCrossEntropySlopes | None,
    group: int,
    precision: str,
) -> None:
    """Loss and error of each group, sums (C, G, 2) float64, and slopes.

    x: (C, R, d); target, weight: (C, R); total: (C,) int32, rows of each chain, any stride; output:
    (C, V, d), output_bias: (C, V), any stride from chain to chain. G groups of `group` rows,
    a multiple of 64, cover the R slots.
    """
    chains, capacity, d = x.shape
    tokens = output.shape[1]
    partial = None if slopes is None else slopes.partial
    masked_cross_entropy_kernel[(sums.shape[1], chains)](
        x,
        total,
        target,
        weight,
        output,
        output_bias,
        sums,
        None if slopes is None else slopes.x,
        partial,
        capacity,
        0 if total is None else total.stride(0),
        output.stride(0),
        output_bias.stride(0),
        0 if partial is None else partial.stride(1),
        0 if slopes is None else slopes.output_at,
        0 if slopes is None else slopes.bias_at,
        d=d,
        tokens=tokens,
        WITH_SLOPES=slopes is not None,
        CHUNKS=group // ROWS,
        ROWS=ROWS,
        TOKENS=tile_width(tokens),
        WIDE=tile_width(d),
        PRECISION=precision,
        num_warps=WARPS[tile_width(d)],
        num_stages=1,
        enable_fp_fusion=True,
    )


def layer(
    x: torch.Tensor,
    output: torch.Tensor,
    output_bias: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    with_slopes: bool,
    precision: str,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """Losses and errors (C,) of the arguments of masked_cross_entropy.py, contiguous, and the
    slopes of x, output and output_bias by each chain's own loss."""
    chains, capacity = x.shape[:2]
    group = rows_per_group(capacity, chains)
    groups = max(1, triton.cdiv(capacity, group))
    sums = x.new_empty(chains, groups, 2, dtype=torch.float64)
    slopes = None
    if with_slopes:
        size = output[0].numel() + output_bias.shape[1]
        partial = x.new_empty(chains, groups, size)
        slopes = MaskedCrossEntropySlopes(torch.empty_like(x), partial, 0, output[0].numel())
    launch(x, None, targets, weights, output, output_bias, sums, slopes, group, precision)
    totals = sums.new_empty(chains, 2)
    sum_partials(sums, totals)
    losses, errors = totals[:, 0].clone(), totals[:, 1].clone()
    if slopes is None:
        return losses, errors, None
    return losses, errors, (slopes.x, *summed_parts(slopes.partial, (output, output_bias)))
