"""The attention layer and its norm on a GPU, all chains in one launch (see attention_norm.py; the
kernels are in attention_norm_kernels.py).

Rows are slots of a chain, as masked_rows_triton.py lists them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton

from thermosphere.ops.attention_norm_kernels import (
    attention_column_pass_kernel,
    attention_forward_kernel,
    attention_row_pass_kernel,
    attention_weight_pass_kernel,
)
from thermosphere.ops.layer_norm_triton import tile_width
from thermosphere.ops.masked_rows_triton import RowSlots, row_slots
from thermosphere.ops.partial_sums_triton import rows_per_group, summed_parts

# Rows of a program, and its warps by the width of its tiles. 16 rows fit the 13 masked rows of a
# typical sequence; twice the rows spill at d = 26. More warps than a tile has 16 x 8 pieces across
# its longer side would repeat each other's products (benchmarks/triton_resources.py counts both).
FORWARD_ROWS, FORWARD_KEYS, FORWARD_WARPS = 16, 32, {16: 1, 32: 4, 64: 4, 128: 8}
PASS_ROWS, PASS_KEYS = 16, {16: 32, 32: 32, 64: 64, 128: 32}
PASS_WARPS = {16: 1, 32: 4, 64: 8, 128: 8}
COLUMN_KEYS, COLUMN_ROWS, COLUMN_WARPS = 16, 32, {16: 1, 32: 4, 64: 4, 128: 8}
WEIGHT_ROWS = {16: 16, 32: 32, 64: 16, 128: 16}
WEIGHT_WARPS = {16: 1, 32: 2, 64: 4, 128: 8}


class AttentionNormWeights(NamedTuple):
    """Views of a flat vector, or tensors of their own: the stride from chain to chain is free."""

    query_key: torch.Tensor  # (C, d, d)
    value_output: torch.Tensor  # (C, d, d)
    gain: torch.Tensor  # (C, d)
    bias: torch.Tensor  # (C, d)


class AttentionNormState(NamedTuple):
    """What backward reads of forward; R slots a chain."""

    queries: torch.Tensor  # (C, R, d), X_rows Wqkᵀ / √d
    mixed: torch.Tensor  # (C, R, d), A X
    normal: torch.Tensor  # (C, R, d), the norm before gain and bias
    log_sum: torch.Tensor  # (C, R), ln Σ exp of a row of scores
    inverse_deviation: torch.Tensor  # (C, R), 1/σ of the norm


class AttentionNormSlopes(NamedTuple):
    """Slopes by row slot, on the way through backward."""

    residual: torch.Tensor  # (C, R, d), by the norm's argument
    mixed: torch.Tensor  # (C, R, d)
    query: torch.Tensor  # (C, R, d), by the scaled queries
    row: torch.Tensor  # (C, R, d), by X_rows through the queries alone
    delta: torch.Tensor  # (C, R), Σ_j A_ij dA_ij


def state_like(x: torch.Tensor, capacity: int) -> AttentionNormState:
    chains, d = x.shape[0], x.shape[3]
    queries, mixed, normal = (x.new_empty(chains, capacity, d) for _ in range(3))
    log_sum, inverse_deviation = (x.new_empty(chains, capacity) for _ in range(2))
    return AttentionNormState(queries, mixed, normal, log_sum, inverse_deviation)


def slopes_like(x: torch.Tensor, capacity: int) -> AttentionNormSlopes:
    chains, d = x.shape[0], x.shape[3]
    residual, mixed, query, row = (x.new_empty(chains, capacity, d) for _ in range(4))
    return AttentionNormSlopes(residual, mixed, query, row, x.new_empty(chains, capacity))


def launch_forward(
    x: torch.Tensor,
    rows: RowSlots,
    weights: AttentionNormWeights,
    out: torch.Tensor,
    state: AttentionNormState | None,
    precision: str,
) -> None:
    """out (C, R, d) and state from x (C, B, n, d)."""
    chains, batch, n, d = x.shape
    attention_forward_kernel[(triton.cdiv(rows.most, FORWARD_ROWS), batch, chains)](
        x,
        rows.first,
        rows.source,
        *weights,
        out,
        *(state or (None,) * 5),
        rows.most,
        batch,
        rows.capacity,
        weights.query_key.stride(0),
        weights.gain.stride(0),
        1.0 / math.sqrt(d),
        n=n,
        d=d,
        WITH_STATE=state is not None,
        ROWS=FORWARD_ROWS,
        TILES=triton.cdiv(n, FORWARD_KEYS),
        KEYS=FORWARD_KEYS,
        WIDE=tile_width(d),
        PRECISION=precision,
        num_warps=FORWARD_WARPS[tile_width(d)],
        enable_fp_fusion=True,
    )


def launch_backward(
    out_slope: torch.Tensor,
    x: torch.Tensor,
    rows: RowSlots,
    weights: AttentionNormWeights,
    state: AttentionNormState,
    slopes: AttentionNormSlopes,
    x_slope: torch.Tensor,
    partial: torch.Tensor,
    offsets: Sequence[int],
    group: int,
    precision: str,
) -> None:
    """x_slope (C, B, n, d), and the slopes of the weights summed over the rows of each group, at
    `offsets` of partial (C, G, ·) (query_key, value_output, gain, bias): G groups of `group` rows,
    a multiple of 64, cover the R slots.

    out_slope: (C, P, R, d), whose sum over P is the slope of the result; left in the first part.
    """
    chains, batch, n, d = x.shape
    parts = out_slope.shape[1]
    wide, scale = tile_width(d), 1.0 / math.sqrt(d)
    attention_row_pass_kernel[(triton.cdiv(rows.most, PASS_ROWS), batch, chains)](
        x,
        rows.first,
        rows.source,
        *weights[:3],
        *state,
        out_slope,
        *slopes,
        rows.most,
        batch,
        rows.capacity,
        weights.query_key.stride(0),
        weights.gain.stride(0),
        scale,
        n=n,
        d=d,
        PARTS=parts,
        ROWS=PASS_ROWS,
        TILES=triton.cdiv(n, PASS_KEYS[wide]),
        KEYS=PASS_KEYS[wide],
        WIDE=wide,
        PRECISION=precision,
        num_warps=PASS_WARPS[wide],
        enable_fp_fusion=True,
    )
    attention_column_pass_kernel[(triton.cdiv(n, COLUMN_KEYS), batch, chains)](
        x,
        rows.first,
        rows.source,
        state.queries,
        state.log_sum,
        slopes.residual,
        slopes.mixed,
        slopes.row,
        slopes.delta,
        x_slope,
        rows.most,
        batch,
        rows.capacity,
        n=n,
        d=d,
        CHUNKS=triton.cdiv(rows.most, COLUMN_ROWS),
        KEYS=COLUMN_KEYS,
        ROWS=COLUMN_ROWS,
        WIDE=wide,
        PRECISION=precision,
        num_warps=COLUMN_WARPS[wide],
        enable_fp_fusion=True,
    )
    attention_weight_pass_kernel[(partial.shape[1], chains)](
        x,
        rows.first,
        rows.source,
        state.mixed,
        state.normal,
        out_slope,
        slopes.residual,
        slopes.query,
        partial,
        rows.most,
        batch,
        rows.capacity,
        partial.stride(1),
        *offsets,
        scale,
        n=n,
        d=d,
        PARTS=parts,
        CHUNKS=group // WEIGHT_ROWS[wide],
        ROWS=WEIGHT_ROWS[wide],
        WIDE=wide,
        PRECISION=precision,
        num_warps=WEIGHT_WARPS[wide],
        enable_fp_fusion=True,
    )


def layer_forward(
    x: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    rows: torch.Tensor | None,
    *,
    with_state: bool,
    precision: str,
) -> tuple[torch.Tensor, AttentionNormState | None]:
    """The layer alone: Y (C, B, r, d) of the arguments of attention_norm.py, contiguous."""
    chains, batch, n, d = x.shape
    slots = row_slots(rows, chains, batch, n)
    out = x.new_empty(chains, slots.capacity, d)
    state = state_like(x, slots.capacity) if with_state else None
    weights = AttentionNormWeights(query_key, value_output, gain, bias)
    if out.numel() > 0:
        launch_forward(x, slots, weights, out, state, precision)
    return out.view(chains, batch, slots.most, d), state


def layer_backward(
    out_slope: torch.Tensor,
    state: Sequence[torch.Tensor],
    x: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    rows: torch.Tensor | None,
    *,
    precision: str,
) -> tuple[torch.Tensor, ...]:
    """Slopes of x, query_key, value_output, gain and bias from that of Y (C, B, r, d)."""
    chains, batch, n, d = x.shape
    slots = row_slots(rows, chains, batch, n)
    inputs = (x, query_key, value_output, gain, bias)
    if out_slope.numel() == 0:
        return tuple(torch.zeros_like(tensor) for tensor in inputs)
    weights = AttentionNormWeights(query_key, value_output, gain, bias)
    sizes = [d * d, d * d, d, d]
    group = rows_per_group(slots.capacity, chains)
    partial = x.new_empty(chains, triton.cdiv(slots.capacity, group), sum(sizes))
    x_slope = torch.empty_like(x)
    launch_backward(
        out_slope.view(chains, 1, slots.capacity, d),
        x,
        slots,
        weights,
        AttentionNormState(*state),
        slopes_like(x, slots.capacity),
        x_slope,
        partial,
        [0, d * d, 2 * d * d, 2 * d * d + d],
        group,
        precision,
    )
    return x_slope, *summed_parts(partial, inputs[1:])
