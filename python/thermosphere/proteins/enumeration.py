"""Every sequence of a small Potts model, and the exact averages over them: what samplers are tested
against.

P(s) = exp(−E(s)/T) / Z over all q^n sequences, or over all n! / Π_a n_a! orders of one composition,
which is what swaps reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial, prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermosphere.proteins.alphabet import check_states
from thermosphere.proteins.potts import PottsModel

_CHUNK = 1 << 16  # sequences whose one-hot codes are in memory at once


@dataclass(frozen=True, eq=False)
class Enumeration:
    """All M sequences of a model, in the order of their tokens read as a number, and energies.

    Every method takes temperatures, one number or (K,), positive, ``np.inf`` allowed, and returns
    its result with that axis first, where there is one; ValueError for others.

    Attributes:
        sequences: (M, n) uint8.
        energies: (M,) float64.
        states: q.
    """

    sequences: NDArray[np.uint8]
    energies: NDArray[np.float64]
    states: int

    def log_partition(self, temperature: ArrayLike) -> NDArray[np.float64]:
        """ln Z."""
        least, weights = self._weights(temperature)
        return np.log(weights.sum(axis=-1)) - least

    def probabilities(self, temperature: ArrayLike) -> NDArray[np.float64]:
        """P(s) of every sequence: (…, M)."""
        _, weights = self._weights(temperature)
        return weights / weights.sum(axis=-1, keepdims=True)

    def mean_energy(self, temperature: ArrayLike) -> NDArray[np.float64]:
        """⟨E⟩."""
        return self.probabilities(temperature) @ self.energies

    def energy_deviation(self, temperature: ArrayLike) -> NDArray[np.float64]:
        """σ_E = √(⟨E²⟩ − ⟨E⟩²), summed around the mean."""
        law = self.probabilities(temperature)
        mean = law @ self.energies
        return np.sqrt((law * (self.energies - mean[..., None]) ** 2).sum(axis=-1))

    def site_frequencies(self, temperature: ArrayLike) -> NDArray[np.float64]:
        """f_i(a): (…, n, q)."""
        law = self.probabilities(temperature)
        rows = law.reshape(-1, law.shape[-1])
        sites = [
            [np.bincount(here, weights, self.states) for here in self.sequences.T]
            for weights in rows
        ]
        return np.array(sites).reshape(*law.shape[:-1], -1, self.states)

    def pair_frequencies(self, temperature: ArrayLike) -> NDArray[np.float64]:
        """f_ij(a, b), symmetric, f_ii diagonal with f_i(a): (…, n, n, q, q)."""
        law = self.probabilities(temperature)
        n, q = self.sequences.shape[1], self.states
        rows = law.reshape(-1, law.shape[-1])
        total = np.zeros((len(rows), n * q, n * q))
        for start in range(0, len(self.sequences), _CHUNK):
            tokens = self.sequences[start : start + _CHUNK]
            codes = (tokens[:, :, None] == np.arange(q)).reshape(len(tokens), n * q).astype(float)
            for k, weights in enumerate(rows[:, start : start + _CHUNK]):
                total[k] += codes.T @ (weights[:, None] * codes)
        pairs = total.reshape(*law.shape[:-1], n, q, n, q)
        return np.ascontiguousarray(pairs.swapaxes(-3, -2))

    def _weights(self, temperature: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """min_s E/T, and exp(min_s E/T − E(s)/T): no temperature over- or underflows all."""
        temperatures = np.asarray(temperature, dtype=np.float64)
        if temperatures.ndim > 1 or not (temperatures > 0.0).all():
            raise ValueError(
                f"Enumeration: temperatures must be positive, one or (K,), got {temperatures}"
            )
        scaled = self.energies / temperatures[..., None]
        least = scaled.min(axis=-1)
        return least, np.exp(least[..., None] - scaled)


def enumerate_model(
    model: PottsModel, composition: ArrayLike | None = None, *, limit: int = 2_000_000
) -> Enumeration:
    """All sequences of a model with their energies.

    Arguments:
        composition: (n,) tokens of any sequence; only its rearrangements are then listed.
        limit: refuse to list more sequences than this; 2 million of 10 sites take some 0.1 GB.

    Raises: ValueError where there are more, or for tokens that are not the model's.
    """
    n, q = model.length, model.states
    if composition is None:
        count, left = q**n, np.full((1, q), n)
    else:
        tokens = np.asarray(composition)
        if tokens.shape != (n,):
            raise ValueError(
                f"enumerate_model: composition must be ({n},) tokens, got {tokens.shape}"
            )
        check_states(tokens, q, "enumerate_model: composition")
        left = np.bincount(tokens, minlength=q)[None]
        count = factorial(n) // prod(factorial(int(k)) for k in left[0])
    if count > limit:
        shown = f"{count:,}" if count < 10**15 else f"about 10^{len(str(count)) - 1}"
        raise ValueError(
            f"enumerate_model: the limit is {limit:,} sequences, {n} sites of {q} states have "
            f"{shown}"
        )
    # Beginnings of k sites, each with the residues it has left; every beginning can be finished.
    begun = np.zeros((1, 0), dtype=np.uint8)
    for _ in range(n):
        row, state = np.nonzero(left > 0)
        begun = np.column_stack([begun[row], state.astype(np.uint8)])
        left = left[row]
        left[np.arange(len(row)), state] -= 1
    return Enumeration(begun, model.energy(begun), q)
