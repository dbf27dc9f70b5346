"""The Potts energy of a sequence: one matrix on a contact map, or a matrix of its own a pair.

On a contact map Δ (Eq. 1 of arXiv 2603.29529) E(s) = Σ_{i<j} Δ_ij J[s_i, s_j], J symmetric with
entries N(0, 1).  Direct-coupling analysis has a matrix J_ij for every pair, and fields h_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermosphere.proteins.alphabet import ALPHABET, STATES, check_states


@dataclass(frozen=True, eq=False)
class PottsModel:
    """n sites of q states, E(s) = Σ_i h_i(s_i) + Σ_{p = (i, j)} J_p(s_i, s_j); exp(−E/T).

    Pairs may share a matrix, as the contacts of Eq. 1 do, so the matrices are stored in B blocks.

    Attributes:
        pairs: (E, 2) int64 sites i < j, 0-based, none twice.
        couplings: (B, q, q) float64; J_p(a, b) = couplings[block[p], a, b], a at site i, b at j.
        block: (E,) int64, the block of each pair.
        fields: (n, q) float64, h_i(a); zero for Eq. 1.
        alphabet: the letter of each state, or "" where states have none.

    Raises: ValueError where these do not fit together.
    """

    pairs: NDArray[np.int64]
    couplings: NDArray[np.float64]
    block: NDArray[np.int64]
    fields: NDArray[np.float64]
    alphabet: str = ""

    def __post_init__(self) -> None:
        where = "PottsModel"
        for name, array, kind in (
            ("pairs", self.pairs, np.int64),
            ("couplings", self.couplings, np.float64),
            ("block", self.block, np.int64),
            ("fields", self.fields, np.float64),
        ):
            if array.dtype != kind:
                raise ValueError(f"{where}: {name} must be {kind.__name__}, got {array.dtype}")
            # Compiled code reads them; no copy where they are contiguous already.
            object.__setattr__(self, name, np.ascontiguousarray(array))
        if self.fields.ndim != 2 or self.fields.shape[0] < 2 or not 2 <= self.states <= 256:
            raise ValueError(
                f"{where}: fields must be (n, q), n > 1, 1 < q < 257, got {self.fields.shape}"
            )
        if self.couplings.shape[1:] != (self.states, self.states):
            raise ValueError(
                f"{where}: couplings must be (B, {self.states}, {self.states}) like the fields, "
                f"got {self.couplings.shape}"
            )
        check_contacts(self.pairs, self.length, where)
        if self.block.shape != self.pairs.shape[:1]:
            raise ValueError(
                f"{where}: block must be ({len(self.pairs)},) like the pairs, "
                f"got {self.block.shape}"
            )
        if self.block.size and (self.block.min() < 0 or self.block.max() >= len(self.couplings)):
            raise ValueError(
                f"{where}: block must be 0..{len(self.couplings) - 1}, "
                f"got {self.block.min()}..{self.block.max()}"
            )
        for name, values in (("couplings", self.couplings), ("fields", self.fields)):
            if not np.isfinite(values).all():
                raise ValueError(f"{where}: {name} must be finite")
        if len(set(self.alphabet)) != len(self.alphabet) or not all(
            "!" <= letter <= "~" and letter != ">" for letter in self.alphabet
        ):
            raise ValueError(
                f"{where}: alphabet must be distinct ASCII letters, got {self.alphabet!r}"
            )
        if self.alphabet and len(self.alphabet) != self.states:
            raise ValueError(
                f"{where}: alphabet must have {self.states} letters, got {self.alphabet!r}"
            )

    @property
    def length(self) -> int:
        """Number of sites n."""
        return int(self.fields.shape[0])

    @property
    def states(self) -> int:
        """Number of states q of a site."""
        return int(self.fields.shape[1])

    @classmethod
    def from_contacts(
        cls, contacts: ArrayLike, interactions: ArrayLike, length: int, alphabet: str | None = None
    ) -> PottsModel:
        """Eq. 1: the same matrix at every contact, no fields.

        Arguments:
            contacts: (E, 2) integer pairs i < j, 0-based.
            interactions: (q, q) symmetric J.
            length: n.
            alphabet: letters of the states; those of ``ALPHABET`` where q = 20.

        Raises: ValueError for contacts or a matrix that are not so.
        """
        matrix = check_interactions(interactions, "PottsModel")
        pairs = check_contacts(contacts, length, "PottsModel")
        if alphabet is None:
            alphabet = ALPHABET if len(matrix) == STATES else ""
        return cls(
            pairs=pairs,
            couplings=matrix[None],
            block=np.zeros(len(pairs), dtype=np.int64),
            fields=np.zeros((length, len(matrix))),
            alphabet=alphabet,
        )

    @classmethod
    def from_couplings(
        cls, pairs: ArrayLike, couplings: ArrayLike, fields: ArrayLike, alphabet: str = ""
    ) -> PottsModel:
        """A matrix of its own for every pair, as direct-coupling analysis has.

        Arguments:
            pairs: (E, 2) integer pairs i < j, 0-based.
            couplings: (E, q, q), energies J_ij(a, b): minus what maximum likelihood writes.
            fields: (n, q), energies h_i(a): likewise.
            alphabet: letters of the states, "" for none.

        Raises: ValueError for arrays that do not fit together.
        """
        matrices = np.asarray(couplings, dtype=np.float64)
        table = np.asarray(fields, dtype=np.float64)
        sites = np.asarray(pairs)
        if matrices.ndim != 3 or matrices.shape[:1] != sites.shape[:1]:
            raise ValueError(
                f"PottsModel: couplings must be (E, q, q), one matrix a pair, got "
                f"{matrices.shape} for pairs {sites.shape}"
            )
        return cls(
            pairs=check_contacts(sites, len(table), "PottsModel"),
            couplings=matrices,
            block=np.arange(len(matrices), dtype=np.int64),
            fields=table,
            alphabet=alphabet,
        )

    def restricted(self, letters: str) -> PottsModel:
        """The same energies for sequences of these states alone, in this order.

        Its law is the model's under the condition that no other state occurs.
        Raises: ValueError for a letter that is not in the alphabet.
        """
        missing = set(letters) - set(self.alphabet)
        if missing:
            raise ValueError(
                f"PottsModel: states must be of {self.alphabet!r}, got {min(missing)!r}"
            )
        kept = np.array([self.alphabet.index(letter) for letter in letters])
        return PottsModel(
            pairs=self.pairs,
            couplings=self.couplings[:, kept[:, None], kept],
            block=self.block,
            fields=self.fields[:, kept],
            alphabet=letters,
        )

    def energy(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """E(s) of every sequence, tokens (…, n): (…) float64.

        The sum runs over the sites and then the pairs in their order, so a sequence has the same
        bits whatever stands beside it.
        Raises: ValueError for another number of sites, or an id outside 0..q-1.
        """
        array = self._tokens(tokens, "energy")
        sites = np.ascontiguousarray(np.moveaxis(array, -1, 0))  # (n, …)
        total = np.zeros(array.shape[:-1])
        for field, here in zip(self.fields, sites, strict=True):
            total += field[here]
        for b, (i, j) in zip(self.block, self.pairs, strict=True):
            total += self.couplings[b][sites[i], sites[j]]
        return total

    def local_fields(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """h_i(a) + Σ_k J_ik(a, s_k) over the pairs of i, for tokens (n,): (n, q) float64.

        Putting state a at site i changes E by its entry (i, a) less its entry (i, s_i).
        Raises: as ``energy``.
        """
        array = self._tokens(tokens, "local_fields")
        if array.ndim != 1:
            raise ValueError(f"local_fields: tokens must be (n,), got shape {array.shape}")
        table = self.fields.copy()
        for b, (i, j) in zip(self.block, self.pairs, strict=True):
            table[i] += self.couplings[b, :, array[j]]
            table[j] += self.couplings[b, array[i]]
        return table

    def _tokens(self, tokens: ArrayLike, where: str) -> NDArray[Any]:
        array = np.asarray(tokens)
        if array.ndim == 0 or array.shape[-1] != self.length:
            raise ValueError(f"{where}: tokens must be (…, {self.length}), got {array.shape}")
        check_states(array, self.states, f"{where}: tokens")
        return array


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
