"""PottsModel: its energy and local fields against the double sum, and what it refuses."""

from itertools import combinations

import numpy as np
import pytest

from thermosphere.proteins.alphabet import ALPHABET, encode
from thermosphere.proteins.potts import PottsModel, interaction_matrix
from thermosphere.proteins.structure import native_2abd

EPS = np.finfo(np.float64).eps


def random_model(length=9, states=4, density=0.6, seed=3, **options):
    """Unsymmetric blocks of their own a pair, and fields: nothing in it can be exchanged unseen."""
    generator = np.random.default_rng(seed)
    pairs = np.array([p for p in combinations(range(length), 2) if generator.random() < density])
    generator.shuffle(pairs)
    couplings = generator.standard_normal((len(pairs), states, states))
    fields = generator.standard_normal((length, states))
    return PottsModel.from_couplings(pairs, couplings, fields, **options)


def double_sum(model, tokens):
    total = sum(model.fields[i, a] for i, a in enumerate(tokens))
    for p, (i, j) in enumerate(model.pairs):
        total += model.couplings[model.block[p]][tokens[i], tokens[j]]
    return total


def bound(model):
    """Rounding of a sum of n + E terms in any order."""
    terms = len(model.fields) + len(model.pairs)
    largest = max(np.abs(model.couplings).max(), np.abs(model.fields).max())
    return 2 * terms * terms * EPS * largest


def test_energy_by_hand():
    couplings = [[[1, 2], [3, 4]], [[10, 20], [30, 40]]]
    model = PottsModel.from_couplings([[0, 2], [1, 2]], couplings, [[0, 100], [0, 200], [0, 400]])
    tokens = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    assert model.energy(tokens).tolist() == [11, 113, 231, 422, 744]
    assert model.energy(tokens[2]) == 231
    assert model.energy(np.array(tokens[:4]).reshape(2, 2, 3)).shape == (2, 2)
    assert model.local_fields([1, 0, 1]).tolist() == [[2, 104], [20, 240], [13, 424]]


def test_energy_and_fields_are_the_double_sum():
    model = random_model()
    tokens = np.random.default_rng(0).integers(0, 4, (20, 9), dtype=np.uint8)
    found = model.energy(tokens)
    for row, e in zip(tokens, found, strict=True):
        assert abs(e - double_sum(model, row)) < bound(model)
        assert e == model.energy(row)  # the same bits alone
        table = model.local_fields(row)
        for i in range(9):
            for a in range(4):
                changed = row.copy()
                changed[i] = a
                exact = model.energy(changed) - e
                assert abs(table[i, a] - table[i, row[i]] - exact) < bound(model)


def test_contacts_share_one_block():
    native = native_2abd()
    tokens, interactions = encode(native.sequence), interaction_matrix(1)
    model = PottsModel.from_contacts(native.contacts, interactions, native.length)
    assert (model.length, model.states, model.alphabet) == (86, 20, ALPHABET)
    assert model.couplings.shape == (1, 20, 20)
    matrix = native.matrix()
    exact = sum(
        matrix[i, j] * interactions[tokens[i], tokens[j]] for i, j in combinations(range(86), 2)
    )
    assert abs(model.energy(tokens) - exact) < bound(model)
    own = PottsModel.from_couplings(
        native.contacts, np.repeat(interactions[None], len(native.contacts), axis=0), model.fields
    )
    assert own.energy(tokens) == model.energy(tokens)
    assert (own.local_fields(tokens) == model.local_fields(tokens)).all()


def test_fields_alone_are_a_model():
    model = PottsModel.from_couplings(np.zeros((0, 2), int), np.zeros((0, 2, 2)), [[1, 2], [3, 5]])
    assert model.energy([1, 0]) == 5


