"""What the feed-forward network does at the masked rows, on a GPU, forward and backward, all chains
in one launch: read it beside csrc/feedforward_rows_cpu.h.

    H = relu(U W1aᵀ + g W1bᵀ + b1) + code;  F = relu(H W2ᵀ + b2);  P = F + U Wrᵀ + br
    logits = (LN(P) γ + β) Woutᵀ + bout

A row has m = 320 features, too many for one tile: programs own a tile of rows and one of features,
and the norm walks over its row tile by tile. U at a masked row depends on its site alone and is
formed where it is needed. Weights lie in a flat vector (C, parameters), each at its offset.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from thermosphere.ops.feedforward_pooling_triton import embedded
from thermosphere.ops.layer_norm_triton import normalised


@triton.jit
def masked_u(
    weights, embedding_at, gain_at, bias_at, code, code_stride, site, real, inside, k,
    d: tl.constexpr, vocabulary: tl.constexpr,
):  # fmt: skip
    """U of masked rows at their sites (R, K)."""
    token = tl.zeros_like(site) + (vocabulary - 1)
    rows = embedded(weights + embedding_at, code, code_stride, token, site, real, inside, k, d)
    unit, _ = normalised(rows, inside, d)
    g = tl.load(weights + gain_at + k, mask=k < d, other=0.0)
    b = tl.load(weights + bias_at + k, mask=k < d, other=0.0)
    return tl.where(real[:, None], unit * g[None, :] + b[None, :], 0.0)


@triton.jit
def ff_hidden_kernel(
    first,  # (C, B + 1) int32
    source,  # (C, capacity) int32
    code,  # (n, code_stride), of the embedding
    weights,
    pooled,  # (C, B, d)
    active,  # (C, capacity, m) out, relu(U W1aᵀ + g W1bᵀ + b1)
    embedding_at, gain_at, bias_at, weight1_at, hidden_bias_at,
    batch, capacity, parameters, code_stride,
    n: tl.constexpr, d: tl.constexpr, m: tl.constexpr, vocabulary: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(2).to(tl.int64)
    total = tl.load(first + chain * (batch + 1) + batch)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS >= total:
        return
    real = row < total
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    h = tl.program_id(1) * TILE + tl.arange(0, TILE)
    used = h < m
    weights += chain * parameters
    place = tl.load(source + chain * capacity + row, mask=real, other=0)
    u = masked_u(
        weights, embedding_at, gain_at, bias_at, code, code_stride, place % n, real, inside, k, d,
        vocabulary,
    )  # fmt: skip
    at = weight1_at + h[None, :] * (2 * d) + k[:, None]
    both = (k < d)[:, None] & used[None, :]
    hidden = tl.dot(u, tl.load(weights + at, mask=both, other=0.0), input_precision=PRECISION)
    g = pooled + (chain * batch + place // n)[:, None] * d + k[None, :]
    g = tl.load(g, mask=real[:, None] & inside, other=0.0)
    weight = tl.load(weights + at + d, mask=both, other=0.0)
    hidden = tl.dot(g, weight, hidden, input_precision=PRECISION)
    hidden += tl.load(weights + hidden_bias_at + h, mask=used, other=0.0)[None, :]
    hidden = tl.maximum(hidden, 0.0, propagate_nan=tl.PropagateNan.ALL)
    out = active + (chain * capacity + row)[:, None] * m + h[None, :]
    tl.store(out, hidden, mask=real[:, None] & used[None, :])


@triton.jit
def ff_second_kernel(
    first,
    source,
    code,
    code_hidden,  # (n, hidden_stride)
    weights,
    active,
    second,  # (C, capacity, m) out, F
    summed,  # (C, capacity, m) out, P
    embedding_at, gain_at, bias_at, weight2_at, second_bias_at, residual_at, residual_bias_at,
    batch, capacity, parameters, code_stride, hidden_stride,
    n: tl.constexpr, d: tl.constexpr, m: tl.constexpr, vocabulary: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(2).to(tl.int64)
    total = tl.load(first + chain * (batch + 1) + batch)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS >= total:
        return
    real = row < total
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    j = tl.program_id(1) * TILE + tl.arange(0, TILE)
    used = j < m
    weights += chain * parameters
    site = tl.load(source + chain * capacity + row, mask=real, other=0) % n
    active += (chain * capacity + row)[:, None] * m
    code_hidden += site[:, None] * hidden_stride
    f = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, m, TILE):
        h = start + tl.arange(0, TILE)
        owned = real[:, None] & (h < m)[None, :]
        hidden = tl.load(active + h[None, :], mask=owned, other=0.0)
        hidden += tl.load(code_hidden + h[None, :], mask=owned, other=0.0)
        both = (h < m)[:, None] & used[None, :]
        weight = weights + weight2_at + j[None, :] * m + h[:, None]
        weight = tl.load(weight, mask=both, other=0.0)
        f = tl.dot(hidden, weight, f, input_precision=PRECISION)
    f += tl.load(weights + second_bias_at + j, mask=used, other=0.0)[None, :]
    f = tl.maximum(f, 0.0, propagate_nan=tl.PropagateNan.ALL)
    at = (chain * capacity + row)[:, None] * m + j[None, :]
    owned = real[:, None] & used[None, :]
    tl.store(second + at, f, mask=owned)
    u = masked_u(
        weights, embedding_at, gain_at, bias_at, code, code_stride, site, real, inside, k, d,
        vocabulary,
    )  # fmt: skip
    both = (k < d)[:, None] & used[None, :]
    weight = weights + residual_at + j[None, :] * d + k[:, None]
    p = tl.dot(u, tl.load(weight, mask=both, other=0.0), f, input_precision=PRECISION)
    p += tl.load(weights + residual_bias_at + j, mask=used, other=0.0)[None, :]
    tl.store(summed + at, p, mask=owned)


@triton.jit
def ff_head_kernel(
    first,
    target,  # (C, capacity) int32
    weight,  # (C, capacity)
    weights,
    summed,
    sums,  # (C, G, 2) float64 out: loss and error
    mean,  # (C, capacity) out, of a row of P
    inverse_deviation,  # (C, capacity) out
    logit_slope,  # (C, capacity, V) out
    summed_slope,  # (C, capacity, m) out
    bias_slope,  # (C, G, partial_stride) out at bias_partial_at
    gain_at, bias_at, output_at, output_bias_at, bias_partial_at,
    batch, capacity, parameters, partial_stride,
    m: tl.constexpr, vocabulary: tl.constexpr, WITH_SLOPES: tl.constexpr, CHUNKS: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, TOKENS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0)
    total = tl.load(first + chain * (batch + 1) + batch)
    weights += chain * parameters
    v = tl.arange(0, TOKENS)
    known = v < vocabulary
    shift = tl.load(weights + output_bias_at + v, mask=known, other=0.0)
    loss = tl.zeros((ROWS,), tl.float64)
    error = tl.zeros((ROWS,), tl.float64)
    output_bias_slope = tl.zeros((TOKENS,), tl.float32)
    for chunk in range(CHUNKS):
        begin = (group * CHUNKS + chunk) * ROWS
        if begin < total:
            row = begin + tl.arange(0, ROWS)
            real = row < total
            slot = chain * capacity + row
            p = summed + slot[:, None] * m
            average = tl.zeros((ROWS,), tl.float32)
            for start in range(0, m, TILE):
                j = start + tl.arange(0, TILE)
                owned = real[:, None] & (j < m)[None, :]
                average += tl.sum(tl.load(p + j[None, :], mask=owned, other=0.0), axis=1)
            average = average / m
            variance = tl.zeros((ROWS,), tl.float32)
            for start in range(0, m, TILE):
                j = start + tl.arange(0, TILE)
                owned = real[:, None] & (j < m)[None, :]
                centred = tl.load(p + j[None, :], mask=owned, other=0.0) - average[:, None]
                variance += tl.sum(tl.where(owned, centred * centred, 0.0), axis=1)
            inverse = tl.rsqrt(variance / m + 1e-5)
            logits = tl.zeros((ROWS, TOKENS), tl.float32)
            for start in range(0, m, TILE):
                j = start + tl.arange(0, TILE)
                owned = real[:, None] & (j < m)[None, :]
                centred = tl.load(p + j[None, :], mask=owned, other=0.0) - average[:, None]
                g = tl.load(weights + gain_at + j, mask=j < m, other=0.0)
                b = tl.load(weights + bias_at + j, mask=j < m, other=0.0)
                out = tl.where(owned, centred * inverse[:, None] * g[None, :] + b[None, :], 0.0)
                table = weights + output_at + v[None, :] * m + j[:, None]
                table = tl.load(table, mask=known[None, :] & (j < m)[:, None], other=0.0)
                logits = tl.dot(out, table, logits, input_precision=PRECISION)
            logits = tl.where(known[None, :], logits + shift[None, :], float("-inf"))

            truth = tl.load(target + slot, mask=real, other=0)
            share = tl.load(weight + slot, mask=real, other=0.0)
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
                output_bias_slope += tl.sum(slope, axis=0)
                logit_at = slot[:, None] * vocabulary + v[None, :]
                tl.store(logit_slope + logit_at, slope, mask=real[:, None] & known[None, :])
                tl.store(mean + slot, average, mask=real)
                tl.store(inverse_deviation + slot, inverse, mask=real)
                slope_mean = tl.zeros((ROWS,), tl.float32)
                slope_along = tl.zeros((ROWS,), tl.float32)
                for start in range(0, m, TILE):
                    j = start + tl.arange(0, TILE)
                    owned = real[:, None] & (j < m)[None, :]
                    unit = tl.load(p + j[None, :], mask=owned, other=0.0) - average[:, None]
                    unit = unit * inverse[:, None]
                    table = weights + output_at + v[:, None] * m + j[None, :]
                    table = tl.load(table, mask=known[:, None] & (j < m)[None, :], other=0.0)
                    back = tl.dot(slope, table, input_precision=PRECISION)
                    back *= tl.load(weights + gain_at + j, mask=j < m, other=0.0)[None, :]
                    slope_mean += tl.sum(back, axis=1)
                    slope_along += tl.sum(back * unit, axis=1)
                slope_mean = slope_mean / m
                slope_along = slope_along / m
                for start in range(0, m, TILE):
                    j = start + tl.arange(0, TILE)
                    owned = real[:, None] & (j < m)[None, :]
                    unit = tl.load(p + j[None, :], mask=owned, other=0.0) - average[:, None]
                    unit = unit * inverse[:, None]
                    table = weights + output_at + v[:, None] * m + j[None, :]
                    table = tl.load(table, mask=known[:, None] & (j < m)[None, :], other=0.0)
                    back = tl.dot(slope, table, input_precision=PRECISION)
                    back *= tl.load(weights + gain_at + j, mask=j < m, other=0.0)[None, :]
                    back = back - slope_mean[:, None] - unit * slope_along[:, None]
                    at = slot[:, None] * m + j[None, :]
                    tl.store(summed_slope + at, back * inverse[:, None], mask=owned)
    groups = tl.num_programs(0)
    sums += (chain * groups + group) * 2
    tl.store(sums, tl.sum(loss))
    tl.store(sums + 1, tl.sum(error))
    if WITH_SLOPES:
        bias_slope += (chain * groups + group) * partial_stride + bias_partial_at
        tl.store(bias_slope + v, output_bias_slope, mask=known)


@triton.jit
def ff_hidden_slope_kernel(
    first,
    weights,
    active,
    second,
    summed_slope,
    hidden_slope,  # (C, capacity, m) out, by the argument of the first relu
    weight2_at,
    batch, capacity, parameters,
    m: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(2).to(tl.int64)
    total = tl.load(first + chain * (batch + 1) + batch)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS >= total:
        return
    real = row < total
    h = tl.program_id(1) * TILE + tl.arange(0, TILE)
    used = h < m
    weights += chain * parameters + weight2_at
    at = (chain * capacity + row)[:, None] * m
    slope = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, m, TILE):
        j = start + tl.arange(0, TILE)
        owned = real[:, None] & (j < m)[None, :]
        f = tl.load(second + at + j[None, :], mask=owned, other=0.0)
        back = tl.load(summed_slope + at + j[None, :], mask=owned, other=0.0)
        back = tl.where(f > 0.0, back, 0.0)
        both = (j < m)[:, None] & used[None, :]
        weight = tl.load(weights + j[:, None] * m + h[None, :], mask=both, other=0.0)
        slope = tl.dot(back, weight, slope, input_precision=PRECISION)
    owned = real[:, None] & used[None, :]
    kept = tl.load(active + at + h[None, :], mask=owned, other=0.0)
    tl.store(hidden_slope + at + h[None, :], tl.where(kept > 0.0, slope, 0.0), mask=owned)


@triton.jit
def ff_row_slope_kernel(
    first,
    weights,
    summed_slope,
    hidden_slope,
    u_slope,  # (C, capacity, d) out
    pooled_slope,  # (C, capacity, d) out
    weight1_at, residual_at,
    batch, capacity, parameters,
    d: tl.constexpr, m: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(1).to(tl.int64)
    total = tl.load(first + chain * (batch + 1) + batch)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS >= total:
        return
    real = row < total
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    weights += chain * parameters
    at = (chain * capacity + row)[:, None] * m
    own = tl.zeros((ROWS, WIDE), tl.float32)
    through = tl.zeros((ROWS, WIDE), tl.float32)
    for start in range(0, m, TILE):
        j = start + tl.arange(0, TILE)
        owned = real[:, None] & (j < m)[None, :]
        both = (j < m)[:, None] & inside
        back = tl.load(hidden_slope + at + j[None, :], mask=owned, other=0.0)
        table = weights + weight1_at + j[:, None] * (2 * d) + k[None, :]
        weight = tl.load(table, mask=both, other=0.0)
        own = tl.dot(back, weight, own, input_precision=PRECISION)
        weight = tl.load(table + d, mask=both, other=0.0)
        through = tl.dot(back, weight, through, input_precision=PRECISION)
        back = tl.load(summed_slope + at + j[None, :], mask=owned, other=0.0)
        table = weights + residual_at + j[:, None] * d + k[None, :]
        weight = tl.load(table, mask=both, other=0.0)
        own = tl.dot(back, weight, own, input_precision=PRECISION)
    at = (chain * capacity + row)[:, None] * d + k[None, :]
    owned = real[:, None] & inside
    tl.store(u_slope + at, own, mask=owned)
    tl.store(pooled_slope + at, through, mask=owned)
