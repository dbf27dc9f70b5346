"""Sequences sampled from fields and couplings of direct-coupling analysis follow the exact law.

Every pair has its own, unsymmetric matrix, so a coupling read from the wrong end shows.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from thermosphere.proteins.enumeration import enumerate_model
from thermosphere.proteins.potts import PottsModel
from thermosphere.proteins.tempering import sample_sequences

SITES, STATES, TEMPERATURE = 6, 4, 0.8
WALKERS, BLOCKS, PER_BLOCK = 8, 8, 1000
NATIVE = np.array([0, 0, 1, 2, 3, 3])


@pytest.fixture(scope="module")
def model():
    generator = np.random.default_rng(9)
    pairs = np.array(list(combinations(range(SITES), 2)))
    couplings = 0.6 * generator.standard_normal((len(pairs), STATES, STATES))
    return PottsModel.from_couplings(
        pairs, couplings, generator.standard_normal((SITES, STATES)), "ACDE"
    )


@pytest.fixture(scope="module", params=["mutation", "swap"])
def sampled(request, model):
    return sample_sequences(
        model,
        NATIVE,
        moves=request.param,
        seed=3,
        sequences=WALKERS * BLOCKS * PER_BLOCK,
        walkers=WALKERS,
        temperature=TEMPERATURE,
        hot=5.0,
        harvest_spacing=5,
    )


def exact(model, sampled):
    return enumerate_model(model, NATIVE if sampled.settings["moves"] == "swap" else None)


def pair_scores(sampled, law):
    """z of every f_ij(a, b), i < j, errors from the means of blocks."""
    codes = (sampled.sequences[:, :, None] == np.arange(STATES)).astype(float)
    blocks = codes.reshape(WALKERS * BLOCKS, PER_BLOCK, SITES * STATES)
    found = np.einsum("bsx,bsy->bxy", blocks, blocks, optimize=True) / PER_BLOCK
    found = found.reshape(-1, SITES, STATES, SITES, STATES).swapaxes(2, 3)
    expected = law.pair_frequencies(TEMPERATURE)
    # The naive binomial error bounds the block error from below where a pair is never seen.
    naive = np.sqrt(expected * (1 - expected) / len(sampled.sequences))
    error = np.maximum(found.std(axis=0, ddof=1) / np.sqrt(len(blocks)), naive)
    i, j = np.triu_indices(SITES, 1)
    difference = (found.mean(axis=0) - expected)[i, j]
    possible = error[i, j] > 0
    assert (difference[~possible] == 0).all()
    return difference[possible] / error[i, j][possible]


def test_pair_frequencies(model, sampled):
    scores = pair_scores(sampled, exact(model, sampled))
    assert scores.size > 200
    # Student's t with 63 degrees: one in 10⁴ runs of 240 scores has one beyond 5.5.
    assert np.abs(scores).max() < 5.5
    # Mean of z²: 1 with a spread of sqrt(2/240), and more as the scores are correlated.
    assert 0.5 < (scores**2).mean() < 1.6


def test_energies(model, sampled):
    law = exact(model, sampled)
    blocks = sampled.energies.reshape(WALKERS * BLOCKS, PER_BLOCK).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(len(blocks))
    assert abs(blocks.mean() - law.mean_energy(TEMPERATURE)) < 4.5 * error
    assert (sampled.energies == model.energy(sampled.sequences)).all()


def test_the_scores_see_matrices_read_from_the_wrong_end(model, sampled):
    turned = replace(model, couplings=np.ascontiguousarray(model.couplings.swapaxes(1, 2)))
    assert np.abs(pair_scores(sampled, exact(turned, sampled))).max() > 20
