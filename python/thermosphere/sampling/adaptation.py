"""When masses and momenta of a state follow where its chains are, and how momenta are drawn again
(arXiv 2603.29529, appendix D): what noise_adaptation.py and full_batch.py share."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

import torch

from thermosphere.models.potential import Potential
from thermosphere.ops.philox import Stream, normals
from thermosphere.sampling.noise import NoiseEstimate
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.state import LangevinState


class Adaptation(ABC):
    """Changes noise variance, masses and momenta of a state, never its weights or Q.

    On a GPU all of it stays there but one number a chain.
    """

    def __init__(self, potential: Potential, options: LangevinOptions, seed: int) -> None:
        self.potential = potential
        self.options = options
        self.seed = seed
        # Harmonic terms have no noise, and one reference a chain: they are added to the mean alone.
        self.noisy: Potential = getattr(potential, "noisy", potential)

    @abstractmethod
    def start(self, state: LangevinState, masses: torch.Tensor | None) -> None:
        """Set the masses (unless given), draw thermal momenta."""

    def look(self, state: LangevinState, rows: torch.Tensor) -> NoiseEstimate | None:
        """What :meth:`adapt` needs of these rows, (R,) int64, and takes long: it leaves the state
        alone, so it may be interrupted. None where nothing is worth it."""
        return None

    @abstractmethod
    def adapt(
        self, state: LangevinState, rows: torch.Tensor, look: NoiseEstimate | None = None
    ) -> None:
        """Change these rows, (R,) int64, by this look, else by one made now."""

    def due(self, state: LangevinState) -> torch.Tensor:
        """Rows (R,) int64 that are to be looked at before the next move."""
        return (
            ((state.next_adaptation >= 0) & (state.next_adaptation <= state.step))
            .nonzero()
            .flatten()
        )

    def moves_left(self, state: LangevinState) -> int:
        """Moves before the next of any chain is due; at least 1."""
        planned = state.next_adaptation[state.next_adaptation >= 0]
        return max(1, int(planned.min()) - state.step) if len(planned) else sys.maxsize

    def _harmonic(self, state: LangevinState, rows: torch.Tensor) -> torch.Tensor | float:
        harmonic = getattr(self.potential, "harmonic_gradient", None)
        return 0.0 if harmonic is None else harmonic(state.weights[rows], rows)

    @staticmethod
    def _same_start(state: LangevinState) -> list[torch.Tensor]:
        """Rows, (K,) int64 each, whose weights have the same bits."""
        by_bits: dict[bytes, list[int]] = {}
        for row, weights in enumerate(state.weights):
            by_bits.setdefault(weights.cpu().numpy().tobytes(), []).append(row)
        return [torch.tensor(group) for group in by_bits.values()]

    def _redraw_momenta(
        self,
        state: LangevinState,
        rows: torch.Tensor,
        which: torch.Tensor,  # (R, N) bool
        mean_gradient: torch.Tensor,  # (R, N)
    ) -> None:
        """Thermal momenta N(0, T M) where ``which``, then tangent again (Eq. 41).

        The leapfrog momentum Π is half a kick behind the position: Π = p + (dt/2) ⟨g⟩.
        """
        redrawn = which.any(1).tolist()
        for at, row in enumerate(rows.tolist()):
            if not redrawn[at]:
                continue
            noise = normals(
                seed=self.seed,
                stream=Stream.REDRAW,
                chain=int(state.chain_ids[row]),
                step=state.step,
                count=state.weights.shape[1],
                device=state.weights.device,
            )
            masses = state.masses[row].double()
            kick = 0.5 * self.options.dt * mean_gradient[at].double()
            if self.options.scheme == "paper":
                kick.zero_()
            thermal = noise.double() * (state.temperature[row] * masses).sqrt()
            p = torch.where(which[at], thermal, state.momenta[row].double() - kick)
            if self.options.constrained:
                w = state.weights[row].double()
                p -= w * (p * w / masses).sum() / (w * w / masses).sum()
            state.momenta[row] = (p + kick).float()
