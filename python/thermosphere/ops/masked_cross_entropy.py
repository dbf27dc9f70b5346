"""Logits of masked rows, their cross-entropy and errors (arXiv 2603.29529, Eq. 25-30), on the CPU
in float32, the sums over rows in float64 (csrc/masked_cross_entropy*):

    logits = X Woutᵀ + bout
    losses = Σ_row weight · −ln softmax(logits)[target],  errors = Σ_row weight · [wrong]

`masked_cross_entropy` is differentiable; the two functions below it are its halves. The formula is
in masked_cross_entropy_ref.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from thermosphere import _core
from thermosphere.ops.arguments import (
    addresses,
    check_positions,
    check_size,
    check_tensor,
    padded,
    thread_count,
)


class MaskedCrossEntropyResult(NamedTuple):
    losses: torch.Tensor  # (C,) float64
    errors: torch.Tensor  # (C,) float64
    logit_slope: torch.Tensor | None  # (C, R, padded V) d losses / d logits, what backward reads


class MaskedCrossEntropySlopes(NamedTuple):
    x: torch.Tensor  # (C, R, d)
    output: torch.Tensor  # (C, V, d)
    output_bias: torch.Tensor  # (C, V)


def masked_cross_entropy(
    x: torch.Tensor,
    output: torch.Tensor,
    output_bias: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses (C,), errors (C,)) float64; the losses differentiable once in x, output, output_bias.

    Parameters
    ----------
    x: (C, R, d) float32, d ≤ 128.
    output: (C, V, d), output_bias: (C, V) float32, V ≤ 64.
    targets: (C, R) int64 in [0, V).
    weights: (C, R) float32, the share of each row. A row is wrong when its first largest logit is
    not the target's.

    Raises ValueError naming the argument that does not fit, or when `weights` require a gradient.
    """
    tensors = (x, output, output_bias)
    if weights.requires_grad:
        raise ValueError(
            "masked_cross_entropy: weights must not require a gradient, got some that do"
        )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _MaskedCrossEntropy.apply(*tensors, targets, weights)
    result = masked_cross_entropy_forward(
        x.contiguous(),
        output.contiguous(),
        output_bias.contiguous(),
        targets.contiguous(),
        weights.contiguous(),
        with_state=False,
    )
    return result.losses, result.errors


def masked_cross_entropy_forward(
    x: torch.Tensor,
    output: torch.Tensor,
    output_bias: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    with_state: bool = True,
    threads: int | None = None,
) -> MaskedCrossEntropyResult:
    """Losses, errors and what backward reads. Arguments of `masked_cross_entropy`, contiguous.

    threads: default torch.get_num_threads(); the bits do not depend on it.
    """
    sizes = _check(x, output, output_bias, targets, weights)
    chains, rows, _, tokens = sizes
    threads = thread_count("masked_cross_entropy", threads)
    losses = x.new_empty(chains, dtype=torch.float64)
    errors = torch.empty_like(losses)
    logit_slope = x.new_empty(chains, rows, padded(tokens)) if with_state else None
    _core.masked_cross_entropy(
        sizes=sizes,
        inputs=addresses(x, output, output_bias, targets, weights),
        losses=losses.data_ptr(),
        errors=errors.data_ptr(),
        logit_slope=addresses(logit_slope)[0],
        threads=threads,
    )
    return MaskedCrossEntropyResult(losses, errors, logit_slope)


def masked_cross_entropy_backward(
    loss_slope: torch.Tensor,
    logit_slope: torch.Tensor,
    x: torch.Tensor,
    output: torch.Tensor,
    output_bias: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    threads: int | None = None,
) -> MaskedCrossEntropySlopes:
    """Slopes of a function of the losses, from that by the losses, `loss_slope` (C,) float64, and
    the logit_slope that `masked_cross_entropy_forward` returned for the same inputs."""
    sizes = _check(x, output, output_bias, targets, weights)
    chains, rows, _, tokens = sizes
    op = "masked_cross_entropy_backward"
    check_tensor(op, "loss_slope", loss_slope, (chains,), torch.float64)
    check_tensor(op, "logit_slope", logit_slope, (chains, rows, padded(tokens)), torch.float32)
    inputs = (x, output, output_bias)
    slopes = MaskedCrossEntropySlopes(*(torch.empty_like(tensor) for tensor in inputs))
    _core.masked_cross_entropy_backward(
        sizes=sizes,
        inputs=addresses(x, output, output_bias, targets, weights),
        logit_slope=logit_slope.data_ptr(),
        loss_slopes=loss_slope.data_ptr(),
        slopes=addresses(*slopes),
        threads=thread_count(op, threads),
    )
    return slopes


class _MaskedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = [tensor.contiguous() for tensor in arguments]
        losses, errors, logit_slope = masked_cross_entropy_forward(*inputs)
        ctx.save_for_backward(logit_slope, *inputs)
        ctx.mark_non_differentiable(errors)
        return losses, errors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_slope: torch.Tensor, _: object) -> tuple[torch.Tensor | None, ...]:
        slopes = masked_cross_entropy_backward(loss_slope.contiguous(), *ctx.saved_tensors)
        return *slopes, None, None


def _check(
    x: torch.Tensor,
    output: torch.Tensor,
    output_bias: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[int, int, int, int]:
    """C, R, d, V."""
    op = "masked_cross_entropy"
    check_tensor(op, "x", x, ("C", "R", "d"), torch.float32)
    chains, rows, d = x.shape
    check_tensor(op, "output", output, (chains, "V", d), torch.float32)
    tokens = output.shape[1]
    _, embedding_max, _, _, tokens_max = _core.encoder_size_limits
    check_size(op, "d", d, embedding_max)
    check_size(op, "V", tokens, tokens_max)
    check_tensor(op, "output_bias", output_bias, (chains, tokens), torch.float32)
    check_tensor(op, "targets", targets, (chains, rows), torch.int64)
    check_positions(op, "targets", targets, tokens)
    check_tensor(op, "weights", weights, (chains, rows), torch.float32)
    return chains, rows, d, tokens
