"""The feed-forward layer against its formula in float64, forward and backward: every shape of tile,
every instruction set, the same bits anywhere."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound

from thermosphere.ops.feedforward_norm import (
    FeedforwardNormState,
    feedforward_norm,
    feedforward_norm_backward,
    feedforward_norm_forward,
)
from thermosphere.ops.feedforward_norm_ref import feedforward_norm_ref


class Inputs(NamedTuple):
    y: torch.Tensor
    weight1: torch.Tensor
    hidden_bias: torch.Tensor
    weight2: torch.Tensor
    out_bias: torch.Tensor
    gain: torch.Tensor
    bias: torch.Tensor


# C, B, n, d, m, r (None: every row): the published sizes; sizes below, at and above a vector, a
# panel and a tile; the limits; less than a chunk of rows, and more chunks than groups.
SIZES = [
    (2, 3, 86, 64, 256, None),
    (1, 11, 86, 64, 256, 13),
    (1, 3, 86, 26, 104, None),
    (2, 20, 86, 14, 56, None),
    (1, 1, 1, 1, 1, None),
    (3, 2, 2, 1, 5, 1),
    (1, 4, 9, 7, 3, 3),
    (2, 4, 16, 16, 32, None),
    (1, 19, 31, 17, 33, 18),
    (1, 2, 129, 33, 65, None),
    (1, 2, 40, 128, 512, None),
    (1, 1, 256, 48, 96, 64),
    (1, 1, 3, 8, 8, 65),
]
NAMES = [f"C{c} B{b} n{n} d{d} m{m} r{r}" for c, b, n, d, m, r in SIZES]
Problem = tuple[Inputs, torch.Tensor, torch.Tensor | None, torch.Tensor]


def make(chains: int, batch: int, n: int, d: int, m: int, r: int | None) -> Problem:
    """Inputs of trained size, code, rows, and a slope of Z."""
    g = torch.Generator().manual_seed(0)
    inputs = Inputs(
        y=torch.randn(chains, batch, n if r is None else r, d, generator=g),
        weight1=torch.randn(chains, m, d, generator=g) / d**0.5,
        hidden_bias=0.3 * torch.randn(chains, m, generator=g),
        weight2=torch.randn(chains, d, m, generator=g) / m**0.5,
        out_bias=0.3 * torch.randn(chains, d, generator=g),
        gain=1.0 + 0.3 * torch.randn(chains, d, generator=g),
        bias=0.3 * torch.randn(chains, d, generator=g),
    )
    code = torch.rand(n, m, generator=g) * 2 - 1
    rows = None if r is None else torch.randint(0, n, (chains, batch, r), generator=g)
    return inputs, code, rows, torch.randn(inputs.y.shape, generator=g)


def both_ways(problem: Problem, threads: int | None = None) -> tuple[torch.Tensor, ...]:
    """Z and the slopes of every input."""
    inputs, code, rows, slope = problem
    out, state = feedforward_norm_forward(*inputs, code, rows, threads=threads)
    assert state is not None
    slopes = feedforward_norm_backward(slope, state, *inputs, code, rows, threads=threads)
    return out, *slopes


def assert_agrees(got: tuple[torch.Tensor, ...], problem: Problem) -> None:
    """An element is a sum of d and m terms, after a norm; the weights' slopes are also sums over
    rows. With d = 1 the norm's output is its bias, and slopes that are exactly zero are held to
    the rounding of the slopes they are differences of."""
    inputs, code, rows, slope = problem
    exact = Inputs(*(tensor.double().requires_grad_() for tensor in inputs))
    out = feedforward_norm_ref(*exact, code.double(), rows)
    expected = (out.detach(), *torch.autograd.grad(out, exact, slope.double()))
    d, m = inputs.y.shape[3], code.shape[1]
    least = error_bound(slope, operations=d + m, dtype=torch.float32, constant=1.0)
    for name, mine, want in zip(("out", *Inputs._fields), got, expected, strict=True):
        bound = error_bound(want, operations=d + m, dtype=torch.float32)
        assert_close(mine, want, max(bound, least if d == 1 else 0.0), name)


@pytest.mark.parametrize("sizes", SIZES, ids=NAMES)
def test_layer_is_that_of_the_formula(sizes: tuple, isa: str) -> None:
    problem = make(*sizes)
    got = both_ways(problem)
    assert_agrees(got, problem)
    inputs, code, rows, _ = problem
    assert_same_bits(feedforward_norm(*inputs, code, rows), got[0], "without a state")


def test_a_nan_before_relu_is_not_lost(isa: str) -> None:
    (y, weight1, hidden_bias, *weights), code, rows, _ = make(2, 2, 9, 16, 33, None)
    hidden_bias[0, 32] = float("nan")
    out = feedforward_norm(y, weight1, hidden_bias, *weights, code, rows)
    assert bool(out[0].isnan().all())
    assert bool(out[1].isfinite().all())


def test_the_code_is_that_of_the_row(isa: str) -> None:
    """Equal rows at different positions differ, at the same position they do not."""
    (y, *weights), code, _, _ = make(1, 1, 9, 16, 32, 3)
    same = y[:, :, :1].expand(-1, -1, 3, -1)
    out = feedforward_norm(same, *weights, code, torch.tensor([[[5, 2, 5]]]))
    assert_same_bits(out[0, 0, 2], out[0, 0, 0])
    assert float((out[0, 0, 1] - out[0, 0, 0]).abs().max()) > 1e-2


def test_differentiable_in_a_model_of_ones_own(isa: str) -> None:
    """Through autograd, with non-contiguous arguments and the stride-0 slope of a sum."""
    inputs, code, rows, _ = make(2, 3, 19, 13, 21, 4)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    turned = leaves[0].mT.contiguous().mT
    out = feedforward_norm(turned, *leaves[1:], code.T.contiguous().T, rows)
    grads = torch.autograd.grad((out * out).sum() + out.sum(), leaves)
    slope = 2 * out.detach() + 1
    assert_agrees((out.detach(), *grads), (inputs, code, rows, slope))
    with pytest.raises(ValueError, match="code must not require a gradient"):
        feedforward_norm(*inputs, code.clone().requires_grad_(), rows)


@pytest.mark.parametrize("batch", [1, 5, 16, 70])
def test_same_bits_for_any_threads(batch: int, isa: str) -> None:
    problem = make(3, batch, 40, 20, 24, 29)
    one = both_ways(problem, 1)
    for threads in (2, 3, 7):
        for got, expected in zip(both_ways(problem, threads), one, strict=True):
            assert_same_bits(got, expected, f"{threads} threads")


def test_a_chain_does_not_see_its_neighbours_or_the_last_call(isa: str) -> None:
    inputs, code, rows, slope = make(3, 9, 20, 14, 30, 17)
    assert rows is not None
    together = both_ways((inputs, code, rows, slope))
    spoiled = Inputs(*(tensor.clone() for tensor in inputs))
    for tensor in spoiled:
        tensor[0].fill_(float("nan"))
    beside = both_ways((spoiled, code, rows, slope))
    for part in (slice(1, 2), slice(2, 3)):
        own = Inputs(*(tensor[part].contiguous() for tensor in inputs))
        alone = both_ways((own, code, rows[part].contiguous(), slope[part].contiguous()))
        for got, with_others, with_nan in zip(alone, together, beside, strict=True):
            assert_same_bits(got, with_others[part])
            assert_same_bits(got, with_nan[part])


def test_no_sequences_give_no_rows_and_zero_slopes() -> None:
    out, *slopes = both_ways(make(2, 0, 5, 4, 6, None))
    assert out.shape == (2, 0, 5, 4)
    assert not any(slope.any() for slope in slopes)


GOOD, CODE, ROWS, SLOPE = make(2, 3, 10, 8, 12, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": GOOD.y.double()}, r"y must be \(C, B, r, d\) torch.float32 on cpu, got .*float64"),
        ({"y": GOOD.y[0]}, r"y must be \(C, B, r, d\) .*, got \(3, 4, 8\)"),
        ({"y": torch.zeros(2, 3, 4, 129)}, r"d must be in \[1, 128\], got 129"),
        ({"code": torch.zeros(257, 12)}, r"n must be in \[1, 256\], got 257"),
        ({"code": torch.zeros(10, 513)}, r"m must be in \[1, 512\], got 513"),
        ({"code": CODE[None]}, r"code must be \(n, m\) .*, got \(1, 10, 12\)"),
        ({"weight1": GOOD.weight1[:1]}, r"weight1 must be \(2, 12, 8\) .*, got \(1, 12, 8\)"),
        ({"weight2": GOOD.weight2.mT}, r"weight2 must be \(2, 8, 12\) .*, got \(2, 12, 8\)"),
        ({"weight2": GOOD.weight1.mT}, r"weight2 must be contiguous, got strides"),
        ({"hidden_bias": GOOD.out_bias}, r"hidden_bias must be \(2, 12\) .*, got \(2, 8\)"),
        ({"out_bias": GOOD.out_bias.to("meta")}, "out_bias must be .* on meta"),
        ({"gain": GOOD.gain[:, :7]}, r"gain must be \(2, 8\) .*, got \(2, 7\)"),
        ({"bias": GOOD.bias[0]}, r"bias must be \(2, 8\) .*, got \(8,\)"),
        ({"rows": None}, r"rows must be given unless y has all n = 10 rows, got r = 4"),
        ({"rows": torch.zeros(2, 3, 5, dtype=torch.int64)}, r"rows must be \(2, 3, 4\) torch.int"),
        ({"rows": torch.full((2, 3, 4), 10)}, r"rows must be in \[0, 10\), got 10..10"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_one_line(change: dict[str, object], message: str) -> None:
    arguments = GOOD._asdict() | {"code": CODE, "rows": ROWS} | change
    with pytest.raises(ValueError, match=f"^feedforward_norm: {message}") as error:
        feedforward_norm_forward(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_backward_refuses_what_is_not_of_its_forward() -> None:
    _, state = feedforward_norm_forward(*GOOD, CODE, ROWS)
    assert state is not None

    def refused(message: str, slope: torch.Tensor, state: FeedforwardNormState) -> None:
        with pytest.raises(ValueError, match=f"^feedforward_norm_backward: {message}"):
            feedforward_norm_backward(slope, state, *GOOD, CODE, ROWS)

    refused(r"out_slope must be \(2, 3, 4, 8\) .*, got \(2, 3, 4, 7\)", SLOPE[..., 1:], state)
    short = state._replace(active=state.active[..., :12])
    refused(r"state.active must be \(2, 3, 4, 16\) .*, got \(2, 3, 4, 12\)", SLOPE, short)
    refused("state.normal must be", SLOPE, state._replace(normal=state.normal.double()))
