"""What the feed-forward network does at every site, on a GPU: U = LN(E[x] + PE), its mean over the
visible sites, and the way back to E and the norm. A program owns a sequence of a chain.

Sites are visible where they do not hold the mask, the last token.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from thermosphere.ops.layer_norm_triton import normalised, normalised_slope


@triton.jit
def embedded(embedding, code, code_stride, token, site, real, inside, k, d: tl.constexpr):
    """Rows E[token] + PE[site] (R, K), zero where not real."""
    owned = real[:, None] & inside
    rows = tl.load(embedding + token[:, None] * d + k[None, :], mask=owned, other=0.0)
    return rows + tl.load(code + site[:, None] * code_stride + k[None, :], mask=owned, other=0.0)


@triton.jit
def pool_kernel(
    tokens,  # (S, n) uint8
    indices,  # (C, B) int64
    code,  # (n, code_stride)
    embedding,  # V × d, `parameters` from chain to chain
    gain,  # d
    bias,  # d
    pooled,  # (C, B, d)
    batch,
    parameters,
    code_stride,
    n: tl.constexpr,
    d: tl.constexpr,
    vocabulary: tl.constexpr,
    SITES: tl.constexpr,
    WIDE: tl.constexpr,
):
    chain = tl.program_id(1).to(tl.int64)
    sequence = tl.program_id(0)
    site = tl.arange(0, SITES)
    real = site < n
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    index = tl.load(indices + chain * batch + sequence)
    token = tl.load(tokens + index * n + site, mask=real, other=vocabulary - 1).to(tl.int32)
    visible = token != vocabulary - 1
    flat = chain * parameters
    rows = embedded(embedding + flat, code, code_stride, token, site, real, inside, k, d)
    unit, _ = normalised(rows, inside, d)
    g = tl.load(gain + flat + k, mask=k < d, other=0.0)
    b = tl.load(bias + flat + k, mask=k < d, other=0.0)
    u = unit * g[None, :] + b[None, :]
    count = tl.maximum(tl.sum(visible.to(tl.float32)), 1.0)
    mean = tl.sum(tl.where(visible[:, None], u, 0.0), axis=0) / count
    tl.store(pooled + (chain * batch + sequence) * d + k, mean, mask=k < d)


@triton.jit
def pool_backward_kernel(
    tokens,
    indices,
    code,
    embedding,
    gain,
    first,  # (C, B + 1) int32, row slots of each sequence
    source,  # (C, capacity) int32
    u_slope,  # (C, capacity, d), of U at the masked rows
    pooled_slope,  # (C, capacity, d), of the mean, a part a masked row
    partial,  # (C, B, V·d + 2·d): slopes of embedding, gain and bias
    batch,
    capacity,
    parameters,
    code_stride,
    n: tl.constexpr,
    d: tl.constexpr,
    vocabulary: tl.constexpr,
    CHUNKS: tl.constexpr,  # of ROWS masked rows, covering any sequence
    ROWS: tl.constexpr,
    SITES: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chain = tl.program_id(1).to(tl.int64)
    sequence = tl.program_id(0)
    site = tl.arange(0, SITES)
    real = site < n
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    begin = tl.load(first + chain * (batch + 1) + sequence)
    own = tl.load(first + chain * (batch + 1) + sequence + 1) - begin
    slope = tl.zeros((SITES, WIDE), tl.float32)
    mean_slope = tl.zeros((WIDE,), tl.float32)
    for chunk in range(CHUNKS):
        row = chunk * ROWS + tl.arange(0, ROWS)
        here = row < own
        slot = chain * capacity + begin + row
        position = tl.load(source + slot, mask=here, other=-1) - sequence * n
        same = ((site[:, None] == position[None, :]) & here[None, :]).to(tl.float32)
        at = slot[:, None] * d + k[None, :]
        owned = here[:, None] & inside
        rows = tl.load(u_slope + at, mask=owned, other=0.0)
        slope = tl.dot(same, rows, slope, input_precision=PRECISION)
        mean_slope += tl.sum(tl.load(pooled_slope + at, mask=owned, other=0.0), axis=0)
    index = tl.load(indices + chain * batch + sequence)
    token = tl.load(tokens + index * n + site, mask=real, other=vocabulary - 1).to(tl.int32)
    visible = token != vocabulary - 1
    count = tl.maximum(tl.sum(visible.to(tl.float32)), 1.0)
    slope += tl.where(visible[:, None], (mean_slope / count)[None, :], 0.0)
    flat = chain * parameters
    rows = embedded(embedding + flat, code, code_stride, token, site, real, inside, k, d)
    unit, inverse = normalised(rows, inside, d)
    partial += (chain * batch + sequence) * (vocabulary * d + 2 * d)
    gain_at = vocabulary * d + k
    tl.store(partial + gain_at, tl.sum(slope * unit, axis=0), mask=k < d)
    tl.store(partial + gain_at + d, tl.sum(slope, axis=0), mask=k < d)
    g = tl.load(gain + flat + k, mask=k < d, other=0.0)
    slope = normalised_slope(slope * g[None, :], unit, inverse, inside, d)
    v = tl.arange(0, TOKENS)
    same = ((v[:, None] == token[None, :]) & real[None, :]).to(tl.float32)
    slope = tl.dot(same, slope, input_precision=PRECISION)
    both = (v < vocabulary)[:, None] & inside
    tl.store(partial + v[:, None] * d + k[None, :], slope, mask=both)
