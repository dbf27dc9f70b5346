"""Effective embedding dimension of planted norm vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thermosphere.analysis.embedding import (
    effective_dimension,
    effective_dimensions,
    norm_vectors,
)
from thermosphere.models.layout import Layout

SEED = 11


def planted(size: int, away: int, draws: int = 20, width: float = 0.1) -> np.ndarray:
    """`away` elements near ±1, the others near 0, (draws, size)."""
    generator = np.random.default_rng(SEED)
    centre = np.zeros(size)
    centre[:away] = 1.0
    centre[: away // 4] = -1.0  # the sign of a gain is free
    return centre + width * generator.normal(size=(draws, size))


@pytest.mark.parametrize("away", [4, 14, 26, 32, 60])
def test_planted_groups_are_counted(away: int) -> None:
    found = effective_dimension(planted(64, away))
    assert found.split
    assert found.size == 64
    assert found.count == away
    assert found.spread == 0.0
    assert 0.3 < found.threshold < 0.7


def test_spread_over_draws() -> None:
    values = np.concatenate([planted(64, 20), planted(64, 30)])
    found = effective_dimension(values)
    assert found.count == 25.0
    assert found.spread == 5.0


@pytest.mark.parametrize("seed", range(5))
def test_one_group_away_from_zero_counts_all(seed: int) -> None:
    values = 1.0 + 0.3 * np.random.default_rng(seed).normal(size=(20, 26))
    found = effective_dimension(values)
    assert not found.split
    assert found.count == 26
    assert math.isnan(found.threshold)


@pytest.mark.parametrize("seed", range(5))
def test_one_group_centred_on_zero_counts_none(seed: int) -> None:
    found = effective_dimension(0.3 * np.random.default_rng(seed).normal(size=(20, 64)))
    assert not found.split
    assert found.count == 0


def test_two_groups_away_from_zero_are_not_a_split_at_zero() -> None:
    values = planted(64, 0) + np.where(np.arange(64) < 30, 3.0, 1.5)
    found = effective_dimension(values)
    assert not found.split
    assert found.count == 64


@pytest.mark.parametrize(("value", "count"), [(0.0, 0), (1.0, 8)])
def test_constant_vectors(value: float, count: int) -> None:
    assert effective_dimension(np.full((3, 8), value)).count == count


def test_exact_two_values() -> None:
    found = effective_dimension([[0.0, 0.0, 2.0]])
    assert found.split
    assert found.count == 1
    assert found.threshold == 1.0


def test_norms_are_found_by_name() -> None:
    layout = Layout.from_shapes(
        {
            "embedding": (3, 2),
            "blocks.0.norm1.gain": (4,),
            "blocks.0.norm1.bias": (4,),
            "blocks.0.feedforward1.bias": (5,),
            "norm2.gain": (2,),
        }
    )
    weights = np.arange(2 * layout.size, dtype=np.float32).reshape(2, -1)
    vectors = norm_vectors(weights, layout)
    assert list(vectors) == ["blocks.0.norm1.gain", "blocks.0.norm1.bias", "norm2.gain"]
    assert vectors["norm2.gain"].tolist() == [[19.0, 20.0], [40.0, 41.0]]
    assert list(effective_dimensions(weights, layout)) == list(vectors)


def test_bad_input_is_refused() -> None:
    layout = Layout.from_shapes({"norm1.gain": (4,)})
    with pytest.raises(ValueError, match=r"weights must be \(K >= 1, 4\), got shape \(2, 5\)"):
        norm_vectors(np.ones((2, 5)), layout)
    with pytest.raises(ValueError, match=r"values must be finite \(K, d\)"):
        effective_dimension(np.array([[np.nan, 1.0]]))
