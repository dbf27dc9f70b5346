"""Masses where every gradient is that of the whole set: there is no noise to balance, and the time
step is as long as the stiffest direction lets it be (stiffness.py).

M = D ω̂² dt² / s², D the variance of mini-batch gradients over its median (floored), ω̂² the
largest curvature in units of D, s = ``stiffness``: ω dt of the stiffest mode; heavier where a move
would turn w by more than ``LARGEST_TURN``.
"""

from __future__ import annotations

import torch

from thermosphere.sampling.adaptation import Adaptation
from thermosphere.sampling.masses import floored_variance, median_variance
from thermosphere.sampling.noise import estimate_noise
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.stiffness import largest_curvature

# The first look at the curvature comes after this many moves, the next ones at twice the last until
# ``adapt_every``: a start far from equilibrium softens or stiffens sixfold in its first hundreds.
FIRST_LOOK = 50

# A move may turn w by this angle, sqrt(T Σ 1/M / Q) dt: hot and soft, the sphere itself is what
# bends.
LARGEST_TURN = 0.1


class FullBatchAdaptation(Adaptation):
    """Changes masses and, with them, momenta; never weights, Q or the shape of the masses."""

    def start(self, state: LangevinState, masses: torch.Tensor | None) -> None:
        """Set the masses (unless given), draw thermal momenta."""
        _, mean_gradient = self.potential(state.weights, None)
        mean_gradient = mean_gradient.clone()
        if masses is not None:
            state.masses = masses
            state.next_adaptation.fill_(-1)
        else:
            if self.options.adapt_every:
                state.next_adaptation.fill_(min(FIRST_LOOK, self.options.adapt_every))
            for rows in self._same_start(state):
                state.masses[rows] = self._measured(state, rows[:1])
            turn = self._turn(state, torch.arange(len(state.weights)))
            state.masses *= (turn / LARGEST_TURN).square().clamp(min=1.0).float()[:, None]
        everything = torch.ones_like(state.weights, dtype=torch.bool)
        chains = torch.arange(len(state.weights))
        self._redraw_momenta(state, chains, everything, mean_gradient)

    def adapt(self, state: LangevinState, rows: torch.Tensor) -> None:
        """Look at the curvature of these rows again; where ω dt is off by more than the tolerance,
        scale all masses by one factor and the momenta by its root, which leaves them thermal."""
        o = self.options
        wanted = (o.stiffness / o.dt) ** 2
        curvature = largest_curvature(
            self.potential,
            state.weights[rows].contiguous(),
            state.masses[rows],
            seed=self.seed,
            step=state.step,
            chain_ids=state.chain_ids[rows],
        )
        factor = torch.maximum(
            curvature / wanted, (self._turn(state, rows) / LARGEST_TURN).square()
        )
        off = ((factor.clamp(min=0).sqrt() - 1).abs() > o.unchanged_tolerance) & (factor > 0)
        factor = torch.where(off, factor, 1.0)
        state.streak[rows] = torch.where(off, 1, state.streak[rows] + 1)
        interval = (state.streak[rows] * o.adapt_every).clamp(max=max(o.adapt_every_max, 1))
        interval = interval.clamp(max=max(state.step, FIRST_LOOK))
        state.next_adaptation[rows] = state.step + interval
        if not bool(off.any()):
            return
        _, gradient = self.potential(state.weights[rows].contiguous(), None)
        # The leapfrog momentum Π is half a kick behind the position: Π = p + (dt/2) g.
        kick = 0.5 * o.dt * gradient.double() * (o.scheme == "leapfrog")
        momenta = (state.momenta[rows].double() - kick) * factor.sqrt()[:, None] + kick
        state.momenta[rows] = torch.where(off[:, None], momenta.float(), state.momenta[rows])
        state.masses[rows] = (state.masses[rows].double() * factor[:, None]).float()

    def _turn(self, state: LangevinState, rows: torch.Tensor) -> torch.Tensor:
        """The angle of a thermal move, (R,) float64."""
        lightness = state.masses[rows].double().reciprocal().sum(1)
        return self.options.dt * (state.temperature[rows] * lightness / state.norm2[rows]).sqrt()

    def _measured(self, state: LangevinState, row: torch.Tensor) -> torch.Tensor:
        """Masses (1, N) float32 for one row. ValueError where no direction curves upwards."""
        o = self.options
        weights, same = state.weights[row].contiguous(), torch.zeros(1, dtype=torch.int64)
        variance = estimate_noise(
            self.potential,
            weights,
            seed=self.seed,
            step=0,
            chain_ids=same,
            batch=min(o.noise_batch, self.potential.examples),
            draws=o.noise_draws,
            draws_max=o.noise_draws_max,
            tolerance=o.noise_tolerance,
        ).variance
        floored = floored_variance(
            variance,
            o.floor,
            layout=getattr(self.potential, "layout", None),
            average_axis=o.average_axis,
        )
        shape = floored / median_variance(variance)[:, None]
        curvature = largest_curvature(
            self.potential, weights, shape, seed=self.seed, step=0, chain_ids=same
        )
        if not float(curvature) > 0:
            raise ValueError(
                "masses: U must curve upwards in some direction at the start, got a largest "
                f"curvature of {float(curvature):.3g}; give `masses` explicitly"
            )
        return (shape * (float(curvature) * (o.dt / o.stiffness) ** 2)).float()
