"""Similarity of sampled weights, layer by layer (arXiv 2603.29529, Figs. 4 and E5)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thermosphere.analysis.significance import Measured
from thermosphere.models.layout import Layout


def layer_similarity(weights: npt.ArrayLike, layout: Layout) -> dict[str, npt.NDArray[np.float64]]:
    """q(t, t') = w_t·w_t' / (|w_t| |w_t'|) of every layer, over all pairs of draws.

    weights: (K, N), any float type, K ≥ 2 draws at one temperature.  Returns, for each name of the
    layout in its order, (K(K−1)/2,) float64, pairs ordered as `numpy.triu_indices(K, 1)`: (0, 1),
    (0, 2), …, (1, 2), ….  NaN where a layer of a draw is exactly zero.  The cost is one Gram matrix
    a layer.  ValueError for fewer than two draws, the wrong N, or weights that are not finite.
    """
    flat = np.asarray(weights)
    if flat.ndim != 2 or flat.shape[0] < 2 or flat.shape[1] != layout.size:
        raise ValueError(
            f"layer_similarity: weights must be (K >= 2, {layout.size}), got shape {flat.shape}"
        )
    if not np.all(np.isfinite(flat)):
        raise ValueError("layer_similarity: weights must be finite, got NaN or infinity")
    rows, columns = np.triu_indices(flat.shape[0], 1)
    similarity = {}
    for entry in layout.entries:
        layer = flat[:, layout.slice(entry.name)].astype(np.float64)  # (K, size)
        norm = np.linalg.norm(layer, axis=1, keepdims=True)
        unit = np.divide(layer, norm, out=np.full_like(layer, np.nan), where=norm > 0)
        similarity[entry.name] = np.clip((unit @ unit.T)[rows, columns], -1.0, 1.0)
    return similarity


def pairs_of(chains: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """(P, 2): the chains of both draws of each pair of `layer_similarity`, chains (K,)."""
    chain = np.asarray(chains)
    return np.column_stack([chain[index] for index in np.triu_indices(chain.shape[0], 1)])


def between_chains(chains: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which pairs of `layer_similarity` join draws of different chains.

    chains: (K,) chain of each draw.  Pairs within a chain stay correlated long after ⟨U⟩ has
    settled, pairs between chains of different starts never were: compare the two before reading
    the first as a property of the ensemble.
    """
    chain = np.asarray(chains)
    if chain.ndim != 1:
        raise ValueError(f"between_chains: chains must be (K,), got shape {chain.shape}")
    first, second = pairs_of(chain).T
    return np.asarray(first != second)


def pair_halves(late: npt.ArrayLike) -> npt.NDArray[np.int8]:
    """Of each pair of `layer_similarity`: −1 where both draws are of the first half of their
    chains, 1 where both are of the second, else 0.

    late: (K,) bool, whether a draw is of the second half.
    """
    half = np.asarray(late, dtype=np.int8)
    rows, columns = np.triu_indices(half.shape[0], 1)
    return np.asarray(half[rows] + half[columns] - 1, dtype=np.int8)


def change(values: npt.ArrayLike, halves: npt.NDArray[np.int8]) -> float:
    """What a mean over pairs still moves: over pairs of late draws less that over early ones, NaN
    where there is none of either.

    values: (P,) of pairs, NaN left out; halves: (P,) of `pair_halves`.  A level that weights have
    reached does not move, though the weights go on.
    """
    pairs = np.asarray(values, dtype=np.float64)
    late, early = (pairs[(halves == which) & np.isfinite(pairs)] for which in (1, -1))
    return float(late.mean() - early.mean()) if late.size and early.size else np.nan


def mean_over_chains(
    values: npt.ArrayLike, chains: npt.NDArray[np.int64], motion: float = 0.0
) -> Measured:
    """Mean over pairs of draws of different chains, chain pairs weighing alike, with its standard
    error by leaving out each chain in turn: pairs share draws and draws share chains.

    values: (P,), NaN left out; chains: (P, 2) of the draws.  motion: what the mean still moves, a
    part of the error.  The error is NaN for fewer than three chains.
    """
    pairs = np.asarray(values, dtype=np.float64)
    known = np.isfinite(pairs)
    names, at = np.unique(chains, return_inverse=True)
    first, second = at.reshape(-1, 2).T
    sums, counts = (np.zeros((names.size, names.size)) for _ in range(2))
    for one, other in ((first, second), (second, first)):
        np.add.at(sums, (one[known], other[known]), pairs[known])
        np.add.at(counts, (one[known], other[known]), 1.0)
    seen = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=seen)

    def mean(of: npt.NDArray[np.int64]) -> float:
        here = np.ix_(of, of)
        return float(means[here].sum() / seen[here].sum()) if seen[here].any() else np.nan

    every = np.arange(names.size)
    without = np.array([mean(np.delete(every, k)) for k in every])
    error = np.nan
    if names.size > 2:
        spread = np.square(without - without.mean()).sum() * (names.size - 1) / names.size
        error = float(np.hypot(np.sqrt(spread), motion))
    return Measured(mean(every), error, names.size - 1.0)


def similarity_histogram(
    values: npt.ArrayLike, *, bins: int = 100
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Probability density (bins,) of similarities (pairs,) on [−1, 1], and its edges (bins + 1,).

    NaN pairs are left out; the density is zero everywhere when nothing is left.
    """
    if bins < 1:
        raise ValueError(f"similarity_histogram: bins must be at least 1, got {bins}")
    similarities = np.asarray(values, dtype=np.float64).ravel()
    counts, edges = np.histogram(similarities[np.isfinite(similarities)], bins, (-1.0, 1.0))
    density = counts / (max(1, counts.sum()) * (2.0 / bins))
    return density, edges


def similarity_summary(
    similarity: dict[str, npt.NDArray[np.float64]],
) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over pairs for each layer; NaN where no pair is defined."""
    summary = {}
    for name, values in similarity.items():
        known = values[np.isfinite(values)]
        mean_and_spread = (known.mean(), known.std()) if known.size else (np.nan, np.nan)
        summary[name] = (float(mean_and_spread[0]), float(mean_and_spread[1]))
    return summary
