"""Ways to sample the same law, run in turns from the same weights: what each costs and how it
mixes."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from thermosphere.archive import read_archive, write_archive
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.sampling.hmc import HybridMonteCarlo, HybridMonteCarloState
from thermosphere.sampling.langevin import Langevin, UnreachableSphereError
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.sghmc import sghmc
from thermosphere.sampling.state import LangevinState
from thermosphere.training.trainer import check_fingerprint

KIND = "thermosphere trial"
WARM_UP = 10  # trajectories that tune the step of hybrid Monte Carlo
DRAWS_A_TURN = 8
SGHMC_EXCESS = 1e-2  # of T: how hot its noise may make a parameter, in the mean

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """One way to sample: pseudo-Langevin, SGHMC (friction) or hybrid Monte Carlo (steps)."""

    name: str  # as a file name
    about: str  # as a table says it
    options: LangevinOptions | None = None
    steps: int = 0  # leapfrog steps a trajectory
    friction: float = 0.0  # of SGHMC

    @property
    def exact(self) -> bool:
        """Whether the law has no bias, for any step."""
        return self.steps > 0


@dataclass(frozen=True)
class Series:
    """What a trial gave: draws at even distances."""

    losses: Array  # (C, K), U of the training set
    distance: Array  # (C, K), |w - w_start|²/Q, w_start where the trial began
    made: Array  # (K,), moves of a chain (leapfrog steps of hybrid Monte Carlo) before each draw
    moves: int  # all of them
    seconds: float  # that they took, draws and warm-up not counted
    failure: str  # why it ended, empty where it can go on

    @property
    def seconds_a_move(self) -> float:
        """Of all chains together."""
        return self.seconds / self.moves if self.moves else math.nan


class TrialRun:
    """One trial at one temperature, begun or taken up again from its file."""

    def __init__(
        self,
        trial: Trial,
        path: Path,
        potential: MaskedLanguagePotential,
        start: torch.Tensor,  # (C, N) float32, settled at the temperature
        temperature: float,
        norm2: float,
        masses: torch.Tensor,  # (C, N), of hybrid Monte Carlo
        step_size: float,  # of it, to begin with
        *,
        seed: int,
        threads: int | None = None,
    ) -> None:
        self.trial, self.path, self.potential = trial, path, potential
        self.start, self.norm2 = start, norm2
        self.origin = start.double()  # of distances
        chains = len(start)
        self.losses = np.zeros((chains, 0))
        self.distance = np.zeros((chains, 0))
        self.made = np.zeros(0)
        self.moves, self.seconds, self.failure = 0, 0.0, ""
        self.spent = 0.0  # seconds, draws and warm-up counted
        self.every = 0  # moves or trajectories between draws; from the first turn
        self.fingerprint = {
            "temperature": temperature,
            "seed": seed,
            "trial": repr(asdict(trial)),
            "start": float(start.double().square().cumsum(1).sum()),
            "distances": "from the end of a warm-up",
        }
        temperatures = [temperature] * chains
        self.sampler: Any
        self.state: Any
        if trial.options is not None:
            self.sampler = Langevin(
                potential, temperatures, seed=seed, options=trial.options, threads=threads
            )
            begin = lambda: self.sampler.init(start, norm2=norm2)  # noqa: E731
        elif trial.steps:
            self.sampler = HybridMonteCarlo(
                potential, temperatures, seed=seed, steps=trial.steps, step_size=step_size
            )
            begin = lambda: self.sampler.init(start, masses=masses, norm2=norm2)  # noqa: E731
        else:
            # η such that mini-batch noise of the mean variance heats by SGHMC_EXCESS (sghmc.py).
            noise = LangevinOptions(noise_draws=100, noise_draws_max=100)
            measured = Langevin(potential, temperatures[:1], seed=seed, options=noise)
            variance = measured.init(start[:1], norm2=norm2).noise_variance.double().mean()
            rate = 2 * trial.friction * temperature * SGHMC_EXCESS / float(variance)
            self.sampler, fresh = sghmc(
                potential,
                start,
                temperatures,
                learning_rate=rate,
                friction=trial.friction,
                constrained=True,
                norm2=norm2,
                seed=seed,
                threads=threads,
            )
            begin = lambda: fresh  # noqa: E731
        self.state = self._load() if path.exists() else begin()

    def series(self) -> Series:
        return Series(self.losses, self.distance, self.made, self.moves, self.seconds, self.failure)

    def turn(self, seconds: float) -> None:
        """Go on for about this long and save; nothing where the trial has failed."""
        if self.failure:
            return
        begun = time.perf_counter()
        try:
            while time.perf_counter() < begun + seconds:
                if isinstance(self.state, HybridMonteCarloState) and self.state.tuned < WARM_UP:
                    self.sampler.warm_up(self.state, 1)
                    self.origin = self.state.weights.clone()  # its way here is not counted
                elif not self.every:
                    self.every = self._pace(seconds)
                else:
                    self._draw()
        except UnreachableSphereError as error:
            self.failure = str(error)
        self.spent += time.perf_counter() - begun
        self._save()

    def _pace(self, seconds: float) -> int:
        """Moves or trajectories that fill a share of a turn."""
        self._advance(1)  # fills caches
        begun, made = time.perf_counter(), 1
        self._advance(1)
        while time.perf_counter() - begun < seconds / DRAWS_A_TURN / 2 and made < 10_000:
            self._advance(made)
            made *= 2
        return max(1, made)

    def _advance(self, count: int) -> None:
        begun = time.perf_counter()
        if isinstance(self.state, HybridMonteCarloState):
            self.sampler.run(self.state, count)
            self.moves += count * self.trial.steps
        else:
            self.sampler.run(self.state, count)
            self.moves += count
        self.seconds += time.perf_counter() - begun

    def _draw(self) -> None:
        self._advance(self.every)
        weights = self.state.weights
        losses = self.potential.evaluate(weights.float())[0].numpy()
        distance = (weights.double() - self.origin).square().sum(1).numpy() / self.norm2
        self.losses = np.concatenate([self.losses, losses[:, None]], 1)
        self.distance = np.concatenate([self.distance, distance[:, None]], 1)
        self.made = np.append(self.made, float(self.moves))

    def _save(self) -> None:
        tensors = {
            "draws.losses": torch.from_numpy(self.losses),
            "draws.distance": torch.from_numpy(self.distance),
            "draws.made": torch.from_numpy(self.made),
            "draws.origin": self.origin,
            **self.state.tensors(),
        }
        header = {
            "kind": KIND,
            "fingerprint": self.fingerprint,
            "moves": self.moves,
            "seconds": self.seconds,
            "spent": self.spent,
            "failure": self.failure,
            "every": self.every,
        }
        write_archive(self.path, tensors, header)

    def _load(self) -> LangevinState | HybridMonteCarloState:
        tensors, header = read_archive(self.path, KIND)
        check_fingerprint(self.path, header["fingerprint"], self.fingerprint)
        self.losses = tensors.pop("draws.losses").numpy()
        self.distance = tensors.pop("draws.distance").numpy()
        self.made = tensors.pop("draws.made").numpy()
        self.origin = tensors.pop("draws.origin")
        self.moves, self.seconds = header["moves"], header["seconds"]
        self.failure, self.every = header["failure"], header["every"]
        self.spent = header["spent"]
        kind = HybridMonteCarloState if self.trial.steps else LangevinState
        return kind.from_tensors(tensors)
