"""The attention layer against its formula in float64, forward and backward: every shape of tile,
every instruction set, the same bits anywhere."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound

from thermosphere.ops.attention_norm import (
    AttentionNormState,
    attention_norm,
    attention_norm_backward,
    attention_norm_forward,
)
from thermosphere.ops.attention_norm_ref import attention_norm_ref


class Inputs(NamedTuple):
    x: torch.Tensor
    query_key: torch.Tensor
    value_output: torch.Tensor
    gain: torch.Tensor
    bias: torch.Tensor


# C, B, n, d, r (None: every row): the published sizes; sizes below, at and above a vector, a panel
# and a tile; the limits; one sequence, and more sequences than groups.
SIZES = [
    (2, 5, 86, 64, None),
    (1, 11, 86, 64, 13),
    (1, 3, 86, 26, None),
    (2, 9, 86, 14, 12),
    (1, 1, 1, 1, None),
    (3, 2, 2, 1, 1),
    (1, 4, 9, 7, 3),
    (2, 3, 16, 16, None),
    (1, 19, 31, 17, 18),
    (1, 2, 129, 33, None),
    (1, 2, 40, 128, None),
    (1, 1, 256, 48, 256),
    (1, 2, 20, 32, 41),  # more queries than keys: rows may repeat
]
NAMES = [f"C{c} B{b} n{n} d{d} r{r}" for c, b, n, d, r in SIZES]


def make(
    chains: int, batch: int, n: int, d: int, r: int | None, seed: int = 0
) -> tuple[Inputs, torch.Tensor | None, torch.Tensor]:
    """Inputs of trained size, rows, and a slope of Y."""
    g = torch.Generator().manual_seed(seed)
    inputs = Inputs(
        x=torch.randn(chains, batch, n, d, generator=g),
        query_key=torch.randn(chains, d, d, generator=g) / d**0.5,
        value_output=torch.randn(chains, d, d, generator=g) / d**0.5,
        gain=1.0 + 0.3 * torch.randn(chains, d, generator=g),
        bias=0.3 * torch.randn(chains, d, generator=g),
    )
    rows = None if r is None else torch.randint(0, n, (chains, batch, r), generator=g)
    slope = torch.randn(chains, batch, n if r is None else r, d, generator=g)
    return inputs, rows, slope


def reference(
    inputs: Inputs, rows: torch.Tensor | None, slope: torch.Tensor
) -> tuple[torch.Tensor, Inputs]:
    """Y and the slopes of every input, float64."""
    exact = Inputs(*(tensor.double().requires_grad_() for tensor in inputs))
    out = attention_norm_ref(*exact, rows)
    return out.detach(), Inputs(*torch.autograd.grad(out, exact, slope.double()))


def assert_agrees(
    out: torch.Tensor,
    slopes: tuple[torch.Tensor, ...],
    inputs: Inputs,
    rows: torch.Tensor | None,
    slope: torch.Tensor,
) -> None:
    """An element is a sum of n and d terms, after a norm; the weights' slopes are also sums over
    rows. With d = 1 the norm's output is its bias, and slopes that are exactly zero are held to
    the rounding of the slopes they are differences of."""
    exact, expected = reference(inputs, rows, slope)
    _, _, n, d = inputs.x.shape
    bound = error_bound(exact, operations=n + d, dtype=torch.float32)
    assert_close(out, exact, bound, "out")
    least = error_bound(slope, operations=n + d, dtype=torch.float32, constant=1.0)
    for name, got, want in zip(Inputs._fields, slopes, expected, strict=True):
        bound = error_bound(want, operations=n + d, dtype=torch.float32)
        assert_close(got, want, max(bound, least if d == 1 else 0.0), name)


@pytest.mark.parametrize("sizes", SIZES, ids=NAMES)
def test_layer_is_that_of_the_formula(sizes: tuple, isa: str) -> None:
    inputs, rows, slope = make(*sizes)
    out, state = attention_norm_forward(*inputs, rows)
    assert state is not None
    slopes = attention_norm_backward(slope, state, *inputs, rows)
    assert_agrees(out, slopes, inputs, rows, slope)
    assert_same_bits(attention_norm(*inputs, rows), out, "without a state")


def attention_and_scores(inputs: Inputs, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A (C, B, r, n) of the op's state, and S in float64."""
    _, state = attention_norm_forward(*inputs, rows)
    assert state is not None
    r, d = rows.shape[2], inputs.x.shape[3]
    undivided, share = state.attention[..., :-1, :r], state.attention[..., -1:, :r]
    x, query_key = inputs.x.double(), inputs.query_key.double()
    own = torch.take_along_dim(x, rows[..., None], dim=2)
    return (undivided * share).mT, own @ query_key[:, None].mT @ x.mT / d**0.5


