"""The ladder of temperatures: built downward from the hot level, its weights learned.

Each new level stands at Δβ = spacing / σ_E of the coldest so far, so that neighbouring energy
histograms overlap, while the walkers roam the ladder built until then.  The weights are those of
thermodynamic integration, g_{k+1} − g_k = ∫⟨E⟩dβ = −ln(Z_{k+1}/Z_k), from rounds that double in
length.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from thermosphere.proteins.walker import (
    ACCEPTED,
    COUNTS,
    PROPOSALS,
    VISITS,
    Harvest,
    Ladder,
    System,
    Walker,
    walk,
)

# Visits a level and walker in a round while the ladder grows, and in the four rounds after that.
_GROWTH_VISITS = 50
_LEARNING_VISITS = (400, 800, 1600, 3200)
# Visits, all walkers together, that the coldest level needs before the next is added, and the
# rounds they may take: at even visits two rounds of eight walkers do.
_VISITS_TO_EXTEND = 500
_ROUNDS_TO_EXTEND = 200
_MAXIMUM_LEVELS = 200
# Fewer visits than this tell less of a level than what was known before.
_VISITS_TO_JUDGE = 100
# A visit is at most this many sweeps, however few moves are accepted.
_MAXIMUM_SWEEPS = 64


class Crew:
    """The walkers and the threads that move them; what they find depends on no thread."""

    def __init__(self, system: System, walkers: list[Walker], threads: int) -> None:
        self.system = system
        self.walkers = walkers
        self.pool = ThreadPoolExecutor(max_workers=min(threads, len(walkers)))

    def clear(self, levels: int) -> None:
        self.walkers = [
            walker._replace(
                counts=np.zeros((COUNTS, levels), dtype=np.int64), sums=np.zeros((2, levels))
            )
            for walker in self.walkers
        ]

    def each(self, task: Callable[[int], None]) -> None:
        """Run task(index) for every walker, and raise the first error."""
        list(self.pool.map(task, range(len(self.walkers))))

    def run(self, ladder: Ladder, cycles: int) -> None:
        nothing = _nothing(len(ladder.betas), len(self.walkers[0].tokens))
        self.each(lambda index: walk(self.system, self.walkers[index], ladder, cycles, nothing))

    def levels(self) -> Levels:
        """What all walkers saw since the last ``clear``."""
        counts = np.sum([walker.counts for walker in self.walkers], axis=0)  # (COUNTS, K)
        sums = np.sum([walker.sums for walker in self.walkers], axis=0)  # (2, K)
        visits = np.maximum(counts[VISITS], 1)
        mean = sums[0] / visits
        deviation = np.sqrt(np.maximum(sums[1] / visits - mean**2, 0.0))
        acceptance = counts[ACCEPTED] / np.maximum(counts[PROPOSALS], 1)
        return Levels(counts, mean, deviation, acceptance)


@dataclass(frozen=True)
class Levels:
    """Measured at each of K levels."""

    counts: NDArray[np.int64]  # (COUNTS, K)
    mean: NDArray[np.float64]  # (K,) ⟨E⟩
    deviation: NDArray[np.float64]  # (K,) σ_E
    acceptance: NDArray[np.float64]  # (K,) accepted share of the proposals

    def or_known(self, known: Levels | None) -> Levels:
        """The same, with what was known of levels too rarely visited since.

        Walkers caught at one end of the ladder leave the other without visits for a while.
        """
        if known is None:
            return self
        earlier = len(known.mean)
        often = self.counts[VISITS, :earlier] >= _VISITS_TO_JUDGE

        def merged(now: NDArray[np.float64], then: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.append(np.where(often, now[:earlier], then), now[earlier:])

        return Levels(
            self.counts,
            merged(self.mean, known.mean),
            merged(self.deviation, known.deviation),
            merged(self.acceptance, known.acceptance),
        )


def _nothing(levels: int, length: int) -> Harvest:
    return Harvest(
        row=np.full(levels, -1, dtype=np.int64),
        tokens=np.zeros((0, 0, length), dtype=np.uint8),
        filled=np.zeros(0, dtype=np.int64),
        spacing=1,
    )


def learn_ladder(
    crew: Crew, hot: float, target: float, spacing: float, visit: float, progress: bool
) -> Ladder:
    """The ladder from β = hot to β = target, with the weights and visits to freeze.

    Raises: RuntimeError where the ladder does not reach the target.
    """
    sites = len(crew.walkers[0].tokens)
    ladder = Ladder(np.array([hot]), np.zeros(1), np.array([sites], dtype=np.int64))
    known: Levels | None = None
    with tqdm(desc="ladder", unit=" levels", disable=not progress) as bar:
        while True:
            bar.update(1)
            known = _roam(crew, ladder).or_known(known)
            ladder = _improve(ladder, known, visit, sites)
            if ladder.betas[-1] == target:
                break
            if len(ladder.betas) == _MAXIMUM_LEVELS:
                raise RuntimeError(
                    f"sample_sequences: {_MAXIMUM_LEVELS} levels reach only T = "
                    f"{1.0 / ladder.betas[-1]:.4g}; use a larger level_spacing"
                )
            ladder = _extend(ladder, known, target, spacing)
    levels = len(ladder.betas)
    for visits in tqdm(_LEARNING_VISITS, desc="weights", unit=" rounds", disable=not progress):
        crew.clear(levels)
        crew.run(ladder, visits * levels)
        known = crew.levels().or_known(known)
        ladder = _improve(ladder, known, visit, sites)
    return ladder


def _roam(crew: Crew, ladder: Ladder) -> Levels:
    """Run until the coldest level is known well enough to place the next."""
    levels = len(ladder.betas)
    crew.clear(levels)
    for _ in range(_ROUNDS_TO_EXTEND):
        crew.run(ladder, _GROWTH_VISITS * levels)
        found = crew.levels()
        if found.counts[VISITS, -1] >= _VISITS_TO_EXTEND:
            return found
    raise RuntimeError(
        f"sample_sequences: the walkers do not reach T = {1.0 / ladder.betas[-1]:.4g}, "
        f"level {levels} of the ladder; use a smaller level_spacing or a larger visit"
    )


def _improve(ladder: Ladder, found: Levels, visit: float, sites: int) -> Ladder:
    return ladder._replace(weights=_integrate(ladder, found), cycle=_cycle(found, visit, sites))


def _extend(ladder: Ladder, found: Levels, target: float, spacing: float) -> Ladder:
    """One more level; d⟨E⟩/dβ = −σ² predicts its weight."""
    beta, deviation = ladder.betas[-1], found.deviation[-1]
    remaining = target - beta
    step = remaining if spacing >= deviation * remaining else spacing / deviation
    # A last step of a few per cent would be a level for nothing: share it with the step before.
    if step < remaining < 1.5 * step:
        step = 0.5 * remaining
    new = target if step == remaining else beta + step
    weight = ladder.weights[-1] + step * found.mean[-1] - 0.5 * (step * deviation) ** 2
    return Ladder(
        np.append(ladder.betas, new),
        np.append(ladder.weights, weight),
        np.append(ladder.cycle, ladder.cycle[-1]),
    )


def _integrate(ladder: Ladder, found: Levels) -> NDArray[np.float64]:
    """g by the trapezoid rule for ∫⟨E⟩dβ with its end correction (d⟨E⟩/dβ = −σ²): error O(Δβ⁵)."""
    step = np.diff(ladder.betas)
    trapezoid = 0.5 * step * (found.mean[:-1] + found.mean[1:])
    correction = step**2 / 12.0 * (found.deviation[1:] ** 2 - found.deviation[:-1] ** 2)
    return np.concatenate([[0.0], np.cumsum(trapezoid + correction)])


def _cycle(found: Levels, visit: float, sites: int) -> NDArray[np.int64]:
    """Proposals a visit: as many as give ``visit`` accepted moves a site at that level."""
    with np.errstate(divide="ignore"):
        proposals = np.ceil(visit * sites / found.acceptance)
    return np.clip(proposals, 1, _MAXIMUM_SWEEPS * sites).astype(np.int64)
