"""The numbers of a pseudo-Langevin run, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from thermosphere.ops.arguments import checked_real, checked_whole
from thermosphere.sampling.masses import T_RATIO_LIMIT

SCHEMES = ("leapfrog", "paper")
WHOLE = (
    *("batch", "modes", "average_axis", "noise_draws", "noise_draws_max"),
    *("adapt_every", "adapt_every_max"),
)
REAL = (
    *("dt", "m1", "t_ratio", "t_ratio_max", "t_ratio_cap", "displacement", "stiffness"),
    *("noise_tolerance", "unchanged_tolerance", "reset_probability"),
)


@dataclass(frozen=True)
class LangevinOptions:
    """The sampler's numbers. ``None`` where it is the default means: by a rule, given below.

    Scheme ``paper`` is Eq. 34-41 of arXiv 2603.29529; how masses follow the noise is that of
    appendix D and its reference [26], in masses.py.

    Parameters
    ----------
    scheme: "leapfrog" (one gradient a move) or "paper" (two).
    constrained: keep |w|² = Q; False samples exp(-U/T) of all weights.
    metric_correction: targets exp(-U/T) itself where masses differ, on the sphere (elsewhere none
        is needed, nor taken); default on for leapfrog.
    batch: examples drawn a mini-batch, with replacement, so that of S examples a batch of S holds
        63 %; None: the whole set, without gradient noise.
    dt: time step; masses are in its units, and default ones follow it.
    m1: friction, c1² = 1 - m1², in (0, 1): momenta last for about m1^-2 moves.

    With mini-batches:

    t_ratio: share of the noise that mini-batches make, in (0, 0.5]; the larger, the lighter the
        masses and the larger bias and step. Default: what moves a weight by ``displacement``, at
        most ``t_ratio_cap``.
    t_ratio_max: masses rise where the share comes above it; default 2 t_ratio (paper: t_ratio).
    t_ratio_cap, displacement: of the default t_ratio; the latter in units of sqrt(Q / N).
    variance_floor: least variance that masses are made of, a number or "median"; default that
        (paper: 1e-8).
    average_axis: variances are averaged over this axis of every tensor and those after it.
    noise_draws, noise_draws_max, noise_tolerance: mini-batches a round of the noise estimate, at
        most, and the relative error at which it stops.
    unchanged_tolerance: an estimate counts as unchanged where standard deviations differ from the
        last one's by no more, relatively, root mean square over the parameters.
    reset_probability: how often a look sets all masses anew.

    With the whole set:

    stiffness: ω dt of the stiffest mode, in (0, 2): unstable from 2, biased towards it.
    modes: how many stiffest directions have masses of their own (leapfrog). They turn: a chain that
        leaves the sphere's reach more than 10 moves after the last look stands still for a move and
        is looked at again, which ``LangevinState.missed`` counts; sooner, it is an error.

    Both:

    adapt_every: moves between looks at the masses; 0: none after the start. With mini-batches the
        first wait, and the next ones that many times as long as estimates in a row were unchanged.
        With the whole set the longest: waits begin with 10 moves and double where the curvature
        stays.
    adapt_every_max: the longest wait with mini-batches (never below adapt_every); of no effect with
        the whole set.

    Masses by hand are an argument of :meth:`Langevin.init`. Raises ValueError for a number out of
    range, or one that has no effect beside the others.
    """

    scheme: str = "leapfrog"
    constrained: bool = True
    metric_correction: bool | None = None
    batch: int | None = 64
    dt: float = 1.0
    m1: float = 0.1
    t_ratio: float | None = None
    t_ratio_max: float | None = None
    t_ratio_cap: float = 1e-2
    displacement: float = 0.005
    stiffness: float = 0.8
    modes: int = 0
    variance_floor: str | float | None = None
    average_axis: int | None = None
    noise_draws: int = 100
    noise_draws_max: int = 1000
    noise_tolerance: float = 0.1
    adapt_every: int = 1000
    adapt_every_max: int = 50_000
    unchanged_tolerance: float = 0.1
    reset_probability: float = 0.1

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(
                f"sampler: scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}"
            )
        for name in WHOLE:
            if getattr(self, name) is not None:
                whole = checked_whole(f"sampler: {name}", getattr(self, name))
                object.__setattr__(self, name, whole)  # NumPy's integers are taken too
        for name in REAL:
            if getattr(self, name) is not None:
                checked_real(f"sampler: {name}", getattr(self, name))
        for name in ("constrained", "metric_correction"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (name == "constrained" or value is not None):
                raise ValueError(f"sampler: {name} must be True or False, got {value!r}")
        if self.metric_correction and not self.constrained:
            raise ValueError(
                "sampler: metric_correction is of the sphere, got True and constrained = False, "
                "where none is needed"
            )
        for name in ("t_ratio", "t_ratio_max", "variance_floor", "average_axis"):
            if self.batch is None and getattr(self, name) is not None:
                raise ValueError(
                    f"sampler: {name} is of mini-batches, got {getattr(self, name)} and batch = "
                    "None (the whole set)"
                )
        for name in ("dt", "displacement", "t_ratio_cap", "noise_tolerance", "unchanged_tolerance"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"sampler: {name} must be finite and > 0, got {getattr(self, name)}"
                )
        if not 0 < self.m1 < 1:
            raise ValueError(f"sampler: m1 must be in (0, 1), got {self.m1}")
        for name in ("t_ratio", "t_ratio_max", "t_ratio_cap"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= T_RATIO_LIMIT:
                raise ValueError(f"sampler: {name} must be in (0, {T_RATIO_LIMIT}], got {value}")
        if (
            self.t_ratio is not None
            and self.t_ratio_max is not None
            and self.t_ratio_max < self.t_ratio
        ):
            raise ValueError(
                f"sampler: t_ratio_max must be >= t_ratio = {self.t_ratio}, got {self.t_ratio_max}"
            )
        floor = self.floor
        if floor != "median" and (isinstance(floor, str) or not 0 < floor < math.inf):
            raise ValueError(
                'sampler: variance_floor must be "median" or a finite positive number, '
                f"got {floor!r}"
            )
        if self.average_axis is not None and self.average_axis < 0:
            raise ValueError(f"sampler: average_axis must be >= 0, got {self.average_axis}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"sampler: batch must be >= 1, got {self.batch}")
        if not 0 < self.stiffness < 2:
            raise ValueError(f"sampler: stiffness must be in (0, 2), got {self.stiffness}")
        if self.modes < 0:
            raise ValueError(f"sampler: modes must be >= 0, got {self.modes}")
        if self.modes and (self.batch is not None or self.scheme != "leapfrog"):
            raise ValueError(
                "sampler: modes need batch None (the whole set) and scheme leapfrog, "
                f"got batch = {self.batch} and {self.scheme!r}"
            )
        if not 2 <= self.noise_draws <= self.noise_draws_max < 2**16:
            raise ValueError(
                "sampler: expected 2 <= noise_draws <= noise_draws_max < 65536, "
                f"got {self.noise_draws} and {self.noise_draws_max}"
            )
        if self.adapt_every_max < 1:
            raise ValueError(f"sampler: adapt_every_max must be >= 1, got {self.adapt_every_max}")
        if self.adapt_every < 0:
            raise ValueError(f"sampler: adapt_every must be >= 0, got {self.adapt_every}")
        if not 0 <= self.reset_probability <= 1:
            raise ValueError(
                f"sampler: reset_probability must be in [0, 1], got {self.reset_probability}"
            )

    @property
    def corrects_metric(self) -> bool:
        if self.metric_correction is None:
            return self.scheme == "leapfrog" and self.constrained
        return self.metric_correction

    @property
    def floor(self) -> str | float:
        if self.variance_floor is not None:
            return self.variance_floor
        return "median" if self.scheme == "leapfrog" else 1e-8
