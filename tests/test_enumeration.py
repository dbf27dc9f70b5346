"""Exact enumeration against other exact formulas: transfer matrices, multinomials, products."""

from itertools import permutations, product
from math import comb, factorial

import numpy as np
import pytest

from thermosphere.proteins.enumeration import enumerate_model
from thermosphere.proteins.potts import PottsModel, interaction_matrix

TEMPERATURES = np.array([0.3, 1.0, 7.0])
# Sums of at most 10⁴ terms, each with a few ulp of its own.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def chain(length=7, states=3, seed=1):
    """Couplings of neighbours only, each of its own, and fields."""
    generator = np.random.default_rng(seed)
    pairs = np.column_stack([np.arange(length - 1), np.arange(1, length)])
    couplings = generator.standard_normal((length - 1, states, states))
    return PottsModel.from_couplings(pairs, couplings, generator.standard_normal((length, states)))


def transfer(model, beta, fixed=()):
    """Z of a chain by transfer matrices; fixed: (site, state) that all sequences have."""
    factors = np.exp(-beta * model.fields)
    for site, state in fixed:
        factors[site, np.arange(model.states) != state] = 0.0
    vector = factors[0]
    for i in range(1, model.length):
        vector = (vector @ np.exp(-beta * model.couplings[i - 1])) * factors[i]
    return vector.sum()


def test_all_sequences():
    found = enumerate_model(chain(4, 3))
    assert found.sequences.tolist() == [list(s) for s in product(range(3), repeat=4)]
    native = np.array([2, 0, 0, 1, 2])
    found = enumerate_model(chain(5, 3), native)
    assert found.sequences.tolist() == sorted(map(list, set(permutations(native.tolist()))))
    assert found.sequences.dtype == np.uint8


def test_chain_by_transfer_matrices():
    model = chain()
    found = enumerate_model(model)
    for k, temperature in enumerate(TEMPERATURES):
        beta = 1.0 / temperature
        z = transfer(model, beta)
        assert found.log_partition(temperature) == pytest.approx(np.log(z), rel=1e-12)
        assert found.log_partition(TEMPERATURES)[k] == found.log_partition(temperature)
        step = 1e-4
        below, above = (np.log(transfer(model, beta + d)) for d in (-step, step))
        # Central differences of ln Z: errors of step² and of rounding / step and / step².
        mean = (below - above) / (2 * step)
        assert found.mean_energy(temperature) == pytest.approx(mean, abs=1e-6)
        variance = (above - 2 * np.log(z) + below) / step**2
        assert found.energy_deviation(temperature) ** 2 == pytest.approx(variance, abs=1e-5)
        sites = found.site_frequencies(temperature)
        pairs = found.pair_frequencies(temperature)
        for i in range(model.length):
            exact = [transfer(model, beta, [(i, a)]) / z for a in range(3)]
            np.testing.assert_allclose(sites[i], exact, **CLOSE)
            for j in range(model.length):
                exact = [
                    [transfer(model, beta, [(i, a), (j, b)]) / z for b in range(3)]
                    for a in range(3)
                ]
                np.testing.assert_allclose(pairs[i, j], exact, **CLOSE)


def test_independent_sites_are_a_product():
    fields = np.random.default_rng(3).standard_normal((6, 4))
    model = PottsModel.from_couplings(np.zeros((0, 2), int), np.zeros((0, 4, 4)), fields)
    found = enumerate_model(model)
    factors = np.exp(-fields / 0.7)
    single = factors / factors.sum(axis=1, keepdims=True)
    assert found.log_partition(0.7) == pytest.approx(np.log(factors.sum(axis=1)).sum(), rel=1e-12)
    np.testing.assert_allclose(found.site_frequencies(0.7), single, **CLOSE)
    law = found.probabilities(0.7)
    np.testing.assert_allclose(law, single[np.arange(6), found.sequences].prod(axis=1), **CLOSE)
    pairs = found.pair_frequencies(0.7)
    np.testing.assert_allclose(pairs[1, 4], np.outer(single[1], single[4]), **CLOSE)


