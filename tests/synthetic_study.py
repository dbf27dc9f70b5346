"""Studies with the curves, weights and attention one asks for: what claims are held against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from thermosphere.analysis.embedding import EffectiveDimension
from thermosphere.analysis.figures_ladder import Reference
from thermosphere.analysis.self_averaging import SelfAveraging
from thermosphere.analysis.similarity import pairs_of
from thermosphere.runs.study import Ensemble, ModelStudy
from thermosphere.runs.study_attention import BlockAttention

PEAK = 1e-4
RATIOS = np.array([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1, 1.15, 1.3, 1.6, 2, 2.5, 3.5, 5])
CHAINS, DRAWS = 3, 40
NORMS = ("norm1.gain", "norm1.bias", "norm2.gain", "norm2.bias")


def ladder(
    *,
    error: float = 0.002,
    counts: bool = True,
    caveat: str = "",
    note: str = "",
    peak: Mapping[str, float] | None = None,
    **curves: Any,
) -> xr.Dataset:
    """A table over temperature; curves: observable → its values at `RATIOS` (T/T*)."""
    shape = np.ones(RATIOS.size)
    values = {
        "train_loss": 3 * RATIOS / (1 + RATIOS),
        "loss_slope": 1e4 / (1 + np.log(RATIOS) ** 2),
        "validation_error": 0.5 + 0.05 * np.log(RATIOS / 1.3) ** 2,
        "test_error": 0.5 + 0.05 * np.log(RATIOS / 1.3) ** 2,
        "precision_at_l_tolerant": 0.4 - 0.02 * np.log(RATIOS / 3.5) ** 2,
        **curves,
    }
    table = xr.Dataset(coords={"temperature": PEAK * RATIOS})
    for name, curve in values.items():
        table[name] = ("temperature", curve * shape)
        scale = 10.0 if name == "loss_slope" else 1.0
        table[name + "_error"] = ("temperature", error * scale * shape)
        if name in ("train_loss", "test_error"):
            table[name + "_motion"] = ("temperature", 0.0 * shape)
            table[name + "_motion_error"] = ("temperature", error * shape)
    for name, value in (
        ("ess", 400.0), ("freedom", 399.0), ("r_hat", 1.0), ("chains", CHAINS), ("starts", CHAINS),
        ("draws", DRAWS),
    ):  # fmt: skip
        table[name] = ("temperature", value * shape)
    table["equilibrated"] = ("temperature", np.full(RATIOS.size, counts))
    table["stationary"] = ("temperature", np.zeros(RATIOS.size, np.bool_))
    table["reason"] = ("temperature", np.full(RATIOS.size, "" if counts else "still falling"))
    table["note"] = ("temperature", np.full(RATIOS.size, note))
    table.attrs = {
        "peak_temperature": PEAK,
        "peak_low": PEAK,
        "peak_high": PEAK,
        "peak_caveat": caveat,
        "burn_in": 0.5,
        **(peak or {}),
    }
    return table


def trained(label: str, test_error: Sequence[float], precision: Sequence[float]) -> Reference:
    return Reference(
        label,
        {
            "train_loss": np.zeros(len(test_error)),
            "test_error": np.asarray(test_error),
            "precision_at_l_tolerant": np.asarray(precision),
        },
    )


def dimension(size: int, count: float, spread: float = 0.5) -> EffectiveDimension:
    split = 0 < count < size
    return EffectiveDimension(
        size, count, spread, 0.5 if split else np.nan, 9.0 if split else 2.0, split
    )


def study(
    name: str = "tf1",
    *,
    table: xr.Dataset | None = None,
    second: xr.Dataset | None = None,
    early: Sequence[float] = (0.52, 0.525, 0.53),
    spread: float = 0.002,  # of the test error over draws
    found: Sequence[float] = (0.2, 0.21, 0.22),  # P̃@L of ES and OT runs
    likeness: Sequence[float] = (0.97, 0.98, 0.99),
    away: float = 26,
    size: int = 64,
    alike: Sequence[float] = (0.97, 0.98, 0.99),
    starts: int = CHAINS,
    motion: float = 0.0,  # of similarities and correlations, from half to half
    halves: Sequence[float] | None = None,  # away from zero, in either half
    own_starts: bool = False,  # every chain its own start, told in the samples
) -> ModelStudy:
    """A study that agrees with every claim about its model unless told otherwise."""
    table = ladder() if table is None else table
    temperature = table["temperature"].values
    typical = float(temperature[RATIOS == 1.3][0])
    vectors = [f"blocks.0.{norm}" for norm in NORMS]
    drawn = 1 + int(math.sqrt(2 * len(likeness)))  # a draw of each chain, all pairs of them
    assert drawn * (drawn - 1) // 2 == len(likeness) == len(alike)
    sampled = Ensemble(
        "samples",
        typical,
        CHAINS,
        tuple(range(drawn)),
        {"between chains": {vector: np.asarray(likeness) for vector in vectors}},
        {vector: np.zeros((1, size)) for vector in vectors},
        {vector: dimension(size, away) for vector in vectors},
        BlockAttention(
            np.zeros((1, 4, 4)),
            1,
            0,
            dict.fromkeys(range(starts), 0),
            SelfAveraging(np.zeros((1, 0)), np.asarray(alike), pairs_of(np.arange(drawn)), motion),
        ),
        motion=dict.fromkeys(vectors, motion),
        halves=tuple(
            {vector: dimension(size, count) for vector in vectors} for count in halves or ()
        ),
    )
    noise = np.random.default_rng(5).normal(size=(temperature.size * CHAINS, DRAWS))
    samples = xr.Dataset(
        {
            "train_loss": (("chain", "draw"), noise),
            "test_error": (("chain", "draw"), 0.5 + spread * noise),
        },
        coords={"temperature": ("chain", np.repeat(temperature, CHAINS))},
    )
    if own_starts:
        own = np.tile(np.arange(CHAINS), temperature.size)
        samples = samples.assign_coords(start=("chain", own))
    references = (trained("ES", early, found), trained("OT", early, found))
    return ModelStudy(name, 44245, samples, table, references, typical, (sampled,), 1, second)
