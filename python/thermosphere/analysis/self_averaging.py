"""Is the mean attention self-averaging: do single weight samples give the same matrix (Fig. E4)?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thermosphere.analysis.similarity import between_chains, change, pair_halves, pairs_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SelfAveraging:
    """Correlation of the mean attention matrices of two weight vectors, over pairs of them.

    same_start: (L, P) every block with itself, pairs of draws that began at the same weights.
    other_start: (P',) best block of one with best block of the other, pairs of different starts:
    blocks may exchange roles between starts.  Empty where there is no such pair.
    starts: (P', 2), of the two draws of each pair of other_start.
    motion: mean of other_start over late draws less that over early ones (`similarity.change`).
    """

    same_start: Array
    other_start: Array
    starts: npt.NDArray[np.int64]
    motion: float = math.nan


def self_averaging(
    maps: npt.ArrayLike,
    starts: npt.NDArray[np.int64],
    best: Mapping[int, int],
    late: npt.NDArray[np.bool_] | None = None,
) -> SelfAveraging:
    """maps (K, L, n, n) mean attention, starts (K,) where each draw began, best: start → block,
    late (K,) whether a draw is of the second half of its chain."""
    attention = np.asarray(maps, dtype=np.float64)
    other = between_chains(starts)
    blocks = [map_correlation(attention[:, block]) for block in range(attention.shape[1])]
    own_best = attention[np.arange(len(attention)), [best[int(start)] for start in starts]]
    pairs = map_correlation(own_best)[other]
    motion = math.nan if late is None else change(pairs, pair_halves(late)[other])
    return SelfAveraging(np.stack(blocks)[:, ~other], pairs, pairs_of(starts)[other], motion)


def map_correlation(maps: npt.ArrayLike) -> Array:
    """Pearson correlation of the elements i < j of two matrices, over all pairs of K of them.

    maps: (K, n, n), symmetric.  Returns (K(K−1)/2,), pairs ordered as `numpy.triu_indices(K, 1)`;
    NaN where a matrix is constant.  ValueError for another shape.
    """
    matrices = np.asarray(maps, dtype=np.float64)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"map_correlation: maps must be (K, n, n), got shape {matrices.shape}")
    upper = np.triu_indices(matrices.shape[1], 1)
    elements = matrices[:, upper[0], upper[1]]
    centred = elements - elements.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norm, out=np.full_like(centred, np.nan), where=norm > 0)
    return np.asarray(np.clip((unit @ unit.T)[np.triu_indices(len(matrices), 1)], -1.0, 1.0))
