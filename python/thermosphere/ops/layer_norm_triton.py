"""A tile of rows inside other Triton kernels: how wide it is, and its layer norm (ε = 1e-5, sums
centred first)."""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl


def tile_width(d: int) -> int:
    """Columns of a tile: the power of two that holds d, at least the 16 of a matrix product."""
    return max(16, triton.next_power_of_2(d))


@triton.jit
def normalised(x, inside, width: tl.constexpr):
    """(x − mean)/σ of rows (R, K) and 1/σ (R,); columns outside (1, K) hold zeros, before and
    after."""
    mean = tl.sum(x, axis=1) / width
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / width
    inverse_deviation = tl.rsqrt(variance + 1e-5)
    return centred * inverse_deviation[:, None], inverse_deviation


@triton.jit
def normalised_slope(slope, normal, inverse_deviation, inside, width: tl.constexpr):
    """The slope by x of `normalised`, from that by its first result; zero outside."""
    mean = tl.sum(slope, axis=1) / width
    along = tl.sum(slope * normal, axis=1) / width
    within = slope - mean[:, None] - normal * along[:, None]
    return tl.where(inside, within * inverse_deviation[:, None], 0.0)
