"""The moves of the sampler: one by one for any potential, in bursts inside the extension where the
potential is a fused one. Same formulas, same random numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from thermosphere.models.potential import Potential
from thermosphere.ops.langevin_burst import (
    BurstWorkspace,
    FusedPotential,
    HalfMoves,
    langevin_burst,
)
from thermosphere.ops.langevin_step import (
    UNCONSTRAINED,
    StepWorkspace,
    langevin_momenta,
    langevin_step,
    metric_sums,
    step_coefficients,
)
from thermosphere.ops.minibatch import draw_minibatch
from thermosphere.ops.philox import Stream
from thermosphere.sampling.masses import friction_factor, white_noise_scales
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.state import LangevinState


class UnreachableSphereError(RuntimeError):
    """A proposal left the sphere's reach, or is not finite. The chain keeps its last good weights
    and momenta."""


@dataclass(frozen=True)
class Derived:
    """What moves need that follows from the state and changes only when the masses do, but for the
    metric, which moves keep up."""

    inverse_masses: torch.Tensor  # (C, N) float32
    step_scales: torch.Tensor  # (C, N) float32
    momenta_scales: torch.Tensor  # (C, N) float32
    step_coefficients: torch.Tensor  # (C, 5) float64
    momenta_coefficients: torch.Tensor  # (C, 5) float64
    metric: torch.Tensor  # (C,) float64
    workspace: StepWorkspace


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


class Moves:
    """Advances states of one potential under one set of options.

    `fused` is the potential as the extension runs it, None where it cannot; then a burst is one
    move.
    """

    def __init__(
        self, potential: Potential, options: LangevinOptions, seed: int, threads: int | None
    ) -> None:
        self.potential = potential
        self.options = options
        self.seed = seed
        self.threads = threads
        self.fused: FusedPotential | None = getattr(potential, "fused", None)
        self._burst: BurstWorkspace | None = None
        self._derived: Derived | None = None
        self._derived_from: tuple[torch.Tensor, ...] = ()

    def derive(self, state: LangevinState) -> Derived:
        """What the state's next moves need; made anew only where the state differs from the last
        one in what it is made from, which costs a tenth.

        Compared by value: a copy cannot go stale, whoever changes the state and however.
        """
        source = (state.masses, state.noise_variance, state.temperature, state.norm2)
        if self._derived is None or not all(map(_equal, source, self._derived_from)):
            self._derived = self._derive(state)
            self._derived_from = tuple(tensor.clone() for tensor in source)
        derived = self._derived
        metric = metric_sums(
            state.weights,
            derived.inverse_masses,
            workspace=derived.workspace,
            threads=self.threads,
        )
        return replace(derived, metric=metric)

    def _derive(self, state: LangevinState) -> Derived:
        o = self.options
        c1 = friction_factor(o.m1)
        leapfrog = o.scheme == "leapfrog"
        dt = torch.full_like(state.temperature, o.dt)
        shared = {
            "dt": dt,
            "metric_temperature": state.temperature * float(o.corrects_metric),
            "norm2": state.norm2 if o.constrained else torch.full_like(dt, UNCONSTRAINED),
        }
        step_scales, momenta_scales = self.noise_scales(state)
        return Derived(
            inverse_masses=state.masses.reciprocal(),
            step_scales=step_scales,
            momenta_scales=momenta_scales,
            step_coefficients=step_coefficients(
                momentum_factor=torch.full_like(dt, c1 * c1 if leapfrog else c1),
                gradient_factor=dt / 2 * (1 + c1 * c1 if leapfrog else 1),
                **shared,
            ),
            momenta_coefficients=step_coefficients(
                momentum_factor=torch.full_like(dt, c1), gradient_factor=dt / 2, **shared
            ),
            metric=torch.empty_like(dt),
            workspace=StepWorkspace(*state.weights.shape),
        )

    def noise_scales(self, state: LangevinState) -> tuple[torch.Tensor, torch.Tensor]:
        """White noise of the step and of full-step momenta, both (C, N) float32. ValueError where
        the masses leave it no room."""
        return white_noise_scales(
            state.noise_variance,
            state.masses,
            temperature=state.temperature,
            dt=self.options.dt,
            m1=self.options.m1,
            scheme=self.options.scheme,
        )

    def gradient(self, state: LangevinState, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (C,) and gradient (C, N) on the mini-batch of this step and stream."""
        if self.options.batch is None:
            return self.potential(state.weights, None)
        minibatch = draw_minibatch(
            seed=self.seed,
            step=state.step,
            stream=stream,
            chain_ids=state.chain_ids,
            batch=self.options.batch,
            examples=self.potential.examples,
        )
        return self.potential(state.weights, minibatch)

    def full_momenta(
        self, state: LangevinState, derived: Derived, gradient: torch.Tensor, *, out: torch.Tensor
    ) -> torch.Tensor:
        """Full-step momenta into `out`, their kinetic energy (C,)."""
        return langevin_momenta(
            state.weights,
            state.momenta,
            gradient,
            derived.inverse_masses,
            derived.momenta_scales,
            coefficients=derived.momenta_coefficients,
            metric=derived.metric,
            chain_ids=state.chain_ids,
            workspace=derived.workspace,
            seed=self.seed,
            step=state.step,
            out=out,
            threads=self.threads,
        )

    def advance(
        self, state: LangevinState, derived: Derived, moves: int, loss_sums: torch.Tensor
    ) -> None:
        """`moves` moves in place; adds the mini-batch losses to `loss_sums` (C,) float64."""
        if self.fused is not None:
            self._advance_fused(state, derived, moves, loss_sums)
            return
        for _ in range(moves):
            loss_sums += self._move(state, derived)
            state.step += 1

    def _move(self, state: LangevinState, derived: Derived) -> torch.Tensor:
        losses, gradient = self.gradient(state, Stream.MINIBATCH)
        _, reachable = langevin_step(
            state.weights,
            state.momenta,
            gradient,
            derived.inverse_masses,
            derived.step_scales,
            coefficients=derived.step_coefficients,
            metric=derived.metric,
            chain_ids=state.chain_ids,
            workspace=derived.workspace,
            seed=self.seed,
            step=state.step,
            threads=self.threads,
        )
        failed = (reachable == 0).nonzero().flatten()
        if len(failed):
            self._refuse(state, int(failed[0]), state.step, losses, gradient)
        if self.options.scheme == "paper":
            _, gradient = self.gradient(state, Stream.MINIBATCH_END)
            self.full_momenta(state, derived, gradient, out=state.momenta)
        return losses.double()

    def _advance_fused(
        self, state: LangevinState, derived: Derived, moves: int, loss_sums: torch.Tensor
    ) -> None:
        assert self.fused is not None
        chains, parameters = state.weights.shape
        batch = self.options.batch
        if self._burst is None or self._burst.gradient.shape != state.weights.shape:
            self._burst = BurstWorkspace(self.fused.shape, chains, parameters, batch or 0)
        paper = self.options.scheme == "paper"
        completed = langevin_burst(
            self.fused,
            state.weights,
            state.momenta,
            HalfMoves(
                derived.inverse_masses,
                derived.step_scales,
                derived.step_coefficients,
                derived.momenta_scales if paper else None,
                derived.momenta_coefficients if paper else None,
            ),
            metric=derived.metric,
            chain_ids=state.chain_ids,
            workspace=self._burst,
            loss_sums=loss_sums,
            seed=self.seed,
            step=state.step,
            moves=moves,
            batch=batch,
            threads=self.threads,
        )
        first = int(completed.argmin())
        if completed[first] < moves:
            step = state.step + int(completed[first])
            self._refuse(state, first, step, self._burst.losses, self._burst.gradient)
        state.step += moves

    def _refuse(
        self,
        state: LangevinState,
        chain: int,
        step: int,
        losses: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        numbers = (losses[chain], gradient[chain], state.momenta[chain])
        if all(bool(torch.isfinite(number).all()) for number in numbers):
            what = "left the sphere's reach"
        else:
            what = "has a loss, gradient or momentum that is not finite"
        raise UnreachableSphereError(
            f"sampler: chain {int(state.chain_ids[chain])} {what} at step {step}: "
            f"dt = {self.options.dt:g}, T_ratio = {float(state.t_ratio[chain]):.3g}, "
            f"T = {float(state.temperature[chain]):.3g}; lower dt or T_ratio"
        )
