"""Walkers of simulated and parallel tempering, compiled: Metropolis moves, moves of temperature.

Simulated tempering: one replica a walker.  The joint law of sequence s and level k is
p(s, k) ∝ exp(−β_k E(s) + g_k); a level move k → k ± 1 is accepted with probability
min(1, exp(−(β_k' − β_k) E + g_k' − g_k)), goes on in its direction while accepted and turns round
where refused.  That lifted walk keeps p (Sakai, Hukushima 2016) and crosses K levels in O(K) moves
where a walk that draws its direction takes O(K²).

Parallel tempering: K replicas a walker, one at each level, exchanged between k and k + 1 with
probability min(1, exp((β_k+1 − β_k)(E_k+1 − E_k))), even and odd pairs in turn (Okabe et al. 2001;
the same lifting, Syed et al. 2022).

Between those, each replica makes cycle[k] proposals at its level k, accepted with probability
min(1, exp(−β_k ΔE)).  At each level the sequences are Boltzmann's, whatever g and cycle are.

The walk keeps D[i, a], the change of E were state a at site i: a proposal is a few look-ups, and
only an accepted one pays for its neighbours.  Proposals are judged sixteen at a time as if none
before were accepted, without a branch, in vectors; the first accepted one makes those after it be
judged again.  So the numbers are those of one proposal after the other.

All that is compiled shares a file: numba's on-disk cache does not notice a change in another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from thermosphere.proteins.fixed_point import LANES, TOKEN

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FAR = np.uint64(1 << 63)
_ONE = np.uint64(1)
_ULP = 2.0**-53
_TOGETHER = 16  # proposals judged at once; from 8 to 32 the ladder's time changes by a tenth

# Rows of Walker.counts, one column a level.
VISITS, PROPOSALS, ACCEPTED, DESCENTS_TRIED, DESCENTS, SINCE_HARVEST, FROM_HOT = range(7)
COUNTS = 7
# Rows of Walker.sums: E, E², and Bennett's (1976) two functions, f(x) = 1 / (1 + e^x), c = g1 − g0:
# Z1/Z0 = e^−c ⟨f((β1 − β0) E − c)⟩_0 / ⟨f(c − (β1 − β0) E)⟩_1, towards the next level and from it.
ENERGY, ENERGY_SQUARED, TO_COLDER, TO_HOTTER = range(4)
SUMS = 4
_HOT, _COLD = 1, 2


class Walker(NamedTuple):
    """What the walk changes, in place; R replicas (1 or K), K levels."""

    words: NDArray[np.uint64]  # (R, n) site words, see fixed_point
    differences: NDArray[np.int64]  # (R, n · stride) D, in grid units
    energies: NDArray[np.int64]  # (R,) in grid units
    counter: NDArray[np.uint64]  # (1,) place in the stream of random numbers
    levels: NDArray[np.int64]  # (R,)
    ways: NDArray[np.int64]  # (R,) direction of the next level move, ±1; of the first pair, R > 1
    last_ends: NDArray[np.int64]  # (R,) last end of the ladder seen
    round_trips: NDArray[np.int64]  # (R,) hot → cold → hot
    counts: NDArray[np.int64]  # (COUNTS, K)
    sums: NDArray[np.float64]  # (SUMS, K) over visits


class Ladder(NamedTuple):
    """The levels, from hot to cold."""

    betas: NDArray[np.float64]  # (K,) 1/T, rising
    weights: NDArray[np.float64]  # (K,) g
    cycle: NDArray[np.int64]  # (K,) proposals a visit
    together: NDArray[np.bool_]  # (K,) judge proposals in vectors: no other result, other speed


class Harvest(NamedTuple):
    """Where the walk leaves sequences; H recorded levels."""

    row: NDArray[np.int64]  # (K,) row of each level, -1: not recorded
    tokens: NDArray[np.uint8]  # (H, quota, n)
    filled: NDArray[np.int64]  # (H,)
    spacing: int  # visits of a level from one harvest there to the next


# splitmix64 (Steele, Lea, Flood 2014): draw c of a stream is a function of key + c·golden alone.
@njit(inline="always")
def _random_bits(counter: Any) -> Any:
    z = counter
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# One draw serves a proposal: bits 40–63 choose the first site, 16–39 the second or the state, 0–15
# lead the uniform number of the decision.  That sites are drawn a little unevenly, by n / 2²⁴,
# leaves detailed balance alone: a pair is as likely before a move as after it.
@njit(inline="always")
def _first(bits: Any, bound: Any) -> Any:
    return ((bits >> np.uint64(40)) * bound) >> np.uint64(24)


@njit(inline="always")
def _second(bits: Any, bound: Any) -> Any:
    return (((bits >> np.uint64(16)) & np.uint64(0xFFFFFF)) * bound) >> np.uint64(24)


@njit(inline="always")
def _uniform(bits: Any) -> Any:
    return np.float64(bits >> np.uint64(11)) * _ULP


@intrinsic
def _trailing_zeros(context: Any, bits: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), code


@intrinsic
def _bits_of(context: Any, number: Any) -> Any:
    """The 64 bits of a float64."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), code


