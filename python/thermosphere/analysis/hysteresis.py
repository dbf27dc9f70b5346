"""Heating against cooling: ⟨U⟩ of chains from early-stopped weights and of chains that came down
from the next hotter temperature.  In equilibrium the two agree, above all at a sharp transition."""

from __future__ import annotations

import numpy as np
import xarray as xr

from thermosphere.analysis.thermodynamics import settled

MOST = 3.0  # |z| above which the two disagree; 0.3 % of equilibrated temperatures do by chance


def hysteresis(heating: xr.Dataset, cooling: xr.Dataset) -> xr.Dataset:
    """Compare two tables of `thermodynamics` at the temperatures where both have settled: chains
    that still come down say nothing of where they will end.

    Returned, over temperature: `difference` = ⟨U⟩ cooling − ⟨U⟩ heating and its `difference_error`,
    `z` = difference / error, and `agree`, |z| ≤ 3; False where an error is not known.
    """
    stands = [one["temperature"].values[settled(one)] for one in (heating, cooling)]
    common = np.intersect1d(*stands)
    up, down = heating.sel(temperature=common), cooling.sel(temperature=common)
    difference = down["train_loss"].values - up["train_loss"].values
    error = np.hypot(down["train_loss_error"].values, up["train_loss_error"].values)
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
