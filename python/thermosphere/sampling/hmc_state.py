"""The state of a hybrid Monte Carlo run: what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass
class HybridMonteCarloState:
    """Everything the next trajectory depends on; :meth:`HybridMonteCarlo.run` changes it in
    place. All tensors on the CPU."""

    weights: torch.Tensor  # (C, N) float64
    momenta: torch.Tensor  # (C, N) float64, at the end of the last trajectory
    gradient: torch.Tensor  # (C, N) float64, dU/dw at the weights
    losses: torch.Tensor  # (C,) float64, U there
    masses: torch.Tensor  # (C, N) float64
    temperature: torch.Tensor  # (C,) float64
    norm2: torch.Tensor  # (C,) float64, Q
    chain_ids: torch.Tensor  # (C,) int64
    step_size: torch.Tensor  # (C,) float64, h of the next trajectory
    log_step: torch.Tensor  # (C,) float64, ln h that the warm-up would try next
    log_step_mean: torch.Tensor  # (C,) float64, its weighted mean, which is frozen
    acceptance: torch.Tensor  # (C,) float64, sum of acceptance probabilities since the warm-up
    accepted: torch.Tensor  # (C,) int64, trajectories accepted since then
    broken: torch.Tensor  # (C,) int64, rejected since then for a root, a return or a number
    step: int = 0  # trajectories made, warm-up included
    tuned: int = 0  # of the warm-up
    counted: int = 0  # since then

    def tensors(self) -> dict[str, torch.Tensor]:
        """A copy of all of it as named tensors, for a checkpoint."""
        return {f.name: torch.as_tensor(getattr(self, f.name)).clone() for f in fields(self)}

    @classmethod
    def from_tensors(cls, named: dict[str, torch.Tensor]) -> HybridMonteCarloState:
        """The state saved by :meth:`tensors`, copied. Raises ValueError where one is missing."""
        missing = [f.name for f in fields(cls) if f.name not in named]
        if missing:
            raise ValueError(f"hmc state: expected tensors {missing}, got {sorted(named)}")
        counts = {f.name for f in fields(cls) if f.type == "int"}
        values = {
            f.name: int(named[f.name])
            if f.name in counts
            else named[f.name].clone(memory_format=torch.contiguous_format)
            for f in fields(cls)
        }
        return cls(**values)  # type: ignore[arg-type]
