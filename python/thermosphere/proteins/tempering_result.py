"""What a tempering run leaves behind, and its file."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermosphere.proteins.archive import read_archive, write_archive
from thermosphere.proteins.potts import PottsModel

FORMAT = "thermosphere tempering 2"


@dataclass(frozen=True)
class TemperingResult:
    """Sequences at the target temperature, and the ladder that led there; K levels, hot to cold.

    Attributes:
        sequences: (S, n) uint8, in the order of harvest, walker after walker.
        energies: (S,) float64, the model's energy of every sequence, recomputed.
        walker: (S,) int64, which walker harvested it.
        model: what was sampled.
        temperatures: (K,) float64, in energy units.
        weights: (K,) float64, g, frozen before the harvest.
        cycle: (K,) int64, proposals a visit.
        visits: (K,) int64, visits of each level during the harvest.
        mean_energy, energy_deviation: (K,) float64, ⟨E⟩ and σ_E over those visits.
        acceptance: (K,) float64, accepted share of the proposals.
        level_acceptance: (K - 1,) float64, accepted share of the moves k → k + 1.
        log_partition: (K,) float64, ln Z_k − ln Z_0 by Bennett's ratio of neighbouring levels.
        log_partition_error: (K,) float64, standard errors, by the jackknife over walkers.
        level_sequences: (K, S, n) uint8 where every level was recorded, else (0, 0, n).
        diagnostics: plain numbers, see ``sample_sequences``.
        settings: the arguments of the run.
        warnings: one line each; empty for a run that mixed.
    """

    sequences: NDArray[np.uint8]
    energies: NDArray[np.float64]
    walker: NDArray[np.int64]
    model: PottsModel
    temperatures: NDArray[np.float64]
    weights: NDArray[np.float64]
    cycle: NDArray[np.int64]
    visits: NDArray[np.int64]
    mean_energy: NDArray[np.float64]
    energy_deviation: NDArray[np.float64]
    acceptance: NDArray[np.float64]
    level_acceptance: NDArray[np.float64]
    log_partition: NDArray[np.float64]
    log_partition_error: NDArray[np.float64]
    level_sequences: NDArray[np.uint8]
    diagnostics: dict[str, Any]
    settings: dict[str, Any]
    warnings: list[str]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one compressed npz (arrays, and the rest as JSON text), atomically."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"model_{name}": getattr(self.model, name) for name in _MODEL_ARRAYS}
        header = {name: getattr(self, name) for name in _PLAIN}
        write_archive(path, FORMAT, {**header, "alphabet": self.model.alphabet}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TemperingResult:
        """Read what ``save`` wrote.

        Raises: ValueError where the file is no whole result; OSError where it cannot be read.
        """
        header, arrays = read_archive(path, FORMAT)
        try:
            values: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
            parts = {name: arrays[f"model_{name}"] for name in _MODEL_ARRAYS}
            values["model"] = PottsModel(**parts, alphabet=header["alphabet"])
            return cls(**values, **{name: header[name] for name in _PLAIN})
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is a damaged {FORMAT} file ({error})") from None


_PLAIN = ("diagnostics", "settings", "warnings")
_MODEL_ARRAYS = ("pairs", "couplings", "block", "fields")
_ARRAYS = tuple(
    entry.name for entry in fields(TemperingResult) if entry.name not in (*_PLAIN, "model")
)
