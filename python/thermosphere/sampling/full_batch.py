"""Masses where every gradient is that of the whole set: there is no noise to balance, so they are
shaped by the curvature of U, and the time step is as long as its stiffest direction lets it be
(stiffness.py).

M = D ω̂² dt² / s². D makes the rows of D^-1/2 (∂²U/∂w²) D^-1/2 equally long, no lighter than
``LIGHTEST`` of the median; ω̂² is the largest curvature in units of D; s = ``stiffness``, ω dt of
the stiffest mode. The ``modes`` stiffest directions are heavier, as much as they are stiffer than
the next one (ops/stiff_modes.py): ω̂² is then that of the others. Heavier where the modes together
would be sampled hotter than ``STEP_BIAS``, or a move turn w by more than ``LARGEST_TURN``.

The chains live elsewhere than the ES weights they start from: shaped there, masses of tf1-small at
T* let a parameter move less than half as far as those shaped where the chain has settled. So it is
taken again at every look.
"""

from __future__ import annotations

import math

import torch

from thermosphere.models.potential import Potential
from thermosphere.ops.philox import Stream, chain_normals
from thermosphere.ops.stiff_modes import StiffModes
from thermosphere.sampling.adaptation import Adaptation
from thermosphere.sampling.held_modes import SHARE, SHARE_LEFT, HeldModes, with_harmonic
from thermosphere.sampling.noise import NoiseEstimate
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.stiffness import PROBES, Curvature, row_norms, row_sums
from thermosphere.sampling.unreachable import check_gradient

# The first look comes after this many moves: from ES weights ω of tf1 rises by half within fifty,
# with stiff modes made heavier sooner, and ω dt = 0.8 leaves it a factor of 2.5.
FIRST_LOOK = 10

# A look that finds ω dt within a factor of NEAR of what it was makes the way to the next one twice
# as long, up to ``adapt_every``; off by more than FAR, half as long. Stiff modes turn as the chain
# moves, and what turns out of them is as stiff as it was.
NEAR = 1.2
FAR = 1.45

# Where that comes too late, ω dt is beyond 2 and the kinetic energy grows without bound. A chain
# whose kinetic temperature is this many T, and so many standard deviations of it, is looked at
# before the next move and has its momenta drawn again, FIRST_LOOK moves after the last look or
# later.
HOT = 1.3
HOT_DEVIATIONS = 8

# Rounds of balancing at the start, from equal masses; each later look makes one more.
ROUNDS = 2

# Of the median mass. The masses of parameters that no gradient reaches are this light.
LIGHTEST = 0.1

# A mode of frequency ω is sampled at T (1 + ω² dt²/4): the mean over the modes may be this share
# of T. Of transformers few modes are stiff, and ω dt = 0.8 stays below it. Without what stiff modes
# take away from that mean: they turn until the next look.
STEP_BIAS = 0.0025

# A move may turn w by this angle, sqrt(T Σ 1/M / Q) dt: hot and soft, the sphere itself is what
# bends, and stiff modes turn faster than looks can follow.
LARGEST_TURN = 0.03

# Lanczos iterations of the check whether ω dt is still what it was; the new masses take more.
CHECK = 4


