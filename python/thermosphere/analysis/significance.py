"""A number with its error and how well that error is known, and when two of them differ."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# 97.5 % quantile of Student's t against 1/(degrees of freedom), from infinity down to 1.  Between
# these it is convex, so a straight line lies above it: never too sure.
_INVERSE = np.array([0, 1 / 60, 1 / 20, 1 / 10, 1 / 7, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1])
_QUANTILE = np.array([1.960, 2.000, 2.086, 2.228, 2.365, 2.571, 2.776, 3.182, 4.303, 12.706])


class Measured(NamedTuple):
    """A mean, its standard error, and the degrees of freedom of the latter (independent values less
    one).  The error is NaN where there were no two values to tell it from.

    starts: the values of the independent starts where the mean is over them, in their order;
    motion: the part of the error that is theirs in common, what they still move.
    slack: how far the mean may lie on either side besides, which no number of draws makes smaller.
    among: how many values it was chosen from as the least or the largest; the interval then is one
    that holds all of them (Bonferroni).
    """

    mean: float
    error: float
    freedom: float
    starts: tuple[float, ...] = ()
    motion: float = 0.0
    slack: float = 0.0
    among: int = 1

    @classmethod
    def of_runs(cls, values: npt.ArrayLike) -> Measured:
        """Mean of independent values (R,)."""
        runs = np.asarray(values, dtype=np.float64).ravel()
        error = runs.std(ddof=1) / math.sqrt(runs.size) if runs.size > 1 else math.nan
        return cls(float(runs.mean()), float(error), runs.size - 1.0, tuple(runs.tolist()))

    def minus(self, other: Measured) -> Measured:
        """Difference of two independent numbers, freedom after Welch and Satterthwaite."""
        first, second = self.error**2, other.error**2
        total = first + second
        spread = first**2 / max(self.freedom, 1e-9) + second**2 / max(other.freedom, 1e-9)
        freedom = total**2 / spread if spread > 0 else min(self.freedom, other.freedom)
        return self._less(other, math.sqrt(total), freedom)

    def beside(self, other: Measured) -> Measured:
        """Difference of two numbers of the same starts: what sets the starts apart, which both
        share, drops out.  As `minus` where either is not known start by start."""
        if len(self.starts) != len(other.starts) or len(self.starts) < 2:
            return self.minus(other)
        each = np.subtract(self.starts, other.starts)
        spread = float(each.std(ddof=1)) / math.sqrt(each.size)
        error = math.hypot(spread, self.motion, other.motion)
        return self._less(other, error, each.size - 1.0)

    def _less(self, other: Measured, error: float, freedom: float) -> Measured:
        slack, among = self.slack + other.slack, max(self.among, other.among)
        return Measured(self.mean - other.mean, error, freedom, slack=slack, among=among)

    def hull(self, other: Measured) -> Measured:
        """What lies anywhere between the two: an interval that holds both."""
        wider = max(self, other, key=lambda one: math.inf if math.isnan(one.reach) else one.reach)
        mean, slack = 0.5 * (self.mean + other.mean), 0.5 * abs(self.mean - other.mean)
        return wider._replace(mean=mean, slack=wider.slack + slack, starts=())

    @property
    def reach(self) -> float:
        """Half the width of the 95 % interval; NaN where it is not known."""
        if not (math.isfinite(self.error) and self.freedom >= 1.0):
            return math.nan
        quantile = float(np.interp(1.0 / self.freedom, _INVERSE, _QUANTILE))
        wider = NormalDist().inv_cdf(1.0 - 0.025 / self.among) / NormalDist().inv_cdf(0.975)
        return self.error * quantile * wider + self.slack

    def above(self, bound: float) -> bool:
        """Whether the whole 95 % interval lies above `bound`; never where it is not known."""
        return self.mean - self.reach > bound

    def below(self, bound: float) -> bool:
        """Whether the whole 95 % interval lies below `bound`."""
        return self.mean + self.reach < bound


def larger_spread(
    first: npt.ArrayLike, second: float, freedom: float, *, seed: int = 0, trials: int = 100_000
) -> float:
    """How often values (R,) of a law as narrow as the second would spread as widely as the first:
    the one-sided p of an F test of variances, from `trials` draws of both.

    second: a standard deviation known with `freedom` degrees.  Near 0: the first law is wider; near
    1: narrower.  NaN for fewer than two values or freedom below 1.
    """
    runs = np.asarray(first, dtype=np.float64).ravel()
    if runs.size < 2 or not freedom >= 1.0 or not second > 0:
        return math.nan
    random = np.random.default_rng(seed)
    null = random.chisquare(runs.size - 1, trials) / (runs.size - 1)
    null /= random.chisquare(freedom, trials) / freedom
    return float((null >= runs.var(ddof=1) / second**2).mean())
