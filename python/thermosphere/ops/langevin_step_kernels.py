"""Triton kernels of the step (launched by langevin_step_triton.py).

Same formulas, same arithmetic of an element and, to the bit, same noise as
csrc/langevin_arithmetic.h and csrc/normal.h: IEEE roots, and no contraction where it compiles. A
program does a segment of a chain; sums are float64, over a chunk at a time in Triton's own order,
so they differ from the extension's in their last bits but are the same in every run.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

NUMBERS = ("seed", "step")  # change from call to call: never compiled in


@triton.jit
def log_unit(u):
    """ln(u) for u in (0, 1], as in csrc/normal.h."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - exponent * 0x00800000).to(tl.float32, bitcast=True) - 1.0
    p = f * 0.0870036780834198 - 0.14267489314079285
    p = p * f + 0.1491478979587555
    p = p * f - 0.1657758504152298
    p = p * f + 0.19963061809539795
    p = p * f - 0.2500133812427521
    p = p * f + 0.3333390951156616
    e = exponent.to(tl.float32)
    square = f * f
    return e * 0.693359375 + (f + (square * (f * p - 0.5) - e * 2.12194440e-4))


@triton.jit
def normal_pair(radius_word, angle_word):
    """Two standard normals of two words, as in csrc/normal.h."""
    u = ((radius_word >> 1).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2**-31
    radius = tl.sqrt_rn(log_unit(u) * -2.0)
    t = ((angle_word & 0x3FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * 9.313225746154785e-10 - 0.5
    z = t * t
    sine = z * -0.004602177068591118 + 0.07968022674322128
    sine = t * (z * (z * sine - 0.6459634900093079) + 1.5707963705062866)
    cosine = z * -0.020408352836966515 + 0.2535986304283142
    cosine = z * (z * cosine - 1.2336970567703247) + 1.0
    quadrant = angle_word >> 30
    swap = (quadrant & 1) != 0
    x = tl.where(swap, sine, cosine)
    y = tl.where(swap, cosine, sine)
    # A product, for the sign of a zero.
    first = tl.where((quadrant == 1) | (quadrant == 2), x * -1.0, x)
    second = tl.where((quadrant & 2) != 0, y * -1.0, y)
    return radius * first, radius * second


@triton.jit
def chunk_normals(seed, STREAM: tl.constexpr, chain_id, move, first, CHUNK: tl.constexpr):
    """Normals of elements first … first + CHUNK - 1 of a draw (csrc/philox.h)."""
    quad = (first // 4 + tl.arange(0, CHUNK // 4)).to(tl.uint32)
    same = quad * 0
    low = (move & 0xFFFFFFFF).to(tl.uint32)
    high = ((move >> 32) & 0x00FFFFFF).to(tl.uint32)
    a, b, c, d = tl.philox(
        seed,
        quad,
        same + (chain_id & 0xFFFFFFFF).to(tl.uint32),
        same + low,
        same + (high | (STREAM << 24)),
    )
    n0, n1 = normal_pair(a, b)
    n2, n3 = normal_pair(c, d)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def move_number(step, moves):
    move = tl.to_tensor(step).to(tl.uint64)
    if moves is not None:
        move += tl.load(moves).to(tl.uint64)
    return move


@triton.jit
def stands_still(failed_move, chain):
    still = chain < 0
    if failed_move is not None:
        still = tl.load(failed_move + chain) >= 0
    return still


@triton.jit
def factors(coefficients, metric, chain):
    """dt, a, b and τ/Σ(w²/M) of a chain, float32."""
    row = coefficients + chain * 5
    tau = tl.load(row + 3)
    pull = tl.where(tau == 0.0, 0.0, tau / tl.load(metric + chain))
    return (
        tl.load(row).to(tl.float32),
        tl.load(row + 1).to(tl.float32),
        tl.load(row + 2).to(tl.float32),
        pull.to(tl.float32),
    )


@triton.jit
def double_sum(x, y, mask):
    return tl.sum(tl.where(mask, x.to(tl.float64) * y.to(tl.float64), 0.0))


@triton.jit
def total(partial_sums, chain, segments, WHICH: tl.constexpr, PADDED: tl.constexpr):
    """A sum of a chain over its segments."""
    i = tl.arange(0, PADDED)
    parts = partial_sums + (chain * segments + i) * 3 + WHICH
    return tl.sum(tl.load(parts, mask=i < segments, other=0.0))


@triton.jit(do_not_specialize=NUMBERS)
def propose_kernel(
    weights,  # (C, N)
    momenta,  # (C, N)
    gradient,  # (C, N)
    inverse_masses,  # (C, N)
    noise_scales,  # (C, N)
    proposal,  # (C, N) out: Π̃
    partial_sums,  # (C, segments, 3) out: S1, S2, S3
    coefficients,  # (C, 5)
    metric,  # (C)
    chain_ids,  # (C)
    moves,  # (1) or None
    seed,
    step,
    parameters,
    segments,
    SEGMENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    chain = program // segments
    start = program % segments * SEGMENT
    dt, a, b, metric_factor = factors(coefficients, metric, chain)
    move = move_number(step, moves)
    chain_id = tl.load(chain_ids + chain)
    s1 = tl.full((), 0.0, tl.float64)
    s2 = tl.full((), 0.0, tl.float64)
    s3 = tl.full((), 0.0, tl.float64)
    for chunk in range(0, SEGMENT, CHUNK):
        i = start + chunk + tl.arange(0, CHUNK)
        mask = i < parameters
        at = chain * parameters + i
        noise = chunk_normals(seed, 0, chain_id, move, start + chunk, CHUNK)
        w = tl.load(weights + at, mask=mask, other=0.0)
        inverse = tl.load(inverse_masses + at, mask=mask, other=0.0)
        pull = w * inverse
        force = tl.load(gradient + at, mask=mask, other=0.0) + metric_factor * pull
        kicked = a * tl.load(momenta + at, mask=mask, other=0.0) - b * force
        kicked += tl.load(noise_scales + at, mask=mask, other=0.0) * noise
        moved = w + (dt * inverse) * kicked
        tl.store(proposal + at, kicked, mask=mask)
        s1 += double_sum(moved, pull, mask)
        s2 += double_sum(moved, moved, mask)
        s3 += double_sum(pull, pull, mask)
    tl.store(partial_sums + program * 3, s1)
    tl.store(partial_sums + program * 3 + 1, s2)
    tl.store(partial_sums + program * 3 + 2, s3)


@triton.jit(do_not_specialize=NUMBERS)
def root_kernel(
    partial_sums,  # (C, segments, 3)
    coefficients,  # (C, 5)
    multiplier,  # (C) out
    reachable,  # (C) out
    moves,  # (1) or None
    failed_move,  # (C) or None; in, out
    step,
    segments,
    PADDED: tl.constexpr,
):
    """csrc/sphere_root.h, and what comes of a failure."""
    chain = tl.program_id(0).to(tl.int64)
    s1 = total(partial_sums, chain, segments, 0, PADDED)
    s2 = total(partial_sums, chain, segments, 1, PADDED)
    s3 = total(partial_sums, chain, segments, 2, PADDED)
    norm2 = tl.load(coefficients + chain * 5 + 4)
    excess = norm2 - s2
    discriminant = s1 * s1 + s3 * excess
    root = tl.sqrt(tl.where(discriminant >= 0.0, discriminant, 0.0))
    denominator = tl.where(s1 >= 0.0, s1 + root, s1 - root)
    flat = denominator == 0.0
    on_sphere = (discriminant >= 0.0) & ((denominator != 0.0) | (excess == 0.0))
    reached = tl.where(norm2 >= 0.0, on_sphere, s2 - s2 == 0.0)
    if failed_move is not None:
        failed = tl.load(failed_move + chain)
        failed = tl.where(
            (failed < 0) & (not reached), move_number(step, moves).to(tl.int64), failed
        )
        tl.store(failed_move + chain, failed)
        reached = reached & (failed < 0)
    value = tl.where(flat, 0.0, excess / tl.where(flat, 1.0, denominator))
    tl.store(multiplier + chain, tl.where(reached & (norm2 >= 0.0), value, 0.0))
    tl.store(reachable + chain, reached.to(tl.uint8))


@triton.jit
def project_kernel(
    weights,  # (C, N) in, out
    momenta,  # (C, N) out
    proposal,  # (C, N)
    inverse_masses,  # (C, N)
    partial_sums,  # (C, segments, 3) out: Σ w'²/M, …
    coefficients,  # (C, 5)
    multiplier,  # (C)
    reachable,  # (C)
    parameters,
    segments,
    SEGMENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    chain = program // segments
    start = program % segments * SEGMENT
    reached = tl.load(reachable + chain) != 0
    end = tl.where(reached, parameters, 0)
    dt = tl.load(coefficients + chain * 5)
    root = tl.load(multiplier + chain)
    shift = (root / dt).to(tl.float32)
    root32 = root.to(tl.float32)
    dt32 = dt.to(tl.float32)
    metric = tl.full((), 0.0, tl.float64)
    for chunk in range(0, SEGMENT, CHUNK):
        i = start + chunk + tl.arange(0, CHUNK)
        mask = i < end
        at = chain * parameters + i
        w = tl.load(weights + at, mask=mask, other=0.0)
        inverse = tl.load(inverse_masses + at, mask=mask, other=0.0)
        kicked = tl.load(proposal + at, mask=mask, other=0.0)
        moved = w + (dt32 * inverse) * kicked
        settled = moved + root32 * (w * inverse)
        tl.store(weights + at, settled, mask=mask)
        tl.store(momenta + at, kicked + shift * w, mask=mask)
        metric += double_sum(settled, settled * inverse, mask)
    tl.store(partial_sums + program * 3, metric, mask=reached)


@triton.jit(do_not_specialize=NUMBERS)
def momenta_kernel(
    weights,  # (C, N)
    momenta,  # (C, N) Π
    gradient,  # (C, N)
    inverse_masses,  # (C, N)
    noise_scales,  # (C, N)
    full_momenta,  # (C, N) out, may be `momenta`
    partial_sums,  # (C, segments, 3) out: Σ p w/M, …
    coefficients,  # (C, 5)
    metric,  # (C)
    chain_ids,  # (C)
    moves,  # (1) or None
    failed_move,  # (C) or None
    seed,
    step,
    parameters,
    segments,
    SEGMENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    chain = program // segments
    start = program % segments * SEGMENT
    goes_on = not stands_still(failed_move, chain)
    end = tl.where(goes_on, parameters, 0)
    _, a, b, metric_factor = factors(coefficients, metric, chain)
    move = move_number(step, moves)
    chain_id = tl.load(chain_ids + chain)
    overlap = tl.full((), 0.0, tl.float64)
    for chunk in range(0, SEGMENT, CHUNK):
        i = start + chunk + tl.arange(0, CHUNK)
        mask = i < end
        at = chain * parameters + i
        noise = chunk_normals(seed, 1, chain_id, move, start + chunk, CHUNK)
        w = tl.load(weights + at, mask=mask, other=0.0)
        pull = w * tl.load(inverse_masses + at, mask=mask, other=0.0)
        force = tl.load(gradient + at, mask=mask, other=0.0) + metric_factor * pull
        p = a * (tl.load(momenta + at, mask=mask, other=0.0) - b * force)
        p += tl.load(noise_scales + at, mask=mask, other=0.0) * noise
        tl.store(full_momenta + at, p, mask=mask)
        overlap += double_sum(p, pull, mask)
    tl.store(partial_sums + program * 3, overlap, mask=goes_on)


@triton.jit
def tangent_kernel(
    weights,  # (C, N)
    inverse_masses,  # (C, N)
    full_momenta,  # (C, N) in, out
    partial_sums,  # (C, segments, 3) in: Σ p w/M, …; out: …, Σ p²/M, …
    coefficients,  # (C, 5)
    metric,  # (C)
    failed_move,  # (C) or None
    parameters,
    segments,
    SEGMENT: tl.constexpr,
    CHUNK: tl.constexpr,
    PADDED: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    chain = program // segments
    start = program % segments * SEGMENT
    goes_on = not stands_still(failed_move, chain)
    end = tl.where(goes_on, parameters, 0)
    overlap = total(partial_sums, chain, segments, 0, PADDED)
    constrained = tl.load(coefficients + chain * 5 + 4) >= 0.0
    shift = tl.where(constrained, overlap / tl.load(metric + chain), 0.0).to(tl.float32)
    energy = tl.full((), 0.0, tl.float64)
    for chunk in range(0, SEGMENT, CHUNK):
        i = start + chunk + tl.arange(0, CHUNK)
        mask = i < end
        at = chain * parameters + i
        p = tl.load(full_momenta + at, mask=mask, other=0.0)
        p -= shift * tl.load(weights + at, mask=mask, other=0.0)
        tl.store(full_momenta + at, p, mask=mask)
        energy += double_sum(p, p * tl.load(inverse_masses + at, mask=mask, other=0.0), mask)
    tl.store(partial_sums + program * 3 + 1, energy, mask=goes_on)


@triton.jit
def metric_kernel(
    weights,  # (C, N)
    inverse_masses,  # (C, N)
    partial_sums,  # (C, segments, 3) out: Σ w²/M, …
    parameters,
    segments,
    SEGMENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    chain = program // segments
    start = program % segments * SEGMENT
    metric = tl.full((), 0.0, tl.float64)
    for chunk in range(0, SEGMENT, CHUNK):
        i = start + chunk + tl.arange(0, CHUNK)
        mask = i < parameters
        at = chain * parameters + i
        w = tl.load(weights + at, mask=mask, other=0.0)
        metric += double_sum(w, w * tl.load(inverse_masses + at, mask=mask, other=0.0), mask)
    tl.store(partial_sums + program * 3, metric)


@triton.jit
def finish_kernel(
    partial_sums,  # (C, segments, 3)
    out,  # (C) out: FACTOR times the sum
    reachable,  # (C) or None: 0 leaves `out`
    failed_move,  # (C) or None: a move leaves `out`
    moves,  # (1) or None
    segments,
    WHICH: tl.constexpr,
    FACTOR: tl.constexpr,
    ADVANCE: tl.constexpr,
    PADDED: tl.constexpr,
):
    chain = tl.program_id(0).to(tl.int64)
    goes_on = not stands_still(failed_move, chain)
    if reachable is not None:
        goes_on = tl.load(reachable + chain) != 0
    tl.store(
        out + chain, FACTOR * total(partial_sums, chain, segments, WHICH, PADDED), mask=goes_on
    )
    if ADVANCE:
        tl.store(moves, tl.load(moves) + 1, mask=chain == 0)


@triton.jit(do_not_specialize=NUMBERS)
def normals_kernel(
    out,  # (count)
    seed,
    chain_id,
    step,
    count,
    STREAM: tl.constexpr,
    CHUNK: tl.constexpr,
):
    first = tl.program_id(0) * CHUNK
    i = first + tl.arange(0, CHUNK)
    chain_id = tl.to_tensor(chain_id).to(tl.int64)
    noise = chunk_normals(seed, STREAM, chain_id, move_number(step, None), first, CHUNK)
    tl.store(out + i, noise, mask=i < count)
