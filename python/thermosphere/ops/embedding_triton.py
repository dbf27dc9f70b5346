"""The first layer of a network on a GPU, X⁰ = E[x] + PE of every sequence of a batch, and the slope
of E, all chains in one launch.

The slope is a sum over all sites with one residue: a product with the (V × rows) matrix of zeros
and ones, group by group of rows, and the groups added in their order. No atomics.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl

from thermosphere.ops.layer_norm_triton import tile_width

ROWS, WARPS = 32, {16: 2, 32: 2, 64: 4, 128: 8}  # by the width of a tile


@triton.jit
def embed_kernel(
    tokens,  # (S, n) uint8
    indices,  # (C, B) int64
    embedding,  # V × d, embedding_stride from chain to chain
    code,  # (n, code_stride)
    x,  # (C, B, n, d)
    batch,
    embedding_stride,
    code_stride,
    n: tl.constexpr,
    d: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    chain = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < batch * n
    k = tl.arange(0, WIDE)
    owned = real[:, None] & (k < d)[None, :]
    site = row % n
    sequence = tl.load(indices + chain * batch + row // n, mask=real, other=0)
    token = tl.load(tokens + sequence * n + site, mask=real, other=0).to(tl.int32)
    embedding += chain * embedding_stride
    own = tl.load(embedding + token[:, None] * d + k[None, :], mask=owned, other=0.0)
    own += tl.load(code + site[:, None] * code_stride + k[None, :], mask=owned, other=0.0)
    tl.store(x + (chain * batch * n + row)[:, None] * d + k[None, :], own, mask=owned)


@triton.jit
def embedding_slope_kernel(
    tokens,  # (S, n) uint8
    indices,  # (C, B) int64
    x_slope,  # (C, B, n, d)
    partial,  # (C, G, partial_stride), V × d at offset at
    batch,
    partial_stride,
    embedding_at,
    vocabulary: tl.constexpr,
    n: tl.constexpr,
    d: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chain = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0)
    k = tl.arange(0, WIDE)
    v = tl.arange(0, TOKENS)
    inside = (k < d)[None, :]
    slope = tl.zeros((TOKENS, WIDE), tl.float32)
    for chunk in range(CHUNKS):
        row = (group * CHUNKS + chunk) * ROWS + tl.arange(0, ROWS)
        real = row < batch * n
        sequence = tl.load(indices + chain * batch + row // n, mask=real, other=0)
        token = tl.load(tokens + sequence * n + row % n, mask=real, other=0).to(tl.int32)
        at = (chain * batch * n + row)[:, None] * d + k[None, :]
        rows = tl.load(x_slope + at, mask=real[:, None] & inside, other=0.0)
        same = (v[:, None] == token[None, :]).to(tl.float32)
        slope = tl.dot(same, rows, slope, input_precision=PRECISION)
    partial += (chain * tl.num_programs(0) + group) * partial_stride + embedding_at
    both = (v < vocabulary)[:, None] & inside
    tl.store(partial + v[:, None] * d + k[None, :], slope, mask=both)


def launch_embed(
    tokens: torch.Tensor,
    indices: torch.Tensor,
    embedding: torch.Tensor,
    code: torch.Tensor,
    x: torch.Tensor,
) -> None:
    """x (C, B, n, d) from tokens (S, n) uint8, indices (C, B) int64, embedding (C, V, d) of any
    stride from chain to chain, and code (n, d), rows of any stride."""
    chains, batch, n, d = x.shape
    embed_kernel[(triton.cdiv(batch * n, ROWS), chains)](
        tokens,
        indices,
        embedding,
        code,
        x,
        batch,
        embedding.stride(0),
        code.stride(0),
        n=n,
        d=d,
        ROWS=ROWS,
        WIDE=tile_width(d),
        num_warps=WARPS[tile_width(d)],
        enable_fp_fusion=True,
    )


def launch_slope(
    tokens: torch.Tensor,
    indices: torch.Tensor,
    x_slope: torch.Tensor,
    vocabulary: int,
    partial: torch.Tensor,
    at: int,
    group: int,
    precision: str,
) -> None:
    """Slope of the embedding summed over the rows of each group, at offset `at` of partial
    (C, G, ·): G groups of `group` rows, a multiple of 64, cover the B · n of x_slope
    (C, B, n, d)."""
    chains, batch, n, d = x_slope.shape
    embedding_slope_kernel[(partial.shape[1], chains)](
        tokens,
        indices,
        x_slope,
        partial,
        batch,
        partial.stride(1),
        at,
        vocabulary=vocabulary,
        n=n,
        d=d,
        CHUNKS=group // ROWS,
        ROWS=ROWS,
        TOKENS=tile_width(vocabulary),
        WIDE=tile_width(d),
        PRECISION=precision,
        num_warps=WARPS[tile_width(d)],
        num_stages=1,
        enable_fp_fusion=True,
    )
