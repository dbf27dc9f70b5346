"""Triton kernels of the attention layer and its norm (launched by attention_norm_triton.py; the
formula is in attention_norm_ref.py). Scores never leave the chip.

A program of the forward and of the row pass owns a few query rows of one sequence and sees all its
keys, 32 at a time (96 for n = 86, where one tile would be 128 and spill), unrolled: a loop would
hoist operands into registers. The slope of the keys comes from a second pass, a program for a few
keys; the slopes of the weights are products over all rows of a chain, in groups whose sums are
added in a fixed order.

Rows are slots of a chain, as masked_rows_triton.py lists them.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from thermosphere.ops.layer_norm_triton import normalised, normalised_slope


@triton.jit
def _slots(first, count, batch, chain, sequence):
    """First slot and number of slots of a sequence."""
    if first is None:
        begin = sequence * count
        own = count
    else:
        at = first + chain * (batch + 1) + sequence
        begin = tl.load(at)
        own = tl.load(at + 1) - begin
    return begin, own


@triton.jit
def attention_forward_kernel(
    x,  # (C, B, n, d)
    first,  # (C, B + 1) int32, or None
    source,  # (C, capacity) int32, or None
    query_key,  # d × d, matrix_stride from chain to chain
    value_output,  # d × d
    gain,  # d, vector_stride from chain to chain
    bias,  # d
    out,  # (C, capacity, d)
    queries,  # (C, capacity, d), X_rows Wqkᵀ / √d
    mixed,  # (C, capacity, d), A X
    normal,  # (C, capacity, d)
    log_sum,  # (C, capacity), ln Σ exp of a row of scores
    inverse_deviation,  # (C, capacity)
    count,
    batch,
    capacity,
    matrix_stride,
    vector_stride,
    scale,
    n: tl.constexpr,
    d: tl.constexpr,
    WITH_STATE: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,  # of KEYS keys
    KEYS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chain = tl.program_id(2).to(tl.int64)
    sequence = tl.program_id(1)
    begin, own = _slots(first, count, batch, chain, sequence)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS >= own:
        return
    real = row < own
    slot = chain * capacity + begin + row
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    x += (chain * batch + sequence) * n * d
    if source is None:
        position = row
    else:
        position = tl.load(source + slot, mask=real, other=0) - sequence * n

    rows = tl.load(x + position[:, None] * d + k[None, :], mask=real[:, None] & inside, other=0.0)
    square = inside & (k < d)[:, None]
    transposed = k[None, :] * d + k[:, None]
    weight = tl.load(query_key + chain * matrix_stride + transposed, mask=square, other=0.0)
    query = tl.dot(rows, weight, input_precision=PRECISION) * scale

    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mix = tl.zeros((ROWS, WIDE), tl.float32)
    across = (k < d)[:, None]
    for tile in tl.static_range(TILES):
        j = tile * KEYS + tl.arange(0, KEYS)
        keys = x + j[None, :] * d + k[:, None]
        keys = tl.load(keys, mask=(j < n)[None, :] & across, other=0.0)
        scores = tl.dot(query, keys, input_precision=PRECISION)
        scores = tl.where((j < n)[None, :], scores, float("-inf"))
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        powers = tl.exp(scores - higher[:, None])
        fall = tl.exp(largest - higher)
        total = total * fall + tl.sum(powers, axis=1)
        # loaded again, from the cache, in the layout of the other operand
        keys = x + j[:, None] * d + k[None, :]
        keys = tl.load(keys, mask=(j < n)[:, None] & inside, other=0.0)
        mix = tl.dot(powers, keys, mix * fall[:, None], input_precision=PRECISION)
        largest = higher
    mix = mix / total[:, None]

    weight = tl.load(value_output + chain * matrix_stride + transposed, mask=square, other=0.0)
    summed = tl.dot(mix, weight, rows, input_precision=PRECISION)
    unit, inverse = normalised(summed, inside, d)
    g = tl.load(gain + chain * vector_stride + k, mask=k < d, other=0.0)
    b = tl.load(bias + chain * vector_stride + k, mask=k < d, other=0.0)
    at = slot[:, None] * d + k[None, :]
    owned = real[:, None] & inside
    tl.store(out + at, unit * g[None, :] + b[None, :], mask=owned)
    if WITH_STATE:
        tl.store(queries + at, query, mask=owned)
        tl.store(mixed + at, mix, mask=owned)
        tl.store(normal + at, unit, mask=owned)
        tl.store(log_sum + slot, largest + tl.log(total), mask=real)
        tl.store(inverse_deviation + slot, inverse, mask=real)


@triton.jit
def attention_row_pass_kernel(
    x,  # (C, B, n, d)
    first,
    source,
    query_key,
    value_output,
    gain,
    queries,  # what forward kept
    mixed,
    normal,
    log_sum,
    inverse_deviation,
    out_slope,  # (C, PARTS, capacity, d); with several parts their sum is left in the first
    residual_slope,  # (C, capacity, d), slope of the norm's argument
    mixed_slope,  # (C, capacity, d)
    query_slope,  # (C, capacity, d), by the scaled queries
    row_slope,  # (C, capacity, d), of X_rows through the queries
    delta,  # (C, capacity), Σ_j A_ij dA_ij
    count,
    batch,
    capacity,
    matrix_stride,
    vector_stride,
    scale,
    n: tl.constexpr,
    d: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,  # of KEYS keys
    KEYS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chain = tl.program_id(2).to(tl.int64)
    sequence = tl.program_id(1)
    begin, own = _slots(first, count, batch, chain, sequence)
    if tl.program_id(0) * ROWS >= own:
        return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < own
    slot = chain * capacity + begin + row
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    owned = real[:, None] & inside
    at = slot[:, None] * d + k[None, :]
    square = inside & (k < d)[:, None]
    straight = k[:, None] * d + k[None, :]
    x += (chain * batch + sequence) * n * d

    part = chain * capacity * PARTS + begin + row
    slope_at = part[:, None] * d + k[None, :]
    slope = tl.load(out_slope + slope_at, mask=owned, other=0.0)
    for p in tl.static_range(1, PARTS):
        slope += tl.load(out_slope + slope_at + p * capacity * d, mask=owned, other=0.0)
    if PARTS > 1:
        tl.store(out_slope + slope_at, slope, mask=owned)
    g = tl.load(gain + chain * vector_stride + k, mask=k < d, other=0.0)
    unit = tl.load(normal + at, mask=owned, other=0.0)
    inverse = tl.load(inverse_deviation + slot, mask=real, other=0.0)
    residual = normalised_slope(slope * g[None, :], unit, inverse, inside, d)
    tl.store(residual_slope + at, residual, mask=owned)

    weight = tl.load(value_output + chain * matrix_stride + straight, mask=square, other=0.0)
    mix_slope = tl.dot(residual, weight, input_precision=PRECISION)
    tl.store(mixed_slope + at, mix_slope, mask=owned)
    mix = tl.load(mixed + at, mask=owned, other=0.0)
    along = tl.sum(mix_slope * mix, axis=1)
    tl.store(delta + slot, along, mask=real)

    query = tl.load(queries + at, mask=owned, other=0.0)
    logs = tl.load(log_sum + slot, mask=real, other=0.0)
    inner = tl.zeros((ROWS, WIDE), tl.float32)
    across = (k < d)[:, None]
    for tile in tl.static_range(TILES):
        j = tile * KEYS + tl.arange(0, KEYS)
        keys = x + j[None, :] * d + k[:, None]
        keys = tl.load(keys, mask=(j < n)[None, :] & across, other=0.0)
        scores = tl.dot(query, keys, input_precision=PRECISION)
        attention = tl.where((j < n)[None, :], tl.exp(scores - logs[:, None]), 0.0)
        attention_slope = tl.dot(mix_slope, keys, input_precision=PRECISION)
        attention_slope = attention * (attention_slope - along[:, None])
        keys = x + j[:, None] * d + k[None, :]
        keys = tl.load(keys, mask=(j < n)[:, None] & inside, other=0.0)
        inner = tl.dot(attention_slope, keys, inner, input_precision=PRECISION)
    tl.store(query_slope + at, inner, mask=owned)
    weight = tl.load(query_key + chain * matrix_stride + straight, mask=square, other=0.0)
    rows_slope = tl.dot(inner * scale, weight, input_precision=PRECISION)
    tl.store(row_slope + at, rows_slope, mask=owned)


@triton.jit
def attention_column_pass_kernel(
    x,  # (C, B, n, d)
    first,
    source,
    queries,
    log_sum,
    residual_slope,
    mixed_slope,
    row_slope,
    delta,
    x_slope,  # (C, B, n, d)
    count,
    batch,
    capacity,
    n: tl.constexpr,
    d: tl.constexpr,
    CHUNKS: tl.constexpr,  # of ROWS rows, covering the longest sequence
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chain = tl.program_id(2).to(tl.int64)
    sequence = tl.program_id(1)
    begin, own = _slots(first, count, batch, chain, sequence)
    j = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    key_at = ((chain * batch + sequence) * n + j)[:, None] * d + k[None, :]
    keyed = (j < n)[:, None] & inside
    keys = tl.load(x + key_at, mask=keyed, other=0.0)
    total = tl.zeros((KEYS, WIDE), tl.float32)
    for chunk in range(CHUNKS):
        if chunk * ROWS < own:
            row = chunk * ROWS + tl.arange(0, ROWS)
            real = row < own
            slot = chain * capacity + begin + row
            at = slot[:, None] * d + k[None, :]
            owned = real[:, None] & inside
            query = tl.load(queries + at, mask=owned, other=0.0)
            logs = tl.load(log_sum + slot, mask=real, other=0.0)
            scores = tl.dot(keys, tl.trans(query), input_precision=PRECISION)
            attention = tl.where(real[None, :], tl.exp(scores - logs[None, :]), 0.0)
            mix_slope = tl.load(mixed_slope + at, mask=owned, other=0.0)
            slope = tl.dot(keys, tl.trans(mix_slope), input_precision=PRECISION)
            along = tl.load(delta + slot, mask=real, other=0.0)
            total = tl.dot(attention, mix_slope, total, input_precision=PRECISION)
            slope = attention * (slope - along[None, :])
            total = tl.dot(slope, query, total, input_precision=PRECISION)
            if source is not None:
                # The rows' own slopes, to the keys they are: a product with zeros and ones, since
                # several rows may be the same key.
                position = tl.load(source + slot, mask=real, other=-1) - sequence * n
                same = ((j[:, None] == position[None, :]) & real[None, :]).to(tl.float32)
                own_slope = tl.load(row_slope + at, mask=owned, other=0.0)
                own_slope += tl.load(residual_slope + at, mask=owned, other=0.0)
                total = tl.dot(same, own_slope, total, input_precision=PRECISION)
    if source is None:
        at = (chain * capacity + begin + j)[:, None] * d + k[None, :]
        total += tl.load(row_slope + at, mask=keyed, other=0.0)
        total += tl.load(residual_slope + at, mask=keyed, other=0.0)
    tl.store(x_slope + key_at, total, mask=keyed)


@triton.jit
def attention_weight_pass_kernel(
    x,  # (C, B, n, d)
    first,
    source,
    mixed,
    normal,
    out_slope,  # (C, PARTS, capacity, d), the sum in the first part
    residual_slope,
    query_slope,
    partial,  # (C, G, stride): sums over the rows of a group, at the four offsets
    count,
    batch,
    capacity,
    partial_stride,
    query_key_at,
    value_output_at,
    gain_at,
    bias_at,
    scale,
    n: tl.constexpr,
    d: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNKS: tl.constexpr,  # of ROWS rows in a group
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chain = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0)
    total = batch * count
    if first is not None:
        total = tl.load(first + chain * (batch + 1) + batch)
    k = tl.arange(0, WIDE)
    inside = (k < d)[None, :]
    x += chain * batch * n * d
    query_key_slope = tl.zeros((WIDE, WIDE), tl.float32)
    value_output_slope = tl.zeros((WIDE, WIDE), tl.float32)
    gain_slope = tl.zeros((WIDE,), tl.float32)
    bias_slope = tl.zeros((WIDE,), tl.float32)
    for chunk in range(CHUNKS):
        start = (group * CHUNKS + chunk) * ROWS
        if start < total:
            row = start + tl.arange(0, ROWS)
            real = row < total
            owned = real[:, None] & inside
            at = (chain * capacity + row)[:, None] * d + k[None, :]
            place = row
            if source is not None:
                place = tl.load(source + chain * capacity + row, mask=real, other=0)
            rows = tl.load(x + place[:, None] * d + k[None, :], mask=owned, other=0.0)
            inner = tl.load(query_slope + at, mask=owned, other=0.0)
            query_key_slope = tl.dot(
                tl.trans(inner), rows, query_key_slope, input_precision=PRECISION
            )
            mix = tl.load(mixed + at, mask=owned, other=0.0)
            residual = tl.load(residual_slope + at, mask=owned, other=0.0)
            value_output_slope = tl.dot(
                tl.trans(residual), mix, value_output_slope, input_precision=PRECISION
            )
            slope_at = (chain * capacity * PARTS + row)[:, None] * d + k[None, :]
            slope = tl.load(out_slope + slope_at, mask=owned, other=0.0)
            unit = tl.load(normal + at, mask=owned, other=0.0)
            gain_slope += tl.sum(slope * unit, axis=0)
            bias_slope += tl.sum(slope, axis=0)
    partial += (chain * tl.num_programs(0) + group) * partial_stride
    square = (k < d)[:, None] & inside
    at = k[:, None] * d + k[None, :]
    tl.store(partial + query_key_at + at, query_key_slope * scale, mask=square)
    tl.store(partial + value_output_at + at, value_output_slope, mask=square)
    tl.store(partial + gain_at + k, gain_slope, mask=k < d)
    tl.store(partial + bias_at + k, bias_slope, mask=k < d)
