"""Masses where every gradient is that of the whole set: there is no noise to balance, and the time
step is as long as the stiffest direction lets it be (stiffness.py).

M = D ω̂² dt² / s², D the variance of mini-batch gradients over its median (floored), ω̂² the
largest curvature in units of D, s = ``stiffness``: ω dt of the stiffest mode; heavier where a move
would turn w by more than ``LARGEST_TURN``.
"""

from __future__ import annotations

import torch

from thermosphere.ops.minibatch import Minibatch
from thermosphere.sampling.adaptation import Adaptation
from thermosphere.sampling.masses import floored_variance, median_variance
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.stiffness import largest_curvature

# The first look at the curvature comes after this many moves, and so does the next after one that
# found ω dt off by more than TOLERANCE; each that did not doubles the distance, up to
# ``adapt_every``. From ES weights, which are flat, the curvature of tf1 rises eightfold in 160
# moves, and a step that was stable heats the chain.
FIRST_LOOK = 25
TOLERANCE = 0.2

# A move may turn w by this angle, sqrt(T Σ 1/M / Q) dt: hot and soft, the sphere itself is what
# bends.
LARGEST_TURN = 0.1


class FullBatchAdaptation(Adaptation):
    """Changes masses and, with them, momenta; never weights, Q or the shape of the masses."""

    def _noise_batch(self) -> int:
        return min(self.options.noise_batch, self.potential.examples)

    def start(self, state: LangevinState, masses: torch.Tensor | None) -> None:
        """Set the masses (unless given), draw thermal momenta."""
        chains = torch.arange(len(state.weights))
        if masses is not None:
            state.masses = masses
            state.next_adaptation.fill_(-1)
        else:
            if self.options.adapt_every:
                state.next_adaptation.fill_(min(FIRST_LOOK, self.options.adapt_every))
            for rows in self._same_start(state):
                state.masses[rows] = self._measured(state, rows[:1])
            turn = self._turn(state, chains).to(state.masses.device)
            state.masses *= (turn / LARGEST_TURN).square().clamp(min=1.0).float()[:, None]
        everything = torch.ones_like(state.weights, dtype=torch.bool)
        self._redraw_momenta(state, chains, everything, self._slope(state, chains))

    def adapt(self, state: LangevinState, rows: torch.Tensor) -> None:
        """Look at the curvature of these rows again; where ω dt is off by more than the tolerance,
        scale all masses by one factor and the momenta by its root, which leaves them thermal."""
        o = self.options
        wanted = (o.stiffness / o.dt) ** 2
        curvature = self._curvature(state, rows, state.masses[rows], state.step)
        factor = torch.maximum(
            curvature / wanted, (self._turn(state, rows) / LARGEST_TURN).square()
        )
        off = ((factor.clamp(min=0).sqrt() - 1).abs() > TOLERANCE) & (factor > 0)
        state.streak[rows] = torch.where(off, 1, state.streak[rows] + 1)
        doubled = FIRST_LOOK * 2.0 ** (state.streak[rows] - 1).double().clamp(max=40)
        state.next_adaptation[rows] = state.step + doubled.clamp(max=o.adapt_every).long()
        rows, factor = rows[off], factor[off].to(state.masses.device)[:, None]
        if not len(rows):
            return
        # The leapfrog momentum Π is half a kick behind the position: Π = p + (dt/2) g.
        kick = 0.5 * o.dt * self._slope(state, rows).double() * (o.scheme == "leapfrog")
        momenta = (state.momenta[rows].double() - kick) * factor.sqrt() + kick
        state.momenta[rows] = momenta.float()
        state.masses[rows] = (state.masses[rows].double() * factor).float()

    def _slope(self, state: LangevinState, rows: torch.Tensor) -> torch.Tensor:
        """dU/dw of the whole set, (R, N)."""
        _, gradient = self.noisy(state.weights[rows].contiguous(), None)
        return gradient + self._harmonic(state, rows)

    def _curvature(
        self, state: LangevinState, rows: torch.Tensor, masses: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Of U with its harmonic terms, (R,) float64 on the CPU."""
        harmonic = getattr(self.potential, "harmonic_gradient", None)

        def potential(
            weights: torch.Tensor, batch: Minibatch | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            losses, gradient = self.noisy(weights, batch)
            return losses, gradient if harmonic is None else gradient + harmonic(weights, rows)

        # One start for all: equal weights have equal curvatures.
        same = torch.zeros_like(rows) if step == 0 else state.chain_ids[rows]
        weights = state.weights[rows].contiguous()
        return largest_curvature(
            potential, weights, masses, seed=self.seed, step=step, chain_ids=same
        ).cpu()

    def _turn(self, state: LangevinState, rows: torch.Tensor) -> torch.Tensor:
        """The angle of a thermal move, (R,) float64 on the CPU."""
        lightness = state.masses[rows].double().reciprocal().sum(1).cpu()
        return self.options.dt * (state.temperature[rows] * lightness / state.norm2[rows]).sqrt()

    def _measured(self, state: LangevinState, row: torch.Tensor) -> torch.Tensor:
        """Masses (1, N) float32 for one row. ValueError where no direction curves upwards."""
        o = self.options
        variance, _ = self._estimate(
            state.weights[row].contiguous(), 0, torch.zeros(1, dtype=torch.int64)
        )
        floored = floored_variance(
            variance,
            o.floor,
            layout=getattr(self.potential, "layout", None),
            average_axis=o.average_axis,
        )
        shape = floored / median_variance(variance).to(floored.device)[:, None]
        curvature = float(self._curvature(state, row, shape, 0))
        if not curvature > 0:
            raise ValueError(
                "masses: U must curve upwards in some direction at the start, got a largest "
                f"curvature of {curvature:.3g}; give `masses` explicitly"
            )
        return (shape * (curvature * (o.dt / o.stiffness) ** 2)).float()
