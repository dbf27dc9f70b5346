"""Full-batch hybrid Monte Carlo of exp(-U(w)/T) on the sphere |w|² = Q: exact for any step size,
the check of everything that is faster.

One trajectory: momenta p ~ N(0, T M) made tangent, Σ p w/M = 0; L steps of constrained leapfrog
(rattle.py) of size h in

    H(w, p) = U(w) + (T/2) ln Σ w²/M + Σ p²/2M;

the end is accepted with probability min(1, exp(-ΔH/T)), else the chain stays where it was. L is
uniform on [⌈(1 - jitter) steps⌉, ⌊(1 + jitter) steps⌋], so that no mode returns to its start every
time.

Law targeted: exp(-U/T) times the surface measure of the sphere, whatever the masses. Without the
logarithm a sampler with unequal masses targets exp(-U/T) sqrt(Σ w²/M), the surface measure that the
masses induce (Lelièvre, Rousset, Stoltz, Math. Comp. 81, 2071 (2012)); with equal masses it is a
constant. A trajectory with a step that has no root, or whose step back does not return to where it
came from, is rejected: the map that is left is an involution that keeps volume, so detailed balance
holds exactly (the same, Numer. Math. 143, 379 (2019); Zappa, Holmes-Cerf, Goodman, Comm. Pure Appl.
Math. 71, 2609 (2018)).

Precision: positions, momenta, the root and ΔH are float64. U and its gradient are what the
potential gives for weights rounded to ``dtype``: a function of w alone, so nothing accumulates
along a trajectory, and the law sampled is exactly exp(-Ũ/T), Ũ the potential as computed. What
float32 rows cost is therefore what varies of (Ũ - U)/T from place to place, once: below 1e-3 for
the fused loss at T = 1e-4 (tests/test_hmc.py; benchmarks/bias_table.py prints it for a run).
``dtype=torch.float64`` takes the float64 path, several times slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from thermosphere.models.potential import Potential, device_of
from thermosphere.ops.arguments import checked_whole
from thermosphere.ops.philox import Stream, chain_normals, uniform
from thermosphere.sampling.hmc_state import HybridMonteCarloState
from thermosphere.sampling.rattle import (
    Point,
    Surface,
    effective_potential,
    kinetic_energy,
    rattle_step,
    tangent,
)
from thermosphere.sampling.start import (
    check_temperatures,
    checked_freedom,
    checked_identities,
    checked_masses,
    checked_potential,
    checked_seed,
    checked_temperature,
    checked_weights,
)
from thermosphere.sampling.uninterrupted import Uninterrupted

__all__ = ["HybridMonteCarlo", "HybridMonteCarloState"]

# Tuning: ln h moves by gain · (acceptance - target), gain = (1 + t/10)^-3/4 after t trajectories
# (Robbins, Monro, Ann. Math. Stat. 22, 400 (1951)); what is frozen is a mean of ln h with weights
# t^-3/4, which forgets the beginning. An acceptance of 1 doubles a step in four trajectories.
TUNING_DELAY = 10.0
TUNING_DECAY = 0.75

# The first step displaces a weight by this share of sqrt(Q/N).
FIRST_DISPLACEMENT = 0.005

# Rounding of a float32 U, in units of T, above which accept/reject would be decided by it.
ENERGY_ROUNDING_LIMIT = 0.05


class HybridMonteCarlo:
    """A hybrid Monte Carlo sampler of one potential at one temperature a chain.

    >>> sampler = HybridMonteCarlo(potential, temperature=[1e-4, 3e-4], seed=0)
    >>> state = sampler.init(weights)              # (N,) for all chains, or (C, N)
    >>> sampler.warm_up(state, trajectories=100)   # tunes the step size of each chain, in place
    >>> sampler.run(state, trajectories=1000)      # step size frozen
    >>> state.weights, sampler.acceptance(state)

    Parameters
    ----------
    potential: a :class:`thermosphere.models.potential.Potential`, always on its whole set.
    temperature: T of each chain, in units of U.
    seed: of momenta, decisions and lengths. A run is a function of (seed, chain ids, start).
    steps: mean number L of leapfrog steps of a trajectory, each one full-batch gradient.
    jitter: L varies by this share of it, in [0, 1); one L for all chains of a trajectory.
    target_acceptance: what the warm-up tunes the mean acceptance probability to.
    step_size: h to begin with; default a displacement of 0.005 sqrt(Q/N) a step.
    metric_correction: False leaves (T/2) ln Σ w²/M out of H, to see what it does.
    dtype: of the weights the potential is called with, float32 or float64.

    Raises ValueError for an argument out of range.
    """

    def __init__(
        self,
        potential: Potential,
        temperature: float | Sequence[float] | torch.Tensor,
        *,
        seed: int = 0,
        steps: int = 20,
        jitter: float = 0.5,
        target_acceptance: float = 0.8,
        step_size: float | None = None,
        metric_correction: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        checked_potential(potential)
        if device_of(potential).type != "cpu":
            raise ValueError(
                f"hmc: expected a potential on the CPU, got one on {device_of(potential)}"
            )
        self.temperature = checked_temperature(temperature)
        self.seed = checked_seed(seed)
        steps = checked_whole("hmc: steps", steps)
        if steps < 1:
            raise ValueError(f"hmc: steps must be >= 1, got {steps}")
        if not 0 <= jitter < 1:
            raise ValueError(f"hmc: jitter must be in [0, 1), got {jitter}")
        if not 0 < target_acceptance < 1:
            raise ValueError(f"hmc: target_acceptance must be in (0, 1), got {target_acceptance}")
        if step_size is not None and not 0 < step_size < math.inf:
            raise ValueError(f"hmc: step_size must be finite and > 0, got {step_size}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"hmc: dtype must be float32 or float64, got {dtype}")
        self.potential = potential
        self.steps = steps
        self.jitter = jitter
        self.target_acceptance = target_acceptance
        self.step_size = step_size
        self.metric_correction = metric_correction
        self.dtype = dtype

    def init(
        self,
        weights: torch.Tensor,
        *,
        masses: torch.Tensor | float = 1.0,
        norm2: float | None = None,
        chain_ids: Sequence[int] | None = None,
    ) -> HybridMonteCarloState:
        """The state before the first trajectory. Costs one gradient.

        weights: (N,), (1, N) or (C, N); kept as given, except that a ``norm2`` (Q) given rescales
        them to that squared norm.
        masses: a number, (N,) or (C, N). The law does not depend on them; only how fast it is
        reached does, and with one number for all not even that (h scales with its square root).
        chain_ids: identities of the chains, default 0 … C - 1: a chain's path depends on its own
        identity, not on its row or its neighbours.
        Trajectories count from 0: to go on from ``state.weights`` take a sampler with another seed,
        or the same momenta and decisions come again.

        Raises ValueError for wrong shapes, for a U that is not finite at the start, and where U
        comes in float32 too coarse for T.
        """
        chains, parameters = len(self.temperature), self.potential.parameters
        weights, squared = checked_weights(
            weights, chains, parameters, norm2=norm2, on_sphere=True, dtype=torch.float64
        )
        weights, squared = weights.to(device_of(self.potential)), squared.cpu()
        ids = checked_identities(chain_ids, chains)
        checked_freedom(parameters, constrained=True)
        masses = checked_masses(masses, chains, parameters, torch.float64).to(weights.device)
        losses, gradient = self.potential(weights.to(self.dtype), None)
        finite = losses.isfinite() & gradient.isfinite().all(1)
        if not bool(finite.all()):
            raise ValueError(
                "hmc: loss and gradient at the start must be finite, got a loss of "
                f"{float(losses[~finite][0])} in chain {int(ids[~finite][0])}"
            )
        if losses.dtype == torch.float32:
            rounding = float((losses.abs().double() * 2.0**-24 / self.temperature).max())
            if rounding > ENERGY_ROUNDING_LIMIT:
                raise ValueError(
                    f"hmc: U in float32 must be exact to {ENERGY_ROUNDING_LIMIT} T, "
                    f"got {rounding:.2g} T; pass dtype=torch.float64"
                )
        first = torch.full_like(self.temperature, self.step_size or 0.0)
        if self.step_size is None:
            lightness = (masses.reciprocal().mean(1) * self.temperature).sqrt()
            first = FIRST_DISPLACEMENT * (squared / parameters).sqrt() / lightness
        zero = torch.zeros_like(first)
        return HybridMonteCarloState(
            weights=weights,
            momenta=torch.zeros_like(weights),
            gradient=gradient.double(),
            losses=losses.double(),
            masses=masses,
            temperature=self.temperature.clone(),
            norm2=squared,
            chain_ids=ids,
            step_size=first,
            log_step=first.log(),
            log_step_mean=first.log(),
            acceptance=zero.clone(),
            accepted=torch.zeros_like(ids),
            broken=torch.zeros_like(ids),
        )

    def warm_up(
        self,
        state: HybridMonteCarloState,
        trajectories: int,
        on_trajectory: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Tune each chain's step size over this many trajectories, in place, and freeze it;
        returns their mean U, (C,) float64.

        Called again it goes on tuning: 60 and 40 trajectories end where 100 do. These trajectories
        do not sample the law; the counts of acceptance begin after them.
        """
        check_temperatures("warm_up", state.temperature, self.temperature)
        total = torch.zeros_like(state.losses)
        for done in range(1, _positive("warm_up", trajectories) + 1):
            with Uninterrupted():
                t = state.tuned
                state.step_size = state.log_step.exp()
                probability, _, _ = self._trajectory(state)
                gain = (1.0 + t / TUNING_DELAY) ** -TUNING_DECAY
                state.log_step += gain * (probability - self.target_acceptance)
                state.log_step_mean.lerp_(state.log_step, (t + 1.0) ** -TUNING_DECAY)
                state.tuned = t + 1
            total += state.losses
            if on_trajectory is not None:
                on_trajectory(done)
        state.step_size = state.log_step_mean.exp()
        for counter in (state.acceptance, state.accepted, state.broken):
            counter.zero_()
        state.counted = 0
        return total / trajectories

    def run(
        self,
        state: HybridMonteCarloState,
        trajectories: int,
        on_trajectory: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Advance every chain by ``trajectories``, in place; returns the mean U after them, (C,)
        float64. on_trajectory(done) is called after each."""
        check_temperatures("run", state.temperature, self.temperature)
        total = torch.zeros_like(state.losses)
        for done in range(1, _positive("run", trajectories) + 1):
            with Uninterrupted():
                probability, accepted, whole = self._trajectory(state)
                state.acceptance += probability
                state.accepted += accepted
                state.broken += ~whole
                state.counted += 1
            total += state.losses
            if on_trajectory is not None:
                on_trajectory(done)
        return total / trajectories

    def acceptance(self, state: HybridMonteCarloState) -> torch.Tensor:
        """Mean acceptance probability since the warm-up, (C,) float64; NaN before the first
        trajectory."""
        return state.acceptance / (state.counted or math.nan)

    def kinetic_temperature(self, state: HybridMonteCarloState) -> torch.Tensor:
        """2 Σ(p²/2M) / (N - 1) at the end of the last trajectory, (C,) float64; its mean at
        equilibrium is T."""
        freedom = state.weights.shape[1] - 1
        return 2.0 * kinetic_energy(state.momenta, self._surface(state)) / freedom

    def _surface(self, state: HybridMonteCarloState) -> Surface:
        return Surface(
            state.norm2,
            state.masses.reciprocal(),
            state.temperature * float(self.metric_correction),
        )

    def _trajectory(
        self, state: HybridMonteCarloState
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One trajectory of every chain, in place: acceptance probability (C,) float64, accepted
        (C,) bool, and whether every step had its root and way back (C,) bool."""
        surface = self._surface(state)
        start = Point(state.weights, state.losses, state.gradient)
        momenta = tangent(state.weights, self._thermal(state), surface)
        before = effective_potential(start, surface) + kinetic_energy(momenta, surface)

        point, p = start, momenta
        whole = torch.ones_like(state.losses, dtype=torch.bool)
        for _ in range(self._length(state.step)):
            step = rattle_step(self.potential, point, p, surface, state.step_size, self.dtype)
            point, p = step.point, step.momenta  # where a step failed: not moved
            whole &= step.good
        after = effective_potential(point, surface) + kinetic_energy(p, surface)

        exponent = ((before - after) / state.temperature).clamp(max=0.0)
        probability = torch.where(whole, exponent.exp(), 0.0)
        accepted = torch.tensor(
            [self._decision(state.step, chain) for chain in state.chain_ids.tolist()],
            dtype=torch.float64,
        ).lt(probability)
        row = accepted[:, None]
        state.weights = torch.where(row, point.weights, start.weights)
        state.gradient = torch.where(row, point.gradient, start.gradient)
        state.losses = torch.where(accepted, point.losses, start.losses)
        state.momenta = torch.where(row, p, momenta)
        state.step += 1
        return probability, accepted, whole

    # Random numbers.

    def _thermal(self, state: HybridMonteCarloState) -> torch.Tensor:
        """N(0, T M), (C, N) float64."""
        noise = chain_normals(
            seed=self.seed,
            stream=Stream.TRAJECTORY,
            chain_ids=state.chain_ids,
            step=state.step,
            count=state.weights.shape[1],
        )
        return noise.double() * (state.temperature[:, None] * state.masses).sqrt()

    def _decision(self, step: int, chain: int) -> float:
        return uniform(seed=self.seed, stream=Stream.ACCEPTANCE, chain=chain, step=step)

    def _length(self, step: int) -> int:
        """L of this trajectory. One for all chains, so that none waits for another."""
        shortest = math.ceil((1.0 - self.jitter) * self.steps)
        longest = math.floor((1.0 + self.jitter) * self.steps)
        drawn = uniform(seed=self.seed, stream=Stream.LENGTH, chain=0, step=step)
        return shortest + int(drawn * (longest - shortest + 1))


def _positive(method: str, trajectories: int) -> int:
    trajectories = checked_whole(f"{method}: trajectories", trajectories)
    if trajectories < 1:
        raise ValueError(f"{method}: trajectories must be >= 1, got {trajectories}")
    return trajectories
