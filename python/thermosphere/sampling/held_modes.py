"""The stiff modes of a state (ops/stiff_modes.py): found at a look, held until the next, and found
again, bit for bit, by a process that goes on from a checkpoint, which need not hold them."""

from __future__ import annotations

import torch

from thermosphere.models.potential import Gradient, Potential
from thermosphere.ops.minibatch import Minibatch, draw_minibatch
from thermosphere.ops.philox import Stream
from thermosphere.ops.stiff_modes import StiffModes
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.stiffness import Curvature

# They are those of some of the examples, drawn anew at each look, and so is the shape that goes
# with them. What they leave of the curvature is measured with more: fewer find it too large.
SHARE = 1 / 8
SHARE_LEFT = 1 / 4
FEWEST = 100

BASIS_BYTES = 2**29  # of Lanczos: chains are taken so many at a time


class HeldModes:
    """The modes of the states that one sampler advances; those of the last one are kept."""

    def __init__(self, potential: Potential, options: LangevinOptions, seed: int) -> None:
        self.potential, self.options, self.seed = potential, options, seed
        self._source: tuple[torch.Tensor, ...] = ()
        self._held: StiffModes | None = None

    def __call__(self, state: LangevinState) -> StiffModes | None:
        """Of all chains; None where the options, or masses by hand, leave them out. Compared by
        value: a copy cannot go stale, whoever changes the state and however."""
        if not state.looked_at.shape[1]:
            return None
        source = (state.looked_at, state.shape, state.look_step, state.chain_ids)
        stale = torch.arange(len(state.chain_ids))
        held = self._held
        if held is not None and all(
            now.shape == was.shape for now, was in zip(source, self._source, strict=True)
        ):
            same = [
                (now == was).reshape(len(now), -1).all(1).cpu()
                for now, was in zip(source, self._source, strict=True)
            ]
            stale = (~torch.stack(same).all(0)).nonzero().flatten()
        else:
            held = self._empty(state)
        if len(stale):
            self._held = None  # until all are found: what follows may be interrupted
        for step in state.look_step[stale].unique().tolist():
            rows = stale[state.look_step[stale] == step]
            found = self.at(
                state.looked_at[rows],
                state.shape[rows],
                step=step,
                chain_ids=state.chain_ids[rows],
                rows=rows,
            )
            there = rows.to(held.vectors.device)
            held.vectors[there] = found.vectors
            held.shrink[there] = found.shrink
        if len(stale):
            self._source = tuple(tensor.clone() for tensor in source)
            self._held = held
        return held

    def at(
        self,
        weights: torch.Tensor,  # (R, N)
        shape: torch.Tensor,  # (R, N) float32
        *,
        step: int,
        chain_ids: torch.Tensor,  # (R,) int64, what tells random directions and examples apart
        rows: torch.Tensor,  # (R,) int64, of the state: whose harmonic terms
    ) -> StiffModes:
        """The modes at these weights, with masses of this shape."""
        _, parameters = weights.shape
        count = self.options.modes
        together = max(1, BASIS_BYTES // (2 * count * parameters * 8))
        parts = []
        for part in torch.arange(len(weights)).split(together):
            potential = self.of_some(rows[part], step, chain_ids[part])
            there = part.to(weights.device)
            curvature = Curvature(
                potential,
                weights[there].contiguous(),
                seed=self.seed,
                step=step,
                chain_ids=chain_ids[part],
            )
            parts.append(curvature.leading(shape[there], count))
        return StiffModes(
            torch.cat([part.vectors for part in parts]),
            torch.cat([part.shrink for part in parts]),
        )

    def of_some(
        self, rows: torch.Tensor, step: int, chain_ids: torch.Tensor, share: float = SHARE
    ) -> Gradient:
        """U of these rows, of a share of the examples, with its harmonic terms."""
        examples = self.potential.examples
        some = max(round(share * examples), FEWEST)
        batch = None
        if some < examples:
            batch = draw_minibatch(
                seed=self.seed,
                step=step,
                stream=Stream.SUBSET,
                chain_ids=chain_ids,
                batch=some,
                examples=examples,
            )
        of_rows = with_harmonic(self.potential, rows)

        def potential(
            weights: torch.Tensor, _: Minibatch | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if batch is None:
                return of_rows(weights, None)
            return of_rows(weights, Minibatch(*(tensor.to(weights.device) for tensor in batch)))

        return potential

    def _empty(self, state: LangevinState) -> StiffModes:
        chains, parameters = state.weights.shape
        count = min(self.options.modes, parameters - 1)
        device = state.weights.device
        return StiffModes(
            torch.zeros((chains, count, parameters), dtype=torch.float32, device=device),
            torch.zeros((chains, count), dtype=torch.float32, device=device),
        )


def with_harmonic(potential: Potential, rows: torch.Tensor) -> Gradient:
    """U of these rows, (R,) int64, of a state, with the harmonic terms that it may have."""
    harmonic = getattr(potential, "harmonic_gradient", None)
    noisy = getattr(potential, "noisy", potential)

    def sampled(
        weights: torch.Tensor, batch: Minibatch | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, gradient = noisy(weights, batch)
        return losses, gradient if harmonic is None else gradient + harmonic(weights, rows)

    return sampled
