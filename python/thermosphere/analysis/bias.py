"""How far a sampler's ⟨U⟩ is from the exact one: in nats, in standard errors, and as the error of
temperature that it amounts to."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thermosphere.analysis import convergence


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
