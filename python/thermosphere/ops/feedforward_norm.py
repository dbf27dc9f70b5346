"""The feed-forward layer of a block, its residual and its norm (arXiv 2603.29529, Eq. 11-14), in
float32 on the CPU (csrc/feedforward_norm*) or on a GPU (feedforward_norm_triton.py):

    Z = LN(Y + (relu(Y W1ᵀ + b1) + code[position]) W2ᵀ + b2) γ + β

The code of the position breaks the permutation symmetry of the hidden units; LN with ε = 1e-5.
`feedforward_norm` is differentiable, and known to torch.compile as torch.ops.thermosphere; the two
functions below it are its halves on the CPU. The formula is in feedforward_norm_ref.py.
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


class FeedforwardNormState(NamedTuple):
    """What backward reads of forward, rows padded with zeros to multiples of 16."""

    active: torch.Tensor  # (C, B, r, padded m), relu(Y W1ᵀ + b1)
    normal: torch.Tensor  # (C, B, r, padded d), the norm before gain and bias
    inverse_deviation: torch.Tensor  # (C, B, r), 1/σ of the norm


class FeedforwardNormResult(NamedTuple):
    out: torch.Tensor  # (C, B, r, d)
    state: FeedforwardNormState | None  # None where it was not asked for


class FeedforwardNormSlopes(NamedTuple):
    y: torch.Tensor  # (C, B, r, d)
    weight1: torch.Tensor  # (C, m, d)
    hidden_bias: torch.Tensor  # (C, m)
    weight2: torch.Tensor  # (C, d, m)
    out_bias: torch.Tensor  # (C, d)
    gain: torch.Tensor  # (C, d)
    bias: torch.Tensor  # (C, d)


def feedforward_norm(
    y: torch.Tensor,
    weight1: torch.Tensor,
    hidden_bias: torch.Tensor,
    weight2: torch.Tensor,
    out_bias: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    code: torch.Tensor,
    rows: torch.Tensor | None = None,
    *,
    precision: str = "tf32x3",
) -> torch.Tensor:
    """Z (C, B, r, d), differentiable once in everything but `code` and `rows`; all on one device.

    Parameters
    ----------
    y: (C, B, r, d) float32, d ≤ 128.
    weight1: (C, m, d), hidden_bias: (C, m), weight2: (C, d, m), out_bias: (C, d) float32, m ≤ 512.
    gain, bias: (C, d) float32.
    code: (n, m) float32, the code of each position, n ≤ 256.
    rows: (C, B, r) int64 in [0, n), the position of each row; None: row i is at position i, r = n.
    precision: of products on a GPU, arguments.PRECISIONS.

    Raises ValueError naming the argument that does not fit, or when `code` requires a gradient.
    """
    tensors = (y, weight1, hidden_bias, weight2, out_bias, gain, bias)
    if code.requires_grad:
        raise ValueError("feedforward_norm: code must not require a gradient, got one that does")
    with_state = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    inputs = (tensor.contiguous() for tensor in (*tensors, code))
    rows = None if rows is None else rows.contiguous()
    return torch.ops.thermosphere.feedforward_norm(*inputs, rows, with_state, precision)[0]


def feedforward_norm_forward(
    y: torch.Tensor,
    weight1: torch.Tensor,
    hidden_bias: torch.Tensor,
    weight2: torch.Tensor,
    out_bias: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    code: torch.Tensor,
    rows: torch.Tensor | None = None,
    *,
    with_state: bool = True,
    threads: int | None = None,
) -> FeedforwardNormResult:
    """Z and what backward reads. Arguments of `feedforward_norm`, contiguous.

    threads: default torch.get_num_threads(); the bits do not depend on it.
    """
    sizes = _check(y, weight1, hidden_bias, weight2, out_bias, gain, bias, code, rows)
    threads = thread_count("feedforward_norm", threads)
    out = torch.empty_like(y)
    state = None
    if with_state:
        shape = y.shape[:3]
        state = FeedforwardNormState(
            active=y.new_empty(*shape, padded(weight1.shape[1])),
            normal=y.new_empty(*shape, padded(y.shape[3])),
            inverse_deviation=y.new_empty(shape),
        )
    _core.feedforward_norm(
        sizes=sizes,
        inputs=addresses(y, rows, weight1, hidden_bias, weight2, out_bias, gain, bias, code),
        out=out.data_ptr(),
        state=addresses(*(state or (None,) * 3)),
        threads=threads,
    )
    return FeedforwardNormResult(out, state)


def feedforward_norm_backward(
    out_slope: torch.Tensor,
    state: FeedforwardNormState,
    y: torch.Tensor,
    weight1: torch.Tensor,
    hidden_bias: torch.Tensor,
    weight2: torch.Tensor,
    out_bias: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    code: torch.Tensor,
    rows: torch.Tensor | None = None,
    *,
    threads: int | None = None,
) -> FeedforwardNormSlopes:
    """Slopes of a loss by every input but the code, from that by Z, `out_slope` (C, B, r, d), and
    the state that `feedforward_norm_forward` returned for the same inputs."""
    sizes = _check(y, weight1, hidden_bias, weight2, out_bias, gain, bias, code, rows)
    op, shape = "feedforward_norm_backward", tuple(y.shape[:3])
    check_tensor(op, "out_slope", out_slope, tuple(y.shape), torch.float32)
    shapes = ((*shape, padded(weight1.shape[1])), (*shape, padded(y.shape[3])), shape)
    for name, tensor, expected in zip(state._fields, state, shapes, strict=True):
        check_tensor(op, f"state.{name}", tensor, expected, torch.float32)
    inputs = (y, weight1, hidden_bias, weight2, out_bias, gain, bias)
    slopes = FeedforwardNormSlopes(*(torch.empty_like(tensor) for tensor in inputs))
    _core.feedforward_norm_backward(
        sizes=sizes,
        inputs=addresses(y, rows, weight1, hidden_bias, weight2, out_bias, gain, bias, code),
        state=addresses(*state),
        out_slope=out_slope.data_ptr(),
        slopes=addresses(*slopes),
        threads=thread_count(op, threads),
    )
    return slopes


_INPUTS = (
    "Tensor y, Tensor weight1, Tensor hidden_bias, Tensor weight2, Tensor out_bias, Tensor gain, "
    "Tensor bias, Tensor code, Tensor? rows"
)
_STATES = ", ".join(["Tensor"] * len(FeedforwardNormState._fields))
_SLOPES = ", ".join(["Tensor"] * len(FeedforwardNormSlopes._fields))


@torch.library.custom_op(
    "thermosphere::feedforward_norm",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_INPUTS}, bool with_state, str precision) -> (Tensor, {_STATES})",
)
def _op(*arguments: Any) -> tuple[torch.Tensor, ...]:
    """Z and the state, whose tensors are empty unless it is asked for."""
    *inputs, with_state, precision = arguments
    check_precision("feedforward_norm", precision)
    out, state = feedforward_norm_forward(*inputs, with_state=with_state)
    return out, *(state or (out.new_empty(0) for _ in FeedforwardNormState._fields))


@_op.register_kernel("cuda")
def _(*arguments: Any) -> tuple[torch.Tensor, ...]:
    from thermosphere.ops.feedforward_norm_triton import layer_forward

    *inputs, with_state, precision = arguments
    check_precision("feedforward_norm", precision)
    _check(*inputs)
    check_triton("feedforward_norm")
    with on_device(inputs[0].device):
        out, state = layer_forward(*inputs, with_state=with_state, precision=precision)
    # the hidden units are formed again in backward
    return out, out.new_empty(0), *(state or (out.new_empty(0) for _ in range(2)))


@_op.register_fake
def _(y: torch.Tensor, weight1: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
    *_, with_state, _ = arguments
    if not with_state:
        shapes: tuple[tuple[int, ...], ...] = ((0,),) * 3
    elif y.device.type == "cuda":
        rows = (y.shape[0], y.shape[1] * y.shape[2])
        shapes = ((0,), (*rows, y.shape[3]), rows)
    else:
        shape = tuple(y.shape[:3])
        shapes = ((*shape, padded(weight1.shape[1])), (*shape, padded(y.shape[3])), shape)
    return torch.empty_like(y), *(y.new_empty(shape) for shape in shapes)


@torch.library.custom_op(
    "thermosphere::feedforward_norm_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor out_slope, Tensor[] state, {_INPUTS}, str precision) -> ({_SLOPES})",
)
def _backward_op(
    out_slope: torch.Tensor, state: list[torch.Tensor], *arguments: Any
) -> tuple[torch.Tensor, ...]:
    *inputs, _ = arguments
    return tuple(feedforward_norm_backward(out_slope, FeedforwardNormState(*state), *inputs))


@_backward_op.register_kernel("cuda")
def _(
    out_slope: torch.Tensor, state: list[torch.Tensor], *arguments: Any
) -> tuple[torch.Tensor, ...]:
    from thermosphere.ops.feedforward_norm_triton import layer_backward

    *inputs, precision = arguments
    with on_device(out_slope.device):
        return layer_backward(out_slope, state[1:], *inputs, precision=precision)


@_backward_op.register_fake
def _(out_slope: object, state: object, *arguments: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in arguments[:7])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, _, ctx.precision = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, out_slope: torch.Tensor, *_: object) -> tuple[Any, ...]:
    inputs, state = ctx.saved_tensors[:9], list(ctx.saved_tensors[9:])
    slopes = torch.ops.thermosphere.feedforward_norm_backward(
        out_slope.contiguous(), state, *inputs, ctx.precision
    )
    return *slopes, None, None, None, None


_op.register_autograd(_differentiate, setup_context=_keep)


def _check(
    y: torch.Tensor,
    weight1: torch.Tensor,
    hidden_bias: torch.Tensor,
    weight2: torch.Tensor,
    out_bias: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    code: torch.Tensor,
    rows: torch.Tensor | None,
) -> tuple[int, int, int, int, int, int]:
    """C, B r, n, r, d, m."""
    op = "feedforward_norm"
    device = "cuda" if y.device.type == "cuda" else "cpu"
    check_tensor(op, "y", y, ("C", "B", "r", "d"), torch.float32, device)
    chains, batch, r, d = y.shape
    check_tensor(op, "code", code, ("n", "m"), torch.float32, device)
    n, m = code.shape
    _, embedding_max, hidden_max, length_max, _ = _core.encoder_size_limits
    check_size(op, "n", n, length_max)
    check_size(op, "d", d, embedding_max)
    check_size(op, "m", m, hidden_max)
    check_tensor(op, "weight1", weight1, (chains, m, d), torch.float32, device)
    check_tensor(op, "hidden_bias", hidden_bias, (chains, m), torch.float32, device)
    check_tensor(op, "weight2", weight2, (chains, d, m), torch.float32, device)
    for name, vector in (("out_bias", out_bias), ("gain", gain), ("bias", bias)):
        check_tensor(op, name, vector, (chains, d), torch.float32, device)
    if rows is not None:
        check_tensor(op, "rows", rows, (chains, batch, r), torch.int64, device)
        check_positions(op, "rows", rows, n)
    elif r != n:
        raise ValueError(f"{op}: rows must be given unless y has all n = {n} rows, got r = {r}")
    return chains, batch * r, n, max(r, 1), d, m
