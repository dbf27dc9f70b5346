"""The state of a pseudo-Langevin run: what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch


@dataclass
class LangevinState:
    """Everything the next move depends on; :meth:`Langevin.run` changes it in place.

    The (C, N) tensors are on the device of the potential, those of one number a chain on the CPU,
    where it is decided what a chain does next.
    """

    weights: torch.Tensor  # (C, N) float32
    momenta: torch.Tensor  # (C, N) float32: Π of the leapfrog scheme, p of the paper's
    masses: torch.Tensor  # (C, N) float32
    noise_variance: torch.Tensor  # (C, N) float32, v
    temperature: torch.Tensor  # (C,) float64
    t_ratio: torch.Tensor  # (C,) float64, the set value; with masses by hand their largest
    norm2: torch.Tensor  # (C,) float64, Q
    chain_ids: torch.Tensor  # (C,) int64
    next_adaptation: torch.Tensor  # (C,) int64, the step of the next noise estimate; -1 = never
    streak: torch.Tensor  # (C,) int64, unchanged estimates in a row, from 1
    # Where stiff modes have masses of their own (held_modes.py): weights and shape of the masses at
    # the last look, from which the modes follow; else (C, 0).
    looked_at: torch.Tensor  # (C, N) float32
    shape: torch.Tensor  # (C, N) float32
    look_step: torch.Tensor  # (C,) int64
    by_hand: torch.Tensor  # (C,) bool, whether the masses were given, and stay
    # With stiff modes, moves at which the chain left the sphere's reach: it stood still, and its
    # masses were looked at before the next one (full_batch.py). Elsewhere such a move is an error.
    missed: torch.Tensor  # (C,) int64
    step: int = 0

    def of(self, rows: torch.Tensor) -> LangevinState:
        """These chains (R,) int64 alone, copied: they go on with the bits they would have had."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "step"}
        some = {name: tensor[rows.to(tensor.device)] for name, tensor in named.items()}
        return LangevinState(**some, step=self.step)

    def put(self, rows: torch.Tensor, part: LangevinState) -> None:
        """These chains (R,) int64 as they are in a state of theirs; the step stays."""
        for f in fields(self):
            if f.name != "step":
                tensor = getattr(self, f.name)
                tensor[rows.to(tensor.device)] = getattr(part, f.name)

    def blank(self, chains: int) -> LangevinState:
        """A state of this many chains like these, all zero."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "step"}
        zeros = {name: t.new_zeros((chains, *t.shape[1:])) for name, t in named.items()}
        return LangevinState(**zeros)

    def tensors(self) -> dict[str, torch.Tensor]:
        """A copy of all of it as named tensors on the CPU, for a checkpoint: the same whatever the
        device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "step"}
        named = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        return {**named, "step": torch.tensor(self.step, dtype=torch.int64)}

    @classmethod
    def from_tensors(
        cls, named: dict[str, torch.Tensor], device: torch.device | str = "cpu"
    ) -> LangevinState:
        """The state saved by :meth:`tensors`, copied, for a potential on `device`. Raises
        ValueError where one is missing, but for those that older versions did not have."""
        chains = len(named["chain_ids"]) if "chain_ids" in named else 0
        newer = {
            "by_hand": torch.zeros(chains, dtype=torch.bool),
            "missed": torch.zeros(chains, dtype=torch.int64),
        }
        named = {**newer, **named}
        missing = [f.name for f in fields(cls) if f.name not in named]
        if missing:
            raise ValueError(f"sampler state: expected tensors {missing}, got {sorted(named)}")
        values = {
            name: tensor.clone(memory_format=torch.contiguous_format).to(
                device if tensor.ndim == 2 else "cpu"
            )
            for name, tensor in ((f.name, named[f.name]) for f in fields(cls) if f.name != "step")
        }
        return cls(**values, step=int(named["step"]))
