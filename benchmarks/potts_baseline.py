"""The sampler that bench_tempering measures against: simulated tempering as one would write it.

A neighbour list and no table of fields: a proposal sums the couplings of both sites' neighbours.
numba's own generator; level moves in a random direction.  Same ladder, weights and visits.
"""

# ruff: noqa: NPY002 (numba's own generator is what one would write)
from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from thermosphere.proteins.potts import PottsModel


def neighbour_lists(model: PottsModel) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """starts (n + 1,) and neighbours (2E,): those of i are neighbours[starts[i]:starts[i + 1]]."""
    both = np.concatenate([model.pairs, model.pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    return np.searchsorted(both[:, 0], np.arange(model.length + 1)), both[:, 1].copy()


@njit(nogil=True)
def seed_generator(seed):
    np.random.seed(seed)


@njit(nogil=True)
def baseline_walk(
    interactions, starts, neighbours, tokens, betas, weights, cycle, state, visits, sums
):
    """Visits of levels by one walker, swap moves.

    interactions: (q, q).  tokens: (n,).  state: (4,) level, last end seen (1 hot, 2 cold), round
    trips, and energy.  sums: (2, K) of 1 and E over visits.  Changes tokens, state and sums.
    """
    n = tokens.shape[0]
    coldest = betas.shape[0] - 1
    level = int(state[0])
    energy = state[3]
    for _ in range(visits):
        beta = betas[level]
        for _ in range(cycle[level]):
            i = np.random.randint(n)
            j = np.random.randint(n)
            a = tokens[i]
            b = tokens[j]
            if a == b:
                continue
            difference = 0.0
            for p in range(starts[i], starts[i + 1]):
                k = neighbours[p]
                if k != j:
                    difference += interactions[b, tokens[k]] - interactions[a, tokens[k]]
            for p in range(starts[j], starts[j + 1]):
                k = neighbours[p]
                if k != i:
                    difference += interactions[a, tokens[k]] - interactions[b, tokens[k]]
            if difference <= 0.0 or np.random.random() < np.exp(-beta * difference):
                tokens[i] = b
                tokens[j] = a
                energy += difference
        sums[0, level] += 1.0
        sums[1, level] += energy
        if level == 0:
            if state[1] == 2:
                state[2] += 1
            state[1] = 1
        elif level == coldest and state[1] == 1:
            state[1] = 2
        new = level + 1 if np.random.random() < 0.5 else level - 1
        if 0 <= new <= coldest:
            exponent = (beta - betas[new]) * energy + weights[new] - weights[level]
            if exponent >= 0.0 or np.random.random() < np.exp(exponent):
                level = new
    state[0] = level
    state[3] = energy
