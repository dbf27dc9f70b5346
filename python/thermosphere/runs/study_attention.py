"""Mean attention of many weight vectors as a contact predictor (Figs. 6, 7 and E7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from thermosphere.analysis.contacts import (
    best_block,
    mean_attention,
    precision_at_l_tolerant,
    random_precision_at_l,
)
from thermosphere.analysis.self_averaging import SelfAveraging, self_averaging
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import MaskedSequences
from thermosphere.runs.config import Analysis

Array = npt.NDArray[np.float64]

TOLERANCES = (1, 2, 3)  # of P̃@L, as in Fig. E7


@dataclass(frozen=True)
class BlockAttention:
    """Mean attention of one start, or of one run of training."""

    blocks: Array  # (L, n, n), averaged over the draws of `start`
    draws: int  # how many
    start: int
    best: Mapping[int, int]  # start → its best block, from 0; blocks may exchange roles
    alike: SelfAveraging  # how alike the maps of single draws are, of all starts

    @property
    def block(self) -> int:
        """Zero-based best block of `start`."""
        return self.best[self.start]

    @property
    def attention(self) -> Array:
        """(n, n) of that block."""
        return np.asarray(self.blocks[self.block])


def precision_rules(analysis: Analysis) -> dict[str, tuple[int, int]]:
    """Every precision that is computed: its variable → (least separation, tolerance)."""
    far = analysis.min_separation
    return {
        "precision_at_l": (1, 0),
        "precision_at_l_tolerant": (far, analysis.tolerance),
        **{f"precision_at_l_tolerance_{t}": (far, t) for t in TOLERANCES},
    }


def random_precisions(contacts: npt.NDArray[np.uint8], analysis: Analysis) -> dict[str, float]:
    """What a random ranking scores by each of `precision_rules`."""
    return {
        name: random_precision_at_l(
            contacts, shift=analysis.contact_shift, min_separation=separation, tolerance=tolerance
        )
        for name, (separation, tolerance) in precision_rules(analysis).items()
    }


class PrecisionOf:
    """P@L and P̃@L of weights, from the best block of each start by itself."""

    def __init__(
        self,
        model: Transformer,
        sequences: MaskedSequences,
        contacts: npt.NDArray[np.uint8],
        analysis: Analysis,
        progress: bool = False,
    ) -> None:
        self.model, self.sites, self.contacts = model, MaskedSites(sequences), contacts
        self.analysis, self.progress = analysis, progress

    def __call__(
        self,
        weights: torch.Tensor,
        starts: npt.NDArray[np.int64],
        late: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[dict[str, Array], BlockAttention]:
        """weights (K, N), starts (K,), late (K,) whether of the second half of its chain -> each of
        `precision_rules` (K,), and the attention of the first start."""
        maps = mean_attention(self.model, weights, self.sites, progress=self.progress)
        shift, far = self.analysis.contact_shift, self.analysis.min_separation
        precision = {name: np.empty(len(maps)) for name in precision_rules(self.analysis)}
        blocks: dict[int, int] = {}
        for start in np.unique(starts):
            rows = np.flatnonzero(starts == start)
            best = best_block(
                maps[rows],
                self.contacts,
                shift=shift,
                min_separation=far,
                tolerance=self.analysis.tolerance,
            )
            blocks[int(start)] = best.index
            precision["precision_at_l"][rows] = best.precision[:, best.index]
            precision["precision_at_l_tolerant"][rows] = best.precision_tolerant[:, best.index]
            for tolerance in TOLERANCES:
                precision[f"precision_at_l_tolerance_{tolerance}"][rows] = [
                    precision_at_l_tolerant(
                        one, self.contacts, shift=shift, min_separation=far, tolerance=tolerance
                    )
                    for one in maps[rows, best.index]
                ]
        first = int(starts[0])
        own = maps[starts == first]
        alike = self_averaging(maps, starts, blocks, late)
        return precision, BlockAttention(own.mean(axis=0), len(own), first, blocks, alike)