def _vector(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Pointer to LANES numbers of an array from an offset on."""
    data = context.make_array(kind)(context, builder, array).data
    lanes = ir.VectorType(context.get_data_type(kind.dtype), LANES)
    return builder.bitcast(builder.gep(data, [offset]), lanes.as_pointer())


def _everywhere(builder: Any, number: Any) -> Any:
    """LANES times the same number."""
    undefined = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, mask)


# Written as loops, LLVM makes gathers and scatters of these two, three times as slow.
@intrinsic
def _lower(context: Any, table: Any, at: Any, by: Any) -> Any:
    """table[at + c] -= by, c = 0 … LANES - 1."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _vector(context, builder, signature.args[0], arguments[0], arguments[1])
        old = builder.load(place, align=8)
        builder.store(builder.sub(old, _everywhere(builder, arguments[2])), place, align=8)
        return context.get_dummy_value()

    return types.void(table, types.uint64, types.int64), code


@intrinsic
def _replace(context: Any, table: Any, at: Any, rows: Any, new: Any, old: Any, by: Any) -> Any:
    """table[at + c] += rows[new + c] − rows[old + c] − by, c = 0 … LANES - 1."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _vector(context, builder, signature.args[0], arguments[0], arguments[1])
        come, gone = (
            builder.load(
                _vector(context, builder, signature.args[2], arguments[2], arguments[k]), align=8
            )
            for k in (3, 4)
        )
        change = builder.sub(builder.sub(come, gone), _everywhere(builder, arguments[5]))
        builder.store(builder.add(builder.load(place, align=8), change), place, align=8)
        return context.get_dummy_value()

    return types.void(table, types.uint64, rows, types.uint64, types.uint64, types.int64), code


@njit(inline="always")
def _set_state(
    words: Any,
    table: Any,
    couplings: Any,
    starts: Any,
    neighbours: Any,
    matrices: Any,
    stride: Any,
    i: Any,
    state: Any,
) -> None:
    """Put ``state`` at site i and keep D true."""
    old = words[i] & TOKEN
    words[i] += state - old
    at = i * stride
    own = table[at + state]
    for c in range(np.uint64(0), stride, np.uint64(LANES)):
        _lower(table, at + c, own)
    for p in range(starts[i], starts[i + _ONE]):
        k = neighbours[p]
        new_row = matrices[p] + state * stride
        old_row = matrices[p] + old * stride
        there = words[k] & TOKEN
        own = couplings[new_row + there] - couplings[old_row + there]
        at = k * stride
        for c in range(np.uint64(0), stride, np.uint64(LANES)):
            _replace(table, at + c, couplings, new_row + c, old_row + c, own)


@njit(inline="always")
def _pair_change(
    couplings: Any,
    starts: Any,
    neighbours: Any,
    matrices: Any,
    stride: Any,
    i: Any,
    j: Any,
    a: Any,
    b: Any,
) -> Any:
    """What a swap of states a, b at sites i, j changes beside D[i, b] + D[j, a]: each of those
    counts their pair as if its other end stayed."""
    for p in range(starts[i], starts[i + _ONE]):
        if neighbours[p] == j:
            row_a = matrices[p] + a * stride
            row_b = matrices[p] + b * stride
            return (
                couplings[row_b + a]
                + couplings[row_a + b]
                - (couplings[row_a + a] + couplings[row_b + b])
            )
    return np.int64(0)


@njit(inline="always")
def _coupled(word_i: Any, word_j: Any) -> Any:
    """1 where the signatures of two sites meet, as those of coupled ones do."""
    return (word_i >> ((word_j >> np.uint64(8)) & np.uint64(63))) & _ONE


@njit(inline="always")
def _below(bits: Any, difference: Any, slope: Any) -> Any:
    """False only where the decision's uniform number u refuses ``difference``.

    −ln u ≤ ln 2 (16 − e − m), where 2^e (1 + m) is the integer 2¹⁶u rounded down, for
    log2(1 + m) ≥ m; e + m are the upper bits of that integer as a float64 (Mitchell 1962).
    slope: 2^−20 T ln 2 in grid units, rounded up.
    """
    leading = np.float64(np.int64(bits & np.uint64(0xFFFF)))
    return difference < (np.int64((1023 + 16) << 20) - (_bits_of(leading) >> 32)) * slope


@njit(nogil=True, error_model="numpy")
def _propose(
    words: Any,
    table: Any,
    couplings: Any,
    starts: Any,
    neighbours: Any,
    matrices: Any,
    stride: Any,
    states: Any,
    slack: Any,
    unit: Any,
    mutate: Any,
    beta: Any,
    proposals: Any,
    together: Any,
    counter: Any,
) -> Any:
    """Proposals of one replica at one level; returns the counter, the change of E, how many made.

    Arrays and numbers one by one, not in a tuple: numba would count references to each of its
    arrays at each of the functions that follow it.
    """
    sites = np.uint64(words.shape[0])
    slope = np.int64(np.ceil(np.log(2.0) / (beta * unit * 2.0**20)))
    change = np.int64(0)
    accepted = 0
    done = 0
    while done < proposals:
        advance = 1
        possible = _ONE
        if together:
            advance = min(proposals - done, _TOGETHER)
            possible = np.uint64(0)
            if mutate:
                for k in range(_TOGETHER):
                    bits = _random_bits(counter + _GOLDEN * np.uint64(k + 1))
                    i = _first(bits, sites)
                    b = _second(bits, states)
                    may = _below(bits, table[i * stride + b], slope) & (words[i] & TOKEN != b)
                    possible |= np.uint64(may) << np.uint64(k)
            else:
                for k in range(_TOGETHER):
                    bits = _random_bits(counter + _GOLDEN * np.uint64(k + 1))
                    i = _first(bits, sites)
                    j = _second(bits, sites)
                    here = words[i]
                    there = words[j]
                    a = here & TOKEN
                    b = there & TOKEN
                    difference = table[i * stride + b] + table[j * stride + a]
                    difference -= np.int64(_coupled(here, there)) * slack
                    may = _below(bits, difference, slope) & (a != b)
                    possible |= np.uint64(may) << np.uint64(k)
            possible &= (_ONE << np.uint64(advance)) - _ONE
        while possible:
            k = _trailing_zeros(possible) + _ONE
            possible &= possible - _ONE
            here = counter + _GOLDEN * k
            bits = _random_bits(here)
            i = _first(bits, sites)
            j = _second(bits, sites)
            a = words[i] & TOKEN
            b = words[j] & TOKEN
            if mutate:
                b = _second(bits, states)
                difference = table[i * stride + b]
            else:
                difference = table[i * stride + b] + table[j * stride + a]
            if a == b:
                continue
            if not mutate and _coupled(words[i], words[j]):
                difference += _pair_change(
                    couplings, starts, neighbours, matrices, stride, i, j, a, b
                )
            if difference > 0:
                if not _below(bits, difference, slope):
                    continue
                # 2¹⁶u = its 16 leading bits + a draw from half a period away, where no other reads.
                rest = _uniform(_random_bits(here ^ _FAR))
                uniform = (np.float64(bits & np.uint64(0xFFFF)) + rest) * 2.0**-16
                if uniform >= np.exp(-beta * (np.float64(difference) * unit)):
                    continue
            _set_state(words, table, couplings, starts, neighbours, matrices, stride, i, b)
            if not mutate:
                _set_state(words, table, couplings, starts, neighbours, matrices, stride, j, a)
            change += difference
            accepted += 1
            advance = int(k)
            break
        counter += _GOLDEN * np.uint64(advance)
        done += advance
    return counter, change, accepted


@njit(nogil=True, cache=True, error_model="numpy")
def walk(system: Any, walker: Any, ladder: Any, cycles: Any, harvest: Any) -> None:
    """Run cycles, fewer where every recorded level has its quota.

    Takes a System, a Walker, a Ladder and a Harvest; changes the arrays of the second and the last.
    """
    counts = walker.counts
    levels = walker.levels
    betas = ladder.betas
    weights = ladder.weights
    replicas = levels.shape[0]
    coldest = betas.shape[0] - 1
    quota = harvest.tokens.shape[1]
    counter = walker.counter[0]
    at_level = np.zeros(coldest + 1, dtype=np.int64)  # the replica there
    for r in range(replicas):
        at_level[levels[r]] = r
    full = harvest.filled.shape[0] > 0 and harvest.filled.min() == quota
    for _ in range(cycles):
        if full:
            break
        for r in range(replicas):
            level = levels[r]
            beta = betas[level]
            proposals = ladder.cycle[level]
            counter, change, accepted = _propose(
                walker.words[r],
                walker.differences[r],
                system.couplings,
                system.starts,
                system.neighbours,
                system.matrices,
                system.stride,
                system.states,
                system.slack,
                system.unit,
                system.mutate,
                beta,
                proposals,
                ladder.together[level],
                counter,
            )
            walker.energies[r] += change
            energy = np.float64(walker.energies[r]) * system.unit
            counts[VISITS, level] += 1
            counts[PROPOSALS, level] += proposals
            counts[ACCEPTED, level] += accepted
            walker.sums[ENERGY, level] += energy
            walker.sums[ENERGY_SQUARED, level] += energy * energy
            for new in (level + 1, level - 1):
                if new >= 0 and new <= coldest:
                    exponent = (betas[new] - beta) * energy - (weights[new] - weights[level])
                    row = TO_COLDER if new > level else TO_HOTTER
                    walker.sums[row, level] += 1.0 / (1.0 + np.exp(exponent))
            if level == 0:
                if walker.last_ends[r] == _COLD:
                    walker.round_trips[r] += 1
                walker.last_ends[r] = _HOT
            elif level == coldest and walker.last_ends[r] == _HOT:
                walker.last_ends[r] = _COLD
            if walker.last_ends[r] == _HOT:
                counts[FROM_HOT, level] += 1
            row = harvest.row[level]
            if row >= 0 and harvest.filled[row] < quota:
                counts[SINCE_HARVEST, level] += 1
                if counts[SINCE_HARVEST, level] >= harvest.spacing:
                    counts[SINCE_HARVEST, level] = 0
                    for i in range(walker.words.shape[1]):
                        harvest.tokens[row, harvest.filled[row], i] = walker.words[r, i] & TOKEN
                    harvest.filled[row] += 1
                    full = harvest.filled.min() == quota
        first = levels[0]
        last = levels[0] + 1
        if replicas > 1:
            first = 0 if walker.ways[0] > 0 else 1
            last = coldest
            walker.ways[0] = -walker.ways[0]
        for level in range(first, last, 2):
            counter += _GOLDEN
            new = level + (1 if replicas > 1 else walker.ways[0])
            if new < 0 or new > coldest:
                walker.ways[0] = -walker.ways[0]
                continue
            exponent = (betas[level] - betas[new]) * (
                np.float64(walker.energies[at_level[level]]) * system.unit
            )
            if replicas > 1:
                exponent += (betas[new] - betas[level]) * (
                    np.float64(walker.energies[at_level[new]]) * system.unit
                )
            else:
                exponent += weights[new] - weights[level]
            if new > level:
                counts[DESCENTS_TRIED, level] += 1
            if exponent < 0.0 and _uniform(_random_bits(counter)) >= np.exp(exponent):
                if replicas == 1:
                    walker.ways[0] = -walker.ways[0]
                continue
            if new > level:
                counts[DESCENTS, level] += 1
            r = at_level[level]
            at_level[level] = at_level[new]
            at_level[new] = r
            levels[r] = new
            if replicas > 1:
                levels[at_level[level]] = level
    walker.counter[0] = counter