def test_attention_in_the_state_is_the_softmax(isa: str) -> None:
    inputs, rows, _ = make(1, 2, 31, 17, 5)
    assert rows is not None
    attention, scores = attention_and_scores(inputs, rows)
    exact = torch.softmax(scores, dim=3)
    bound = error_bound(exact, operations=31 + 17, dtype=torch.float32)
    assert_close(attention, exact, bound, "attention")


def test_scores_far_apart_and_nan(isa: str) -> None:
    """Where scores differ by more than float32's exponents reach, the lower ones weigh nothing."""
    inputs, rows, _ = make(1, 2, 31, 17, 5)
    assert rows is not None
    inputs = inputs._replace(query_key=inputs.query_key * 100)
    attention, scores = attention_and_scores(inputs, rows)
    below = scores.amax(dim=3, keepdim=True) - scores
    assert (below > 200).any()
    assert (attention[below > 88] == 0).all()
    rounding = error_bound(scores, operations=17, dtype=torch.float32)  # of S, so of ln A
    assert_close(attention, torch.softmax(scores, dim=3), 1e-6 + 2 * rounding, "attention")
    inputs.x[0, 1, 3, 2] = torch.nan  # reaches every query of its sequence, and no other sequence
    attention, _ = attention_and_scores(inputs, rows)
    assert attention[0, 0].isfinite().all()
    assert attention[0, 1].isnan().all()


def test_differentiable_in_a_model_of_ones_own(isa: str) -> None:
    """Through autograd, with non-contiguous arguments and the stride-0 slope of a sum."""
    (x, query_key, value_output, gain, bias), rows, _ = make(2, 3, 19, 13, 4)
    leaves = [t.clone().requires_grad_() for t in (x, query_key, value_output, gain, bias)]
    turned = leaves[0].mT.contiguous().mT
    out = attention_norm(turned, *leaves[1:], rows)
    grads = torch.autograd.grad((out * out).sum() + out.sum(), leaves)
    slope = 2 * out.detach() + 1
    assert_agrees(out.detach(), grads, Inputs(x, query_key, value_output, gain, bias), rows, slope)
    (only,) = torch.autograd.grad(attention_norm(x, leaves[1], *leaves[2:], rows).sum(), leaves[2])
    assert only.shape == value_output.shape


@pytest.mark.parametrize("batch", [1, 3, 8, 20])
def test_same_bits_for_any_threads(batch: int, isa: str) -> None:
    inputs, rows, slope = make(3, batch, 40, 20, 11)
    results = []
    for threads in (1, 2, 3, 7):
        out, state = attention_norm_forward(*inputs, rows, threads=threads)
        assert state is not None
        results.append(
            (out, *attention_norm_backward(slope, state, *inputs, rows, threads=threads))
        )
    for many in results[1:]:
        for got, expected in zip(many, results[0], strict=True):
            assert_same_bits(got, expected)


