"""Output and loss against their formula in float64, forward and backward: every shape of tile,
every instruction set, the same bits anywhere."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound

from thermosphere.ops.masked_cross_entropy import (
    masked_cross_entropy,
    masked_cross_entropy_backward,
    masked_cross_entropy_forward,
)
from thermosphere.ops.masked_cross_entropy_ref import masked_cross_entropy_ref


class Inputs(NamedTuple):
    x: torch.Tensor
    output: torch.Tensor
    output_bias: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


# C, R, d, V: the published sizes; sizes below, at and above a vector, a panel, a tile and a chunk
# of rows; the limits; more chunks than groups.
SIZES = [
    (2, 800, 64, 21),
    (1, 130, 26, 21),
    (2, 63, 14, 21),
    (1, 1, 1, 1),
    (3, 2, 1, 2),
    (1, 64, 16, 16),
    (2, 65, 17, 17),
    (1, 129, 33, 33),
    (1, 70, 128, 64),
    (1, 1500, 7, 32),
]
NAMES = [f"C{c} R{r} d{d} V{v}" for c, r, d, v in SIZES]


def make(chains: int, rows: int, d: int, tokens: int) -> Inputs:
    """Inputs of trained size; some rows weigh nothing."""
    g = torch.Generator().manual_seed(0)
    weights = torch.rand(chains, rows, generator=g) / rows
    weights[:, 3::5] = 0.0
    return Inputs(
        x=torch.randn(chains, rows, d, generator=g),
        output=torch.randn(chains, tokens, d, generator=g) / d**0.5,
        output_bias=0.3 * torch.randn(chains, tokens, generator=g),
        targets=torch.randint(0, tokens, (chains, rows), generator=g),
        weights=weights,
    )


def loss_slope(chains: int) -> torch.Tensor:
    return torch.linspace(0.5, -2.0, chains, dtype=torch.float64)


def both_ways(inputs: Inputs, threads: int | None = None) -> tuple[torch.Tensor, ...]:
    """Losses, errors and the slopes of x, output and output_bias."""
    losses, errors, state = masked_cross_entropy_forward(*inputs, threads=threads)
    assert state is not None
    slope = loss_slope(len(losses))
    slopes = masked_cross_entropy_backward(slope, state, *inputs, threads=threads)
    return losses, errors, *slopes


def assert_agrees(got: tuple[torch.Tensor, ...], inputs: Inputs, slope: torch.Tensor) -> None:
    """A logit is a sum of d terms, a partition one of V, an output slope one over rows. Slopes that
    are differences of equal terms (V = 1) are held to the rounding of those terms."""
    exact = [tensor.double().requires_grad_() for tensor in inputs[:3]]
    weights = inputs.weights.double()
    losses, errors = masked_cross_entropy_ref(*exact, inputs.targets, weights)
    grads = torch.autograd.grad(losses, exact, slope)
    expected = (losses.detach(), errors, *grads)
    d, tokens = inputs.x.shape[2], inputs.output.shape[1]
    names = ("losses", "errors", "x", "output", "output_bias")
    least = error_bound(inputs.weights, operations=d + tokens, dtype=torch.float32)
    for name, mine, want in zip(names, got, expected, strict=True):
        bound = error_bound(want, operations=d + tokens, dtype=torch.float32)
        assert_close(mine, want, bound + (least if tokens == 1 else 1e-30), name)


@pytest.mark.parametrize("sizes", SIZES, ids=NAMES)
def test_losses_errors_and_slopes_are_those_of_the_formula(sizes: tuple, isa: str) -> None:
    inputs = make(*sizes)
    got = both_ways(inputs)
    assert_agrees(got, inputs, loss_slope(sizes[0]))
    losses, errors = masked_cross_entropy(*inputs)
    assert losses.dtype == errors.dtype == torch.float64
    assert_same_bits(losses, got[0], "losses without a state")
    assert_same_bits(errors, got[1], "errors without a state")


def test_differentiable_in_a_model_of_ones_own(isa: str) -> None:
    """Through autograd, with a non-contiguous argument; errors have no gradient."""
    inputs = make(3, 90, 13, 21)
    x, output, output_bias = (tensor.clone().requires_grad_() for tensor in inputs[:3])
    turned = x.mT.contiguous().mT
    losses, errors = masked_cross_entropy(turned, output, output_bias, *inputs[3:])
    assert not errors.requires_grad
    slope = loss_slope(3)
    grads = torch.autograd.grad((slope * losses).sum(), (x, output, output_bias))
    assert_agrees((losses.detach(), errors, *grads), inputs, slope)
    with pytest.raises(ValueError, match="weights must not require a gradient"):
        masked_cross_entropy(*inputs[:4], inputs.weights.clone().requires_grad_())


def test_the_first_of_equal_logits_is_the_prediction(isa: str) -> None:
    output, bias = torch.zeros(1, 5, 4), torch.tensor([[0.0, 2.0, 1.0, 2.0, 2.0]])
    x, targets = torch.ones(1, 3, 4), torch.tensor([[1, 3, 0]])
    _, errors = masked_cross_entropy(x, output, bias, targets, torch.tensor([[1.0, 2.0, 4.0]]))
    assert float(errors) == 6.0


def test_large_logits_do_not_overflow(isa: str) -> None:
    inputs = make(1, 40, 16, 21)
    inputs = inputs._replace(output=1e4 * inputs.output)
    losses, *_, slope = both_ways(inputs)
    exact, _ = masked_cross_entropy_ref(*(t.double() for t in inputs[:3]), *inputs[3:])
    assert_close(losses, exact, 1e-5 * float(exact.max()), "losses")
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("rows", [1, 100, 256, 2000])
def test_same_bits_for_any_threads(rows: int, isa: str) -> None:
    inputs = make(3, rows, 20, 21)
    one = both_ways(inputs, 1)
    for threads in (2, 3, 7):
        for got, expected in zip(both_ways(inputs, threads), one, strict=True):
            assert_same_bits(got, expected, f"{threads} threads")


def test_a_chain_does_not_see_its_neighbours_or_the_last_call(isa: str) -> None:
    inputs = make(3, 300, 14, 21)
    together = both_ways(inputs)
    spoiled = Inputs(*(tensor.clone() for tensor in inputs))
    for tensor in (*spoiled[:3], spoiled.weights):
        tensor[0].fill_(float("nan"))
    beside = both_ways(spoiled)
    for chain in (1, 2):
        part = slice(chain, chain + 1)
        own = Inputs(*(tensor[part].contiguous() for tensor in inputs))
        losses, errors, state = masked_cross_entropy_forward(*own)
        assert state is not None
        slopes = masked_cross_entropy_backward(loss_slope(3)[part].contiguous(), state, *own)
        for got, with_others, with_nan in zip(
            (losses, errors, *slopes), together, beside, strict=True
        ):
            assert_same_bits(got, with_others[part])
            assert_same_bits(got, with_nan[part])


def test_no_rows_give_no_loss_and_zero_slopes() -> None:
    losses, errors, x, *slopes = both_ways(make(2, 0, 4, 6))
    assert x.shape == (2, 0, 4)
    assert not any(tensor.any() for tensor in (losses, errors, *slopes))


GOOD = make(2, 10, 8, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": GOOD.x.double()}, r"x must be \(C, R, d\) torch.float32 on cpu, got .*float64"),
        ({"x": GOOD.x[0]}, r"x must be \(C, R, d\) .*, got \(10, 8\)"),
        (
            {"x": torch.zeros(2, 10, 129), "output": torch.zeros(2, 12, 129)},
            r"d must be in \[1, 12",
        ),
        ({"output": torch.zeros(2, 65, 8)}, r"V must be in \[1, 64\], got 65"),
        ({"output": GOOD.output[:1]}, r"output must be \(2, V, 8\) .*, got \(1, 12, 8\)"),
        ({"output_bias": GOOD.output_bias[:, 1:]}, r"output_bias must be \(2, 12\) .*\(2, 11\)"),
        ({"targets": GOOD.targets.int()}, r"targets must be \(2, 10\) torch.int64 .*int32"),
        ({"targets": GOOD.targets + 12}, r"targets must be in \[0, 12\), got"),
        ({"targets": GOOD.targets - 12}, r"targets must be in \[0, 12\), got -"),
        ({"weights": GOOD.weights.double()}, r"weights must be \(2, 10\) torch.float32"),
        ({"weights": GOOD.weights.to("meta")}, "weights must be .* on meta"),
        ({"weights": GOOD.weights.mT.contiguous().mT}, "weights must be contiguous, got strides"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^masked_cross_entropy: {message}") as error:
        masked_cross_entropy_forward(**(GOOD._asdict() | change))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_backward_refuses_what_is_not_of_its_forward() -> None:
    _, _, state = masked_cross_entropy_forward(*GOOD)
    assert state is not None

    def refused(message: str, slope: torch.Tensor, state: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=f"^masked_cross_entropy_backward: {message}"):
            masked_cross_entropy_backward(slope, state, *GOOD)

    refused(r"loss_slope must be \(2,\) torch.float64 .*float32", loss_slope(2).float(), state)
    refused(r"logit_slope must be \(2, 10, 16\) .*12\)", loss_slope(2), state[..., :12])
