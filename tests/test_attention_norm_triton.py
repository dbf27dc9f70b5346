"""The attention layer's Triton kernels against the formula in float64, forward and backward; on the
CPU they run under Triton's interpreter, which works in float32 whatever the precision asked for."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound
from poison import poisoned, untouched
from test_attention_norm import Inputs, assert_agrees, make, reference

from thermosphere.ops.attention_norm_ref import attention_norm_ref

pytest.importorskip("triton")
from thermosphere.ops import attention_norm_triton as kernels
from thermosphere.ops.masked_rows_triton import RowSlots

# C, B, n, d, r (None: every row): the published sizes; sizes below, at and above a tile.
SIZES = [
    (2, 2, 86, 64, 13),
    (1, 1, 86, 26, None),
    (1, 2, 86, 14, 17),
    (1, 1, 1, 1, None),
    (3, 2, 2, 1, 1),
    (1, 2, 9, 7, 3),
    (1, 2, 33, 17, 18),
    (1, 1, 256, 33, 5),
    (1, 1, 40, 128, 5),
    (1, 2, 20, 32, 41),  # more queries than keys: rows may repeat
]
NAMES = [f"C{c} B{b} n{n} d{d} r{r}" for c, b, n, d, r in SIZES]


def both_ways(
    inputs: Inputs, rows: torch.Tensor | None, slope: torch.Tensor, precision: str = "tf32x3"
) -> tuple[torch.Tensor, ...]:
    """Y, and the slopes of every input."""
    out, state = kernels.layer_forward(*inputs, rows, with_state=True, precision=precision)
    assert state is not None
    slopes = kernels.layer_backward(slope, state, *inputs, rows, precision=precision)
    return out, *slopes


@pytest.mark.parametrize("sizes", SIZES, ids=NAMES)
def test_layer_is_that_of_the_formula(sizes: tuple, gpu: str) -> None:
    inputs, rows, slope = make(*sizes)
    own = Inputs(*(poisoned(tensor, gpu) for tensor in inputs))
    own_rows = None if rows is None else poisoned(rows, gpu)
    out, *slopes = both_ways(own, own_rows, poisoned(slope, gpu))
    assert_agrees(out, tuple(slopes), inputs, rows, slope)
    alone, state = kernels.layer_forward(*own, own_rows, with_state=False, precision="tf32x3")
    assert state is None
    assert_same_bits(alone, out, "without a state")


@pytest.mark.parametrize("d", [14, 26])
def test_as_many_rows_as_a_sequence_has(d: int, gpu: str) -> None:
    """Ragged rows packed without gaps, one sequence without any, and slots nobody owns."""
    n, counts = 21, [[3, 0, 19], [1, 20, 0]]
    inputs, _, _ = make(2, 3, n, d, None)
    g = torch.Generator().manual_seed(3)
    capacity = 3 * 20
    first = torch.tensor([[0, *torch.tensor(row).cumsum(0).tolist()] for row in counts])
    source = torch.full((2, capacity), 2**30, dtype=torch.int32)
    slope = untouched(2, capacity, d, device="cpu")
    for c, row in enumerate(counts):
        for b, count in enumerate(row):
            own = slice(int(first[c, b]), int(first[c, b + 1]))
            source[c, own] = (torch.randperm(n, generator=g)[:count] + b * n).int()
            slope[c, own] = torch.randn(count, d, generator=g)
    slots = RowSlots(first.int().to(gpu), source.to(gpu), 20, capacity)
    device_inputs = Inputs(*(poisoned(tensor, gpu) for tensor in inputs))
    x, weights = device_inputs.x, kernels.AttentionNormWeights(*device_inputs[1:])
    out, x_slope = untouched(2, capacity, d, device=gpu), torch.full_like(x, float("nan"))
    state = kernels.state_like(x, capacity)
    slopes = kernels.slopes_like(x, capacity)
    partial = untouched(2, 1, 2 * d * d + 2 * d, device=gpu)
    for tensor in (*state, *slopes):
        tensor.fill_(float("nan"))
    kernels.launch_forward(x, slots, weights, out, state, "tf32x3")
    kernels.launch_backward(
        slope.to(gpu)[:, None].contiguous(),
        x,
        slots,
        weights,
        state,
        slopes,
        x_slope,
        partial,
        [0, d * d, 2 * d * d, 2 * d * d + d],
        64,
        "tf32x3",
    )
    exact = Inputs(*(tensor.double().requires_grad_() for tensor in inputs))
    expected = [torch.zeros_like(tensor) for tensor in exact]
    for c, row in enumerate(counts):
        used = int(first[c, -1])
        assert torch.isnan(out[c, used:]).all()
        for b, count in enumerate(row):
            if count == 0:
                continue
            own = slice(int(first[c, b]), int(first[c, b + 1]))
            rows = (source[c, own].long() - b * n)[None, None]
            chain = [tensor[c : c + 1] for tensor in exact]
            y = attention_norm_ref(chain[0][:, b : b + 1], *chain[1:], rows)[0, 0]
            bound = error_bound(y.detach(), operations=n + d, dtype=torch.float32)
            assert_close(out[c, own], y.detach(), bound, f"chain {c} sequence {b}")
            for total, part in zip(
                expected, torch.autograd.grad(y, exact, slope[c, own].double()), strict=True
            ):
                total += part
    shapes = [tensor[0].numel() for tensor in weights]
    got = (x_slope, *partial[:, 0].split(shapes, dim=1))
    for name, mine, want in zip(Inputs._fields, got, expected, strict=True):
        bound = error_bound(want, operations=n + d, dtype=torch.float32)
        assert_close(mine.reshape(want.shape), want, bound, name)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, on the NaN
def test_a_chain_does_not_see_its_neighbours(gpu: str) -> None:
    inputs, rows, slope = make(2, 1, 20, 14, 7)
    assert rows is not None
    own = Inputs(*(tensor.to(gpu) for tensor in inputs))
    together = both_ways(own, rows.to(gpu), slope.to(gpu))
    again = both_ways(own, rows.to(gpu), slope.to(gpu))
    spoiled = Inputs(*(tensor.clone() for tensor in own))
    for tensor in spoiled:
        tensor[0].fill_(float("nan"))
    beside = both_ways(spoiled, rows.to(gpu), slope.to(gpu))
    for first, second, other in zip(together, again, beside, strict=True):
        assert_same_bits(second, first, "a second run")
        assert_same_bits(other[1], first[1], "beside a chain of NaN")
    assert torch.isnan(beside[0][0]).all()


def test_large_scores_do_not_overflow(gpu: str) -> None:
    inputs, rows, slope = make(1, 2, 30, 16, None)
    inputs = inputs._replace(query_key=300.0 * inputs.query_key)
    out, *slopes = both_ways(Inputs(*(tensor.to(gpu) for tensor in inputs)), rows, slope.to(gpu))
    exact, _ = reference(inputs, rows, slope)
    # scores of size 300 d are rounded to their 2^-24th: attention is as uncertain
    assert_close(out, exact, 1e-2 * float(exact.abs().max()), "out")
    assert all(torch.isfinite(tensor).all() for tensor in slopes)


def test_no_sequences_give_no_rows_and_zero_slopes(gpu: str) -> None:
    inputs, _, slope = make(2, 0, 5, 4, None)
    out, _, query_key, *_ = both_ways(
        Inputs(*(tensor.to(gpu) for tensor in inputs)), None, slope.to(gpu)
    )
    assert out.shape == (2, 0, 5, 4)
    assert not query_key.any()
