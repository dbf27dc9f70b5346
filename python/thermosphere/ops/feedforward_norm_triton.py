"""The feed-forward layer and its norm on a GPU, all chains in one launch (see feedforward_norm.py;
the formula is in feedforward_norm_ref.py).

Hidden units never leave the chip: forward walks over them in tiles, and backward forms them again
from Y, which costs a sixth more products and saves reading and writing m floats a row, more than
the products are worth. A program of backward owns a tile of hidden units and a group of rows: it
keeps its part of the weights' slopes in registers, and adds one part of Y's slope a tile, which the
stage before sums.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from thermosphere.ops.layer_norm_triton import normalised, normalised_slope, tile_width
from thermosphere.ops.partial_sums_triton import rows_per_group, summed_parts

# Rows of a tile, and hidden units and warps by the width of the others: more units spill, more
# warps repeat products (benchmarks/triton_resources.py).
FORWARD_ROWS, FORWARD_HIDDEN = 32, {16: 32, 32: 32, 64: 64, 128: 64}
FORWARD_WARPS = {16: 2, 32: 2, 64: 4, 128: 8}
BACKWARD_ROWS, BACKWARD_HIDDEN = 16, {16: 16, 32: 32, 64: 64, 128: 64}
BACKWARD_WARPS = {16: 1, 32: 4, 64: 8, 128: 8}


@triton.jit
def feedforward_forward_kernel(
    y,  # (C, capacity, d)
    total,  # (C,) int32 with total_stride: rows of a chain; None: all of capacity
    source,  # (C, capacity) int32, b·n + position; None: row i is at position i mod n
    weight1,  # m × d, matrix_stride from chain to chain
    hidden_bias,  # m, vector_stride from chain to chain
    weight2,  # d × m
    out_bias,  # d
    gain,  # d
    bias,  # d
    code,  # (n, code_stride)
    out,  # (C, capacity, d)
    normal,  # (C, capacity, d)
    inverse_deviation,  # (C, capacity)
    capacity,
    total_stride,
    matrix_stride,
    hidden_stride,
    vector_stride,
    code_stride,
    n: tl.constexpr,
    d: tl.constexpr,
    m: tl.constexpr,
    WITH_STATE: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chain = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * ROWS
    own = capacity
    if total is not None:
        own = tl.load(total + chain * total_stride)
    if start >= own:
        return
    row = start + tl.arange(0, ROWS)
    real = row < own
    slot = chain * capacity + row
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    owned = real[:, None] & inside
    at = slot[:, None] * d + k[None, :]
    rows = tl.load(y + at, mask=owned, other=0.0)
    if source is None:
        position = row % n
    else:
        position = tl.load(source + slot, mask=real, other=0) % n
    vector = chain * vector_stride + k
    summed = rows + tl.load(out_bias + vector, mask=k < d, other=0.0)[None, :]
    weight1 += chain * matrix_stride
    weight2 += chain * matrix_stride
    for first in range(0, m, HIDDEN):
        h = first + tl.arange(0, HIDDEN)
        used = h < m
        both = used[None, :] & (k < d)[:, None]
        w1 = tl.load(weight1 + h[None, :] * d + k[:, None], mask=both, other=0.0)  # (d, h)
        b1 = tl.load(hidden_bias + chain * hidden_stride + h, mask=used, other=0.0)
        hidden = tl.dot(rows, w1, input_precision=PRECISION) + b1[None, :]
        shift = code + position[:, None] * code_stride + h[None, :]
        hidden = tl.maximum(hidden, 0.0, propagate_nan=tl.PropagateNan.ALL)
        hidden += tl.load(shift, mask=used[None, :] & real[:, None], other=0.0)
        both = used[:, None] & inside
        w2 = tl.load(weight2 + k[None, :] * m + h[:, None], mask=both, other=0.0)  # (h, d)
        summed = tl.dot(hidden, w2, summed, input_precision=PRECISION)
    unit, inverse = normalised(summed, inside, d)
    g = tl.load(gain + vector, mask=k < d, other=0.0)
    b = tl.load(bias + vector, mask=k < d, other=0.0)
    tl.store(out + at, unit * g[None, :] + b[None, :], mask=owned)
    if WITH_STATE:
        tl.store(normal + at, unit, mask=owned)
        tl.store(inverse_deviation + slot, inverse, mask=real)


@triton.jit
def feedforward_backward_kernel(
    out_slope,  # (C, capacity, d)
    y,  # (C, capacity, d)
    total,
    source,
    weight1,
    hidden_bias,
    weight2,
    gain,
    code,
    normal,
    inverse_deviation,
    y_slope,  # (C, tiles, capacity, d): a part a tile of hidden units
    partial,  # (C, G, stride): sums over the rows of a group, at the six offsets
    capacity,
    total_stride,
    matrix_stride,
    hidden_stride,
    vector_stride,
    code_stride,
    partial_stride,
    weight1_at,
    hidden_bias_at,
    weight2_at,
    out_bias_at,
    gain_at,
    bias_at,
    n: tl.constexpr,
    d: tl.constexpr,
    m: tl.constexpr,
    CHUNKS: tl.constexpr,  # of ROWS rows in a group
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chain = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1)
    tile = tl.program_id(0)
    own = capacity
    if total is not None:
        own = tl.load(total + chain * total_stride)
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    h = tile * HIDDEN + tl.arange(0, HIDDEN)
    used = h < m
    tall = used[:, None] & inside
    flat = used[None, :] & (k < d)[:, None]
    w1 = tl.load(
        weight1 + chain * matrix_stride + h[:, None] * d + k[None, :], mask=tall, other=0.0
    )
    w2 = tl.load(
        weight2 + chain * matrix_stride + k[:, None] * m + h[None, :], mask=flat, other=0.0
    )
    b1 = tl.load(hidden_bias + chain * hidden_stride + h, mask=used, other=0.0)
    g = tl.load(gain + chain * vector_stride + k, mask=k < d, other=0.0)
    weight1_slope = tl.zeros((HIDDEN, WIDE), tl.float32)
    weight2_slope = tl.zeros((WIDE, HIDDEN), tl.float32)
    hidden_bias_slope = tl.zeros((HIDDEN,), tl.float32)
    out_bias_slope = tl.zeros((WIDE,), tl.float32)
    gain_slope = tl.zeros((WIDE,), tl.float32)
    bias_slope = tl.zeros((WIDE,), tl.float32)
    for chunk in range(CHUNKS):
        start = (group * CHUNKS + chunk) * ROWS
        if start < own:
            row = start + tl.arange(0, ROWS)
            real = row < own
            slot = chain * capacity + row
            owned = real[:, None] & inside
            at = slot[:, None] * d + k[None, :]
            slope = tl.load(out_slope + at, mask=owned, other=0.0)
            unit = tl.load(normal + at, mask=owned, other=0.0)
            inverse = tl.load(inverse_deviation + slot, mask=real, other=0.0)
            residual = normalised_slope(slope * g[None, :], unit, inverse, inside, d)
            gain_slope += tl.sum(slope * unit, axis=0)
            bias_slope += tl.sum(slope, axis=0)
            out_bias_slope += tl.sum(residual, axis=0)

            rows = tl.load(y + at, mask=owned, other=0.0)
            if source is None:
                position = row % n
            else:
                position = tl.load(source + slot, mask=real, other=0) % n
            before = tl.dot(rows, tl.trans(w1), input_precision=PRECISION) + b1[None, :]
            shift = code + position[:, None] * code_stride + h[None, :]
            hidden = tl.maximum(before, 0.0, propagate_nan=tl.PropagateNan.ALL)
            hidden += tl.load(shift, mask=used[None, :] & real[:, None], other=0.0)
            weight2_slope = tl.dot(
                tl.trans(residual), hidden, weight2_slope, input_precision=PRECISION
            )
            hidden_slope = tl.dot(residual, w2, input_precision=PRECISION)
            hidden_slope = tl.where(before > 0.0, hidden_slope, 0.0)
            hidden_bias_slope += tl.sum(hidden_slope, axis=0)
            weight1_slope = tl.dot(
                tl.trans(hidden_slope), rows, weight1_slope, input_precision=PRECISION
            )
            through = tl.where(tile == 0, residual, 0.0)
            through = tl.dot(hidden_slope, w1, through, input_precision=PRECISION)
            part = ((chain * tl.num_programs(0) + tile) * capacity + row)[:, None] * d + k[None, :]
            tl.store(y_slope + part, through, mask=owned)
    partial += (chain * tl.num_programs(1) + group) * partial_stride
    tl.store(partial + weight1_at + h[:, None] * d + k[None, :], weight1_slope, mask=tall)
    tl.store(partial + weight2_at + k[:, None] * m + h[None, :], weight2_slope, mask=flat)
    tl.store(partial + hidden_bias_at + h, hidden_bias_slope, mask=used)
    if tile == 0:
        tl.store(partial + out_bias_at + k, out_bias_slope, mask=k < d)
        tl.store(partial + gain_at + k, gain_slope, mask=k < d)
        tl.store(partial + bias_at + k, bias_slope, mask=k < d)


class FeedforwardNormWeights(NamedTuple):
    """Views of a flat vector, or tensors of their own: the strides from chain to chain are free,
    one for both matrices, one for the hidden bias, one for the vectors."""

    weight1: torch.Tensor  # (C, m, d)
    hidden_bias: torch.Tensor  # (C, m)
    weight2: torch.Tensor  # (C, d, m)
    out_bias: torch.Tensor  # (C, d)
    gain: torch.Tensor  # (C, d)
    bias: torch.Tensor  # (C, d)


class FeedforwardNormState(NamedTuple):
    """What backward reads of forward; R slots a chain."""

    normal: torch.Tensor  # (C, R, d), the norm before gain and bias
    inverse_deviation: torch.Tensor  # (C, R), 1/σ of the norm


def state_like(y: torch.Tensor) -> FeedforwardNormState:
    return FeedforwardNormState(torch.empty_like(y), y.new_empty(y.shape[:2]))


def slope_parts(d: int, m: int) -> int:
    """Parts in which backward leaves the slope of Y."""
    return triton.cdiv(m, BACKWARD_HIDDEN[tile_width(d)])


def launch_forward(
    y: torch.Tensor,
    total: torch.Tensor | None,
    source: torch.Tensor | None,
    weights: FeedforwardNormWeights,
    code: torch.Tensor,
    out: torch.Tensor,
    state: FeedforwardNormState | None,
    precision: str,
) -> None:
    """out (C, R, d) and state from y (C, R, d).

    total: (C,) int32, rows of each chain, any stride; source: (C, R) int32, b·n + position of each
    row; code: (n, m), rows of any stride.
    """
    chains, capacity, d = y.shape
    m = weights.weight1.shape[1]
    feedforward_forward_kernel[(triton.cdiv(capacity, FORWARD_ROWS), chains)](
        y,
        total,
        source,
        *weights,
        code,
        out,
        *(state or (None,) * 2),
        capacity,
        0 if total is None else total.stride(0),
        weights.weight1.stride(0),
        weights.hidden_bias.stride(0),
        weights.gain.stride(0),
        code.stride(0),
        n=code.shape[0],
        d=d,
        m=m,
        WITH_STATE=state is not None,
        ROWS=FORWARD_ROWS,
        HIDDEN=FORWARD_HIDDEN[tile_width(d)],
        WIDE=tile_width(d),
        PRECISION=precision,
        num_warps=FORWARD_WARPS[tile_width(d)],
        num_stages=1,
        enable_fp_fusion=True,
    )


def launch_backward(
    out_slope: torch.Tensor,
    y: torch.Tensor,
    total: torch.Tensor | None,
    source: torch.Tensor | None,
    weights: FeedforwardNormWeights,
    code: torch.Tensor,
    state: FeedforwardNormState,
    y_slope: torch.Tensor,
    partial: torch.Tensor,
    offsets: Sequence[int],
    group: int,
    precision: str,
) -> None:
    """The slope of y in slope_parts parts, y_slope (C, P, R, d), and the slopes of the weights
    summed over the rows of each group, at `offsets` (in the order of the weights) of partial
    (C, G, ·): G groups of `group` rows, a multiple of 64, cover the R slots."""
    chains, capacity, d = y.shape
    m = weights.weight1.shape[1]
    feedforward_backward_kernel[(slope_parts(d, m), partial.shape[1], chains)](
        out_slope,
        y,
        total,
        source,
        weights.weight1,
        weights.hidden_bias,
        weights.weight2,
        weights.gain,
        code,
        *state,
        y_slope,
        partial,
        capacity,
        0 if total is None else total.stride(0),
        weights.weight1.stride(0),
        weights.hidden_bias.stride(0),
        weights.gain.stride(0),
        code.stride(0),
        partial.stride(1),
        *offsets,
        n=code.shape[0],
        d=d,
        m=m,
        CHUNKS=group // BACKWARD_ROWS,
        ROWS=BACKWARD_ROWS,
        HIDDEN=BACKWARD_HIDDEN[tile_width(d)],
        WIDE=tile_width(d),
        PRECISION=precision,
        num_warps=BACKWARD_WARPS[tile_width(d)],
        num_stages=1,
        enable_fp_fusion=True,
        # at d = 14 ptxas by itself spills rather than take more than 168 registers
        maxnreg=255 if tile_width(d) == 16 else None,
    )


def layer_forward(
    y: torch.Tensor,
    weight1: torch.Tensor,
    hidden_bias: torch.Tensor,
    weight2: torch.Tensor,
    out_bias: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    code: torch.Tensor,
    rows: torch.Tensor | None,
    *,
    with_state: bool,
    precision: str,
) -> tuple[torch.Tensor, FeedforwardNormState | None]:
    """The layer alone: Z (C, B, r, d) of the arguments of feedforward_norm.py, contiguous."""
    slots = y.flatten(1, 2)
    out = torch.empty_like(slots)
    state = state_like(slots) if with_state else None
    weights = FeedforwardNormWeights(weight1, hidden_bias, weight2, out_bias, gain, bias)
    source = None if rows is None else rows.to(torch.int32)
    if out.numel() > 0:
        launch_forward(slots, None, source, weights, code, out, state, precision)
    return out.view(y.shape), state


def layer_backward(
    out_slope: torch.Tensor,
    state: Sequence[torch.Tensor],
    y: torch.Tensor,
    weight1: torch.Tensor,
    hidden_bias: torch.Tensor,
    weight2: torch.Tensor,
    out_bias: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    code: torch.Tensor,
    rows: torch.Tensor | None,
    *,
    precision: str,
) -> tuple[torch.Tensor, ...]:
    """Slopes of y, weight1, hidden_bias, weight2, out_bias, gain and bias from that of Z."""
    weights = FeedforwardNormWeights(weight1, hidden_bias, weight2, out_bias, gain, bias)
    if y.numel() == 0:
        return tuple(torch.zeros_like(tensor) for tensor in (y, *weights))
    slots = y.flatten(1, 2)
    chains, capacity, d = slots.shape
    sizes = [tensor[0].numel() for tensor in weights]
    group = rows_per_group(capacity, chains)
    partial = y.new_empty(chains, triton.cdiv(capacity, group), sum(sizes))
    y_slope = y.new_empty(chains, slope_parts(d, code.shape[1]), capacity, d)
    launch_backward(
        out_slope.view(slots.shape),
        slots,
        None,
        None if rows is None else rows.to(torch.int32),
        weights,
        code,
        FeedforwardNormState(*state),
        y_slope,
        partial,
        [sum(sizes[:i]) for i in range(len(sizes))],
        group,
        precision,
    )
    return y_slope.sum(1).view(y.shape), *summed_parts(partial, weights)
