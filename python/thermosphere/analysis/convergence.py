"""How far a handful of correlated chains can be trusted: ESS, R̂, standard errors, drift.

Every function takes `values (chains, draws)` float64, all finite: the draws of one quantity at one
temperature after burn-in.  ESS and R̂ are ArviZ's (rank-normalised split R̂ and bulk ESS of Vehtari,
Gelman, Simpson, Carpenter, Bürkner, Bayesian Analysis 16, 667 (2021)).
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import numpy.typing as npt

with warnings.catch_warnings():
    # ArviZ 0.23 announces its coming major version once a day at import.
    warnings.simplefilter("ignore", FutureWarning)
    import arviz

Values = npt.NDArray[np.float64]

# Split R̂ halves every chain and needs two draws in each half.
MINIMUM_DRAWS = 4


def effective_sample_size(values: Values) -> float:
    """Bulk effective sample size of values (chains, draws), all chains together.

    Capped at chains·draws: an antithetic estimate above it is more often luck than gain.  NaN below
    4 draws a chain; equal to the number of draws when the values are all the same.
    """
    _check("effective_sample_size", values)
    if values.shape[1] < MINIMUM_DRAWS:
        return math.nan
    if np.ptp(values) == 0.0:
        return float(values.size)
    return min(_quiet(arviz.ess, values, method="bulk"), float(values.size))


def r_hat(values: Values) -> float:
    """Rank-normalised split R̂ of values (chains, draws); near 1 when the half-chains agree.

    A single chain counts as the two that its halves are (ArviZ takes two or more). NaN below 4
    draws a chain, 8 of a single one; 1 when the values are all the same; inf when every chain
    stands still at a value of its own.
    """
    _check("r_hat", values)
    if values.shape[0] == 1:
        half = values.shape[1] // 2
        values = np.stack([values[0, :half], values[0, values.shape[1] - half :]])
    if values.shape[1] < MINIMUM_DRAWS:
        return math.nan
    if np.ptp(values) == 0.0:
        return 1.0
    if np.all(np.ptp(values, axis=1) == 0.0):
        return math.inf
    return _quiet(arviz.rhat, values, method="rank")


def block_means(values: Values) -> Values:
    """Means of non-overlapping blocks of √draws consecutive draws, (chains, blocks).

    √draws grows without bound, so the blocks decorrelate as a run gets longer, while their number
    grows as fast.  Draws left over at the start of a chain are not used.
    """
    _check("block_means", values)
    chains, draws = values.shape
    length = max(1, math.isqrt(draws))
    blocks = draws // length
    used = values[:, draws - blocks * length :]
    return np.asarray(used.reshape(chains, blocks, length).mean(axis=2))


def standard_error(values: Values) -> float:
    """Standard error of the mean of values (chains, draws): the larger of two estimates.

    1. sd/√ESS with ArviZ's bulk ESS, which sees slow modes shorter than a chain and, through its
       between-chain term, chains that disagree;
    2. block averaging: sd of all block means about the grand mean / √(number of blocks), which does
       not lean on a fitted autocorrelation.
    The larger one errs on the wide side (a few per cent on well-mixed chains).  With fewer than 4
    draws a chain neither can be trusted and the answer is NaN.
    """
    _check("standard_error", values)
    if values.shape[1] < MINIMUM_DRAWS:
        return math.nan
    from_ess = float(values.std(ddof=1)) / math.sqrt(effective_sample_size(values))
    means = block_means(values)
    from_blocks = float(means.std(ddof=1)) / math.sqrt(means.size)
    return max(from_ess, from_blocks)


def drift(values: Values) -> float:
    """Mean of the second half of the draws minus mean of the first half, in standard errors.

    z = (m₂ − m₁) / √(s₁² + s₂²), halves of values (chains, draws) over all chains, s from
    `standard_error` of each half (Geweke's diagnostic with equal halves).  Standard normal, or
    narrower because the errors are, when the chains are stationary.  NaN below 8 draws a chain,
    where a half cannot have an error; 0 when nothing moves at all.
    """
    _check("drift", values)
    half = values.shape[1] // 2
    if half < MINIMUM_DRAWS:
        return math.nan
    first, second = values[:, :half], values[:, -half:]
    difference = float(second.mean() - first.mean())
    error = math.hypot(standard_error(first), standard_error(second))
    if error == 0.0:
        return 0.0 if difference == 0.0 else math.copysign(math.inf, difference)
    return difference / error


def variance_with_error(values: Values) -> tuple[float, float]:
    """Variance ⟨x²⟩ − ⟨x⟩² of values (chains, draws) over all chains, and its standard error.

    The error is the larger of a delete-one-block jackknife over blocks of √draws draws of every
    chain and `standard_error` of (x − ⟨x⟩)², which sees slower modes than a block: autocorrelation
    and chains that disagree both widen it.  (NaN, NaN) below 4 draws a chain.
    """
    _check("variance_with_error", values)
    if values.shape[1] < MINIMUM_DRAWS:
        return math.nan, math.nan
    centred = values - values.mean()  # the variance must not be lost to cancellation
    variance = float(np.mean(centred**2) - np.mean(centred) ** 2)
    first, second = block_means(centred).ravel(), block_means(centred**2).ravel()
    blocks = first.size
    without_first = (first.sum() - first) / (blocks - 1)
    without_second = (second.sum() - second) / (blocks - 1)
    replicates = without_second - without_first**2
    jackknife = math.sqrt((blocks - 1) * float(np.mean((replicates - replicates.mean()) ** 2)))
    return variance, max(jackknife, standard_error(centred**2))


def automatic_burn_in(values: Values) -> int:
    """Number of leading draws of values (chains, draws) to drop, by the largest ESS that is left.

    Tries every tenth of the run up to seven tenths and keeps the earliest cut that maximises
    `effective_sample_size` of the rest (Chodera, J. Chem. Theory Comput. 12, 1799 (2016)).
    """
    _check("automatic_burn_in", values)
    draws = values.shape[1]
    sizes = [effective_sample_size(values[:, draws * tenth // 10 :]) for tenth in range(8)]
    if all(math.isnan(size) for size in sizes):
        return draws // 2
    return draws * int(np.nanargmax(sizes)) // 10


def _quiet(statistic: object, values: Values, **options: str) -> float:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return float(statistic(values, **options))  # type: ignore[operator]


def _check(function: str, values: Values) -> None:
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{function}: values must be (chains, draws), got shape {values.shape}")
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{function}: values must be finite, got NaN or infinity")
