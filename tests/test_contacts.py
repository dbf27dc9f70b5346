"""Contact precision on hand-made maps, mean attention against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thermosphere.analysis.contacts import (
    best_block,
    mean_attention,
    precision_at_l,
    precision_at_l_tolerant,
    random_precision_at_l,
)
from thermosphere.models.feedforward import FeedForward
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import MaskedSequences


def symmetric(n: int, pairs: list[tuple[int, int]], heights: list[float] | None = None):
    """(n, n) zeros but for the given pairs."""
    matrix = np.zeros((n, n))
    for index, (i, j) in enumerate(pairs):
        matrix[i, j] = matrix[j, i] = heights[index] if heights else 1.0
    return matrix


def test_precision_counts_the_top_l_pairs() -> None:
    n = 4  # L = 4 of 6 pairs
    contacts = symmetric(n, [(0, 2), (1, 3)])
    ranking = [(0, 1), (0, 2), (2, 3), (0, 3), (1, 3), (1, 2)]
    attention = symmetric(n, ranking, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert precision_at_l(attention, contacts) == 1 / 4
    attention[1, 3] = attention[3, 1] = 7.0
    assert precision_at_l(attention, contacts) == 2 / 4


def test_the_diagonal_is_not_a_prediction() -> None:
    contacts = symmetric(3, [(0, 1), (0, 2), (1, 2)])
    assert precision_at_l(np.diag([9.0, 9.0, 9.0]), contacts) == 1.0


def test_perfect_and_reversed_ranking() -> None:
    generator = np.random.default_rng(0)
    n = 30
    contacts = np.triu(generator.random((n, n)) < 0.1, 2)
    contacts = contacts | contacts.T
    assert contacts.sum() / 2 > n
    attention = contacts + 0.1 * generator.random((n, n))
    attention = attention + attention.T
    assert precision_at_l(attention, contacts) == 1.0
    assert precision_at_l(-attention, contacts) == 0.0


def test_shift_moves_sites_onto_residues() -> None:
    generator = np.random.default_rng(1)
    n = 20
    contacts = np.triu(generator.random((n, n)) < 0.3, 2)
    contacts = (contacts | contacts.T).astype(float)
    shifted = np.zeros((n, n))
    shifted[1:, 1:] = contacts[:-1, :-1]  # site k + 1 feels the contacts of residue k
    assert contacts[:-1, :-1].sum() / 2 >= n
    assert precision_at_l(shifted, contacts, shift=1) == 1.0
    assert precision_at_l(shifted, contacts) < 1.0
    assert precision_at_l(contacts, shifted, shift=-1) == 1.0


def test_sites_without_a_residue_are_left_out() -> None:
    n = 4
    contacts = symmetric(n, [(0, 1), (0, 2), (1, 2)])
    attention = symmetric(n, [(0, 1), (0, 2), (0, 3)])  # site 0 has no residue under shift 1
    # Sites 1, 2, 3 are residues 0, 1, 2: three pairs, all of them contacts.
    assert precision_at_l(attention, contacts, shift=1) == 1.0


@pytest.mark.parametrize(
    ("predicted", "hit"),
    [
        ((5, 15), True),
        ((6, 16), True),  # one off in both indices
        ((4, 16), True),
        ((7, 15), False),  # two off
        ((5, 17), False),
    ],
)
def test_tolerance_is_one_in_both_indices(predicted: tuple[int, int], hit: bool) -> None:
    n = 20
    contacts = symmetric(n, [(5, 15)])
    attention = -1.0 + symmetric(n, [predicted], [10.0])
    # Only `predicted` is above the ties; the rest of the top L are the first pairs in order,
    # (0, 6) … (0, 19) and (1, 7) …, far from the contact.
    assert precision_at_l_tolerant(attention, contacts) == (1 / n if hit else 0.0)
    assert precision_at_l_tolerant(attention, contacts, tolerance=0) == (
        1 / n if predicted == (5, 15) else 0.0
    )


@pytest.mark.parametrize(("j", "counts"), [(5, False), (6, True)])
def test_pairs_nearer_than_the_separation_do_not_count(j: int, counts: bool) -> None:
    n = 12
    contacts = symmetric(n, [(0, j)])
    attention = symmetric(n, [(0, j)])
    expected = 1 / n if counts else 0.0
    assert precision_at_l_tolerant(attention, contacts, tolerance=0) == expected
    # A contact nearer than the separation does not vouch for a neighbour beyond it either.
    assert (precision_at_l_tolerant(attention, contacts) > 0) == counts


def test_random_precision_is_the_mean_over_random_rankings() -> None:
    generator = np.random.default_rng(2)
    n = 24
    contacts = np.triu(generator.random((n, n)) < 0.08, 2)
    contacts = contacts | contacts.T
    for options, score in (
        ({}, precision_at_l),
        ({"min_separation": 6, "tolerance": 1}, precision_at_l_tolerant),
    ):
        scores = []
        for _ in range(400):
            attention = generator.random((n, n))
            scores.append(score(attention + attention.T, contacts))
        error = np.std(scores, ddof=1) / np.sqrt(len(scores))
        assert abs(np.mean(scores) - random_precision_at_l(contacts, **options)) < 4 * error


def test_best_block_is_found_and_every_score_reported() -> None:
    generator = np.random.default_rng(3)
    n = 20
    contacts = np.triu(generator.random((n, n)) < 0.3, 6)
    contacts = (contacts | contacts.T).astype(float)
    attention = generator.random((3, 4, n, n))
    attention = attention + attention.transpose(0, 1, 3, 2)
    attention[:, 2] += 10.0 * contacts
    best = best_block(attention, contacts)
    assert best.index == 2
    assert best.precision.shape == best.precision_tolerant.shape == (3, 4)
    assert best.precision_tolerant[1, 2] == precision_at_l_tolerant(attention[1, 2], contacts)
    assert best.precision[2, 0] == precision_at_l(attention[2, 0], contacts)


SQUARE = np.zeros((8, 8))


@pytest.mark.parametrize(
    ("attention", "contacts", "options", "message"),
    [
        (np.zeros((8, 7)), SQUARE, {}, r"attention must be \(8, 8\), got \(8, 7\)"),
        (SQUARE * np.nan, SQUARE, {}, "attention must be finite"),
        (SQUARE, np.zeros((8, 7)), {}, r"contact_map must be \(n, n\)"),
        (SQUARE, np.triu(SQUARE + 1.0), {}, "contact_map must be symmetric"),
        (SQUARE, SQUARE, {"shift": 8}, "shift must be between -7 and 7, got 8"),
        (SQUARE, SQUARE, {"min_separation": 0}, "min_separation must be at least 1"),
        (SQUARE, SQUARE, {"tolerance": -1}, "tolerance must be at least 0"),
        (SQUARE, SQUARE, {"min_separation": 8}, "must leave a pair of 8 sites"),
    ],
)
def test_bad_input_is_refused(attention, contacts, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        precision_at_l_tolerant(attention, contacts, **options)


@pytest.mark.parametrize("backend", ["auto", "fused", "autograd"])
def test_mean_attention_equals_a_plain_loop(backend: str) -> None:
    generator = torch.Generator().manual_seed(4)
    model = Transformer("tiny", blocks=2, embedding=6, hidden=8, length=9)
    weights = torch.randn(3, model.layout.size, generator=generator)
    tokens = torch.randint(0, 20, (11, 9), generator=generator).numpy().astype(np.uint8)
    masked = np.zeros((11, 9), bool)
    masked[:, 2] = True
    sequences = MaskedSequences(tokens, masked)
    found = mean_attention(model, weights, sequences, chunk=4, backend=backend)
    assert found.shape == (3, 2, 9, 9)
    assert found.dtype == np.float64
    for draw in range(3):
        for block in range(2):
            expected = np.zeros((9, 9))
            for inputs in sequences.inputs:
                one = torch.from_numpy(inputs.astype(np.int64))[None, None]
                matrix = model.attention(weights[draw : draw + 1], one)[0, block, 0].double()
                expected += 0.5 * (matrix + matrix.T).numpy() / 11
            # Each float32 row sums to one; batching may round its elements differently.
            assert np.abs(found[draw, block] - expected).max() < 100 * np.finfo(np.float32).eps
    # Rows of A sum to one, so the whole symmetrised map sums to n.
    assert found.sum(axis=(2, 3)) == pytest.approx(np.full((3, 2), 9.0), rel=1e-5)


@pytest.mark.parametrize("backend", ["fused", "autograd"])
def test_mean_attention_reads_masked_inputs(backend: str) -> None:
    generator = torch.Generator().manual_seed(5)
    model = Transformer("tiny", blocks=1, embedding=6, hidden=8, length=9)
    weights = torch.randn(1, model.layout.size, generator=generator)
    tokens = torch.randint(0, 20, (6, 9), generator=generator).numpy().astype(np.uint8)
    masked = np.zeros((6, 9), bool)
    masked[:, 4] = True
    sequences = MaskedSequences(tokens, masked)
    found = mean_attention(model, weights, sequences, backend=backend)
    altered = tokens.copy()
    altered[:, 4] = (altered[:, 4] + 1) % 20  # true residues under the mask must not matter
    changed = MaskedSequences(altered, masked)
    assert np.array_equal(found, mean_attention(model, weights, changed, backend=backend))


def test_mean_attention_refuses_bad_input() -> None:
    model = Transformer("tiny", blocks=1, embedding=6, hidden=8, length=9)
    sequences = MaskedSequences(np.zeros((2, 9), np.uint8), np.eye(9, dtype=bool)[:2])
    weights = torch.zeros(1, model.layout.size)
    with pytest.raises(ValueError, match=r"weights must be \(K, 479\), got \(479,\)"):
        mean_attention(model, weights[0], sequences)
    with pytest.raises(ValueError, match=r"weights must be \(K, 479\), got \(1, 478\)"):
        mean_attention(model, weights[:, 1:], sequences)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        mean_attention(model, weights, sequences, chunk=0)
    with pytest.raises(ValueError, match="sequences must hold at least one"):
        mean_attention(model, weights, sequences.subset(slice(0)))
    with pytest.raises(ValueError, match="one of auto, fused, triton, autograd, got 'x'"):
        mean_attention(model, weights, sequences, backend="x")
    with pytest.raises(ValueError, match=r"needs float32 weights, got torch.float64"):
        mean_attention(model, weights.double(), sequences, backend="fused")
    large = Transformer("large", blocks=1, embedding=200, hidden=8, length=9)
    with pytest.raises(ValueError, match="'fused' does not serve large: embedding must be in"):
        mean_attention(large, torch.zeros(1, large.layout.size), sequences, backend="fused")
    assert mean_attention(large, torch.zeros(1, large.layout.size), sequences).shape == (1, 1, 9, 9)
    baseline = FeedForward("baseline", embedding=6, hidden=8, length=9)
    with pytest.raises(ValueError, match="model must be a transformer, got baseline"):
        mean_attention(baseline, weights, sequences)  # type: ignore[arg-type]
    longer = Transformer("tiny", blocks=1, embedding=6, hidden=8, length=10)
    with pytest.raises(ValueError, match="sequences must have 10 sites, got 9"):
        mean_attention(longer, weights, sequences)
