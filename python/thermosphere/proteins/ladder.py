"""The ladder of temperatures: built downward from the hot level, its weights learned.

Each new level stands at Δβ = spacing / σ_E of the coldest so far, so that neighbouring energy
histograms overlap, while the walkers roam the ladder built until then.  The weights are
g_{k+1} − g_k = −ln(Z_{k+1}/Z_k), by Bennett's ratio, from rounds that double in length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from thermosphere.proteins.crew import Crew, Levels
from thermosphere.proteins.walker import VISITS, Ladder

# Visits a level and walker in a round while the ladder grows, and in the rounds after that.
_GROWTH_VISITS = 50
_LEARNING_VISITS = tuple(400 << round for round in range(10))
# Visits, all walkers together, that the coldest level needs before the next is added, and the
# rounds they may take: at even visits two rounds of eight walkers do.
_VISITS_TO_EXTEND = 500
_ROUNDS_TO_EXTEND = 200
_MAXIMUM_LEVELS = 200
# After one round trip a walker the coldest level of 2ABD got three quarters of its even share.
_ROUND_TRIPS_TO_FREEZE = 10
# Fewer visits than this tell less of a level than what was known before.
_VISITS_TO_JUDGE = 100
# A visit is at most this many sweeps, however few moves are accepted.
_MAXIMUM_SWEEPS = 64
# Judging proposals in vectors pays where fewer than this share are accepted.
_MOST_ACCEPTED_TOGETHER = 0.17


def learn_ladder(
    crew: Crew, hot: float, target: float, spacing: float, visit: float, progress: bool
) -> Ladder:
    """The ladder from β = hot to β = target, with the weights and visits to freeze.

    Rounds with the whole ladder double in length until in one of them every level had at least half
    of its even share of the visits and the walkers made ten round trips each, on the average; the
    weights are then improved by that round and frozen.

    Raises: RuntimeError where the ladder does not reach the target, or no round is so even.
    """
    ladder = Ladder(
        np.array([hot]),
        np.zeros(1),
        np.array([crew.sites], dtype=np.int64),
        np.zeros(1, dtype=np.bool_),
    )
    with tqdm(desc="ladder", unit=" levels", disable=not progress) as bar:
        while True:
            bar.update(1)
            found = _roam(crew, ladder)
            ladder = _improve(crew, ladder, found, visit)
            if ladder.betas[-1] == target:
                break
            if len(ladder.betas) == _MAXIMUM_LEVELS:
                raise RuntimeError(
                    f"sample_sequences: {_MAXIMUM_LEVELS} levels reach only T = "
                    f"{1.0 / ladder.betas[-1]:.4g}; use a larger level_spacing"
                )
            ladder = _extend(ladder, found, target, spacing)
    levels = len(ladder.betas)
    rounds = tqdm(_LEARNING_VISITS, desc="weights", unit=" rounds", disable=not progress)
    share = trips = 0.0
    for visits in rounds:
        crew.clear(levels)
        crew.run(ladder, visits * levels)
        found = crew.levels()
        ladder = _improve(crew, ladder, found, visit)
        share = found.counts[VISITS].min() / found.counts[VISITS].mean()
        trips = crew.round_trips() / len(crew.walkers)
        if share >= 0.5 and trips >= _ROUND_TRIPS_TO_FREEZE:
            rounds.close()
            return ladder
    raise RuntimeError(
        f"sample_sequences: after {_LEARNING_VISITS[-1]} visits a level the rarest level has "
        f"{share:.2f} of its even share and a walker {trips:.1f} round trips; use a smaller "
        "level_spacing or a larger visit"
    )


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


def _improve(crew: Crew, ladder: Ladder, found: Levels, visit: float) -> Ladder:
    """Weights and visits by what was found; levels too rarely visited keep what they had.

    Walkers caught at one end of the ladder leave the other without visits for a while.
    """
    often = found.counts[VISITS] >= _VISITS_TO_JUDGE
    steps = np.where(often[:-1] & often[1:], -crew.log_ratios(ladder), np.diff(ladder.weights))
    together = found.acceptance < _MOST_ACCEPTED_TOGETHER
    return ladder._replace(
        weights=np.concatenate([[0.0], np.cumsum(steps)]),
        cycle=np.where(often, _cycle(found, visit, crew.sites), ladder.cycle),
        together=np.where(often, together, ladder.together),
    )


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
        np.append(ladder.together, ladder.together[-1]),
    )


def _cycle(found: Levels, visit: float, sites: int) -> NDArray[np.int64]:
    """Proposals a visit: as many as give ``visit`` accepted moves a site, times the refused share.

    Hot levels, where most is accepted, are crossed with few moves: a quarter more independent
    sequences of 2ABD a second than with equally many accepted ones everywhere.
    """
    with np.errstate(divide="ignore"):
        proposals = np.ceil(visit * sites * (1.0 / found.acceptance - 1.0))
    return np.clip(proposals, 1, _MAXIMUM_SWEEPS * sites).astype(np.int64)
