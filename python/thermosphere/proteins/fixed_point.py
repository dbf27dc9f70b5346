"""A Potts model as the compiled walk reads it: whole numbers, padded rows, pairs from both ends.

Energies are 64-bit integers, multiples of 2^−b, b as large as the model's largest energy and the
hottest temperature allow (46 for 2ABD).  Rounding the couplings to that grid once changes an energy
about as much as the roundings of a float64 sum do; after it sums are exact in any order, so what
the walk keeps never drifts and has the same bits on every machine.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thermosphere.proteins.potts import PottsModel

LANES = 8  # 64-bit numbers in the longest vector; rows are padded to a multiple
# A site word: token in bits 0–7, the site's position in signatures in 8–13, its own signature, the
# positions of the sites that it is coupled to, in 14–63.  Two sites whose signatures do not meet
# are not coupled, and a word is one look-up where token and pair would be three.
TOKEN = np.uint64(255)
_POSITIONS = range(14, 64)


class System(NamedTuple):
    """What the walk reads; n sites, q states, E pairs, rows of ``stride`` numbers."""

    couplings: NDArray[
        np.int64
    ]  # rows of J: a matrix has q, one a state of the site it is seen from
    starts: NDArray[np.uint64]  # (n + 1,) sites coupled to i: neighbours[starts[i]:starts[i + 1]]
    neighbours: NDArray[np.uint64]  # (2E,)
    matrices: NDArray[np.uint64]  # (2E,) where the pair's matrix begins in couplings
    words: NDArray[np.uint64]  # (n,) site words with token 0
    stride: np.uint64
    states: np.uint64
    slack: np.int64  # the most by which a swap of coupled sites falls below its two fields
    unit: float  # 2^−b
    mutate: bool  # moves set one site to a random state; otherwise they swap two sites


def fixed_point(model: PottsModel, *, mutate: bool, hottest: float, coldest: float) -> System:
    """The model's couplings on the grid; temperatures in energy units.

    Raises: ValueError where energies up to the model's largest, or to the hottest temperature, do
    not fit 62 bits together with a millionth of the coldest temperature.
    """
    stride = -(-model.states // LANES) * LANES
    largest = np.abs(model.couplings).max(axis=(1, 2))[model.block].sum()
    largest += np.abs(model.fields).max(axis=1).sum()
    # A difference is at most 8 × largest; the bound on it in the walk is 2¹⁰ × ln 2 × hottest.
    bits = min(58 - math.frexp(largest)[1], 51 - math.frexp(hottest)[1])
    if 2.0**-bits > 1e-6 * coldest:
        raise ValueError(
            f"sample_sequences: energies up to {largest:.3g} and temperatures up to {hottest:.3g} "
            f"leave a resolution of {2.0**-bits:.1g}, too coarse for T = {coldest:.3g}"
        )
    blocks = np.rint(np.ldexp(model.couplings, bits)).astype(np.int64)  # (B, q, q)
    transposed = blocks.transpose(0, 2, 1)
    symmetric = bool((blocks == transposed).all())
    both = blocks if symmetric else np.concatenate([blocks, transposed])
    couplings = aligned((both.shape[0] * model.states, stride))
    couplings[:, : model.states] = both.reshape(-1, model.states)

    i, j = model.pairs.T
    seen_from = np.concatenate([i, j])
    neighbours = np.concatenate([j, i])
    matrix = np.concatenate([model.block, model.block + (0 if symmetric else len(blocks))])
    order = np.lexsort((neighbours, seen_from))
    starts = np.searchsorted(seen_from[order], np.arange(model.length + 1))
    positions = np.array(_POSITIONS, dtype=np.uint64)[np.arange(model.length) % len(_POSITIONS)]
    words = positions << np.uint64(8)
    np.bitwise_or.at(words, seen_from, np.uint64(1) << positions[neighbours])
    return System(
        couplings=couplings.ravel(),
        starts=starts.astype(np.uint64),
        neighbours=neighbours[order].astype(np.uint64),
        matrices=(matrix[order] * (model.states * stride)).astype(np.uint64),
        words=words,
        stride=np.uint64(stride),
        states=np.uint64(model.states),
        slack=_slack(blocks),
        unit=2.0**-bits,
        mutate=mutate,
    )


def _slack(blocks: NDArray[np.int64]) -> np.int64:
    """max over matrices and states of J(a,a) + J(b,b) − J(a,b) − J(b,a); at least 0 (a = b)."""
    if not len(blocks):
        return np.int64(0)
    own = np.diagonal(blocks, axis1=1, axis2=2)
    excess = own[:, :, None] + own[:, None] - blocks - blocks.transpose(0, 2, 1)
    return np.int64(excess.max())


def local_differences(
    model: PottsModel, system: System, tokens: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """D[i, a] = E with state a at site i, minus E(tokens): (n · stride,) int64, with padding."""
    stride, states = int(system.stride), model.states
    table = aligned((model.length, stride))
    table[:, :states] = np.rint(model.fields / system.unit)
    rows = system.couplings.reshape(-1, stride)
    starts = system.starts.astype(np.int64)
    seen_from = np.repeat(np.arange(model.length), starts[1:] - starts[:-1])
    first = system.matrices.astype(np.int64) // stride
    np.add.at(table, system.neighbours.astype(np.int64), rows[first + tokens[seen_from]])
    table -= table[np.arange(model.length), tokens][:, None]
    return table.ravel()


def grid_energy(model: PottsModel, system: System, tokens: NDArray[np.uint8]) -> int:
    """E(tokens) in units of the grid."""
    i, j = model.pairs.T
    terms = (
        model.fields[np.arange(model.length), tokens],
        model.couplings[model.block, tokens[i], tokens[j]],
    )
    return int(sum(np.rint(one / system.unit).astype(np.int64).sum() for one in terms))


def aligned(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Zeros that begin at a cache line: a vector that straddles two costs twice."""
    size = math.prod(shape)
    raw = np.zeros(size + LANES, dtype=np.int64)
    skip = -(raw.ctypes.data // 8) % LANES
    return raw[skip : skip + size].reshape(shape)
