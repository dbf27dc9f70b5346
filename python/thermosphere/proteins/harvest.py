"""Filling every walker's quota of sequences, in rounds between which nothing runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from thermosphere.proteins.crew import Crew
from thermosphere.proteins.walker import Harvest, Ladder

# A harvest may take this many times the visits that evenly visited levels need.
_PATIENCE = 20
_ROUND = 30_000  # visits a walker between two looks at the clock: some 50 ms


def new_harvests(
    crew: Crew, ladder: Ladder, quotas: list[int], *, spacing: int, every: bool = False
) -> list[Harvest]:
    """An empty Harvest a walker: of the coldest level, or of every level with it as the last."""
    levels = len(ladder.betas)
    rows = np.arange(levels) if every else np.where(np.arange(levels) == levels - 1, 0, -1)
    recorded = int(rows[-1]) + 1
    return [
        Harvest(
            row=rows.astype(np.int64),
            tokens=np.zeros((recorded, quota, crew.sites), dtype=np.uint8),
            filled=np.zeros(recorded, dtype=np.int64),
            spacing=spacing,
        )
        for quota in quotas
    ]


def fill(
    crew: Crew,
    ladder: Ladder,
    harvests: list[Harvest],
    after_round: Callable[[], None] = lambda: None,
) -> None:
    """Run until every harvest is full; ``after_round`` is called while no walker runs.

    Raises: RuntimeError where a walker comes to its target far too rarely.
    """
    cycles = max(1, _ROUND // crew.replicas)
    quota = max(harvest.tokens.shape[1] for harvest in harvests)
    visits = max(quota, 100) * harvests[0].spacing * len(ladder.betas)
    patience = _PATIENCE * visits // crew.replicas
    spent = 0
    while not all(is_full(harvest) for harvest in harvests):
        if spent >= patience:
            found = min(int(harvest.filled.min()) for harvest in harvests)
            raise RuntimeError(
                f"sample_sequences: a walker found {found} of {quota} sequences in {spent} cycles; "
                "the weights are poor, use a larger visit"
            )
        crew.harvest(ladder, harvests, cycles)
        spent += cycles
        after_round()


def is_full(harvest: Harvest) -> bool:
    return bool(harvest.filled.min() == harvest.tokens.shape[1])
