"""How alike the mean attention of single samples is."""

from __future__ import annotations

import numpy as np
import pytest

from thermosphere.analysis.self_averaging import map_correlation, self_averaging

N = 30


def symmetric(generator: np.random.Generator) -> np.ndarray:
    values = generator.random((N, N))
    return values + values.T


def test_correlation_is_numpy_s_and_blind_to_scale_and_diagonal() -> None:
    generator = np.random.default_rng(1)
    maps = np.stack([symmetric(generator) for _ in range(4)])
    upper = np.triu_indices(N, 1)
    exact = np.corrcoef(maps[:, upper[0], upper[1]])[np.triu_indices(4, 1)]
    assert np.allclose(map_correlation(maps), exact, rtol=0, atol=1e-14)
    other = 3.0 * maps + 0.2 + 9.0 * np.eye(N)
    assert np.allclose(map_correlation(other), exact, rtol=0, atol=1e-13)


def test_a_constant_matrix_has_no_correlation() -> None:
    maps = np.stack([np.ones((N, N)), symmetric(np.random.default_rng(1))])
    assert np.isnan(map_correlation(maps)).all()
    with pytest.raises(ValueError, match=r"must be \(K, n, n\), got shape \(4, 5, 6\)"):
        map_correlation(np.zeros((4, 5, 6)))


def test_blocks_that_exchange_roles_are_compared_in_their_roles() -> None:
    """Start 7 has its map in block 0, start 3 the same one in block 1."""
    generator = np.random.default_rng(2)
    own, rest = symmetric(generator), [symmetric(generator) for _ in range(4)]
    maps = np.stack(
        [
            np.stack([own, rest[0]]),  # start 7
            np.stack([rest[1], own]),  # start 3
            np.stack([own, rest[2]]),  # start 7
            np.stack([rest[3], own]),  # start 3
        ]
    )
    found = self_averaging(maps, np.array([7, 3, 7, 3]), {7: 0, 3: 1})
    assert found.same_start.shape == (2, 2)  # blocks; pairs (0, 2) and (1, 3)
    assert found.same_start[0, 0] == pytest.approx(1.0)
    assert found.same_start[1, 1] == pytest.approx(1.0)
    assert abs(found.same_start[1, 0]) < 0.3  # blocks of which nothing is shared
    assert np.allclose(found.other_start, 1.0)
    assert found.other_start.shape == (4,)


def test_halves_that_differ_are_a_motion() -> None:
    """Alike in the first half of both chains, unlike in the second."""
    generator = np.random.default_rng(4)
    shared, first, second = (symmetric(generator) for _ in range(3))
    maps = np.stack([shared, first, shared, second])[:, None]
    starts, late = np.array([0, 0, 1, 1]), np.array([False, True, False, True])
    found = self_averaging(maps, starts, {0: 0, 1: 0}, late)
    apart = float(map_correlation(np.stack([first, second]))[0])
    assert found.motion == pytest.approx(apart - 1.0)
    assert np.isnan(self_averaging(maps, starts, {0: 0, 1: 0}).motion)


def test_a_single_start_has_no_independent_pair() -> None:
    maps = np.stack([symmetric(np.random.default_rng(k))[None] for k in range(3)])
    found = self_averaging(maps, np.zeros(3, np.int64), {0: 0})
    assert (found.same_start.shape, found.other_start.shape) == ((1, 3), (0,))
