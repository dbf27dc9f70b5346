"""Decorrelation of the target level, against series whose times are known."""

import numpy as np
import pytest

from thermosphere.proteins.decorrelation import (
    decorrelation,
    independent_overlap,
    integrated_time,
)

WALKERS, VISITS, SITES, STATES = 8, 4000, 60, 4
REDRAWN = 0.15  # of the sites at a visit
MEMORY = 0.9  # of the energy


def series(visits=VISITS, walkers=WALKERS, redrawn=REDRAWN, seed=1):
    """Tokens and energies whose correlations are (1 − redrawn)^t and MEMORY^t."""
    generator = np.random.default_rng(seed)
    tokens = np.empty((walkers, visits, SITES), dtype=np.uint8)
    energies = np.empty((walkers, visits))
    tokens[:, 0] = generator.integers(0, STATES, (walkers, SITES))
    energies[:, 0] = generator.standard_normal(walkers)
    for visit in range(1, visits):
        drawn = generator.integers(0, STATES, (walkers, SITES))
        again = generator.random((walkers, SITES)) < redrawn
        tokens[:, visit] = np.where(again, drawn, tokens[:, visit - 1])
        noise = np.sqrt(1 - MEMORY**2) * generator.standard_normal(walkers)
        energies[:, visit] = MEMORY * energies[:, visit - 1] + noise
    return tokens, energies - 200.0


def test_times_of_known_series():
    found = decorrelation(*series(), STATES)
    assert found is not None
    energy, overlap = 0.5 + MEMORY / (1 - MEMORY), 0.5 + (1 - REDRAWN) / REDRAWN
    # Sokal: relative error sqrt(2 (2W + 1) / M), window W = 10 τ, M visits; four of them.
    for time, exact in ((found.energy, energy), (found.overlap, overlap)):
        error = exact * np.sqrt(2 * (20 * exact + 1) / (WALKERS * VISITS))
        assert abs(time - exact) < 4 * error
        assert error < 0.15 * exact
    # 1/4, its error that of all sites and independent pairs of the walkers' means.
    assert abs(found.independent_overlap - 1 / STATES) < 0.005
    assert found.spacing == int(np.ceil(2 * max(found.energy, found.overlap)))


def test_short_series_tell_nothing():
    tokens, energies = series(visits=60)
    assert decorrelation(tokens, energies, STATES) is None
    assert decorrelation(np.zeros_like(tokens), np.zeros_like(energies), STATES) is None
    tokens, energies = series(visits=400, redrawn=0.002)
    assert decorrelation(tokens, energies, STATES) is None


def test_independent_visits_are_one_apart():
    generator = np.random.default_rng(2)
    tokens = generator.integers(0, STATES, (4, 4000, SITES), dtype=np.uint8)
    found = decorrelation(tokens, generator.standard_normal((4, 4000)), STATES)
    assert found is not None
    assert found.energy == pytest.approx(0.5, abs=0.1)
    assert found.overlap == pytest.approx(0.5, abs=0.1)
    assert found.spacing in (1, 2)


def test_integrated_time():
    assert integrated_time(lambda lag: 0.5**lag, 100) == pytest.approx(1.5, abs=1e-3)
    assert integrated_time(lambda lag: 1.0, 100) is None
    assert integrated_time(lambda lag: -0.4 * (lag == 1), 100) == 0.5


def test_independent_overlap_is_the_mean_over_pairs_of_walkers():
    generator = np.random.default_rng(3)
    tokens = generator.integers(0, 3, (3, 5, 7), dtype=np.uint8)
    pairs = [
        (tokens[v, a] == tokens[w, b]).mean()
        for v in range(3)
        for w in range(3)
        if v != w
        for a in range(5)
        for b in range(5)
    ]
    assert independent_overlap(tokens, 3) == pytest.approx(np.mean(pairs), rel=1e-12)
    own = [(a == b).mean() for a in tokens[0] for b in tokens[0]]
    assert independent_overlap(tokens[:1], 3) == pytest.approx(np.mean(own), rel=1e-12)
