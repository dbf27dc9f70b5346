"""Masses where every gradient is that of the whole set: there is no noise to balance, so they are
shaped by the curvature of U, and the time step is as long as its stiffest direction lets it be
(stiffness.py).

M = D ω̂² dt² / s². D makes the rows of D^-1/2 (∂²U/∂w²) D^-1/2 equally long, no lighter than
``LIGHTEST`` of the median; ω̂² is the largest curvature in units of D; s = ``stiffness``, ω dt of
the stiffest mode. Heavier where the modes together would be sampled hotter than ``STEP_BIAS``, or a
move turn w by more than ``LARGEST_TURN``.

The chains live elsewhere than the ES weights they start from: shaped there, masses of tf1-small at
T* let a parameter move less than half as far as those shaped where the chain has settled. So it is
taken again at every look.
"""

from __future__ import annotations

import torch

from thermosphere.models.potential import Gradient
from thermosphere.ops.minibatch import Minibatch
from thermosphere.sampling.adaptation import Adaptation
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.stiffness import PROBES, Curvature

# The first look comes after this many moves, and so does the next after one that found ω dt off by
# more than TOLERANCE; each that did not doubles the distance, up to ``adapt_every``. From ES
# weights ω of tf1 rises by half in the first 50 moves, where ω dt = 0.8 leaves it a factor of 2.5.
FIRST_LOOK = 50
TOLERANCE = 0.2

# Rounds of balancing at the start, from equal masses; each later look makes one more.
ROUNDS = 2

# Of the median mass. The masses of parameters that no gradient reaches are this light.
LIGHTEST = 0.1

# A mode of frequency ω is sampled at T (1 + ω² dt²/4): the mean over the modes may be this share
# of T. Of transformers few modes are stiff, and ω dt = 0.8 stays below it.
STEP_BIAS = 0.0025

# A move may turn w by this angle, sqrt(T Σ 1/M / Q) dt: hot and soft, the sphere itself is what
# bends.
LARGEST_TURN = 0.1

# Lanczos iterations of the check whether ω dt is still what it was; the new masses take more.
CHECK = 5


class FullBatchAdaptation(Adaptation):
    """Changes masses and momenta; never weights or Q."""

    def start(self, state: LangevinState, masses: torch.Tensor | None) -> None:
        """Set the masses (unless given), draw thermal momenta. ValueError where no direction curves
        upwards."""
        chains = torch.arange(len(state.weights))
        if masses is not None:
            state.masses = masses
            state.next_adaptation.fill_(-1)
            self._redraw_all(state, chains, self._sampled(chains)(state.weights, None)[1])
            return
        if self.options.adapt_every:
            state.next_adaptation.fill_(min(FIRST_LOOK, self.options.adapt_every))
        for rows in self._same_start(state):
            self._shape_start(state, rows)

    def adapt(self, state: LangevinState, rows: torch.Tensor) -> None:
        """Shape the masses of these rows where they are now; all their momenta are drawn again."""
        o = self.options
        curvature = self._curvature(state, rows, state.chain_ids[rows])
        before = state.masses[rows].double()
        shape, mean, mean_before = balanced(curvature, before)
        stiffest_before = curvature.largest(before, CHECK)
        factor = self._factor(state, rows, before, stiffest_before, mean_before)
        off = (factor.sqrt() - 1).abs() > TOLERANCE
        state.streak[rows] = torch.where(off, 1, state.streak[rows] + 1)
        doubled = FIRST_LOOK * 2.0 ** (state.streak[rows] - 1).double().clamp(max=40)
        state.next_adaptation[rows] = state.step + doubled.clamp(max=o.adapt_every).long()
        factor = self._factor(state, rows, shape, curvature.largest(shape), mean)
        state.masses[rows] = _scaled(shape, factor)
        self._redraw_all(state, rows, curvature.gradient)

    def _shape_start(self, state: LangevinState, rows: torch.Tensor) -> None:
        """Masses of chains that start at the same weights; they differ in temperature alone."""
        curvature = self._curvature(state, rows[:1], torch.zeros(1, dtype=torch.int64))
        shape, mean = shape_from_nothing(curvature)
        stiffest = curvature.largest(shape)
        if not float(stiffest) > 0:
            raise ValueError(
                "masses: U must curve upwards in some direction at the start, got a largest "
                f"curvature of {float(stiffest):.3g}; give `masses` explicitly"
            )
        shape = shape.expand(len(rows), -1)
        state.masses[rows] = _scaled(shape, self._factor(state, rows, shape, stiffest, mean))
        self._redraw_all(state, rows, curvature.gradient.expand(len(rows), -1))

    def _curvature(
        self, state: LangevinState, rows: torch.Tensor, directions: torch.Tensor
    ) -> Curvature:
        """Of U at these rows' weights; directions (R,) int64 are what tells random ones apart."""
        return Curvature(
            self._sampled(rows),
            state.weights[rows].contiguous(),
            seed=self.seed,
            step=state.step,
            chain_ids=directions,
        )

    def _sampled(self, rows: torch.Tensor) -> Gradient:
        """U of these rows with its harmonic terms."""
        harmonic = getattr(self.potential, "harmonic_gradient", None)

        def potential(
            weights: torch.Tensor, batch: Minibatch | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            losses, gradient = self.noisy(weights, batch)
            return losses, gradient if harmonic is None else gradient + harmonic(weights, rows)

        return potential

    def _factor(
        self,
        state: LangevinState,
        rows: torch.Tensor,
        shape: torch.Tensor,
        stiffest: torch.Tensor,
        mean: torch.Tensor,
    ) -> torch.Tensor:
        """By what the shape is to be multiplied to be masses, (R,) float64 on the CPU."""
        o = self.options
        lightness = shape.reciprocal().sum(1).cpu()
        turn2 = o.dt**2 * state.temperature[rows] * lightness / state.norm2[rows]
        wanted = torch.maximum(stiffest / o.stiffness**2, mean / (4 * STEP_BIAS)).cpu()
        return torch.maximum(wanted * o.dt**2, turn2 / LARGEST_TURN**2)

    def _redraw_all(self, state: LangevinState, rows: torch.Tensor, slope: torch.Tensor) -> None:
        every = torch.ones(len(rows), state.weights.shape[1], dtype=torch.bool)
        self._redraw_momenta(state, rows, every.to(state.weights.device), slope)


def shape_from_nothing(curvature: Curvature) -> tuple[torch.Tensor, torch.Tensor]:
    """The shape of masses (C, N) float64 that the curvature asks for, by some rounds from equal
    ones, and the mean curvatures (C,) in units of it."""
    shape = torch.ones_like(curvature.weights, dtype=torch.float64)
    for round_ in range(ROUNDS):
        shape, mean, _ = balanced(curvature, shape, round_)
    return shape, mean


def balanced(
    curvature: Curvature, shape: torch.Tensor, round_: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A better shape (C, N) float64, and the mean curvatures (C,) in units of it and of the one
    that was."""
    length, diagonal = curvature.rows(shape, first=round_ * PROBES)
    better = shape * length
    typical = torch.stack([row[row > 0].median() if row.any() else row[0] for row in better])
    better = torch.maximum(better, LIGHTEST * typical[:, None])
    return better, (diagonal * (shape / better)).mean(1), diagonal.mean(1)


def _scaled(shape: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Masses, float32, from a shape (R, N) and its factor (R,)."""
    return (shape * factor.to(shape.device)[:, None]).float()