def test_infinite_temperature_counts():
    contacts, native = [[0, 1], [0, 4], [2, 5], [3, 6]], np.array([0, 0, 0, 1, 1, 2, 2])
    interactions = interaction_matrix(2, 3)
    model = PottsModel.from_contacts(contacts, interactions, 7)
    found = enumerate_model(model, native)
    count = factorial(7) // (factorial(3) * 2 * 2)
    assert len(found.sequences) == count
    assert found.log_partition(np.inf) == pytest.approx(np.log(count), rel=1e-14)
    # Two sites of a random arrangement: drawn without replacement from the composition.
    share = np.array([3, 2, 2])
    both = (np.outer(share, share) - np.diag(share)) / (7 * 6)
    pairs = found.pair_frequencies(np.inf)
    for i, j in permutations(range(7), 2):
        np.testing.assert_allclose(pairs[i, j], both, **CLOSE)
    np.testing.assert_allclose(found.site_frequencies(np.inf), np.tile(share / 7, (7, 1)), **CLOSE)
    assert found.mean_energy(np.inf) == pytest.approx(4 * (both * interactions).sum(), rel=1e-12)


def test_composition_of_two_states():
    """One coupled pair, k of n sites in state 1: hypergeometric."""
    n, k = 8, 3
    model = PottsModel.from_contacts([[1, 6]], [[0.0, 0.5], [0.5, -2.0]], n)
    found = enumerate_model(model, (np.arange(n) < k).astype(int))
    terms = [comb(n - 2, k - m) * comb(2, m) * np.exp(-e) for m, e in enumerate((0.0, 0.5, -2.0))]
    assert found.log_partition(1.0) == pytest.approx(np.log(sum(terms)), rel=1e-13)
    assert found.pair_frequencies(1.0)[1, 6, 1, 1] == pytest.approx(
        terms[2] / sum(terms), rel=1e-12
    )


def test_temperatures_far_from_one():
    """Low temperatures leave the ground states alone, and nothing overflows."""
    model = chain()
    found = enumerate_model(model)
    law = found.probabilities([1e-6, 1e-300])
    ground = found.energies.argmin()
    assert law.shape == (2, 3**7)
    assert law[:, ground].tolist() == [1.0, 1.0]
    assert found.mean_energy(1e-6) == found.energies[ground]
    assert found.energy_deviation(1e-6) == 0.0
    shapes = {
        "log_partition": (),
        "mean_energy": (),
        "energy_deviation": (),
        "site_frequencies": (7, 3),
        "pair_frequencies": (7, 7, 3, 3),
    }
    for name, shape in shapes.items():
        assert getattr(found, name)(TEMPERATURES).shape == (3, *shape)
        assert getattr(found, name)(1.0).shape == shape


def test_refusals():
    model = PottsModel.from_contacts([[0, 50]], interaction_matrix(0), 86)
    for arguments, message in (
        ((model,), r"the limit is 2,000,000 sequences, 86 sites of 20 states have about 10\^111"),
        ((model, np.arange(86) % 20), r"have about 10\^9\d"),
        ((model, np.zeros(85, int)), r"composition must be \(86,\) tokens, got \(85,\)"),
        ((model, np.full(86, 20)), r"0\.\.19, got 20\.\.20"),
        ((chain(4, 3), np.zeros(4)), "integers"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            enumerate_model(*arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="limit is 80 sequences, 4 sites of 3 states have 81"):
        enumerate_model(chain(4, 3), limit=80)
    found = enumerate_model(chain(4, 3), limit=81)
    for bad in (0.0, -1.0, np.nan, [[1.0]]):
        with pytest.raises(ValueError, match="temperatures must be positive"):
            found.log_partition(bad)