class FullBatchAdaptation(Adaptation):
    """Changes masses and momenta; never weights or Q."""

    def __init__(
        self, potential: Potential, options: LangevinOptions, seed: int, modes: HeldModes
    ) -> None:
        super().__init__(potential, options, seed)
        self.modes = modes

    def start(self, state: LangevinState, masses: torch.Tensor | None) -> None:
        """Set the masses (unless given), draw thermal momenta. ValueError where no direction curves
        upwards."""
        chains = torch.arange(len(state.weights))
        if masses is not None:
            state.masses = masses
            state.next_adaptation.fill_(-1)
            slope = with_harmonic(self.potential, chains)(state.weights, None)[1]
            self._carry(state, chains, self._thermal(state, chains), slope, None)
            return
        if self.options.modes:
            state.looked_at = state.weights.clone()
            state.shape = torch.ones_like(state.weights)
        if self.options.adapt_every:
            state.next_adaptation.fill_(min(FIRST_LOOK, self.options.adapt_every))
        starts = []
        for rows in self._same_start(state):
            one = self._curvature(state, rows[:1], rows[:1] * 0)
            starts.append((rows, one, *shape_from_nothing(one)))
            if self.options.modes:
                state.shape[rows] = starts[-1][2].float()
        for rows, one, shape, mean in starts:
            # Chains of one start differ in temperature, tether and modes: the first two leave the
            # curvature as it is.
            alike = not self.options.modes
            curvature = one if alike else self._curvature(state, rows, state.chain_ids[rows])
            modes = self._set(state, rows, curvature, shape, mean)
            slope = curvature.gradient.expand(len(rows), -1)
            if alike:
                slope = slope + (self._harmonic(state, rows) - self._harmonic(state, rows[:1]))
            self._carry(state, rows, self._thermal(state, rows), slope, modes)

    def adapt(
        self, state: LangevinState, rows: torch.Tensor, look: NoiseEstimate | None = None
    ) -> None:
        """Shape the masses of these rows where they are now; momenta go along."""
        curvature = self._curvature(state, rows, state.chain_ids[rows])
        before = state.masses[rows].double()
        shape, mean, mean_before = balanced(self._cheap(state, rows, curvature, SHARE), before)
        left = self._cheap(state, rows, curvature, SHARE_LEFT)
        modes = self._modes(state, rows)
        stiffest_before = left.largest(before, CHECK, modes)
        momenta = self._unscaled(state, rows, curvature.gradient, modes)
        factor = self._factor(state, rows, before, stiffest_before, mean_before).sqrt()
        off = torch.maximum(factor, 1 / factor)
        streak = state.streak[rows]
        streak = torch.where(off > FAR, streak - 1, torch.where(off > NEAR, streak, streak + 1))
        longest = self.options.adapt_every
        most = 1 + max(0, math.ceil(math.log2(longest / FIRST_LOOK)))
        state.streak[rows] = streak = streak.clamp(min=1, max=most)
        doubled = FIRST_LOOK * 2.0 ** (streak - 1).double()
        state.next_adaptation[rows] = state.step + doubled.clamp(max=longest).long()
        modes = self._set(state, rows, left, shape, mean)
        self._carry(state, rows, momenta, curvature.gradient, modes)

    def _set(
        self,
        state: LangevinState,
        rows: torch.Tensor,
        curvature: Curvature,  # of these rows, where they are
        shape: torch.Tensor,  # (R, N) float64, or (1, N) for all
        mean: torch.Tensor,  # (R,) or (1,) float64, of the curvatures in units of the shape
    ) -> StiffModes | None:
        """Masses of this shape, and modes where the options ask for them."""
        if self.options.modes:
            state.looked_at[rows] = state.weights[rows]
            state.shape[rows] = shape.float()
            state.look_step[rows] = state.step
            shape = state.shape[rows].double()
        modes = self._modes(state, rows)
        stiffest = curvature.largest(shape, modes=modes)
        # Later, where U curves nowhere upwards, it is the turn that bounds the step.
        if state.step == 0 and not bool((stiffest > 0).all()):
            raise ValueError(
                "masses: U must curve upwards in some direction at the start, got a largest "
                f"curvature of {float(stiffest.min()):.3g}; give `masses` explicitly"
            )
        factor = self._factor(state, rows, shape, stiffest, mean)
        state.masses[rows] = (shape * factor.to(shape.device)[:, None]).float()
        return modes

    def _thermal(self, state: LangevinState, rows: torch.Tensor) -> torch.Tensor:
        """Momenta N(0, T), (R, N) float64, of unit masses and no sphere."""
        drawn = chain_normals(
            seed=self.seed,
            stream=Stream.REDRAW,
            chain_ids=state.chain_ids[rows],
            step=state.step,
            count=state.weights.shape[1],
            device=state.weights.device,
        )
        return drawn.double() * state.temperature[rows].sqrt()[:, None].to(drawn.device)

    def _unscaled(
        self,
        state: LangevinState,
        rows: torch.Tensor,
        slope: torch.Tensor,  # (R, N), dU/dw
        modes: StiffModes | None,
    ) -> torch.Tensor:
        """Momenta as if all masses were 1 and there were no sphere, (R, N) float64: N(0, T) each,
        whatever the masses were; drawn again where they are far too hot."""
        root = state.masses[rows].double().rsqrt()
        free = root * state.momenta[rows].double()
        if self.options.scheme == "leapfrog":
            free -= self._kick(root, slope, modes)
        if self.options.constrained:  # they are tangent: what they lack is drawn
            normal = self._normal(state, rows, root, modes)
            drawn = chain_normals(
                seed=self.seed,
                stream=Stream.REDRAW,
                chain_ids=state.chain_ids[rows],
                step=state.step,
                count=1,
                device=free.device,
            )
            lacking = drawn.double() * state.temperature[rows].sqrt()[:, None].to(drawn.device)
            free += normal * lacking
        heat = (row_sums(free.square()) / free.shape[1]).cpu()
        hot = heat > _hot(free.shape[1]) * state.temperature[rows]
        if bool(hot.any()):
            free[hot.to(free.device)] = self._thermal(state, rows[hot])
        return free

    def _carry(
        self,
        state: LangevinState,
        rows: torch.Tensor,
        free: torch.Tensor,  # (R, N) float64, of _unscaled
        slope: torch.Tensor,
        modes: StiffModes | None,
    ) -> None:
        """Thermal momenta for the masses that are now, along what they were."""
        root = state.masses[rows].double().rsqrt()
        if self.options.constrained:
            normal = self._normal(state, rows, root, modes)
            free = free - normal * row_sums(normal * free)[:, None]
        if self.options.scheme == "leapfrog":
            free = free + self._kick(root, slope, modes)
        state.momenta[rows] = (free / root).float()

    def _kick(
        self, root: torch.Tensor, slope: torch.Tensor, modes: StiffModes | None
    ) -> torch.Tensor:
        """By how much the leapfrog momentum is ahead, (R, N): it is half a kick behind the
        position."""
        kick = 0.5 * self.options.dt * root * slope.double()
        return kick if modes is None else modes.shrunk(kick)

    def _normal(
        self,
        state: LangevinState,
        rows: torch.Tensor,
        root: torch.Tensor,
        modes: StiffModes | None,
    ) -> torch.Tensor:
        """Of length 1, what tangent momenta of unit masses are orthogonal to, (R, N) float64."""
        normal = root * state.weights[rows].double()
        if modes is not None:
            normal = modes.shrunk(normal)
        return normal / row_norms(normal)[:, None]

    def _cheap(
        self, state: LangevinState, rows: torch.Tensor, curvature: Curvature, share: float
    ) -> Curvature:
        """What masses are taken from at a look: where modes turn and looks are frequent, some of
        the examples."""
        if not self.options.modes:
            return curvature
        return Curvature(
            self.modes.of_some(rows, state.step, state.chain_ids[rows], share),
            state.weights[rows].contiguous(),
            seed=self.seed,
            step=state.step,
            chain_ids=state.chain_ids[rows],
        )

    def _modes(self, state: LangevinState, rows: torch.Tensor) -> StiffModes | None:
        held = self.modes(state)
        return None if held is None else held.rows(rows)

    def _curvature(
        self, state: LangevinState, rows: torch.Tensor, directions: torch.Tensor
    ) -> Curvature:
        """Of U at these rows' weights; directions (R,) int64 are what tells random ones apart.
        Raises where the gradient there is not finite."""
        curvature = Curvature(
            with_harmonic(self.potential, rows),
            state.weights[rows].contiguous(),
            seed=self.seed,
            step=state.step,
            chain_ids=directions,
        )
        check_gradient(state, self.options, rows, curvature.gradient)
        return curvature

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
        lightness = row_sums(shape.reciprocal()).cpu()
        # Off the sphere that of the start: masses must not follow |w|, or the law would.
        turn2 = o.dt**2 * state.temperature[rows] * lightness / state.norm2[rows]
        wanted = torch.maximum(stiffest / o.stiffness**2, mean / (4 * STEP_BIAS)).cpu()
        return torch.maximum(wanted * o.dt**2, turn2 / LARGEST_TURN**2)


def look_soon(
    state: LangevinState, energy: torch.Tensor, reachable: torch.Tensor, finite: torch.Tensor
) -> torch.Tensor:
    """Have chains looked at before the next move that are far too hot, by their kinetic energy
    (C,), or left the sphere's reach, which the state counts; which of them can be, (C,) bool, all
    on the CPU. Not those whose gradient is not ``finite``: there is nothing to look at."""
    freedom = state.weights.shape[1]
    hot = ~(2 * energy <= _hot(freedom) * freedom * state.temperature) | ~reachable
    can = finite & (state.next_adaptation >= 0) & (state.step - state.look_step >= FIRST_LOOK)
    soon = hot & can
    state.next_adaptation[soon] = state.step + 1
    state.missed += soon & ~reachable
    return soon


def _hot(parameters: int) -> float:
    """From where a kinetic temperature is far too high, in units of T."""
    return HOT + HOT_DEVIATIONS * math.sqrt(2.0 / parameters)


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
    parameters = shape.shape[1]
    before, after = row_sums(diagonal), row_sums(diagonal * (shape / better))
    return better, after / parameters, before / parameters
