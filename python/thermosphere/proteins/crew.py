"""The walkers of a tempering run, the threads that move them, and what they saw."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thermosphere.proteins.fixed_point import TOKEN, System, aligned, grid_energy, local_differences
from thermosphere.proteins.potts import PottsModel
from thermosphere.proteins.walker import (
    ACCEPTED,
    COUNTS,
    ENERGY,
    ENERGY_SQUARED,
    PROPOSALS,
    SUMS,
    TO_COLDER,
    TO_HOTTER,
    VISITS,
    Harvest,
    Ladder,
    Walker,
    walk,
)


def new_walker(
    model: PottsModel, system: System, tokens: NDArray[np.uint8], counter: NDArray[np.uint64]
) -> Walker:
    """A walker of R replicas at levels 0 … R - 1, nothing counted yet.

    tokens: (R, n).  counter: (1,), its place in the stream of random numbers.
    """
    replicas = len(tokens)
    differences = aligned((replicas, model.length * int(system.stride)))
    for replica, row in enumerate(tokens):
        differences[replica] = local_differences(model, system, row)
    return Walker(
        words=system.words | tokens,
        differences=differences,
        energies=np.array([grid_energy(model, system, row) for row in tokens], dtype=np.int64),
        counter=counter.copy(),
        levels=np.arange(replicas),
        ways=np.ones(replicas, dtype=np.int64),
        last_ends=np.zeros(replicas, dtype=np.int64),
        round_trips=np.zeros(replicas, dtype=np.int64),
        counts=np.zeros((COUNTS, replicas), dtype=np.int64),
        sums=np.zeros((SUMS, replicas)),
    )


class Crew:
    """The walkers and the threads that move them; what they find depends on no thread."""

    def __init__(
        self,
        model: PottsModel,
        system: System,
        walkers: list[Walker],
        pool: ThreadPoolExecutor,
    ) -> None:
        self.model = model
        self.system = system
        self.walkers = walkers
        self.pool = pool

    @property
    def sites(self) -> int:
        return int(self.walkers[0].words.shape[1])

    @property
    def replicas(self) -> int:
        """Replicas a walker: visits a cycle."""
        return len(self.walkers[0].levels)

    def clear(self, levels: int) -> None:
        """Forget visits and round trips."""
        self.walkers = [
            walker._replace(
                counts=np.zeros((COUNTS, levels), dtype=np.int64),
                sums=np.zeros((SUMS, levels)),
                last_ends=np.zeros_like(walker.last_ends),
                round_trips=np.zeros_like(walker.round_trips),
            )
            for walker in self.walkers
        ]

    def each(self, task: Callable[[int], None]) -> None:
        """Run task(index) for every walker, and raise the first error."""
        list(self.pool.map(task, range(len(self.walkers))))

    def run(self, ladder: Ladder, cycles: int) -> None:
        nothing = empty_harvest(len(ladder.betas), self.sites)
        self.each(lambda index: walk(self.system, self.walkers[index], ladder, cycles, nothing))

    def harvest(self, ladder: Ladder, harvests: list[Harvest], cycles: int) -> None:
        """Run cycles, fewer where a walker's harvest is full; one Harvest a walker."""
        self.each(
            lambda index: walk(self.system, self.walkers[index], ladder, cycles, harvests[index])
        )

    def tokens(self) -> NDArray[np.uint8]:
        """(walkers, R, n), where the replicas are."""
        return np.stack([(walker.words & TOKEN).astype(np.uint8) for walker in self.walkers])

    def check_energies(self) -> None:
        """Sum all energies anew. Raises: RuntimeError where one differs: a fault of the machine."""
        for walker, rows in zip(self.walkers, self.tokens(), strict=True):
            for kept, row in zip(walker.energies, rows, strict=True):
                anew = grid_energy(self.model, self.system, row)
                if kept != anew:
                    raise RuntimeError(
                        f"sample_sequences: a walker's energy is {kept * self.system.unit!r}, "
                        f"its sequence's {anew * self.system.unit!r}"
                    )

    def round_trips(self) -> int:
        """Of all replicas, since the last ``clear``."""
        return sum(int(walker.round_trips.sum()) for walker in self.walkers)

    def levels(self) -> Levels:
        """What all walkers saw since the last ``clear``."""
        counts = np.sum([walker.counts for walker in self.walkers], axis=0)  # (COUNTS, K)
        sums = np.sum([walker.sums for walker in self.walkers], axis=0)  # (SUMS, K)
        visits = np.maximum(counts[VISITS], 1)
        mean = sums[ENERGY] / visits
        deviation = np.sqrt(np.maximum(sums[ENERGY_SQUARED] / visits - mean**2, 0.0))
        acceptance = counts[ACCEPTED] / np.maximum(counts[PROPOSALS], 1)
        return Levels(counts, mean, deviation, acceptance)

    def log_ratios(self, ladder: Ladder) -> NDArray[np.float64]:
        """ln(Z_k+1 / Z_k), (K - 1,), by Bennett's ratio; NaN next to a level without visits."""
        counts = np.sum([walker.counts for walker in self.walkers], axis=0)
        sums = np.sum([walker.sums for walker in self.walkers], axis=0)
        return bennett_ratios(counts, sums, ladder)

    def log_ratio_errors(self, ladder: Ladder) -> NDArray[np.float64]:
        """Standard errors of ln(Z_k / Z_0), (K,), by the jackknife over walkers; NaN for one."""
        counts = np.array([walker.counts for walker in self.walkers])  # (W, COUNTS, K)
        sums = np.array([walker.sums for walker in self.walkers])
        walkers = len(self.walkers)
        if walkers == 1:
            return np.full(len(ladder.betas), np.nan)
        without = np.array(
            [
                np.cumsum(
                    bennett_ratios(
                        counts.sum(axis=0) - counts[w], sums.sum(axis=0) - sums[w], ladder
                    )
                )
                for w in range(walkers)
            ]
        )
        spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
        return np.append(0.0, np.sqrt(spread * (walkers - 1) / walkers))


def bennett_ratios(
    counts: NDArray[np.int64], sums: NDArray[np.float64], ladder: Ladder
) -> NDArray[np.float64]:
    """ln(Z_k+1 / Z_k), (K - 1,), from counts (COUNTS, K) and sums (SUMS, K)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        colder = np.log(sums[TO_COLDER] / counts[VISITS])[:-1]
        hotter = np.log(sums[TO_HOTTER] / counts[VISITS])[1:]
    return colder - hotter - np.diff(ladder.weights)


@dataclass(frozen=True)
class Levels:
    """Measured at each of K levels."""

    counts: NDArray[np.int64]  # (COUNTS, K)
    mean: NDArray[np.float64]  # (K,) ⟨E⟩
    deviation: NDArray[np.float64]  # (K,) σ_E
    acceptance: NDArray[np.float64]  # (K,) accepted share of the proposals


def empty_harvest(levels: int, sites: int) -> Harvest:
    """No level is recorded."""
    return Harvest(
        row=np.full(levels, -1, dtype=np.int64),
        tokens=np.zeros((0, 0, sites), dtype=np.uint8),
        filled=np.zeros(0, dtype=np.int64),
        spacing=1,
    )
