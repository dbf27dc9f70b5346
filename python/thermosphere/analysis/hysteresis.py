"""Heating against cooling: ⟨U⟩ of two sets of chains, one from early-stopped weights, one that came
to each temperature from the other side.  In equilibrium the two agree, above all at a sharp
transition."""

from __future__ import annotations

import numpy as np
import xarray as xr

from thermosphere.analysis.thermodynamics import settled

# |z| above which the two disagree. By chance 0.3 % of equilibrated temperatures do; more do where
# errors are those of few starts, 4 % with three.
MOST = 3.0


def hysteresis(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Compare two tables of `thermodynamics` at the temperatures where both have settled: chains
    that still move say nothing of where they will end.

    Returned, over temperature: `difference` = ⟨U⟩ of the second − of the first and its
    `difference_error`, `z` = difference / error, and `agree`, |z| ≤ 3; False where an error is not
    known.
    """
    stands = [one["temperature"].values[settled(one)] for one in (first, second)]
    common = np.intersect1d(*stands)
    one, other = first.sel(temperature=common), second.sel(temperature=common)
    difference = other["train_loss"].values - one["train_loss"].values
    error = np.hypot(other["train_loss_error"].values, one["train_loss_error"].values)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(difference == 0.0, 0.0, difference / error)
    return xr.Dataset(
        {
            "difference": ("temperature", difference),
            "difference_error": ("temperature", error),
            "z": ("temperature", z),
            "agree": ("temperature", np.abs(z) <= MOST),
        },
        coords={"temperature": common},
    )
