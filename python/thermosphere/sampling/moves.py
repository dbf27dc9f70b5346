"""The moves of the sampler: captured in a CUDA graph where the potential runs on a GPU, in bursts
inside the extension where it is a fused one, one by one for any other. Same formulas, same random
numbers."""

from __future__ import annotations

from dataclasses import replace

import torch

from thermosphere.models.potential import Potential, device_of
from thermosphere.ops.langevin_burst import (
    BurstWorkspace,
    FusedPotential,
    HalfMoves,
    langevin_burst,
)
from thermosphere.ops.langevin_step import (
    StepWorkspace,
    langevin_momenta,
    langevin_step,
    metric_sums,
)
from thermosphere.ops.langevin_step_modes import langevin_momenta_modes, langevin_step_modes
from thermosphere.ops.minibatch import Minibatch, draw_minibatch
from thermosphere.ops.philox import Stream
from thermosphere.sampling.captured import CapturedMoves
from thermosphere.sampling.derived import Derived, derive
from thermosphere.sampling.full_batch import look_soon
from thermosphere.sampling.held_modes import HeldModes
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.recorder import GraphRecorder, Recorder
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.unreachable import unreachable


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


class Moves:
    """Advances states of one potential under one set of options.

    `fused` is the potential as the extension runs it, None where it cannot; `captured` the moves as
    a CUDA graph, or as `recorder` records them, None where the potential cannot be captured. With
    neither a burst is one move.
    """

    def __init__(
        self,
        potential: Potential,
        options: LangevinOptions,
        seed: int,
        threads: int | None,
        recorder: Recorder | None = None,
        modes: HeldModes | None = None,
    ) -> None:
        self.potential = potential
        self.options = options
        self.seed = seed
        self.threads = threads
        self.recorder = recorder if recorder is not None else graph_recorder(potential)
        self.modes = modes
        self.captured: CapturedMoves | None = None
        self.fused: FusedPotential | None = None
        if not options.modes:  # with them, one by one
            if self.recorder is not None:
                self.captured = CapturedMoves(potential, options, seed, threads, self.recorder)
            else:
                self.fused = getattr(potential, "fused", None)
        self._burst: BurstWorkspace | None = None
        self._workspace: StepWorkspace | None = None
        self._derived: Derived | None = None
        self._derived_from: tuple[torch.Tensor, ...] = ()

    @property
    def way(self) -> str:
        """How moves are made, in words."""
        if self.captured is not None:
            return "moves in a CUDA graph"
        return "moves in bursts" if self.fused is not None else "moves one by one"

    def derive(self, state: LangevinState) -> Derived:
        """What the state's next moves need: where moves are captured in always the same memory,
        written anew; else made anew only where the state differs from the last one in what it is
        made from, which costs a tenth. Compared by value: a copy cannot go stale, whoever changes
        the state and however.

        ValueError where the masses leave the white noise no room.
        """
        shape, device = state.weights.shape, state.weights.device
        kept = self._workspace
        if kept is None or kept.proposal.shape != shape or kept.proposal.device != device:
            backend = "auto" if self.recorder is None else self.recorder.backend
            kept = self._workspace = StepWorkspace(*shape, device=device, backend=backend)
            self._derived = None
        if self.captured is not None:
            return self.captured.keep(derive(state, self.options, kept, self.threads))
        source = (
            state.masses,
            state.noise_variance,
            state.temperature,
            state.norm2,
            state.chain_ids,
        )
        if self._derived is None or not all(map(_equal, source, self._derived_from)):
            self._derived = derive(state, self.options, kept, self.threads)
            self._derived_from = tuple(tensor.clone() for tensor in source)
        metric = metric_sums(
            state.weights, self._derived.inverse_masses, workspace=kept, threads=self.threads
        )
        modes = None if self.modes is None else self.modes(state)
        return replace(self._derived, metric=metric, modes=modes)

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
        there = Minibatch(*(tensor.to(state.weights.device) for tensor in minibatch))
        return self.potential(state.weights, there)

    def full_momenta(
        self, state: LangevinState, derived: Derived, gradient: torch.Tensor, *, out: torch.Tensor
    ) -> torch.Tensor:
        """Full-step momenta into `out`, their kinetic energy (C,)."""
        if derived.modes is not None:
            momenta, energy = langevin_momenta_modes(
                state.weights,
                state.momenta,
                gradient,
                derived.inverse_masses,
                derived.momenta_scales,
                derived.modes,
                coefficients=derived.momenta_coefficients,
                chain_ids=state.chain_ids,
                seed=self.seed,
                step=state.step,
            )
            out.copy_(momenta)
            return energy
        return langevin_momenta(
            state.weights,
            state.momenta,
            gradient,
            derived.inverse_masses,
            derived.momenta_scales,
            coefficients=derived.momenta_coefficients,
            metric=derived.metric,
            chain_ids=derived.chain_ids,
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
        if self.captured is not None:
            self.captured.advance(state, moves, loss_sums)
            return
        if self.fused is not None:
            self._advance_fused(state, derived, moves, loss_sums)
            return
        for _ in range(moves):
            loss_sums += self._move(state, derived)
            state.step += 1

    def _move(self, state: LangevinState, derived: Derived) -> torch.Tensor:
        losses, gradient = self.gradient(state, Stream.MINIBATCH)
        reachable = self._step(state, derived, gradient)
        failed = (reachable == 0).nonzero().flatten()
        if len(failed):
            self._refuse(state, int(failed[0]), state.step, losses, gradient)
        if self.options.scheme == "paper":
            _, gradient = self.gradient(state, Stream.MINIBATCH_END)
            self.full_momenta(state, derived, gradient, out=state.momenta)
        return losses.double().cpu()

    def _step(self, state: LangevinState, derived: Derived, gradient: torch.Tensor) -> torch.Tensor:
        """One step in place; which chains could make it, or will be seen to, (C,)."""
        if derived.modes is not None:
            _, reachable, energy = langevin_step_modes(
                state.weights,
                state.momenta,
                gradient,
                derived.inverse_masses,
                derived.step_scales,
                derived.modes,
                coefficients=derived.step_coefficients,
                chain_ids=state.chain_ids,
                seed=self.seed,
                step=state.step,
            )
            finite = gradient.isfinite().all(1).cpu()
            return reachable.cpu() | look_soon(state, energy.cpu(), reachable.cpu(), finite)
        return langevin_step(
            state.weights,
            state.momenta,
            gradient,
            derived.inverse_masses,
            derived.step_scales,
            coefficients=derived.step_coefficients,
            metric=derived.metric,
            chain_ids=derived.chain_ids,
            workspace=derived.workspace,
            seed=self.seed,
            step=state.step,
            threads=self.threads,
        )[1]

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
        raise unreachable(
            state, self.options, row=chain, step=step, losses=losses, gradient=gradient
        )


def graph_recorder(potential: Potential) -> Recorder | None:
    """CUDA graphs on the potential's device; None where it cannot be captured."""
    device = device_of(potential)
    if device.type != "cuda" or getattr(potential, "capturable", None) is None:
        return None
    return GraphRecorder(device)
