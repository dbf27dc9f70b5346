"""Dropout of the fused gradient against the formula in float64 with the same elements dropped, and
the law of what drops out."""

from __future__ import annotations

import pytest
from numerics import assert_same_bits
from test_encoder_gradient import (
    FEEDFORWARD_SHAPES,
    SHAPES,
    SMALL_FF,
    TF1,
    assert_agrees,
    make_batch,
    make_data,
    make_weights,
    name_of,
)

from thermosphere.ops.dropout import Dropout
from thermosphere.ops.dropout_ref import DropoutFactors, blocks_of
from thermosphere.ops.encoder_gradient import EncoderShape, encoder_gradient
from thermosphere.ops.encoder_gradient_ref import encoder_gradient_ref


@pytest.mark.parametrize("shape", SHAPES + FEEDFORWARD_SHAPES, ids=name_of)
def test_gradient_with_dropout_is_that_of_the_formula(shape: EncoderShape, isa: str) -> None:
    data, weights, batch = make_data(shape), make_weights(shape, 2), make_batch(2, 6)
    dropout = Dropout(0.25, seed=2**63 + 5)
    result = encoder_gradient(shape, data, weights, batch, dropout=dropout)
    assert_agrees(
        shape, result, encoder_gradient_ref(shape, data, weights.double(), batch, dropout)
    )


@pytest.mark.parametrize("masked", [0.0, 1.0])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[7], SMALL_FF], ids=name_of)
def test_dropout_where_few_and_all_sites_are_masked(
    shape: EncoderShape, masked: float, isa: str
) -> None:
    data, weights, dropout = make_data(shape, masked), make_weights(shape, 1), Dropout(0.9, 3)
    result = encoder_gradient(shape, data, weights, dropout=dropout)
    reference = encoder_gradient_ref(shape, data, weights.double(), dropout=dropout)
    assert_agrees(shape, result, reference)


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2], SMALL_FF], ids=name_of)
def test_dropout_has_the_same_bits_for_any_number_of_threads(shape: EncoderShape) -> None:
    data, weights, batch = make_data(shape), make_weights(shape, 2), make_batch(2, 40)
    one, two, three = (
        encoder_gradient(shape, data, weights, batch, dropout=Dropout(0.1, 7), threads=threads)
        for threads in (1, 2, 3)
    )
    for other in (two, three):
        assert_same_bits(one.gradient, other.gradient)
        assert_same_bits(one.losses, other.losses)


def test_dropout_of_rate_zero_is_none() -> None:
    data, weights = make_data(TF1), make_weights(TF1, 1)
    plain = encoder_gradient(TF1, data, weights)
    assert_same_bits(
        plain.gradient, encoder_gradient(TF1, data, weights, dropout=Dropout(0, 1)).gradient
    )


def test_what_drops_out_is_a_share_of_all_and_differs_with_seed_chain_and_sequence() -> None:
    rate, rows, columns = 0.1, 400, 64
    blocks = blocks_of(rows, columns)
    sources = [
        DropoutFactors(Dropout(rate, seed), chain, first)
        for seed, chain, first in [(1, 0, 0), (2**63, 0, 0), (1, 1, 0), (1, 0, blocks)]
    ]
    factors = [source.next(rows, columns) for source in sources]
    factors.append(sources[0].next(rows, columns))  # the next activation
    assert_same_bits(factors[4], factors[3])
    exact = round(rate * 65536) / 65536
    for one in factors[:4]:
        assert set(one.unique().tolist()) == {0.0, 1.0 / (1.0 - exact)}
        dropped = (one == 0.0).double()
        error = (exact * (1.0 - exact) / dropped.numel()) ** 0.5
        assert abs(float(dropped.mean()) - exact) < 4.0 * error
        for along in (0, 1):
            spread = (
                dropped.mean(along).std() / (exact * (1.0 - exact) / dropped.shape[along]) ** 0.5
            )
            assert 0.7 < float(spread) < 1.3  # of rows and columns, as of independent elements
    for i in range(4):
        for j in range(i):
            both = float(((factors[i] == 0.0) & (factors[j] == 0.0)).double().mean())
            assert abs(both - exact**2) < 4.0 * (exact**2 / (rows * columns)) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.0, "seed": 0}, r"Dropout: rate must be in \[0, 1\), got 1.0"),
        ({"rate": float("nan"), "seed": 0}, r"Dropout: rate must be in \[0, 1\), got nan"),
        ({"rate": 0.1, "seed": -1}, r"Dropout: seed must be in \[0, 2\*\*64\), got -1"),
    ],
)
def test_dropout_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dropout(**arguments)
