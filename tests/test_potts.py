"""The Potts energy, and the compiled differences that the walk lives by."""

import numpy as np
import pytest

from thermosphere.proteins.alphabet import ALPHABET, encode
from thermosphere.proteins.potts import (
    contact_neighbours,
    energy,
    interaction_matrix,
    load_interactions,
    local_fields,
)
from thermosphere.proteins.structure import native_2abd
from thermosphere.proteins.walker import System, mutation_difference, set_state, swap_difference

EPS = np.finfo(np.float64).eps


def random_system(length, states, density, seed):
    generator = np.random.default_rng(seed)
    pairs = np.array(
        [
            (i, j)
            for i in range(length)
            for j in range(i + 1, length)
            if generator.random() < density
        ]
    )
    interactions = interaction_matrix(seed, states)
    starts, neighbours = contact_neighbours(pairs, length)
    in_contact = np.zeros((length, length), dtype=np.uint8)
    in_contact[pairs[:, 0], pairs[:, 1]] = in_contact[pairs[:, 1], pairs[:, 0]] = 1
    system = System(interactions, in_contact, starts, neighbours, False)
    tokens = generator.integers(0, states, length, dtype=np.uint8)
    return generator, pairs, system, tokens


def bound(interactions, pairs):
    """Rounding of a sum of E terms, taken a few times."""
    return 8 * len(pairs) * EPS * np.abs(interactions).max() * len(pairs)


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


def test_energy_by_hand():
    interactions = np.array([[1.0, 10.0], [10.0, 100.0]])
    contacts = np.array([[0, 2], [1, 2]])
    tokens = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]], dtype=np.uint8)
    assert energy(tokens, contacts, interactions).tolist() == [2.0, 20.0, 110.0, 200.0]
    assert energy(tokens[2], contacts, interactions) == 110.0
    assert energy(tokens.reshape(2, 2, 3), contacts, interactions).shape == (2, 2)


def test_energy_of_native_2abd_is_the_double_sum():
    native = native_2abd()
    tokens, interactions = encode(native.sequence), interaction_matrix(1)
    matrix = native.matrix()
    expected = sum(
        matrix[i, j] * interactions[tokens[i], tokens[j]]
        for i in range(86)
        for j in range(i + 1, 86)
    )
    found = energy(tokens, native.contacts, interactions)
    assert abs(found - expected) < bound(interactions, native.contacts)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_differences_equal_full_recomputation(density):
    generator, pairs, system, tokens = random_system(24, 20, density, 7)
    fields = local_fields(tokens, pairs, system.interactions)
    tolerance = bound(system.interactions, pairs)
    before = float(energy(tokens, pairs, system.interactions))
    in_contact = 0
    for _ in range(400):
        i, j = generator.choice(24, 2, replace=False)
        in_contact += int(system.in_contact[i, j])
        swapped = tokens.copy()
        swapped[[i, j]] = tokens[[j, i]]
        exact = float(energy(swapped, pairs, system.interactions)) - before
        found = swap_difference(tokens, fields, system.in_contact, system.interactions, i, j)
        assert abs(found - exact) < tolerance
        state = int(generator.integers(20))
        mutated = tokens.copy()
        mutated[i] = state
        exact = float(energy(mutated, pairs, system.interactions)) - before
        assert abs(mutation_difference(tokens, fields, i, state) - exact) < tolerance
    assert in_contact > 10


def test_set_state_keeps_the_fields_true():
    generator, pairs, system, tokens = random_system(24, 20, 0.3, 8)
    fields = local_fields(tokens, pairs, system.interactions)
    expected = tokens.copy()
    steps = 300
    for _ in range(steps):
        i, state = int(generator.integers(24)), int(generator.integers(20))
        set_state(system, tokens, fields, i, state, np.empty(20))
        expected[i] = state
    assert (tokens == expected).all()
    fresh = local_fields(tokens, pairs, system.interactions)
    assert np.abs(fields - fresh).max() < steps * bound(system.interactions, pairs[:24])
    half = 0.5 * fresh[np.arange(24), tokens].sum()
    assert abs(half - energy(tokens, pairs, system.interactions)) < bound(
        system.interactions, pairs
    )


def test_neighbours_list_every_contact_from_both_ends():
    native = native_2abd()
    starts, neighbours = contact_neighbours(native.contacts, 86)
    matrix = native.matrix()
    for i in range(86):
        assert neighbours[starts[i] : starts[i + 1]].tolist() == np.flatnonzero(matrix[i]).tolist()


def test_load_interactions(tmp_path):
    interactions = interaction_matrix(5)
    path = tmp_path / "J.txt"
    rows = [" ".join(repr(float(value)) for value in row) for row in interactions]
    path.write_text("# J\n" + "\n".join(rows) + "\n")
    assert (load_interactions(path) == interactions).all()
    other = "ACDEFGHIKLMNPQRSTVWY"
    order = [ALPHABET.index(letter) for letter in other]
    permuted = interactions[np.ix_(order, order)]
    rows_permuted = [" ".join(repr(float(value)) for value in row) for row in permuted]
    path.write_text(" ".join(other) + "\n" + "\n".join(rows_permuted) + "\n")
    assert (load_interactions(path) == interactions).all()
    spoiled = interactions.copy()
    spoiled[3, 7] += 1
    for text, message in (
        ("\n".join(rows[:-1]), "expected 20 rows, got 19"),
        ("\n".join([*rows[:4], rows[4] + " 1", *rows[5:]]), "line 5: expected 20 numbers, got 21"),
        ("\n".join([*rows[:4], "x" + rows[4], *rows[5:]]), "line 5: expected 20 numbers"),
        ("\n".join(" ".join(map(str, row)) for row in spoiled), r"symmetric, got J\[3, 7\]"),
        ("\n".join([rows[0].replace(rows[0].split()[0], "nan"), *rows[1:]]), "finite"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_interactions(path)


def test_energy_refuses():
    interactions = interaction_matrix(0, 3)
    contacts = np.array([[0, 2]])
    tokens = np.array([0, 1, 2])
    for bad, message in (
        ((np.array([0, 1, 3]), contacts, interactions), r"0\.\.2, got 0\.\.3"),
        ((np.array([0.0, 1, 2]), contacts, interactions), "integers"),
        ((np.array(1), contacts, interactions), "single number"),
        ((tokens, np.array([[0, 3]]), interactions), r"0\.\.2"),
        ((tokens, np.array([[2, 0]]), interactions), "i < j"),
        ((tokens, np.array([[0, 2], [0, 2]]), interactions), "distinct"),
        ((tokens, contacts, interactions[:2]), r"\(q, q\)"),
    ):
        with pytest.raises(ValueError, match=message):
            energy(*bad)
    with pytest.raises(ValueError, match="seed"):
        interaction_matrix(-1)
    with pytest.raises(ValueError, match="states"):
        interaction_matrix(0, 1)
