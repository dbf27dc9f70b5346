"""Triton's kernel of output and loss against the formula in float64, forward and backward; on the
CPU it runs under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close, assert_same_bits
from poison import poisoned
from test_masked_cross_entropy import Inputs, assert_agrees, make

from thermosphere.ops.masked_cross_entropy_ref import masked_cross_entropy_ref

pytest.importorskip("triton")
from thermosphere.ops import masked_cross_entropy_triton as kernels

# C, R, d, V: the published sizes; sizes below, at and above a tile; more rows than a group.
SIZES = [
    (2, 100, 64, 21),
    (1, 130, 26, 21),
    (2, 63, 14, 21),
    (1, 1, 1, 1),
    (3, 2, 1, 2),
    (1, 17, 33, 33),
    (1, 20, 128, 64),
    (1, 0, 5, 7),
]
NAMES = [f"C{c} R{r} d{d} V{v}" for c, r, d, v in SIZES]


def loss_and_slopes(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    losses, errors, slopes = kernels.layer(*inputs, with_slopes=True, precision="tf32x3")
    assert slopes is not None
    return losses, errors, *slopes


@pytest.mark.parametrize("sizes", SIZES, ids=NAMES)
def test_losses_errors_and_slopes_are_those_of_the_formula(sizes: tuple, gpu: str) -> None:
    inputs = make(*sizes)
    own = Inputs(*(poisoned(tensor, gpu) for tensor in inputs))
    got = loss_and_slopes(own)
    if sizes[1] > 0:
        assert_agrees(got, inputs, torch.ones(sizes[0], dtype=torch.float64))
    else:
        assert not any(tensor.any() for tensor in got)
    losses, errors, slopes = kernels.layer(*own, with_slopes=False, precision="tf32x3")
    assert slopes is None
    assert losses.dtype == errors.dtype == torch.float64
    assert_same_bits(losses, got[0], "losses alone")
    assert_same_bits(errors, got[1], "errors alone")


def test_the_first_of_equal_logits_is_the_prediction(gpu: str) -> None:
    output, bias = torch.zeros(1, 5, 4), torch.tensor([[0.0, 2.0, 1.0, 2.0, 2.0]])
    inputs = Inputs(
        torch.ones(1, 3, 4),
        output,
        bias,
        torch.tensor([[1, 3, 0]]),
        torch.tensor([[1.0, 2.0, 4.0]]),
    )
    _, errors, *_ = loss_and_slopes(Inputs(*(tensor.to(gpu) for tensor in inputs)))
    assert float(errors) == 6.0


def test_large_logits_do_not_overflow(gpu: str) -> None:
    inputs = make(1, 40, 16, 21)
    inputs = inputs._replace(output=1e4 * inputs.output)
    losses, _, *slopes = loss_and_slopes(Inputs(*(tensor.to(gpu) for tensor in inputs)))
    exact, _ = masked_cross_entropy_ref(*(t.double() for t in inputs[:3]), *inputs[3:])
    assert_close(losses, exact, 1e-5 * float(exact.max()), "losses")
    assert all(torch.isfinite(slope).all() for slope in slopes)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, on the NaN
def test_a_chain_does_not_see_its_neighbours(gpu: str) -> None:
    own = Inputs(*(tensor.to(gpu) for tensor in make(2, 70, 14, 21)))
    together, again = loss_and_slopes(own), loss_and_slopes(own)
    spoiled = Inputs(*(tensor.clone() for tensor in own))
    for tensor in (*spoiled[:3], spoiled.weights):
        tensor[0].fill_(float("nan"))
    beside = loss_and_slopes(spoiled)
    for first, second, other in zip(together, again, beside, strict=True):
        assert_same_bits(second, first, "a second run")
        assert_same_bits(other[1], first[1], "beside a chain of NaN")
