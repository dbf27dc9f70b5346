"""Mini-batches drawn on a GPU, the bits of minibatch.py: the step is read from device memory, so
that a captured graph draws the next batch at every replay."""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl

from thermosphere.ops.minibatch import BATCH_MAX, Minibatch
from thermosphere.ops.philox import Stream, check_counter

OTHERS = 16  # a program holds (batch, OTHERS) comparisons


@triton.jit
def _drawn(position, seed, chain, step_low, step_high, examples):
    """⌊word · examples / 2³²⌋ of the draws at these positions."""
    zero = position * 0
    a, b, c, d = tl.philox(seed, position // 4, zero + chain, zero + step_low, zero + step_high)
    lane = position % 4
    word = tl.where(lane == 0, a, tl.where(lane == 1, b, tl.where(lane == 2, c, d)))
    return ((word.to(tl.uint64) * examples.to(tl.uint64)) >> 32).to(tl.int64)


@triton.jit
def draw_minibatch_kernel(
    step,  # (1,) int64
    chain_ids,  # (C,) int64
    indices,  # (C, B) int64 out
    weights,  # (C, B) float32 out
    seed,
    examples,
    batch,
    STREAM: tl.constexpr,
    BATCH: tl.constexpr,  # the power of two that holds batch
    OTHERS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chain = tl.load(chain_ids + row).to(tl.int32)
    at = tl.load(step)
    low = at.to(tl.int32)
    high = (at >> 32).to(tl.int32) | (STREAM << 24)
    examples = tl.full((1,), examples, tl.int64)
    position = tl.arange(0, BATCH)
    index = _drawn(position, seed, chain, low, high, examples)
    repeats = tl.zeros((BATCH,), tl.int32)
    for start in range(0, BATCH, OTHERS):
        before = start + tl.arange(0, OTHERS)
        other = _drawn(before, seed, chain, low, high, examples)
        same = (index[:, None] == other[None, :]) & (before[None, :] < position[:, None])
        repeats += tl.sum(same.to(tl.int32), axis=1)
    inside = position < batch
    first = (inside & (repeats == 0)).to(tl.int32)
    share = tl.div_rn(1.0, tl.sum(first).to(tl.float32))
    tl.store(indices + row * batch + position, index, mask=inside)
    tl.store(weights + row * batch + position, tl.where(first > 0, share, 0.0), mask=inside)


def launch(
    batch: Minibatch,
    *,
    seed: int,
    step: torch.Tensor,
    chain_ids: torch.Tensor,
    examples: int,
    stream: Stream = Stream.MINIBATCH,
) -> None:
    """Fill `batch` with what `draw_minibatch` draws at the step that `step` (1,) int64 holds when
    the kernel runs.

    chain_ids: (C,) int64 on the device. Raises ValueError on sizes that make no batch.
    """
    op = "draw_minibatch_triton"
    check_counter(op, seed, 0)
    chains, size = batch.indices.shape
    if not 1 <= size <= BATCH_MAX:
        raise ValueError(f"{op}: batch must be in [1, {BATCH_MAX}], got {size}")
    if not 1 <= examples < 2**32:
        raise ValueError(f"{op}: examples must be in [1, 2**32), got {examples}")
    for name, tensor, shape in (("step", step, (1,)), ("chain_ids", chain_ids, (chains,))):
        if tensor.dtype != torch.int64 or tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"{op}: {name} must be {shape} int64, got {tuple(tensor.shape)} {tensor.dtype}"
            )
    width = max(OTHERS, triton.next_power_of_2(size))
    draw_minibatch_kernel[(chains,)](
        step,
        chain_ids,
        batch.indices,
        batch.weights,
        seed,
        examples,
        size,
        STREAM=int(stream),
        BATCH=width,
        OTHERS=OTHERS,
        num_warps=4,
        enable_fp_fusion=True,
    )