def test_a_chain_does_not_see_its_neighbours_or_the_last_call(isa: str) -> None:
    inputs, rows, slope = make(3, 9, 20, 14, 7)
    out, state = attention_norm_forward(*inputs, rows)
    assert rows is not None
    assert state is not None
    together = attention_norm_backward(slope, state, *inputs, rows)
    spoiled = Inputs(*(tensor.clone() for tensor in inputs))
    for tensor in spoiled:
        tensor[0].fill_(float("nan"))
    out_beside, state_beside = attention_norm_forward(*spoiled, rows)
    assert state_beside is not None
    beside = attention_norm_backward(slope, state_beside, *spoiled, rows)
    for part in (slice(1, 2), slice(2, 3)):
        own = Inputs(*(tensor[part].contiguous() for tensor in inputs))
        own_out, own_state = attention_norm_forward(*own, rows[part].contiguous())
        assert own_state is not None
        alone = attention_norm_backward(
            slope[part].contiguous(), own_state, *own, rows[part].contiguous()
        )
        assert_same_bits(own_out, out[part])
        assert_same_bits(own_out, out_beside[part])
        for got, with_others, with_nan in zip(alone, together, beside, strict=True):
            assert_same_bits(got, with_others[part])
            assert_same_bits(got, with_nan[part])


def test_large_scores_do_not_overflow(isa: str) -> None:
    inputs, rows, _ = make(1, 2, 30, 16, None)
    inputs = inputs._replace(query_key=300.0 * inputs.query_key)
    out = attention_norm(*inputs, rows)
    exact, _ = reference(inputs, rows, torch.zeros_like(out))
    # scores of size 300 d are rounded to their 2^-24th: attention is as uncertain
    assert_close(out, exact, 1e-2 * float(exact.abs().max()), "out")


def test_no_sequences_give_no_rows_and_zero_slopes() -> None:
    inputs, _, slope = make(2, 0, 5, 4, None)
    out, state = attention_norm_forward(*inputs)
    assert state is not None
    slopes = attention_norm_backward(slope, state, *inputs)
    assert out.shape == (2, 0, 5, 4)
    assert not slopes.query_key.any()


GOOD, ROWS, SLOPE = make(2, 3, 10, 8, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": GOOD.x.double()}, r"x must be \(C, B, n, d\) torch.float32 on cpu, got .*float64"),
        ({"x": GOOD.x[0]}, r"x must be \(C, B, n, d\) .*, got \(3, 10, 8\)"),
        ({"x": torch.zeros(2, 3, 257, 8)}, r"n must be in \[1, 256\], got 257"),
        ({"x": torch.zeros(2, 3, 10, 129)}, r"d must be in \[1, 128\], got 129"),
        ({"query_key": GOOD.query_key[:1]}, r"query_key must be \(2, 8, 8\) .*, got \(1, 8, 8\)"),
        ({"value_output": GOOD.value_output.to("meta")}, "value_output must be .* on meta"),
        ({"gain": GOOD.gain[:, :7]}, r"gain must be \(2, 8\) .*, got \(2, 7\)"),
        ({"bias": GOOD.bias.repeat(1, 2)[:, ::2]}, r"bias must be contiguous, got strides"),
        ({"rows": ROWS.int()}, r"rows must be \(2, 3, r\) torch.int64 on cpu, got .*int32"),  # type: ignore[union-attr]
        ({"rows": ROWS + 7}, r"rows must be in \[0, 10\), got"),  # type: ignore[operator]
        ({"rows": ROWS - 7}, r"rows must be in \[0, 10\), got -"),  # type: ignore[operator]
        ({"threads": 0}, "threads must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_one_line(change: dict[str, object], message: str) -> None:
    arguments = GOOD._asdict() | {"rows": ROWS} | change
    with pytest.raises(ValueError, match=f"^attention_norm: {message}") as error:
        attention_norm_forward(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_backward_refuses_what_is_not_of_its_forward() -> None:
    _, state = attention_norm_forward(*GOOD, ROWS)
    assert state is not None

    def refused(message: str, slope: torch.Tensor, state: AttentionNormState) -> None:
        with pytest.raises(ValueError, match=f"^attention_norm_backward: {message}"):
            attention_norm_backward(slope, state, *GOOD, ROWS)

    refused(r"out_slope must be \(2, 3, 4, 8\) .*, got \(2, 3, 4, 7\)", SLOPE[..., 1:], state)
    short = state._replace(attention=state.attention[..., :4])
    refused(r"state.attention must be \(2, 3, 11, 16\) .*, got \(2, 3, 11, 4\)", SLOPE, short)
    refused("state.mixed must be", SLOPE, state._replace(mixed=state.mixed.double()))
