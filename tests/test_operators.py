"""The layers as operators of torch: what torch.compile and autograd ask of one, on the CPU by the
extension and, as far as shapes go, on a GPU by Triton."""

from __future__ import annotations

from typing import Any

import pytest
import test_attention_norm
import test_feedforward_norm
import test_masked_cross_entropy
import torch
from numerics import assert_close, assert_same_bits, error_bound
from torch._subclasses.fake_tensor import FakeTensorMode

from thermosphere.ops.attention_norm import attention_norm
from thermosphere.ops.attention_norm_ref import attention_norm_ref
from thermosphere.ops.feedforward_norm import feedforward_norm
from thermosphere.ops.feedforward_norm_ref import feedforward_norm_ref
from thermosphere.ops.masked_cross_entropy import masked_cross_entropy
from thermosphere.ops.masked_cross_entropy_ref import masked_cross_entropy_ref


def attention() -> tuple[Any, ...]:
    inputs, rows, _ = test_attention_norm.make(2, 3, 10, 8, 4)
    return *inputs, rows


def feedforward() -> tuple[Any, ...]:
    inputs, code, rows, _ = test_feedforward_norm.make(2, 3, 10, 8, 20, 4)
    return *inputs, code, rows


def cross_entropy() -> tuple[Any, ...]:
    return tuple(test_masked_cross_entropy.make(2, 10, 8, 12))


# name, arguments, how many of them have a gradient
LAYERS = [
    ("attention_norm", attention, 5),
    ("feedforward_norm", feedforward, 7),
    ("masked_cross_entropy", cross_entropy, 3),
]
NAMES = [name for name, *_ in LAYERS]
TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


@pytest.mark.parametrize(("name", "make", "gradients"), LAYERS, ids=NAMES)
@pytest.mark.parametrize("with_state", [False, True])
def test_opcheck(name: str, make: Any, gradients: int, with_state: bool) -> None:
    """Schema, fake kernel, autograd registration, and tracing with both."""
    op = getattr(torch.ops.thermosphere, name).default
    arguments = make()
    if with_state:
        leaves = (tensor.requires_grad_() for tensor in arguments[:gradients])
        arguments = (*leaves, *arguments[gradients:])
    found = torch.library.opcheck(op, (*arguments, with_state, "tf32x3"), test_utils=TESTS)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("name", "make", "gradients"), LAYERS, ids=NAMES)
def test_opcheck_of_backward(name: str, make: Any, gradients: int) -> None:
    arguments = make()
    out, *rest = getattr(torch.ops.thermosphere, name)(*arguments, True, "tf32x3")
    state = rest[1:] if name == "masked_cross_entropy" else rest
    last = () if name == "masked_cross_entropy" else ("tf32x3",)
    op = getattr(torch.ops.thermosphere, f"{name}_backward").default
    tests = ("test_schema", "test_faketensor")
    found = torch.library.opcheck(
        op, (torch.ones_like(out), state, *arguments, *last), test_utils=tests
    )
    assert set(found.values()) == {"SUCCESS"}


def model(
    x: torch.Tensor, attention: tuple[Any, ...], hidden: tuple[Any, ...], head: tuple[Any, ...]
) -> torch.Tensor:
    """Somebody's model with all three layers."""
    rows = attention[-1]
    y = attention_norm(torch.tanh(x), *attention)
    z = feedforward_norm(y, *hidden, rows)
    losses, _ = masked_cross_entropy(z.flatten(1, 2), *head)
    return losses.sum() + z.square().mean()


def model_ref(
    x: torch.Tensor, attention: tuple[Any, ...], hidden: tuple[Any, ...], head: tuple[Any, ...]
) -> torch.Tensor:
    rows = attention[-1]
    y = attention_norm_ref(torch.tanh(x), *attention)
    z = feedforward_norm_ref(y, *hidden, rows)
    losses, _ = masked_cross_entropy_ref(z.flatten(1, 2), *head)
    return losses.sum() + z.square().mean()


def test_compiled_model_has_the_gradient_of_the_formula() -> None:
    """One graph without breaks; the gradient against float64, and the eager bits."""
    x, *attention_rest = attention()
    hidden = feedforward()[1:-1]
    *head, _, _ = cross_entropy()[1:]
    targets, weights = torch.randint(0, 12, (2, 12)), torch.rand(2, 12)
    rest = (tuple(attention_rest), hidden, (*head, targets, weights))

    def gradient(function: Any, dtype: torch.dtype) -> torch.Tensor:
        leaf = x.to(dtype).requires_grad_()
        others = [
            tuple(t.to(dtype) if t.is_floating_point() else t for t in group) for group in rest
        ]
        return torch.autograd.grad(function(leaf, *others), leaf)[0]

    exact = gradient(model_ref, torch.float64)
    eager = gradient(model, torch.float32)
    bound = error_bound(exact, operations=10 + 2 * 8 + 20 + 12, dtype=torch.float32)
    assert_close(eager, exact, bound, "eager")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(gradient(compiled, torch.float32), exact, bound, "compiled")


@pytest.mark.parametrize(("name", "make", "gradients"), LAYERS, ids=NAMES)
@pytest.mark.parametrize("with_state", [False, True])
def test_fake_results_are_those_of_a_gpu(
    name: str, make: Any, gradients: int, with_state: bool, gpu: str
) -> None:
    """Shapes and dtypes that torch.compile is told of CUDA tensors are what Triton's kernels
    return."""
    from thermosphere.ops import attention_norm_triton as attention_kernels
    from thermosphere.ops import feedforward_norm_triton as feedforward_kernels
    from thermosphere.ops import masked_cross_entropy_triton as loss_kernels

    arguments = make()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = [torch.empty(t.shape, dtype=t.dtype, device="cuda") for t in arguments]
        told = getattr(torch.ops.thermosphere, name)(*fake, with_state, "tf32x3")
    own = [tensor.to(gpu) for tensor in arguments]
    if name == "masked_cross_entropy":
        losses, errors, slopes = loss_kernels.layer(
            *own, with_slopes=with_state, precision="tf32x3"
        )
        got = [losses, errors, *(slopes or ())]
    else:
        attentive = name == "attention_norm"
        kernels = attention_kernels if attentive else feedforward_kernels
        out, state = kernels.layer_forward(*own, with_state=with_state, precision="tf32x3")
        got = [out, *(state or ())]
    told = [tensor for tensor in told if tensor.numel() > 0]
    assert [(t.shape, t.dtype) for t in told] == [(t.shape, t.dtype) for t in got]


def test_precision_is_checked() -> None:
    for function, arguments in (
        (attention_norm, attention()),
        (feedforward_norm, feedforward()),
        (masked_cross_entropy, cross_entropy()),
    ):
        message = f"^{function.__name__}: precision must be one of tf32x3, tf32, got 'bf16'$"
        with pytest.raises(ValueError, match=message):
            function(*arguments, precision="bf16")
        plain = function(*arguments, precision="tf32")
        first = plain if isinstance(plain, torch.Tensor) else plain[0]
        same = function(*arguments)
        assert_same_bits(first, same if isinstance(same, torch.Tensor) else same[0], "the CPU")
