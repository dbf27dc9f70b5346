"""How many visits of the target level make two sequences independent: measured before a harvest.

Two normalised autocorrelations over visits t of the target by one walker: of the energy, and of
the overlap, C(t) = (q(t) − q∞) / (1 − q∞), with q(t) the mean share of equal sites of sequences t
visits apart and q∞ that of different walkers.  Integrated, τ = ½ + Σ_{t ≥ 1} C(t) up to the first
t ≥ 10τ (Sokal 1997), so that M visits are worth M / 2τ independent ones.  C has a fast part, within
a valley, and a slow one, the round trips: a window of 5τ misses half of the slow part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thermosphere.proteins.crew import Crew
from thermosphere.proteins.harvest import fill, new_harvests
from thermosphere.proteins.walker import Ladder

_WINDOW = 10.0
_FIRST_VISITS, _MOST_VISITS = 8_000, 128_000  # a walker; τ of 2ABD to 13 %
_INDEPENDENT = 100  # visits, in units of 2τ and all walkers together, that τ is read from
_STARTS = 4_000  # sequences that q(t) is averaged over, at each t


@dataclass(frozen=True)
class Decorrelation:
    """Measured at the target level, times in visits."""

    energy: float  # τ
    overlap: float  # τ
    independent_overlap: float  # q∞
    visits: int  # that a walker was watched for

    @property
    def spacing(self) -> int:
        """Visits from one harvest to the next: 2τ of the slower one, which one of them is worth."""
        return math.ceil(2.0 * max(self.energy, self.overlap))


def measure_decorrelation(crew: Crew, ladder: Ladder) -> Decorrelation:
    """Watch the walkers at the coldest level for as long as it takes to know both times.

    Raises: RuntimeError where that takes too long.
    """
    visits = _FIRST_VISITS
    while True:
        harvests = new_harvests(crew, ladder, [visits] * len(crew.walkers), spacing=1)
        fill(crew, ladder, harvests)
        tokens = np.stack([harvest.tokens[0] for harvest in harvests])  # (W, M, n)
        found = decorrelation(tokens, crew.model.energy(tokens), crew.model.states)
        if found is not None:
            return found
        if visits >= _MOST_VISITS:
            raise RuntimeError(
                f"sample_sequences: in {visits} visits of T = {1.0 / ladder.betas[-1]:.4g} a "
                "walker does not forget its sequence; give harvest_spacing, or a higher temperature"
            )
        visits *= 4


def decorrelation(
    tokens: NDArray[np.uint8], energies: NDArray[np.float64], states: int
) -> Decorrelation | None:
    """Both times, from tokens (W, M, n) and energies (W, M) of consecutive visits of W walkers.

    None where the series are too short for what they show.
    """
    walkers, visits, _ = tokens.shape
    independent = independent_overlap(tokens, states)
    centred = energies - energies.mean()
    variance = float((centred**2).mean())
    if variance == 0.0:
        return None
    stride = max(1, walkers * visits // _STARTS)

    def energy(lag: int) -> float:
        return float((centred[:, lag:] * centred[:, : visits - lag]).mean()) / variance

    def overlap(lag: int) -> float:
        later, earlier = tokens[:, lag::stride], tokens[:, : visits - lag : stride]
        return (float((later == earlier).mean()) - independent) / (1.0 - independent)

    times = []
    for correlation in (energy, overlap):
        time = integrated_time(correlation, visits // 4)
        if time is None or walkers * visits < _INDEPENDENT * 2.0 * time:
            return None
        times.append(time)
    return Decorrelation(times[0], times[1], independent, visits)


def integrated_time(correlation: Callable[[int], float], longest: int) -> float | None:
    """½ + Σ C(t) up to the first t ≥ 10τ; None where that is beyond ``longest``. At least ½."""
    time = 0.5
    for lag in range(1, longest + 1):
        time += correlation(lag)
        if lag >= _WINDOW * time:
            return max(time, 0.5)
    return None


def independent_overlap(tokens: NDArray[np.uint8], states: int) -> float:
    """Mean share of equal sites over all pairs of sequences of different walkers; (W, M, n) tokens.

    With one walker, over all pairs of its own.
    """
    walkers, _, sites = tokens.shape
    frequencies = np.stack(
        [(tokens == state).mean(axis=1) for state in range(states)], axis=-1
    )  # (W, n, q)
    total = (frequencies.sum(axis=0) ** 2).sum()
    own = (frequencies**2).sum()
    if walkers == 1:
        return float(own) / sites
    return float(total - own) / (walkers * (walkers - 1) * sites)