@pytest.mark.parametrize(
    ("pairs", "couplings", "fields", "alphabet", "message"),
    [
        ([[0, 3]], np.zeros((1, 2, 2)), np.zeros((3, 2)), "", r"sites must be 0\.\.2, got 0\.\.3"),
        ([[1, 0]], np.zeros((1, 2, 2)), np.zeros((3, 2)), "", "distinct pairs i < j"),
        ([[0, 1], [0, 1]], np.zeros((2, 2, 2)), np.zeros((3, 2)), "", "distinct pairs i < j"),
        ([[0, 1.5]], np.zeros((1, 2, 2)), np.zeros((3, 2)), "", r"\(E, 2\) integers"),
        (
            [[0, 1]],
            np.zeros((2, 2, 2)),
            np.zeros((3, 2)),
            "",
            r"one matrix a pair, got \(2, 2, 2\)",
        ),
        ([[0, 1]], np.zeros((1, 2, 3)), np.zeros((3, 2)), "", r"\(B, 2, 2\) like the fields"),
        ([[0, 1]], np.full((1, 2, 2), np.nan), np.zeros((3, 2)), "", "couplings must be finite"),
        ([[0, 1]], np.zeros((1, 2, 2)), np.full((3, 2), np.inf), "", "fields must be finite"),
        ([[0, 1]], np.zeros((1, 1, 1)), np.zeros((3, 1)), "", r"1 < q < 257, got \(3, 1\)"),
        ([[0, 1]], np.zeros((1, 2, 2)), np.zeros(3), "", r"fields must be \(n, q\)"),
        ([[0, 1]], np.zeros((1, 2, 2)), np.zeros((3, 2)), "ABC", "must have 2 letters, got 'ABC'"),
        ([[0, 1]], np.zeros((1, 2, 2)), np.zeros((3, 2)), "AA", "distinct ASCII letters, got 'AA'"),
        ([[0, 1]], np.zeros((1, 2, 2)), np.zeros((3, 2)), "Aé", "distinct ASCII letters, got"),
    ],
)
def test_what_does_not_fit_is_refused(pairs, couplings, fields, alphabet, message):
    with pytest.raises(ValueError, match=message) as error:
        PottsModel.from_couplings(pairs, couplings, fields, alphabet)
    assert str(error.value).startswith("PottsModel: ")
    assert "\n" not in str(error.value)


def test_blocks_and_types_are_checked():
    good = random_model()
    for change, message in (
        ({"block": good.block + 1}, r"block must be 0\.\."),
        ({"block": good.block[:-1]}, "like the pairs"),
        ({"block": good.block.astype(np.int32)}, "block must be int64, got int32"),
        ({"couplings": good.couplings.astype(np.float32)}, "couplings must be float64"),
    ):
        with pytest.raises(ValueError, match=message):
            PottsModel(**(vars(good) | change))


def test_bad_tokens_are_refused():
    model = random_model()
    for tokens, message in (
        (np.zeros(8, int), r"\(…, 9\), got \(8,\)"),
        (3, r"\(…, 9\), got \(\)"),
        (np.full(9, 4), r"0\.\.3, got 4\.\.4"),
        (np.zeros(9), "integers"),
    ):
        with pytest.raises(ValueError, match=message):
            model.energy(tokens)
    with pytest.raises(ValueError, match=r"tokens must be \(n,\)"):
        model.local_fields(np.zeros((2, 9), int))


@pytest.mark.parametrize(
    ("contacts", "interactions", "message"),
    [
        ([[0, 1]], [[0, 1, 2], [1, 0, 1]], r"interactions must be \(q, q\), q > 1, got \(2, 3\)"),
        ([[0, 1]], [[0, 1], [2, 0]], r"symmetric, got J\[0, 1\] = 1, J\[1, 0\] = 2"),
        ([[0, 1]], [[0, np.nan], [np.nan, 0]], "interactions must be finite"),
        ([[0, 3]], [[0, 1], [1, 0]], r"sites must be 0\.\.2, got 0\.\.3"),
    ],
)
def test_contacts_or_matrix_that_do_not_fit(contacts, interactions, message):
    with pytest.raises(ValueError, match=message):
        PottsModel.from_contacts(contacts, interactions, 3)


def test_restricted_to_some_states():
    model = random_model(alphabet="AC-D")
    part = model.restricted("DA")
    tokens = np.random.default_rng(1).integers(0, 2, (10, 9))
    whole = np.array([3, 0])[tokens]
    assert (part.energy(tokens) == model.energy(whole)).all()
    assert (part.states, part.alphabet) == (2, "DA")
    assert part.couplings.flags.c_contiguous
    assert part.fields.flags.c_contiguous
    with pytest.raises(ValueError, match="states must be of 'AC-D', got 'E'"):
        model.restricted("DE")
