"""Layer similarity on vectors whose angles are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thermosphere.analysis.similarity import (
    between_chains,
    change,
    layer_similarity,
    mean_over_chains,
    pair_halves,
    pairs_of,
    similarity_histogram,
    similarity_summary,
)
from thermosphere.models.layout import Layout

LAYOUT = Layout.from_shapes({"first": (2, 3), "second": (4,)})


def test_identical_opposite_and_orthogonal_layers() -> None:
    draws = np.zeros((3, LAYOUT.size), np.float32)
    draws[:, 0] = [1.0, 2.0, -3.0]  # first: same direction, then opposite
    draws[[0, 1, 2], [6, 7, 6]] = [5.0, 2.0, 1.0]  # second: orthogonal, then parallel
    similarity = layer_similarity(draws, LAYOUT)
    assert list(similarity) == ["first", "second"]
    assert similarity["first"].tolist() == [1.0, -1.0, -1.0]  # pairs 01, 02, 12
    assert similarity["second"].tolist() == [0.0, 1.0, 0.0]


def test_equals_the_formula_pair_by_pair() -> None:
    draws = np.random.default_rng(3).normal(size=(6, LAYOUT.size)).astype(np.float32)
    similarity = layer_similarity(draws, LAYOUT)
    pair = 0
    for t in range(6):
        for other in range(t + 1, 6):
            for name in similarity:
                a = draws[t, LAYOUT.slice(name)].astype(float)
                b = draws[other, LAYOUT.slice(name)].astype(float)
                q = a @ b / math.sqrt((a @ a) * (b @ b))
                # A product of two unit vectors of at most 6 elements, rounded a few times.
                assert abs(similarity[name][pair] - q) < 20 * 6 * np.finfo(float).eps
            pair += 1
    assert pair == similarity["first"].size


def test_independent_layers_have_variance_one_over_size() -> None:
    layout = Layout.from_shapes({"wide": (400,)})
    draws = np.random.default_rng(5).normal(size=(200, 400))
    mean, spread = similarity_summary(layer_similarity(draws, layout))["wide"]
    pairs = 200 * 199 / 2
    # Pairs of one sample of directions are pairwise uncorrelated.
    assert abs(mean) * math.sqrt(400 * pairs) < 4.0
    assert abs(spread**2 * 400 - 1.0) < 4 * math.sqrt(2.0 / pairs)


def test_zero_layer_is_nan_and_does_not_spoil_the_rest() -> None:
    draws = np.ones((3, LAYOUT.size))
    draws[0, LAYOUT.slice("first")] = 0.0
    similarity = layer_similarity(draws, LAYOUT)
    assert np.isnan(similarity["first"]).tolist() == [True, True, False]
    assert similarity_summary(similarity)["first"] == pytest.approx((1.0, 0.0))
    density, _ = similarity_histogram(similarity["first"], bins=4)
    assert density.tolist() == [0.0, 0.0, 0.0, 2.0]


def test_what_a_mean_over_pairs_still_moves() -> None:
    late = [False, True, False, True]  # pairs (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)
    halves = pair_halves(late)
    assert halves.tolist() == [0, -1, 0, 0, 1, 0]
    assert change([9, 0.25, 9, 9, 0.75, 9], halves) == 0.5
    assert math.isnan(change([9, 0.25, 9, 9, np.nan, 9], halves))  # no late pair is known
    assert change([0.0] * 6, halves) == 0.0


def test_the_error_of_a_mean_over_pairs_is_that_of_chains() -> None:
    """Held to means of many sets of chains, each chain with a level of its own."""
    random = np.random.default_rng(3)
    chains = np.repeat(np.arange(6), 4)
    pairs = pairs_of(chains)
    between = pairs[:, 0] != pairs[:, 1]
    found = []
    for _ in range(400):
        level = random.normal(size=6)[chains] + 0.2 * random.normal(size=24)
        rows, columns = np.triu_indices(24, 1)
        values = 0.5 + 0.1 * (level[rows] + level[columns])
        found.append(mean_over_chains(values[between], pairs[between]))
    spread = np.std([one.mean for one in found])
    assert np.mean([one.mean for one in found]) == pytest.approx(0.5, abs=4 * spread / 20)
    assert np.sqrt(np.mean([one.error**2 for one in found])) == pytest.approx(spread, rel=0.15)
    assert {one.freedom for one in found} == {5.0}


def test_a_mean_over_pairs_weighs_pairs_of_chains_alike_and_knows_when_it_knows_nothing() -> None:
    chains = np.array([[0, 1], [0, 1], [0, 2], [1, 2]])
    found = mean_over_chains([0.0, np.nan, 0.3, 0.6], chains, motion=4.0)
    assert found.mean == pytest.approx(0.3)
    assert found.error == pytest.approx(math.hypot(4.0, math.sqrt(2 / 3 * 2 * 0.3**2)))
    assert found.freedom == 2.0
    assert math.isnan(mean_over_chains([0.5, 0.6], chains[:2]).error)  # of two chains alone
    assert not mean_over_chains([0.5, 0.5], chains[:2]).below(0.9)
    assert math.isnan(mean_over_chains([0.0, 0.1, 0.3, 0.6], chains, motion=math.nan).error)


def test_between_chains_matches_the_order_of_pairs() -> None:
    assert between_chains([0, 0, 1]).tolist() == [False, True, True]


def test_histogram_is_a_density() -> None:
    density, edges = similarity_histogram(np.linspace(-1.0, 1.0, 1000), bins=20)
    assert edges[0] == -1.0
    assert edges[-1] == 1.0
    assert density.sum() * (2.0 / 20) == pytest.approx(1.0, rel=1e-12)
    empty, _ = similarity_histogram([], bins=20)
    assert not empty.any()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((1, 10)), r"must be \(K >= 2, 10\), got shape \(1, 10\)"),
        (np.ones((3, 9)), r"must be \(K >= 2, 10\), got shape \(3, 9\)"),
        (np.full((3, 10), np.nan), "must be finite"),
    ],
)
def test_bad_weights_are_refused(weights: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_similarity(weights, LAYOUT)
