"""d⟨U⟩/dT along a ladder, and the temperature T* where it is largest (arXiv 2603.29529, Fig. 3b).

In equilibrium d⟨U⟩/dT is the specific heat, C = (⟨U²⟩ − ⟨U⟩²)/T².  Of the two it is the one that
places T*: n independent draws know a variance to √(2/n), but a rung ΔT of the ladder to
√(2 C/n)/(ΔT/T · C), which is smaller by √C · ΔT/T, tens for thousands of parameters; and draws of a
chain that is short against its slow modes miss their share of the variance, but not of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from thermosphere.analysis.significance import Measured

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StartMeans:
    """⟨U⟩ at one temperature, start by start (S,): over the draws that averages use, and over the
    halves of them."""

    starts: tuple[int, ...]
    whole: Array
    early: Array
    late: Array


def slope(temperature: Array, mean: Array, error: Array) -> tuple[Array, Array]:
    """d mean/dT at each temperature (K,), and its standard error, from independent means (K,).

    Second-order differences through the neighbours on the scale of ln T, on which ladders are about
    even, then divided by T; at the ends through the two nearest, of first order where there are but
    two.  Means that are not finite are skipped; NaN
    where fewer than two are left.
    """
    derivative = np.full(temperature.shape, np.nan)
    derivative_error = np.full(temperature.shape, np.nan)
    known = np.flatnonzero(np.isfinite(mean))
    if known.size < 2:
        return derivative, derivative_error
    response = _response(temperature[known])
    derivative[known] = response @ mean[known]
    derivative_error[known] = np.sqrt(np.square(response) @ error[known] ** 2)
    return derivative, derivative_error


@dataclass(frozen=True)
class Rise:
    """d⟨U⟩/dT at each of K ≥ 1 temperatures, by `slope`.

    mean, error, freedom: (K,), of ⟨U⟩, independent.  means: of the same starts at all temperatures,
    where chains of different starts stay apart; then the slope is that of each start, what sets the
    starts apart drops out, and what it changed from the first half of the draws to the second is
    part of its error.
    """

    temperature: Array
    mean: Array
    error: Array
    freedom: Array
    means: Sequence[StartMeans] | None = None

    def at(self, index: int) -> Measured:
        """The slope at one temperature; NaN of a single one."""
        return self._combined(self._response[index])

    def difference(self, first: int, second: int) -> Measured:
        """Slope at one temperature less that at another; both may hang on the same ⟨U⟩."""
        return self._combined(self._response[first] - self._response[second])

    @property
    def _response(self) -> Array:
        if self.temperature.size < 2:
            return np.full((1, 1), np.nan)
        return _response(self.temperature)

    def _combined(self, weights: Array) -> Measured:
        """Of a sum over the temperatures with weights (K,)."""
        if self.means is None:
            used = weights != 0
            error = math.sqrt(float(np.square(weights[used]) @ self.error[used] ** 2))
            return Measured(float(weights @ self.mean), error, float(self.freedom[used].min()))
        each = weights @ np.stack([one.whole for one in self.means])  # (S,)
        changed = weights @ np.stack([one.late - one.early for one in self.means])
        motion = float(changed.mean())
        error = math.hypot(float(each.std(ddof=1)) / math.sqrt(each.size), motion)
        return Measured(float(each.mean()), error, each.size - 1.0, tuple(each.tolist()), motion)


@dataclass(frozen=True)
class Peak:
    """T*, and between which rungs of the ladder it lies as far as the errors tell (95 %); NaN for
    an end that is open because the ladder does not go far enough."""

    temperature: float
    low: float
    high: float
    caveat: str  # empty where the maximum lies inside the ladder


def peak_of(rise: Rise) -> Peak:
    """arg max d⟨U⟩/dT."""
    count = rise.temperature.size
    best = int(np.nan_to_num([rise.at(index).mean for index in range(count)]).argmax())
    possible = [k for k in range(count) if k == best or not rise.difference(best, k).above(0.0)]
    low, high = min(possible), max(possible)
    caveat = ""
    if count < 3:
        caveat = f"only {count} temperature(s) to choose from"
    elif best in (0, count - 1):
        end = "upper" if best else "lower"
        caveat = f"the maximum is at the {end} end of the usable ladder, maybe beyond it"
    elif low == 0 and high == count - 1:
        caveat = "as far as the errors tell the maximum may be anywhere on the usable ladder"
    return Peak(
        float(rise.temperature[best]),
        float(rise.temperature[low]) if low > 0 else math.nan,
        float(rise.temperature[high]) if high < count - 1 else math.nan,
        caveat,
    )


def _response(temperature: Array) -> Array:
    """(K, K): d/dT by second-order differences in ln T is linear in the means; column j is what a
    unit at j does."""
    order: Literal[1, 2] = 2 if temperature.size > 2 else 1
    logarithm = np.log(temperature)
    differences = np.gradient(np.eye(temperature.size), logarithm, axis=0, edge_order=order)
    return np.asarray(differences) / temperature[:, None]
