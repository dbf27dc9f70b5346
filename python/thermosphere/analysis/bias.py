"""How far a sampler's ⟨U⟩ is from the exact one: in nats, in standard errors, and as the error of
temperature that it amounts to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thermosphere.analysis import convergence
from thermosphere.analysis.significance import Measured


class Average(NamedTuple):
    """A mean over chains and draws, with how far it can be trusted."""

    mean: float
    error: float  # standard error, `convergence.standard_error`
    effective_draws: float  # bulk ESS
    r_hat: float


class Bias(NamedTuple):
    """Of one average against the exact one at the same temperature."""

    difference: float  # in the units of U
    error: float  # of the difference, both averages independent
    of_excess: float  # difference / (⟨U⟩ - U_min), both from the exact side
    of_excess_error: float
    of_temperature: float  # ΔT/T, difference / (T d⟨U⟩/dT): the temperature really sampled
    of_temperature_error: float

    @property
    def z(self) -> float:
        """The difference in standard errors."""
        return self.difference / self.error


def average(values: npt.NDArray[np.float64], *, burn_in: float = 0.25) -> Average:
    """Of values (chains, draws) after the first `burn_in` of the draws. ValueError for a burn_in
    outside [0, 1) or fewer than 4 draws after it."""
    if not 0 <= burn_in < 1:
        raise ValueError(f"average: burn_in must be in [0, 1), got {burn_in}")
    kept = values[:, int(burn_in * values.shape[1]) :]
    if kept.shape[1] < convergence.MINIMUM_DRAWS:
        raise ValueError(
            f"average: expected at least {convergence.MINIMUM_DRAWS} draws after burn-in, "
            f"got {kept.shape[1]}"
        )
    return Average(
        float(kept.mean()),
        convergence.standard_error(kept),
        convergence.effective_sample_size(kept),
        convergence.r_hat(kept),
    )


def bias(
    sampled: Average, exact: Average, *, temperature: float, slope: float, lowest: float
) -> Bias:
    """slope: d⟨U⟩/dT; lowest: U_min. ValueError where ⟨U⟩ is not above it or the slope not
    positive."""
    if not exact.mean > lowest:
        raise ValueError(f"bias: lowest must be below {exact.mean}, got {lowest}")
    if not slope > 0:
        raise ValueError(f"bias: slope must be > 0, got {slope}")
    difference = sampled.mean - exact.mean
    error = math.hypot(sampled.error, exact.error)
    excess, per_temperature = exact.mean - lowest, temperature * slope
    return Bias(
        difference,
        error,
        difference / excess,
        error / excess,
        difference / per_temperature,
        error / per_temperature,
    )


def paired_difference(sampled: Sequence[Average], exact: Sequence[Average]) -> Measured:
    """Mean over the chains of sampled - exact, an average a chain, where a chain's two went on from
    the same weights: what its basin adds to U drops out.

    The error is the larger of that of the chains' own, √Σ s²/C (freedom: their effective draws less
    one each), and sd/√C of the differences, which sees motion slower than a chain is long (freedom
    C - 1). ValueError for no chain or unequal numbers of them.
    """
    if not sampled or len(sampled) != len(exact):
        raise ValueError(
            "paired_difference: expected an average a chain of both, "
            f"got {len(sampled)} and {len(exact)}"
        )
    differences = np.array([a.mean - b.mean for a, b in zip(sampled, exact, strict=True)])
    own = np.array([math.hypot(a.error, b.error) for a, b in zip(sampled, exact, strict=True)])
    chains = len(differences)
    fewest = [
        min(a.effective_draws, b.effective_draws) for a, b in zip(sampled, exact, strict=True)
    ]
    error, freedom = float(np.sqrt((own**2).sum())) / chains, max(1.0, sum(fewest) - chains)
    spread = float(differences.std(ddof=1)) / math.sqrt(chains) if chains > 1 else 0.0
    if spread > error:
        error, freedom = spread, chains - 1.0
    return Measured(float(differences.mean()), error, freedom)


def at_zero_share(
    t_ratios: npt.NDArray[np.float64], averages: Sequence[Average]
) -> tuple[float, float, float]:
    """(⟨U⟩ at T_ratio 0, its error, χ² a degree of freedom) of a straight line through ⟨U⟩ (K,)
    against T_ratio (K,), weighted by the errors.

    Mini-batch noise replaces the share r of white noise parameter by parameter, but its covariance
    has the directions of single examples' gradients, the stiff ones: their surplus, and with it the
    bias of ⟨U⟩, is r times a constant as long as it is small. ValueError for fewer than 3 values of
    T_ratio.
    """
    if len(np.unique(t_ratios)) < 3 or len(t_ratios) != len(averages):
        raise ValueError(
            "at_zero_share: expected averages at 3 or more T_ratios, "
            f"got {len(averages)} at {sorted(set(t_ratios.tolist()))}"
        )
    errors = np.array([a.error for a in averages])
    design = np.stack([np.ones_like(t_ratios), t_ratios], 1) / errors[:, None]
    values = np.array([a.mean for a in averages]) / errors
    covariance = np.linalg.inv(design.T @ design)
    line = covariance @ design.T @ values
    chi2 = float(((values - design @ line) ** 2).sum())
    return float(line[0]), math.sqrt(covariance[0, 0]), chi2 / (len(averages) - 2)
