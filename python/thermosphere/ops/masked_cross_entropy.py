"""Logits of masked rows, their cross-entropy and errors (arXiv 2603.29529, Eq. 25-30), in float32,
the sums over rows in float64, on the CPU (csrc/masked_cross_entropy*) or on a GPU
(masked_cross_entropy_triton.py):

    logits = X Woutᵀ + bout
    losses = Σ_row weight · −ln softmax(logits)[target],  errors = Σ_row weight · [wrong]

`masked_cross_entropy` is differentiable, and known to torch.compile as torch.ops.thermosphere; the
two functions below it are its halves on the CPU. The formula is in masked_cross_entropy_ref.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from thermosphere import _core
from thermosphere.ops.arguments import (
    addresses,
    check_positions,
    check_precision,
    check_size,
    check_tensor,
    padded,
    thread_count,
)
from thermosphere.ops.backends import check_triton, on_device


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
    *,
    precision: str = "tf32x3",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses (C,), errors (C,)) float64; the losses differentiable once in x, output, output_bias;
    all on one device.

    Parameters
    ----------
    x: (C, R, d) float32, d ≤ 128.
    output: (C, V, d), output_bias: (C, V) float32, V ≤ 64.
    targets: (C, R) int64 in [0, V).
    weights: (C, R) float32, the share of each row. A row is wrong when its first largest logit is
    not the target's.
    precision: of products on a GPU, arguments.PRECISIONS.

    Raises ValueError naming the argument that does not fit, or when `weights` require a gradient.
    """
    tensors = (x, output, output_bias)
    if weights.requires_grad:
        raise ValueError(
            "masked_cross_entropy: weights must not require a gradient, got some that do"
        )
    with_state = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    inputs = (tensor.contiguous() for tensor in (*tensors, targets, weights))
    losses, errors, *_ = torch.ops.thermosphere.masked_cross_entropy(*inputs, with_state, precision)
    return losses, errors


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


_INPUTS = "Tensor x, Tensor output, Tensor output_bias, Tensor targets, Tensor weights"


@torch.library.custom_op(
    "thermosphere::masked_cross_entropy",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_INPUTS}, bool with_state, str precision) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _op(*arguments: Any) -> tuple[torch.Tensor, ...]:
    """Losses, errors, and what backward reads: on the CPU the slope of the logits, on a GPU the
    slopes of x, output and output_bias by a chain's own loss; empty unless asked for."""
    *inputs, with_state, precision = arguments
    check_precision("masked_cross_entropy", precision)
    losses, errors, state = masked_cross_entropy_forward(*inputs, with_state=with_state)
    empty = [losses.new_empty(0, dtype=torch.float32) for _ in range(3)]
    return losses, errors, empty[0] if state is None else state, *empty[1:]


@_op.register_kernel("cuda")
def _(*arguments: Any) -> tuple[torch.Tensor, ...]:
    from thermosphere.ops.masked_cross_entropy_triton import layer

    *inputs, with_state, precision = arguments
    check_precision("masked_cross_entropy", precision)
    _check(*inputs)
    check_triton("masked_cross_entropy")
    with on_device(inputs[0].device):
        losses, errors, slopes = layer(*inputs, with_slopes=with_state, precision=precision)
    empty = (losses.new_empty(0, dtype=torch.float32) for _ in range(3))
    return losses, errors, *(slopes or empty)


@_op.register_fake
def _(
    x: torch.Tensor, output: torch.Tensor, output_bias: torch.Tensor, targets: torch.Tensor,
    weights: torch.Tensor, with_state: bool, precision: str,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    chains, rows, _ = x.shape
    shapes: tuple[tuple[int, ...], ...] = ((0,),) * 3
    if with_state and x.device.type == "cuda":
        shapes = tuple(tuple(tensor.shape) for tensor in (x, output, output_bias))
    elif with_state:
        shapes = ((chains, rows, padded(output.shape[1])), (0,), (0,))
    sums = (x.new_empty(chains, dtype=torch.float64) for _ in range(2))
    return *sums, *(x.new_empty(shape) for shape in shapes)


@torch.library.custom_op(
    "thermosphere::masked_cross_entropy_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor loss_slope, Tensor[] state, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _backward_op(
    loss_slope: torch.Tensor, state: list[torch.Tensor], *inputs: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return tuple(masked_cross_entropy_backward(loss_slope, state[0], *inputs))


@_backward_op.register_kernel("cuda")
def _(
    loss_slope: torch.Tensor, state: list[torch.Tensor], *inputs: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    x, output, output_bias = state
    slope = loss_slope.float()
    return x * slope[:, None, None], output * slope[:, None, None], output_bias * slope[:, None]


@_backward_op.register_fake
def _(loss_slope: object, state: object, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in inputs[:3])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[2:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, loss_slope: torch.Tensor, *_: object) -> tuple[Any, ...]:
    inputs, state = ctx.saved_tensors[:5], list(ctx.saved_tensors[5:])
    slopes = torch.ops.thermosphere.masked_cross_entropy_backward(
        loss_slope.contiguous(), state, *inputs
    )
    return *slopes, None, None, None, None


_op.register_autograd(_differentiate, setup_context=_keep)


def _check(
    x: torch.Tensor,
    output: torch.Tensor,
    output_bias: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[int, int, int, int]:
    """C, R, d, V."""
    op = "masked_cross_entropy"
    device = "cuda" if x.device.type == "cuda" else "cpu"
    check_tensor(op, "x", x, ("C", "R", "d"), torch.float32, device)
    chains, rows, d = x.shape
    check_tensor(op, "output", output, (chains, "V", d), torch.float32, device)
    tokens = output.shape[1]
    _, embedding_max, _, _, tokens_max = _core.encoder_size_limits
    check_size(op, "d", d, embedding_max)
    check_size(op, "V", tokens, tokens_max)
    check_tensor(op, "output_bias", output_bias, (chains, tokens), torch.float32, device)
    check_tensor(op, "targets", targets, (chains, rows), torch.int64, device)
    check_positions(op, "targets", targets, tokens)
    check_tensor(op, "weights", weights, (chains, rows), torch.float32, device)
    return chains, rows, d, tokens
