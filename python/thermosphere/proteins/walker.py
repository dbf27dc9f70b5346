"""One walker of simulated tempering, compiled: Metropolis moves, and moves between temperatures.

The joint law of sequence s and level k is p(s, k) ∝ exp(−β_k E(s) + g_k).  One cycle is
  cycle[k] proposals at level k, each accepted with probability min(1, exp(−β_k ΔE)), then
  a move k → k ± 1, accepted with probability min(1, exp(−(β_k' − β_k) E + g_k' − g_k)).
Both leave p unchanged, so at each level the sequences are Boltzmann's, whatever g and cycle are.

The walker keeps the local fields h_i(a) + Σ_k J_ik(a, s_k): a proposal costs four look-ups and only
an accepted one pays for its neighbours.  Near freezing, where a ladder spends its
time, most proposals are refused, so that is cheaper than summing over neighbours at each.

Differences and walk share a file: numba's on-disk cache does not notice a change in another one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_ULP = 2.0**-53

# Rows of Walker.counts, one column a level.
VISITS, PROPOSALS, ACCEPTED, DESCENTS_TRIED, DESCENTS, SINCE_HARVEST = range(6)
COUNTS = 6
# Elements of Walker.place, and the values of its element LAST_END.
LEVEL, LAST_END, ROUND_TRIPS = range(3)
_HOT, _COLD = 1, 2


class System(NamedTuple):
    """What the walk reads of a PottsModel; n sites, q states, E pairs."""

    couplings: NDArray[np.float64]  # (B, q, q), the lower site's state first
    block_of: NDArray[np.int32]  # (n, n) symmetric, the block of a pair, -1: no pair
    starts: NDArray[np.int64]  # (n + 1,) neighbours of i: neighbours[starts[i]:starts[i + 1]]
    neighbours: NDArray[np.int64]  # (2E,)
    mutate: bool  # moves set one site to a random state; otherwise they swap two sites


class Walker(NamedTuple):
    """What the walk changes, in place; K levels."""

    tokens: NDArray[np.uint8]  # (n,)
    fields: NDArray[np.float64]  # (n, q)
    energy: NDArray[np.float64]  # (1,)
    counter: NDArray[np.uint64]  # (1,) place in the stream of random numbers
    place: NDArray[np.int64]  # (3,) level, last end of the ladder seen, round trips
    counts: NDArray[np.int64]  # (COUNTS, K)
    sums: NDArray[np.float64]  # (2, K) of E and E² over visits


class Ladder(NamedTuple):
    """The levels, from hot to cold."""

    betas: NDArray[np.float64]  # (K,) 1/T, rising
    weights: NDArray[np.float64]  # (K,) g
    cycle: NDArray[np.int64]  # (K,) proposals a visit


class Harvest(NamedTuple):
    """Where the walk leaves sequences; R recorded levels."""

    row: NDArray[np.int64]  # (K,) row of each level, -1: not recorded
    tokens: NDArray[np.uint8]  # (R, quota, n)
    filled: NDArray[np.int64]  # (R,)
    spacing: int  # visits of a level from one harvest there to the next


# splitmix64 (Steele, Lea, Flood 2014): draw c of a stream is a function of key + c·golden alone.
@njit(inline="always")
def _random_bits(counter: Any) -> Any:
    z = counter
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(inline="always")
def _below(bits32: Any, bound: Any) -> Any:
    """An integer in [0, bound) from 32 random bits; the bias, bound/2³², is far below any noise."""
    return np.int64((bits32 * np.uint64(bound)) >> np.uint64(32))


@njit(inline="always")
def _uniform(bits: Any) -> Any:
    return np.float64(bits >> np.uint64(11)) * _ULP


@njit(inline="always")
def swap_difference(tokens: Any, fields: Any, block_of: Any, couplings: Any, i: Any, j: Any) -> Any:
    """E after swapping the residues of sites i and j, minus E before; i ≠ j."""
    a = tokens[i]
    b = tokens[j]
    difference = fields[i, b] - fields[i, a] + fields[j, a] - fields[j, b]
    block = block_of[i, j]
    if block >= 0:
        # The fields count the pair i–j as if its other end stayed.
        pair = couplings[block]
        difference += pair[a, b] + pair[b, a] - pair[a, a] - pair[b, b]
    return difference


@njit(inline="always")
def mutation_difference(tokens: Any, fields: Any, i: Any, state: Any) -> Any:
    """E after putting ``state`` at site i, minus E before."""
    return fields[i, state] - fields[i, tokens[i]]


@njit(inline="always")
def set_state(system: Any, tokens: Any, fields: Any, i: Any, state: Any) -> None:
    """Put ``state`` at site i and keep the fields true."""
    old = tokens[i]
    tokens[i] = state
    for p in range(system.starts[i], system.starts[i + 1]):
        k = system.neighbours[p]
        pair = system.couplings[system.block_of[i, k]]
        for c in range(fields.shape[1]):
            if i < k:
                fields[k, c] += pair[state, c] - pair[old, c]
            else:
                fields[k, c] += pair[c, state] - pair[c, old]


@njit(nogil=True, cache=True)
def walk(system: Any, walker: Any, ladder: Any, cycles: Any, harvest: Any) -> None:
    """Run cycles, fewer where every recorded level has its quota.

    Takes a System, a Walker, a Ladder and a Harvest; changes the arrays of the second and the last.
    """
    tokens, fields, counts, place = walker.tokens, walker.fields, walker.counts, walker.place
    n = tokens.shape[0]
    states = fields.shape[1]
    coldest = ladder.betas.shape[0] - 1
    quota = harvest.tokens.shape[1]
    counter = walker.counter[0]
    energy = walker.energy[0]
    level = place[LEVEL]
    for _ in range(cycles):
        beta = ladder.betas[level]
        accepted = 0
        for _proposal in range(ladder.cycle[level]):
            counter += _GOLDEN
            bits = _random_bits(counter)
            i = _below(bits >> np.uint64(32), n)
            j = 0
            state = 0
            if system.mutate:
                state = _below(bits & _LOW_HALF, states)
                difference = mutation_difference(tokens, fields, i, state)
            else:
                j = _below(bits & _LOW_HALF, n)
                if tokens[i] == tokens[j]:
                    continue
                difference = swap_difference(
                    tokens, fields, system.block_of, system.couplings, i, j
                )
            if difference > 0.0:
                counter += _GOLDEN
                if _uniform(_random_bits(counter)) >= np.exp(-beta * difference):
                    continue
            energy += difference
            accepted += 1
            if system.mutate:
                set_state(system, tokens, fields, i, state)
            else:
                old = tokens[i]
                set_state(system, tokens, fields, i, tokens[j])
                set_state(system, tokens, fields, j, old)
        counts[VISITS, level] += 1
        counts[PROPOSALS, level] += ladder.cycle[level]
        counts[ACCEPTED, level] += accepted
        walker.sums[0, level] += energy
        walker.sums[1, level] += energy * energy
        if level == 0:
            if place[LAST_END] == _COLD:
                place[ROUND_TRIPS] += 1
            place[LAST_END] = _HOT
        elif level == coldest and place[LAST_END] == _HOT:
            place[LAST_END] = _COLD
        row = harvest.row[level]
        if row >= 0 and harvest.filled[row] < quota:
            counts[SINCE_HARVEST, level] += 1
            if counts[SINCE_HARVEST, level] >= harvest.spacing:
                counts[SINCE_HARVEST, level] = 0
                harvest.tokens[row, harvest.filled[row]] = tokens
                harvest.filled[row] += 1
                if harvest.filled.min() == quota:
                    break
        counter += _GOLDEN
        bits = _random_bits(counter)
        # The lowest bit chooses the direction; _uniform reads the upper 53.
        new = level + 1 if bits & np.uint64(1) else level - 1
        if new < 0 or new > coldest:
            continue
        if new > level:
            counts[DESCENTS_TRIED, level] += 1
        exponent = (beta - ladder.betas[new]) * energy + ladder.weights[new] - ladder.weights[level]
        if exponent >= 0.0 or _uniform(bits) < np.exp(exponent):
            if new > level:
                counts[DESCENTS, level] += 1
            level = new
    walker.counter[0] = counter
    walker.energy[0] = energy
    place[LEVEL] = level
