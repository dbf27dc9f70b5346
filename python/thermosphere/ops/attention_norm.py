"""The attention layer of a block, its residual and its norm (arXiv 2603.29529, Eq. 6-10), in
float32 on the CPU (csrc/attention_norm*) or on a GPU (attention_norm_triton.py):

    S = X_rows Wqkᵀ Xᵀ / √d,  A = softmax over the keys,  Y = LN(X_rows + (A X) Wvoᵀ) γ + β

One head, no biases, the query and key (value and output) matrices combined; LN with ε = 1e-5.
`attention_norm` is differentiable, and known to torch.compile as torch.ops.thermosphere; the two
functions below it are its halves on the CPU. The formula is in attention_norm_ref.py.
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


class AttentionNormState(NamedTuple):
    """What backward reads of forward, rows padded with zeros to multiples of 16."""

    queries: torch.Tensor  # (C, B, r, padded d), X_rows Wqkᵀ
    mixed: torch.Tensor  # (C, B, r, padded d), A X
    normal: torch.Tensor  # (C, B, r, padded d), the norm before gain and bias
    attention: torch.Tensor  # (C, B, n + 1, padded r), exp(Sᵀ - max), a row of one over its sums
    inverse_deviation: torch.Tensor  # (C, B, r), 1/σ of the norm


class AttentionNormResult(NamedTuple):
    out: torch.Tensor  # (C, B, r, d)
    state: AttentionNormState | None  # None where it was not asked for


class AttentionNormSlopes(NamedTuple):
    x: torch.Tensor  # (C, B, n, d)
    query_key: torch.Tensor  # (C, d, d)
    value_output: torch.Tensor  # (C, d, d)
    gain: torch.Tensor  # (C, d)
    bias: torch.Tensor  # (C, d)


def attention_norm(
    x: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    rows: torch.Tensor | None = None,
    *,
    precision: str = "tf32x3",
) -> torch.Tensor:
    """Y (C, B, r, d), differentiable once in everything but `rows`; all on one device.

    Parameters
    ----------
    x: (C, B, n, d) float32, n ≤ 256, d ≤ 128.
    query_key, value_output: (C, d, d) float32, Wqk and Wvo of each chain.
    gain, bias: (C, d) float32.
    rows: (C, B, r) int64 in [0, n), the query positions of each sequence, r ≤ 256; None: all n.
    precision: of products on a GPU, arguments.PRECISIONS.

    Raises ValueError naming the argument that does not fit.
    """
    tensors = (x, query_key, value_output, gain, bias)
    with_state = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    inputs = (tensor.contiguous() for tensor in tensors)
    rows = None if rows is None else rows.contiguous()
    return torch.ops.thermosphere.attention_norm(*inputs, rows, with_state, precision)[0]


def attention_norm_forward(
    x: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    rows: torch.Tensor | None = None,
    *,
    with_state: bool = True,
    threads: int | None = None,
) -> AttentionNormResult:
    """Y and what backward reads. Arguments of `attention_norm`, contiguous.

    threads: default torch.get_num_threads(); the bits do not depend on it.
    """
    sizes = _check(x, query_key, value_output, gain, bias, rows)
    chains, batch, n, r, d = sizes
    threads = thread_count("attention_norm", threads)
    out = x.new_empty(chains, batch, r, d)
    state = None
    if with_state:
        queries, mixed, normal = (x.new_empty(chains, batch, r, padded(d)) for _ in range(3))
        state = AttentionNormState(
            queries,
            mixed,
            normal,
            attention=x.new_empty(chains, batch, n + 1, padded(r)),
            inverse_deviation=x.new_empty(chains, batch, r),
        )
    _core.attention_norm(
        sizes=sizes,
        inputs=addresses(x, rows, query_key, value_output, gain, bias),
        out=out.data_ptr(),
        state=addresses(*(state or (None,) * 5)),
        threads=threads,
    )
    return AttentionNormResult(out, state)


def attention_norm_backward(
    out_slope: torch.Tensor,
    state: AttentionNormState,
    x: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    rows: torch.Tensor | None = None,
    *,
    threads: int | None = None,
) -> AttentionNormSlopes:
    """Slopes of a loss by every input, from that by Y, `out_slope` (C, B, r, d), and the state that
    `attention_norm_forward` returned for the same inputs."""
    sizes = _check(x, query_key, value_output, gain, bias, rows)
    chains, batch, n, r, d = sizes
    op = "attention_norm_backward"
    check_tensor(op, "out_slope", out_slope, (chains, batch, r, d), torch.float32)
    own = (r, padded(d))
    shapes: tuple[tuple[int, ...], ...] = (own, own, own, (n + 1, padded(r)), (r,))
    for name, tensor, shape in zip(state._fields, state, shapes, strict=True):
        check_tensor(op, f"state.{name}", tensor, (chains, batch, *shape), torch.float32)
    inputs = (x, query_key, value_output, gain, bias)
    slopes = AttentionNormSlopes(*(torch.empty_like(tensor) for tensor in inputs))
    _core.attention_norm_backward(
        sizes=sizes,
        inputs=addresses(x, rows, query_key, value_output, gain, bias),
        state=addresses(*state),
        out_slope=out_slope.data_ptr(),
        slopes=addresses(*slopes),
        threads=thread_count(op, threads),
    )
    return slopes


_INPUTS = "Tensor x, Tensor query_key, Tensor value_output, Tensor gain, Tensor bias, Tensor? rows"
_STATES = ", ".join(["Tensor"] * len(AttentionNormState._fields))


@torch.library.custom_op(
    "thermosphere::attention_norm",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_INPUTS}, bool with_state, str precision) -> (Tensor, {_STATES})",
)
def _op(*arguments: Any) -> tuple[torch.Tensor, ...]:
    """Y and the state, whose tensors are empty unless it is asked for."""
    *inputs, with_state, precision = arguments
    check_precision("attention_norm", precision)
    out, state = attention_norm_forward(*inputs, with_state=with_state)
    return out, *(state or (out.new_empty(0) for _ in AttentionNormState._fields))


@_op.register_kernel("cuda")
def _(*arguments: Any) -> tuple[torch.Tensor, ...]:
    from thermosphere.ops.attention_norm_triton import layer_forward

    *inputs, with_state, precision = arguments
    check_precision("attention_norm", precision)
    _check(*inputs)
    check_triton("attention_norm")
    with on_device(inputs[0].device):
        out, state = layer_forward(*inputs, with_state=with_state, precision=precision)
    return out, *(state or (out.new_empty(0) for _ in AttentionNormState._fields))


@_op.register_fake
def _(
    x: torch.Tensor, query_key: object, value_output: object, gain: object, bias: object,
    rows: torch.Tensor | None, with_state: bool, precision: str,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    chains, batch, n, d = x.shape
    r = n if rows is None else rows.shape[2]
    out = x.new_empty(chains, batch, r, d)
    if not with_state:
        return out, *(x.new_empty(0) for _ in AttentionNormState._fields)
    if x.device.type == "cuda":
        wide, thin = (chains, batch * r, d), (chains, batch * r)
        shapes: tuple[tuple[int, ...], ...] = (wide, wide, wide, thin, thin)
    else:
        own = (r, padded(d))
        parts = (own, own, own, (n + 1, padded(r)), (r,))
        shapes = tuple((chains, batch, *part) for part in parts)
    return out, *(x.new_empty(shape) for shape in shapes)


@torch.library.custom_op(
    "thermosphere::attention_norm_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor out_slope, Tensor[] state, {_INPUTS}, str precision) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward_op(
    out_slope: torch.Tensor, state: list[torch.Tensor], *arguments: Any
) -> tuple[torch.Tensor, ...]:
    *inputs, _ = arguments
    return tuple(attention_norm_backward(out_slope, AttentionNormState(*state), *inputs))


@_backward_op.register_kernel("cuda")
def _(
    out_slope: torch.Tensor, state: list[torch.Tensor], *arguments: Any
) -> tuple[torch.Tensor, ...]:
    from thermosphere.ops.attention_norm_triton import layer_backward

    *inputs, precision = arguments
    with on_device(out_slope.device):
        return layer_backward(out_slope, state, *inputs, precision=precision)


@_backward_op.register_fake
def _(out_slope: object, state: object, *arguments: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in arguments[:5])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, _, ctx.precision = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, out_slope: torch.Tensor, *_: object) -> tuple[Any, ...]:
    inputs, state = ctx.saved_tensors[:6], list(ctx.saved_tensors[6:])
    slopes = torch.ops.thermosphere.attention_norm_backward(
        out_slope.contiguous(), state, *inputs, ctx.precision
    )
    return *slopes, None, None, None


_op.register_autograd(_differentiate, setup_context=_keep)


def _check(
    x: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    rows: torch.Tensor | None,
) -> tuple[int, int, int, int, int]:
    """C, B, n, r, d."""
    op = "attention_norm"
    device = "cuda" if x.device.type == "cuda" else "cpu"
    check_tensor(op, "x", x, ("C", "B", "n", "d"), torch.float32, device)
    chains, batch, n, d = x.shape
    _, embedding_max, _, length_max, _ = _core.encoder_size_limits
    check_size(op, "n", n, length_max)
    check_size(op, "d", d, embedding_max)
    for name, matrix in (("query_key", query_key), ("value_output", value_output)):
        check_tensor(op, name, matrix, (chains, d, d), torch.float32, device)
    for name, vector in (("gain", gain), ("bias", bias)):
        check_tensor(op, name, vector, (chains, d), torch.float32, device)
    if rows is None:
        return chains, batch, n, n, d
    check_tensor(op, "rows", rows, (chains, batch, "r"), torch.int64, device)
    check_size(op, "r", rows.shape[2], length_max)
    check_positions(op, "rows", rows, n)
    return chains, batch, n, rows.shape[2], d
