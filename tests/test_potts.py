"""The matrix J, and the compiled differences that the walk lives by."""

from itertools import combinations

import numpy as np
import pytest

from thermosphere.proteins.potts import PottsModel, interaction_matrix
from thermosphere.proteins.structure import native_2abd
from thermosphere.proteins.tempering import _check
from thermosphere.proteins.walker import mutation_difference, set_state, swap_difference

EPS = np.finfo(np.float64).eps


def random_system(kind, density, seed, length=24, states=20):
    """A model with one matrix for all pairs, or one each and fields; its System, and tokens."""
    generator = np.random.default_rng(seed)
    pairs = np.array([p for p in combinations(range(length), 2) if generator.random() < density])
    if kind == "contacts":
        model = PottsModel.from_contacts(pairs, interaction_matrix(seed, states), length)
    else:
        couplings = generator.standard_normal((len(pairs), states, states))
        fields = generator.standard_normal((length, states))
        model = PottsModel.from_couplings(pairs, couplings, fields)
    tokens = generator.integers(0, states, length, dtype=np.uint8)
    system, _ = _check(model, tokens, "swap")
    return generator, model, system, tokens


def bound(model):
    """Rounding of a sum of E terms, taken a few times."""
    return 8 * len(model.pairs) ** 2 * EPS * np.abs(model.couplings).max()


def test_interactions_are_symmetric_standard_normals():
    matrices = np.stack([interaction_matrix(seed) for seed in range(200)])
    assert (matrices == matrices.transpose(0, 2, 1)).all()
    upper = matrices[:, *np.triu_indices(20)]
    count = upper.size
    assert abs(upper.mean()) < 4 / np.sqrt(count)
    assert abs(upper.var() - 1) < 4 * np.sqrt(2 / count)
    diagonal = np.diagonal(matrices, axis1=1, axis2=2)
    assert abs(diagonal.var() - 1) < 4 * np.sqrt(2 / diagonal.size)
    assert (interaction_matrix(3) == interaction_matrix(3)).all()
    assert (interaction_matrix(3) != interaction_matrix(4)).all()
    assert interaction_matrix(0, states=3).shape == (3, 3)


@pytest.mark.parametrize("kind", ["contacts", "couplings"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_differences_equal_full_recomputation(kind, density):
    generator, model, system, tokens = random_system(kind, density, 7)
    fields = model.local_fields(tokens)
    before = float(model.energy(tokens))
    coupled = 0
    for _ in range(400):
        i, j = generator.choice(24, 2, replace=False)
        coupled += int(system.block_of[i, j] >= 0)
        swapped = tokens.copy()
        swapped[[i, j]] = tokens[[j, i]]
        exact = float(model.energy(swapped)) - before
        found = swap_difference(tokens, fields, system.block_of, system.couplings, i, j)
        assert abs(found - exact) < bound(model)
        state = int(generator.integers(20))
        mutated = tokens.copy()
        mutated[i] = state
        exact = float(model.energy(mutated)) - before
        assert abs(mutation_difference(tokens, fields, i, state) - exact) < bound(model)
    assert coupled > 10


@pytest.mark.parametrize("kind", ["contacts", "couplings"])
def test_set_state_keeps_the_fields_true(kind):
    generator, model, system, tokens = random_system(kind, 0.3, 8)
    fields = model.local_fields(tokens)
    expected = tokens.copy()
    steps = 300
    for _ in range(steps):
        i, state = int(generator.integers(24)), int(generator.integers(20))
        set_state(system, tokens, fields, i, state)
        expected[i] = state
    assert (tokens == expected).all()
    fresh = model.local_fields(tokens)
    # At most 23 neighbours a site, each changed twice a step.
    rounding = steps * 8 * 24**2 * EPS * np.abs(model.couplings).max()
    assert np.abs(fields - fresh).max() < rounding


def test_neighbours_list_every_pair_from_both_ends():
    native = native_2abd()
    model = PottsModel.from_contacts(native.contacts, interaction_matrix(0), native.length)
    system, _ = _check(model, np.arange(86) % 20, "swap")
    matrix = native.matrix()
    for i in range(86):
        found = system.neighbours[system.starts[i] : system.starts[i + 1]]
        assert found.tolist() == np.flatnonzero(matrix[i]).tolist()


def test_interaction_matrix_refuses():
    with pytest.raises(ValueError, match="seed"):
        interaction_matrix(-1)
    with pytest.raises(ValueError, match="states"):
        interaction_matrix(0, 1)
