"""Moves of all chains as a recorded sequence of calls: mini-batch, gradient, step, running sums, in
buffers that stay where they are (a CUDA graph on a GPU; sampling/recorder.py).

Nothing waits for the device inside a burst. The number of the move is in device memory, so each
replay draws its own mini-batch and noise. A chain that fails stands still and has its move written
down, which the host reads once after a burst. New masses are written into the buffers: nothing is
recorded again after an adaptation.
"""

from __future__ import annotations

import torch

from thermosphere.models.potential import Potential
from thermosphere.ops.backends import on_device
from thermosphere.ops.langevin_step import MoveCounter, langevin_momenta, langevin_step
from thermosphere.ops.minibatch import Minibatch, empty_minibatch, redraw_minibatch
from thermosphere.ops.philox import Stream
from thermosphere.sampling.derived import Derived
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.recorder import Call, Recorder
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.unreachable import unreachable

# Moves of one replay. A launch of a graph costs the host some 10 µs, a move of tf1 has a target of
# 60 µs; 10 divides the moves between draws and adaptations unless they are set by hand.
MOVES = 10


class CapturedMoves:
    """Bursts of moves of one state at a time; another state's are recorded anew."""

    def __init__(
        self,
        potential: Potential,
        options: LangevinOptions,
        seed: int,
        threads: int | None,
        recorder: Recorder,
    ) -> None:
        self.potential = potential
        self.options = options
        self.seed = seed
        self.threads = threads
        self.recorder = recorder
        self._replays: dict[int, Call] = {}  # by their moves
        self._derived: Derived | None = None
        self._weights = self._momenta = torch.empty(0)
        self._losses = self._gradient = torch.empty(0)
        self._gradient_of = getattr(potential, "capturable", None) or potential

    def keep(self, derived: Derived) -> Derived:
        """The same numbers in the buffers that recorded moves read."""
        kept = self._derived
        if kept is None or kept.workspace is not derived.workspace:
            self._derived, self._replays = derived, {}
            return derived
        for old, new in zip(kept.tensors(), derived.tensors(), strict=True):
            old.copy_(new)
        return kept

    def advance(self, state: LangevinState, moves: int, loss_sums: torch.Tensor) -> None:
        """`moves` moves in place; adds the mini-batch losses to `loss_sums` (C,) float64 on the
        CPU. The state's buffers are those of the last :meth:`keep`. Raises UnreachableSphereError
        for the first chain that failed; the others have made all moves."""
        with on_device(state.weights.device):
            burst = [(MOVES, moves // MOVES), (1, moves % MOVES)]
            replays = [(self.replay(state, size), times) for size, times in burst if times]
            self.begin(state.step)
            self.loss_sums.copy_(loss_sums)
            for replay, times in replays:
                for _ in range(times):
                    replay()
            failed = self.counter.failed_move.cpu()  # the one wait of a burst
            loss_sums.copy_(self.loss_sums)
            if bool((failed >= 0).any()):
                self._refuse(state, failed)
        state.step += moves

    def replay(self, state: LangevinState, moves: int) -> Call:
        """`moves` moves as one call, recorded where they are not yet. The counter is left anywhere
        and chains may stand still: :meth:`begin` sets them right."""
        if self._weights is not state.weights or self._momenta is not state.momenta:
            self._bind(state)
        if moves not in self._replays:
            # Chains that have failed stand still: the warm-up moves none of them.
            self.counter.failed_move.fill_(0)
            self._replays[moves] = self.recorder.record(self._calls(), moves)
        return self._replays[moves]

    def _bind(self, state: LangevinState) -> None:
        """Buffers for this state's chains; what was recorded for another's is dropped."""
        device, chains = state.weights.device, len(state.weights)
        self._weights, self._momenta, self._replays = state.weights, state.momenta, {}
        self.counter = MoveCounter.start(chains, device=device)
        self.loss_sums = torch.zeros(chains, dtype=torch.float64, device=device)
        self._batch: Minibatch | None = None
        if self.options.batch is not None:
            self._batch = empty_minibatch(chains, self.options.batch, device)

    def _calls(self) -> list[Call]:
        first = [self._draw, self._differentiate, self._step, self._observe]
        if self.options.scheme == "leapfrog":
            return first
        return [*first, self._draw_end, self._differentiate, self._finish]

    def begin(self, step: int) -> None:
        """The next move is number `step`, and no chain has failed."""
        self.counter.moves.fill_(step)
        self.counter.failed_move.fill_(-1)

    # The calls of a move.

    def _draw(self) -> None:
        self._draw_of(Stream.MINIBATCH)

    def _draw_end(self) -> None:
        self._draw_of(Stream.MINIBATCH_END)

    def _draw_of(self, stream: Stream) -> None:
        if self._batch is not None:
            redraw_minibatch(
                self._batch,
                seed=self.seed,
                step=self.counter.moves,
                stream=stream,
                chain_ids=self._of().chain_ids,
                examples=self.potential.examples,
                backend=self.recorder.backend,
            )

    def _differentiate(self) -> None:
        self._losses, self._gradient = self._gradient_of(self._weights, self._batch)

    def _step(self) -> None:
        derived = self._of()
        langevin_step(
            self._weights,
            self._momenta,
            self._gradient,
            derived.inverse_masses,
            derived.step_scales,
            coefficients=derived.step_coefficients,
            metric=derived.metric,
            chain_ids=derived.chain_ids,
            workspace=derived.workspace,
            seed=self.seed,
            step=0,  # the counter holds the whole number
            counter=self.counter,
            advance=self.options.scheme == "leapfrog",
            threads=self.threads,
        )

    def _observe(self) -> None:
        self.loss_sums += self._losses

    def _finish(self) -> None:
        """The second half of the paper's move."""
        derived = self._of()
        langevin_momenta(
            self._weights,
            self._momenta,
            self._gradient,
            derived.inverse_masses,
            derived.momenta_scales,
            coefficients=derived.momenta_coefficients,
            metric=derived.metric,
            chain_ids=derived.chain_ids,
            workspace=derived.workspace,
            seed=self.seed,
            step=0,
            out=self._momenta,
            counter=self.counter,
            advance=True,
            threads=self.threads,
        )

    def _of(self) -> Derived:
        assert self._derived is not None
        return self._derived

    def _refuse(self, state: LangevinState, failed: torch.Tensor) -> None:
        """Raise for the chain that failed first, on its gradient there: it still stands there."""
        step = int(failed[failed >= 0].min())
        row = int((failed == step).nonzero()[0])
        self.begin(step)
        self._draw()
        self._differentiate()
        raise unreachable(
            state,
            self.options,
            row=row,
            step=step,
            losses=self._losses,
            gradient=self._gradient,
        )
