"""Norm gains and biases, and the effective embedding dimension (arXiv 2603.29529, Fig. 5).

At the optimal temperature the gains of a 64-dimensional model fall into two groups, one at zero and
one away from it; the number in the second is how many embedding dimensions the model uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thermosphere.models.layout import Layout

# How far apart two groups must be, in units of their widths (Ashman's D), to count as two.  The
# best cut through a single Gaussian gives 2.7, through a uniform distribution 3.5.
MINIMUM_SEPARATION = 4.0
# The lower group is "at zero" only when its mean |x| is below this share of the upper one's.
MAXIMUM_LOWER_SHARE = 1 / 3


@dataclass(frozen=True)
class EffectiveDimension:
    """How many elements of one norm vector are away from zero.

    size: d, the length of the vector.  count, spread: mean and standard deviation over draws of the
    number of elements with |x| > threshold.  split: whether the values form two groups; when not,
    threshold is NaN, spread 0 and count is all d (one group away from zero) or 0 (one group centred
    on zero).  separation: Ashman's D of the best cut.
    """

    size: int
    count: float
    spread: float
    threshold: float
    separation: float
    split: bool


def norm_vectors(weights: npt.ArrayLike, layout: Layout) -> dict[str, npt.NDArray[np.float64]]:
    """Gains and biases of every layer norm: name → (K, d) float64, of weights (K, N).

    The layout names them `….norm1.gain`, `….norm1.bias` and so on.  ValueError for the wrong N or
    weights that are not finite.
    """
    flat = np.asarray(weights)
    if flat.ndim != 2 or flat.shape[0] < 1 or flat.shape[1] != layout.size:
        raise ValueError(
            f"norm_vectors: weights must be (K >= 1, {layout.size}), got shape {flat.shape}"
        )
    if not np.all(np.isfinite(flat)):
        raise ValueError("norm_vectors: weights must be finite, got NaN or infinity")
    return {
        entry.name: flat[:, layout.slice(entry.name)].astype(np.float64)
        for entry in layout.entries
        if _is_norm(entry.name)
    }


def effective_dimension(values: npt.ArrayLike) -> EffectiveDimension:
    """Count the elements of one norm vector (K, d) that are away from zero.

    The magnitudes |x| of all draws are cut in two at the point that maximises the variance between
    the groups (Otsu, IEEE Trans. SMC 9, 62 (1979); the exact one-dimensional 2-means).  The cut
    counts when the groups are separate, D = √2 (μ₊ − μ₋)/√(σ₊² + σ₋²) ≥ 4, and the lower one lies
    at zero, μ₋ ≤ μ₊/3.  Otherwise the values are one group: away from zero when |mean of x| is at
    least their standard deviation, else centred on it.  ValueError unless values is (K, d), finite.
    """
    vectors = np.asarray(values, dtype=np.float64)
    if vectors.ndim != 2 or vectors.size == 0 or not np.all(np.isfinite(vectors)):
        raise ValueError(
            f"effective_dimension: values must be finite (K, d), got shape {vectors.shape}"
        )
    size = vectors.shape[1]
    magnitudes = np.abs(vectors)
    threshold, separation, lower_share = _best_cut(np.sort(magnitudes, axis=None))
    if separation >= MINIMUM_SEPARATION and lower_share <= MAXIMUM_LOWER_SHARE:
        counts = (magnitudes > threshold).sum(axis=1)
        return EffectiveDimension(
            size, float(counts.mean()), float(counts.std()), threshold, separation, True
        )
    away = abs(float(vectors.mean())) >= float(vectors.std()) and bool(np.any(vectors))
    return EffectiveDimension(size, float(size if away else 0), 0.0, math.nan, separation, False)


def effective_dimensions(weights: npt.ArrayLike, layout: Layout) -> dict[str, EffectiveDimension]:
    """`effective_dimension` of every norm gain and bias of weights (K, N)."""
    return {
        name: effective_dimension(values) for name, values in norm_vectors(weights, layout).items()
    }


def _is_norm(name: str) -> bool:
    parts = name.split(".")
    return len(parts) >= 2 and parts[-2].startswith("norm") and parts[-1] in ("gain", "bias")


def _best_cut(ordered: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Otsu's cut of sorted values (M,): threshold, Ashman's D, lower mean / upper mean."""
    total = ordered.size
    if total < 2 or ordered[0] == ordered[-1]:
        return math.nan, 0.0, math.nan
    below = np.arange(1, total)  # values in the lower group, for every possible cut
    sums = np.cumsum(ordered)
    lower_mean = sums[:-1] / below
    upper_mean = (sums[-1] - sums[:-1]) / (total - below)
    between = below * (total - below) * (upper_mean - lower_mean) ** 2
    cut = int(np.argmax(between)) + 1
    lower, upper = ordered[:cut], ordered[cut:]
    distance = float(upper.mean() - lower.mean())
    width = math.hypot(float(lower.std()), float(upper.std()))
    separation = math.sqrt(2.0) * distance / width if width > 0 else math.inf
    threshold = 0.5 * float(lower[-1] + upper[0])
    return threshold, separation, float(lower.mean() / upper.mean())
