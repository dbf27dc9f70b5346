"""The Potts energy of a sequence on a contact map (Eq. 1 of arXiv 2603.29529).

E(s) = Σ_{i<j} Δ_ij J[s_i, s_j],  Δ the contact map, J symmetric with entries N(0, 1).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermosphere.proteins.alphabet import ALPHABET, STATES, check_states


def interaction_matrix(seed: int, states: int = STATES) -> NDArray[np.float64]:
    """J: (states, states) float64, symmetric, independent N(0, 1) on and above the diagonal.

    Raises: ValueError for a negative seed or fewer than 2 states.
    """
    if seed < 0:
        raise ValueError(f"interaction_matrix: seed must be at least 0, got {seed}")
    if states < 2:
        raise ValueError(f"interaction_matrix: states must be at least 2, got {states}")
    upper = np.triu_indices(states)
    matrix = np.zeros((states, states))
    matrix[upper] = np.random.default_rng(seed).standard_normal(len(upper[0]))
    matrix.T[upper] = matrix[upper]
    return matrix


def load_interactions(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """Read J from text: 20 lines of 20 numbers, in the order of ``ALPHABET``.

    ``#`` begins a comment.  A first line of the twenty letters states another order; the matrix
    returned is in the order of ``ALPHABET``.

    Returns: (20, 20) float64.
    Raises: ValueError with the line number for anything but a symmetric 20 × 20 matrix of finite
    numbers; OSError where the file cannot be read.
    """
    path = Path(path)
    order = list(range(STATES))
    rows: list[list[float]] = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        letters = "".join(words).upper()
        if not rows and sorted(letters) == sorted(ALPHABET):
            order = [letters.index(letter) for letter in ALPHABET]
            continue
        try:
            rows.append([float(word) for word in words])
        except ValueError:
            raise ValueError(
                f"load_interactions: {path} line {number}: expected {STATES} numbers, got "
                f"{line.strip()[:40]!r}"
            ) from None
        if len(words) != STATES:
            raise ValueError(
                f"load_interactions: {path} line {number}: expected {STATES} numbers, "
                f"got {len(words)}"
            )
    if len(rows) != STATES:
        raise ValueError(f"load_interactions: {path}: expected {STATES} rows, got {len(rows)}")
    return check_interactions(np.array(rows)[np.ix_(order, order)], f"load_interactions: {path}")


def check_interactions(interactions: ArrayLike, where: str) -> NDArray[np.float64]:
    """J as float64 (q, q), refused unless it is square, finite and exactly symmetric."""
    matrix = np.asarray(interactions, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 2:
        raise ValueError(f"{where}: interactions must be (q, q), q > 1, got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{where}: interactions must be finite")
    if not (matrix == matrix.T).all():
        a, b = np.argwhere(matrix != matrix.T)[0]
        raise ValueError(
            f"{where}: interactions must be symmetric, got J[{a}, {b}] = {matrix[a, b]:g}, "
            f"J[{b}, {a}] = {matrix[b, a]:g}"
        )
    return matrix


def check_contacts(contacts: ArrayLike, length: int, where: str) -> NDArray[np.int64]:
    """Contacts as int64 (E, 2), refused unless they are distinct pairs i < j of 0..length-1."""
    pairs = np.asarray(contacts)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: contacts must be (E, 2) integers, got {pairs.shape} {pairs.dtype}"
        )
    pairs = pairs.astype(np.int64)
    if pairs.size and (pairs.min() < 0 or pairs.max() >= length):
        raise ValueError(
            f"{where}: contact sites must be 0..{length - 1}, got {pairs.min()}..{pairs.max()}"
        )
    if (pairs[:, 0] >= pairs[:, 1]).any() or len(np.unique(pairs, axis=0)) != len(pairs):
        raise ValueError(f"{where}: contacts must be distinct pairs i < j")
    return pairs


def energy(
    tokens: NDArray[np.uint8], contacts: NDArray[np.int64], interactions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """E(s) of every sequence (Eq. 1).

    Arguments:
        tokens: (…, n) integers 0..q-1.
        contacts: (E, 2) pairs i < j, 0-based.
        interactions: (q, q) symmetric J.

    Returns: (…) float64.  The sum runs over the contacts in their order, so a sequence has the same
    bits whatever stands beside it.
    Raises: ValueError for tokens without a site axis, an id outside J, or bad contacts or J.
    """
    tokens = np.asarray(tokens)
    matrix = check_interactions(interactions, "energy")
    if tokens.ndim == 0:
        raise ValueError("energy: tokens must be (…, n), got a single number")
    check_states(tokens, len(matrix), "energy: tokens")
    pairs = check_contacts(contacts, tokens.shape[-1], "energy")
    sites = np.ascontiguousarray(np.moveaxis(tokens, -1, 0))  # (n, …)
    total = np.zeros(tokens.shape[:-1])
    for i, j in pairs:
        total += matrix[sites[i], sites[j]]
    return total


def contact_neighbours(
    contacts: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sites in contact with each site: those of i are neighbours[starts[i]:starts[i + 1]].

    Returns: starts (n + 1,) int64, neighbours (2E,) int64, rising within a site.
    """
    both = np.concatenate([contacts, contacts[:, ::-1]])  # (2E, 2)
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    starts = np.searchsorted(both[:, 0], np.arange(length + 1))
    return starts.astype(np.int64), np.ascontiguousarray(both[:, 1])


def local_fields(
    tokens: NDArray[np.uint8], contacts: NDArray[np.int64], interactions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """h[i, a] = Σ_{k in contact with i} J[a, s_k], for tokens (n,): (n, q) float64.

    E(s) = ½ Σ_i h[i, s_i]; putting state a at site i changes E by h[i, a] − h[i, s_i].
    """
    fields = np.zeros((len(tokens), len(interactions)))
    for i, j in contacts:
        fields[i] += interactions[:, tokens[j]]
        fields[j] += interactions[:, tokens[i]]
    return fields
