"""The feed-forward layer's Triton kernels against the formula in float64, forward and backward; on
the CPU they run under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_same_bits
from poison import poisoned
from test_feedforward_norm import Inputs, assert_agrees, make

pytest.importorskip("triton")
from thermosphere.ops import feedforward_norm_triton as kernels

# C, B, n, d, m, r (None: every row): the published sizes; sizes below, at and above a tile.
SIZES = [
    (2, 2, 86, 64, 256, 13),
    (1, 1, 86, 26, 104, None),
    (2, 2, 86, 14, 56, 12),
    (1, 1, 1, 1, 1, None),
    (1, 2, 9, 7, 5, 3),
    (1, 1, 16, 33, 65, None),
    (1, 1, 5, 128, 512, None),
]
NAMES = [f"C{c} B{b} n{n} d{d} m{m} r{r}" for c, b, n, d, m, r in SIZES]


def both_ways(
    inputs: Inputs, code: torch.Tensor, rows: torch.Tensor | None, slope: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Z, and the slopes of every input."""
    kind = {"precision": "tf32x3"}
    out, state = kernels.layer_forward(*inputs, code, rows, with_state=True, **kind)
    assert state is not None
    return out, *kernels.layer_backward(slope, state, *inputs, code, rows, **kind)


@pytest.mark.parametrize("sizes", SIZES, ids=NAMES)
def test_layer_is_that_of_the_formula(sizes: tuple, gpu: str) -> None:
    problem = make(*sizes)
    inputs, code, rows, slope = problem
    own = Inputs(*(poisoned(tensor, gpu) for tensor in inputs))
    own_rows = None if rows is None else poisoned(rows, gpu)
    own_code = poisoned(code, gpu)
    got = both_ways(own, own_code, own_rows, poisoned(slope, gpu))
    assert_agrees(got, problem)
    alone, state = kernels.layer_forward(
        *own, own_code, own_rows, with_state=False, precision="tf32x3"
    )
    assert state is None
    assert_same_bits(alone, got[0], "without a state")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, on the NaN
def test_a_chain_does_not_see_its_neighbours(gpu: str) -> None:
    inputs, code, rows, slope = make(2, 2, 20, 14, 30, 7)
    assert rows is not None
    own = Inputs(*(tensor.to(gpu) for tensor in inputs))
    fixed = (code.to(gpu), rows.to(gpu), slope.to(gpu))
    together, again = both_ways(own, *fixed), both_ways(own, *fixed)
    spoiled = Inputs(*(tensor.clone() for tensor in own))
    for tensor in spoiled:
        tensor[0].fill_(float("nan"))
    beside = both_ways(spoiled, *fixed)
    for first, second, other in zip(together, again, beside, strict=True):
        assert_same_bits(second, first, "a second run")
        assert_same_bits(other[1], first[1], "beside a chain of NaN")
    assert torch.isnan(beside[0][0]).all()


def test_a_nan_before_relu_is_not_lost(gpu: str) -> None:
    inputs, code, rows, _ = make(1, 1, 9, 16, 33, None)
    inputs.hidden_bias[0, 32] = float("nan")
    own = (tensor.to(gpu) for tensor in (*inputs, code))
    out, _ = kernels.layer_forward(*own, rows, with_state=False, precision="tf32x3")
    assert torch.isnan(out).all()
