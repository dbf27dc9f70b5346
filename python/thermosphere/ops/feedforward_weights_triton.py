"""Slopes of the weights of the feed-forward network, on a GPU: products over the masked rows of a
chain, group by group of rows. A program owns a tile of a matrix and a group; the groups are added
in their order (partial_sums_triton.py).

Names and layout as in feedforward_rows_triton.py; partial is (C, G, partial_stride), each slope at
its offset.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from thermosphere.ops.feedforward_rows_triton import masked_u


@triton.jit
def ff_weight2_slope_kernel(
    first,
    source,
    code_hidden,
    active,
    second,
    summed_slope,
    partial,
    weight2_at, second_bias_at,
    batch, capacity, hidden_stride, partial_stride,
    n: tl.constexpr, m: tl.constexpr, TILES: tl.constexpr, CHUNKS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1)
    total = tl.load(first + chain * (batch + 1) + batch)
    across = tl.program_id(0) % TILES
    h = across * TILE + tl.arange(0, TILE)
    j = tl.program_id(0) // TILES * TILE + tl.arange(0, TILE)
    slope = tl.zeros((TILE, TILE), tl.float32)
    bias_slope = tl.zeros((TILE,), tl.float32)
    for chunk in range(CHUNKS):
        begin = (group * CHUNKS + chunk) * ROWS
        if begin < total:
            row = begin + tl.arange(0, ROWS)
            real = row < total
            slot = chain * capacity + row
            owned = real[:, None] & (j < m)[None, :]
            f = tl.load(second + slot[:, None] * m + j[None, :], mask=owned, other=0.0)
            back = tl.load(summed_slope + slot[:, None] * m + j[None, :], mask=owned, other=0.0)
            back = tl.where(f > 0.0, back, 0.0)
            bias_slope += tl.sum(back, axis=0)
            owned = real[:, None] & (h < m)[None, :]
            hidden = tl.load(active + slot[:, None] * m + h[None, :], mask=owned, other=0.0)
            site = tl.load(source + slot, mask=real, other=0) % n
            shift = code_hidden + site[:, None] * hidden_stride + h[None, :]
            hidden += tl.load(shift, mask=owned, other=0.0)
            slope = tl.dot(tl.trans(back), hidden, slope, input_precision=PRECISION)
    partial += (chain * tl.num_programs(1) + group) * partial_stride
    both = (j < m)[:, None] & (h < m)[None, :]
    tl.store(partial + weight2_at + j[:, None] * m + h[None, :], slope, mask=both)
    if across == 0:
        tl.store(partial + second_bias_at + j, bias_slope, mask=j < m)


@triton.jit
def ff_input_slope_kernel(
    first,
    source,
    code,
    weights,
    pooled,
    summed_slope,
    hidden_slope,
    partial,
    embedding_at, gain_at, bias_at,
    weight1_at, hidden_bias_at, residual_at, residual_bias_at,
    batch, capacity, parameters, code_stride, partial_stride,
    n: tl.constexpr, d: tl.constexpr, m: tl.constexpr, vocabulary: tl.constexpr,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1)
    total = tl.load(first + chain * (batch + 1) + batch)
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    weights += chain * parameters
    site_slope = tl.zeros((TILE, WIDE), tl.float32)
    mean_slope = tl.zeros((TILE, WIDE), tl.float32)
    residual_slope = tl.zeros((TILE, WIDE), tl.float32)
    hidden_bias_slope = tl.zeros((TILE,), tl.float32)
    residual_bias_slope = tl.zeros((TILE,), tl.float32)
    for chunk in range(CHUNKS):
        begin = (group * CHUNKS + chunk) * ROWS
        if begin < total:
            row = begin + tl.arange(0, ROWS)
            real = row < total
            slot = chain * capacity + row
            place = tl.load(source + slot, mask=real, other=0)
            u = masked_u(
                weights, embedding_at, gain_at, bias_at, code, code_stride, place % n, real,
                inside, k, d, vocabulary,
            )  # fmt: skip
            owned = real[:, None] & (j < m)[None, :]
            at = slot[:, None] * m + j[None, :]
            back = tl.load(summed_slope + at, mask=owned, other=0.0)
            residual_bias_slope += tl.sum(back, axis=0)
            residual_slope = tl.dot(tl.trans(back), u, residual_slope, input_precision=PRECISION)
            back = tl.load(hidden_slope + at, mask=owned, other=0.0)
            hidden_bias_slope += tl.sum(back, axis=0)
            site_slope = tl.dot(tl.trans(back), u, site_slope, input_precision=PRECISION)
            g = pooled + (chain * batch + place // n)[:, None] * d + k[None, :]
            g = tl.load(g, mask=real[:, None] & inside, other=0.0)
            mean_slope = tl.dot(tl.trans(back), g, mean_slope, input_precision=PRECISION)
    partial += (chain * tl.num_programs(1) + group) * partial_stride
    both = (j < m)[:, None] & inside
    at = partial + weight1_at + j[:, None] * (2 * d) + k[None, :]
    tl.store(at, site_slope, mask=both)
    tl.store(at + d, mean_slope, mask=both)
    tl.store(partial + residual_at + j[:, None] * d + k[None, :], residual_slope, mask=both)
    tl.store(partial + hidden_bias_at + j, hidden_bias_slope, mask=j < m)
    tl.store(partial + residual_bias_at + j, residual_bias_slope, mask=j < m)


@triton.jit
def ff_output_slope_kernel(
    first,
    weights,
    summed,
    mean,
    inverse_deviation,
    logit_slope,
    partial,
    gain_at, bias_at, output_at,
    gain_partial_at, bias_partial_at, output_partial_at,
    batch, capacity, parameters, partial_stride,
    m: tl.constexpr, vocabulary: tl.constexpr,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1)
    total = tl.load(first + chain * (batch + 1) + batch)
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    used = j < m
    v = tl.arange(0, TOKENS)
    known = v < vocabulary
    weights += chain * parameters
    g = tl.load(weights + gain_at + j, mask=used, other=0.0)
    b = tl.load(weights + bias_at + j, mask=used, other=0.0)
    both = known[:, None] & used[None, :]
    table = tl.load(weights + output_at + v[:, None] * m + j[None, :], mask=both, other=0.0)
    output_slope = tl.zeros((TOKENS, TILE), tl.float32)
    gain_slope = tl.zeros((TILE,), tl.float32)
    bias_slope = tl.zeros((TILE,), tl.float32)
    for chunk in range(CHUNKS):
        begin = (group * CHUNKS + chunk) * ROWS
        if begin < total:
            row = begin + tl.arange(0, ROWS)
            real = row < total
            slot = chain * capacity + row
            owned = real[:, None] & used[None, :]
            p = tl.load(summed + slot[:, None] * m + j[None, :], mask=owned, other=0.0)
            average = tl.load(mean + slot, mask=real, other=0.0)
            inverse = tl.load(inverse_deviation + slot, mask=real, other=0.0)
            unit = tl.where(owned, (p - average[:, None]) * inverse[:, None], 0.0)
            at = slot[:, None] * vocabulary + v[None, :]
            slope = tl.load(logit_slope + at, mask=real[:, None] & known[None, :], other=0.0)
            out = tl.where(owned, unit * g[None, :] + b[None, :], 0.0)
            output_slope = tl.dot(tl.trans(slope), out, output_slope, input_precision=PRECISION)
            back = tl.dot(slope, table, input_precision=PRECISION)
            gain_slope += tl.sum(back * unit, axis=0)
            bias_slope += tl.sum(back, axis=0)
    partial += (chain * tl.num_programs(1) + group) * partial_stride
    at = output_partial_at + v[:, None] * m + j[None, :]
    tl.store(partial + at, output_slope, mask=both)
    tl.store(partial + gain_partial_at + j, gain_slope, mask=used)
    tl.store(partial + bias_partial_at + j, bias_slope, mask=used)
