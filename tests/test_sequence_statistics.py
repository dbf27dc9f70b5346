"""Site and pair statistics against plain counting."""

import numpy as np

from thermosphere.analysis.sequence_statistics import (
    pair_correlations,
    pair_frequencies,
    site_frequencies,
)

TOKENS = np.random.default_rng(0).integers(0, 3, (5000, 4), dtype=np.uint8)
TOKENS[:, 3] = np.where(np.random.default_rng(1).random(5000) < 0.6, TOKENS[:, 1], TOKENS[:, 3])


def test_frequencies_are_counts():
    single, double = site_frequencies(TOKENS, 3), pair_frequencies(TOKENS, 3)
    assert single.shape == (4, 3)
    assert double.shape == (4, 4, 3, 3)
    for i in range(4):
        for a in range(3):
            assert single[i, a] == np.mean(TOKENS[:, i] == a)
            for j in range(4):
                for b in range(3):
                    assert double[i, j, a, b] == np.mean((TOKENS[:, i] == a) & (TOKENS[:, j] == b))


def test_correlations_are_those_of_the_copied_site():
    found = pair_correlations(TOKENS, 3)
    np.testing.assert_allclose(found, found.T, rtol=1e-12)
    assert (np.diagonal(found) == 0).all()
    # Site 3 copies site 1 with probability 0.6: f − f f = 0.6 (δ/3 − 1/9), of norm 0.6 √2 / 3.
    assert abs(found[1, 3] - 0.6 * np.sqrt(2) / 3) < 0.02
    others = [found[i, j] for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (2, 3))]
    assert max(others) < 4 / np.sqrt(5000)
