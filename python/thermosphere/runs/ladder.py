"""Where the ladder goes: T*, bracketed by one slow heating of a few chains.

The chains start cold from the ES weights and are taken up in steps of ``FACTOR``; at each
temperature ⟨U⟩ is the mean over the second half of its moves, and C = d⟨U⟩/dT from the neighbours
on the scale of ln T. T* = arg max C, from a parabola through the largest and its neighbours in
(ln T, C). Heating goes on until a temperature ``ABOVE`` times the peak's shows that C falls.
Upwards, because melting is quick and learning is slow.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from thermosphere.analysis.specific_heat import slope
from thermosphere.archive import digest, read_archive, write_archive
from thermosphere.models.potential import Potential
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.options import LangevinOptions
from thermosphere.training.trainer import check_fingerprint

Array = npt.NDArray[np.float64]

KIND = "thermosphere ladder pilot"

FACTOR = 1.5
ABOVE = 6.0
HOTTEST = 1.0  # of the whole search, in units of U


@dataclass(frozen=True)
class Ladder:
    """What the pilot saw, rising in T (K,), and where it puts T*."""

    temperature: Array
    loss: Array  # ⟨U⟩
    loss_error: Array  # from the spread between chains; they are few, so it is rough
    specific_heat: Array  # d⟨U⟩/dT
    specific_heat_error: Array
    peak: float  # T*

    def temperatures(self, shares: Sequence[float]) -> list[float]:
        """These shares of T*, to four digits."""
        return [float(f"{share * self.peak:.4g}") for share in shares]

    def save(self, path: Path) -> None:
        """A CSV: a row a temperature; T* in the first line's comment."""
        building = path.with_name(path.name + ".new")
        with building.open("w", newline="", encoding="utf-8") as file:
            file.write(f"# T* = {self.peak!r}\n")
            writer = csv.writer(file)
            writer.writerow(["temperature", "loss", "loss_error", "specific_heat", "error"])
            columns = (
                self.temperature,
                self.loss,
                self.loss_error,
                self.specific_heat,
                self.specific_heat_error,
            )
            writer.writerows(
                [f"{value:.8g}" for value in row] for row in zip(*columns, strict=True)
            )
        os.replace(building, path)

    @classmethod
    def load(cls, path: Path) -> Ladder:
        """What `save` wrote. ValueError, one line, where it is not such a file."""
        try:
            first, _, *rows = path.read_text(encoding="utf-8").splitlines()
            peak = float(first.removeprefix("# T* = "))
            columns = np.array([[float(x) for x in row.split(",")] for row in rows]).T
            return cls(*columns, peak=peak)  # type: ignore[misc]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: must be a ladder's CSV ({error})") from error


def find_ladder(
    potential: Potential,
    weights: torch.Tensor,  # (C, N) float32, ES weights
    norm2: float,
    *,
    coldest: float,
    moves: int,
    seed: int,
    options: LangevinOptions,
    checkpoint: Path | None = None,
    on_temperature: Callable[[float, float], None] | None = None,
) -> Ladder:
    """Heat the chains from ``coldest`` by ``moves`` a temperature until the peak of C is bracketed.

    options: of the sampler; on the sphere |w|² = ``norm2``. checkpoint: written after each
    temperature and taken up again; the bits are those of an unbroken search. on_temperature(T, U)
    is called after each. Raises ValueError where C still rises at the hottest temperature looked
    at, or has its maximum at ``coldest``.
    """
    expected = {
        "coldest": coldest,
        "moves": moves,
        "seed": seed,
        "options": repr(options),
        "start": digest(weights),
        "norm2": norm2,
    }
    means: list[list[float]] = []  # a temperature: the chains' ⟨U⟩
    if checkpoint is not None and checkpoint.exists():
        tensors, header = read_archive(checkpoint, KIND)
        check_fingerprint(checkpoint, header["fingerprint"], expected)
        weights = tensors["weights"]
        means = tensors["means"].tolist()
    options = replace(options, constrained=True)
    while True:
        found = _summary(coldest, means)
        if found is not None:
            return found
        temperature = coldest * FACTOR ** len(means)
        if temperature > HOTTEST:
            raise ValueError(
                f"ladder: the specific heat must have a maximum between T = {coldest:g} and "
                f"{HOTTEST:g}, got none; set sampling.temperatures by hand"
            )
        sampler = Langevin(
            potential, [temperature] * len(weights), seed=seed + len(means), options=options
        )
        state = sampler.init(weights, norm2=norm2)
        sampler.run(state, max(1, moves // 2))
        means.append(sampler.run(state, max(1, moves - moves // 2)).tolist())
        weights = state.weights
        if checkpoint is not None:
            header = {"kind": KIND, "fingerprint": expected}
            tensors = {"weights": weights, "means": torch.tensor(means, dtype=torch.float64)}
            write_archive(checkpoint, tensors, header)
        if on_temperature is not None:
            on_temperature(temperature, float(np.mean(means[-1])))


def _summary(coldest: float, means: list[list[float]]) -> Ladder | None:
    """The ladder, once the peak is bracketed by enough hotter temperatures."""
    count = len(means)
    if count < 4:
        return None
    temperature = coldest * FACTOR ** np.arange(count, dtype=np.float64)
    values = np.array(means)  # (K, C)
    loss = values.mean(1)
    error = values.std(1, ddof=1) / math.sqrt(values.shape[1])
    heat, heat_error = slope(temperature, loss, error)
    peak = int(np.argmax(heat[:-1]))
    if temperature[-1] < ABOVE * temperature[peak]:
        return None
    if peak == 0:
        raise ValueError(
            "ladder: the specific heat must rise from the coldest temperature, got its maximum "
            f"there; lower pilot.coldest = {coldest:g}, or lengthen pilot.ladder_moves"
        )
    return Ladder(temperature, loss, error, heat, heat_error, _vertex(temperature, heat, peak))


def _vertex(temperature: Array, heat: Array, peak: int) -> float:
    """T of the vertex of the parabola through the largest C and its neighbours, in (ln T, C)."""
    left, middle, right = (float(heat[peak + k]) for k in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = 0.0 if bend >= 0 else 0.5 * (left - right) / bend
    return float(temperature[peak] * FACTOR ** min(max(shift, -1.0), 1.0))
