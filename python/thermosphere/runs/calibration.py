"""What makes a study fast: which gradients, which friction. Measured, one model at one temperature.

Every trial starts from the same weights, settled at the temperature, and they take turns, so that a
machine's moods hit all alike. What is measured is how long w takes to lose its memory,
w(0)·w(t)/Q = 1/e; where a trial did not get that far, from how far it did get. U is slower where
friction is low: only the thermostat changes U and kinetic energy together, and that takes 1/m1²
moves; a start far from equilibrium has lost its heat to a twentieth after three times that. The
sampler's settings are those of the pseudo-Langevin trial with the smallest sum of w's time and of
three of U's, in seconds, among those whose bias of ⟨U⟩ is within ``ALLOWED`` of ⟨U⟩ - U_min or not
seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from thermosphere.analysis import convergence
from thermosphere.analysis.bias import Average, average
from thermosphere.archive import digest, read_archive, write_archive
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.runs.trials import Series, Trial, TrialRun
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.stiffness import Curvature

SETTLED = "thermosphere settled weights"
HEAT_TIMES = 3.0
MIXED = 1.2  # R-hat
ALLOWED = 0.01  # bias, as a share of ⟨U⟩ - U_min
BURN_IN = 0.2
# How chains settle, and what the full-batch trials are variations of.
FULL_BATCH = LangevinOptions(batch=None, m1=0.1, modes=32)

# r = 5e-8 with the absolute floor and two gradients a move is arXiv 2603.29529's own setting.
PUBLISHED = Trial("published", "as published: r = 5e-8", LangevinOptions("paper", t_ratio=5e-8))
TRIALS = (
    PUBLISHED,
    Trial("minibatch_cap", "mini-batches, r = 1e-2", LangevinOptions(t_ratio=1e-2)),
    Trial("minibatch", "mini-batches, r = 2e-3", LangevinOptions(t_ratio=2e-3, m1=0.3)),
    Trial("sghmc", "SGHMC, mini-batches", friction=0.01),
    Trial("hmc_20", "HMC, 20 steps", steps=20),
    Trial("hmc_60", "HMC, 60 steps", steps=60),
    Trial("diagonal_10", "full batch, diagonal", replace(FULL_BATCH, modes=0)),
    Trial("full_20", "full batch, m1 = 0.2", replace(FULL_BATCH, m1=0.2)),
    Trial("full_10", "full batch, m1 = 0.1", FULL_BATCH),
    Trial("full_05", "full batch, m1 = 0.05", replace(FULL_BATCH, m1=0.05)),
    Trial("full_025", "full batch, m1 = 0.025", replace(FULL_BATCH, m1=0.025)),
)


@dataclass(frozen=True)
class Row:
    """One trial, judged. Times are of all its chains together, on this machine."""

    trial: Trial
    series: Series
    loss: Average | None  # None: too few draws
    decorrelation_moves: float  # until w(0)·w(t)/Q = 1/e
    extrapolated: bool  # whether it did not get that far
    bias: float  # of ⟨U⟩, against the exact reference; NaN without
    bias_error: float
    judged: bool  # whether both have mixed: else the difference says where they came from

    @property
    def decorrelation_seconds(self) -> float:
        return self.decorrelation_moves * self.series.seconds_a_move

    @property
    def effective_draws_a_second(self) -> float:
        """Of U."""
        if self.loss is None:
            return math.nan
        share = 1.0 - BURN_IN
        return self.loss.effective_draws / (self.series.seconds * share)

    @property
    def distance_draws_a_second(self) -> float:
        """Of |w - w_start|², effective; a walk that has not turned round has two or three."""
        kept = self.series.distance[:, int(BURN_IN * self.series.distance.shape[1]) :]
        if kept.shape[1] < convergence.MINIMUM_DRAWS:
            return math.nan
        size = convergence.effective_sample_size(kept)
        return size / (self.series.seconds * (1.0 - BURN_IN))


@dataclass(frozen=True)
class Calibration:
    """All trials of one model at one temperature, and what was chosen."""

    temperature: float
    excess: float  # ⟨U⟩ - U_min
    softness: float  # mean ω² over the largest, at the common start
    rows: tuple[Row, ...]
    chosen: Trial

    def step_bias(self, stiffness: float) -> float:
        """How much too high a full-batch step leaves ⟨U⟩ - U_min, as a share of it, to first order:
        the mean of ω² dt²/4 over the modes."""
        return 0.25 * stiffness**2 * self.softness

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.trial.name == name)

    def gain(self, row: Row) -> float:
        """How many times sooner than with the published settings w has lost its memory."""
        return self.row(PUBLISHED.name).decorrelation_seconds / row.decorrelation_seconds

    def settings(self) -> dict[str, float | int | str]:
        """Keys of [sampling] for the chosen trial."""
        options = self.chosen.options
        assert options is not None
        shared: dict[str, float | int | str] = {"m1": options.m1, "modes": options.modes}
        if options.batch is None:
            return {"batch": "all", "stiffness": options.stiffness, **shared}
        assert options.t_ratio is not None
        return {"batch": options.batch, "t_ratio": options.t_ratio, **shared}


def calibrate(
    directory: Path,
    potential: MaskedLanguagePotential,
    weights: torch.Tensor,  # (C, N) float32, ES weights
    norm2: float,
    temperature: float,
    lowest: float,
    *,
    settling: int,
    seconds: float,
    seed: int,
    trials: Sequence[Trial] = TRIALS,
    turn: float = 5.0,
    on_turn: Callable[[str, float], None] | None = None,
) -> Calibration:
    """Run every trial for about ``seconds`` and choose.

    settling: full-batch moves from the ES weights to the common start. lowest: U_min. All is kept
    in ``directory``, call by call: more seconds add to what is there, 0 judges it. on_turn(trial,
    seconds so far) is called before each turn. Raises ValueError where the directory holds trials
    of other settings.
    """
    start = _settled(
        directory / "settled.safetensors", potential, weights, norm2, temperature, settling, seed
    )
    diagonal = replace(FULL_BATCH, modes=0)
    sampler = Langevin(potential, [temperature] * len(start), seed=seed, options=diagonal)
    masses = sampler.init(start, norm2=norm2).masses  # of hybrid Monte Carlo: dt = 1 fits them
    softness = _softness(potential, start[:1], masses[:1], seed)
    runs = [
        TrialRun(
            trial,
            directory / f"{trial.name}.safetensors",
            potential,
            start,
            temperature,
            norm2,
            masses,
            FULL_BATCH.dt,
            seed=seed,
        )
        for trial in trials
    ]
    while True:
        behind = [run for run in runs if run.spent < seconds and not run.failure]
        if not behind:
            break
        for run in behind:
            if on_turn is not None:
                on_turn(run.trial.about, sum(min(r.spent, seconds) for r in runs))
            run.turn(min(turn, seconds))
    results = [(run.trial, run.series()) for run in runs]
    return judge(temperature, lowest, results, softness)


def judge(
    temperature: float,
    lowest: float,
    results: Sequence[tuple[Trial, Series]],
    softness: float = math.nan,
) -> Calibration:
    """The table of trials that have run, and the choice among them.

    The reference for the bias is hybrid Monte Carlo, the case with more effective draws. ValueError
    where no pseudo-Langevin trial can be chosen.
    """
    losses = [_average(series) for _, series in results]
    exact = [
        loss
        for (trial, _), loss in zip(results, losses, strict=True)
        if trial.exact and loss is not None
    ]
    reference = max(exact, key=lambda loss: loss.effective_draws, default=None)
    rows = []
    for (trial, series), loss in zip(results, losses, strict=True):
        moves, extrapolated = decorrelation(series)
        bias = error = math.nan
        if loss is not None and reference is not None and loss is not reference:
            bias = loss.mean - reference.mean
            error = math.hypot(loss.error, reference.error)
        mixed = [one is not None and one.r_hat <= MIXED for one in (loss, reference)]
        rows.append(Row(trial, series, loss, moves, extrapolated, bias, error, all(mixed)))
    known = [loss for loss in losses if loss is not None]
    if not known:
        raise ValueError("calibrate: no trial has enough draws to be judged; give it more seconds")
    excess = (reference or known[-1]).mean - lowest
    candidates = [row for row in rows if _eligible(row, excess)]
    if not candidates:
        raise ValueError(
            "calibrate: expected a pseudo-Langevin trial that moves and has no bias above "
            f"{ALLOWED:.0%}, got none; give it more seconds"
        )

    def cost(row: Row) -> float:  # seconds
        assert row.trial.options is not None
        moves = row.decorrelation_moves + HEAT_TIMES * row.trial.options.m1**-2
        return moves * row.series.seconds_a_move

    return Calibration(temperature, excess, softness, tuple(rows), min(candidates, key=cost).trial)


def decorrelation(series: Series) -> tuple[float, bool]:
    """Moves until w(0)·w(t)/Q has fallen to 1/e, and whether that is extrapolated.

    w(0)·w(t)/Q = 1 - |w(t) - w(0)|²/2Q on the sphere. Between draws by its logarithm; beyond the
    last one as exp(-t/τ) through it, which for a slow walk is its steady growth.
    """
    if not series.distance.shape[1]:
        return math.inf, True
    overlap = 1.0 - 0.5 * series.distance.mean(0)
    below = np.flatnonzero(overlap <= math.exp(-1.0))
    if not below.size:
        last = float(overlap[-1])
        return (float(series.made[-1]) / -math.log(last) if last < 1.0 else math.inf), True
    first = int(below[0])
    moves = np.concatenate([[0.0], series.made])
    logs = np.log(np.clip(np.concatenate([[1.0], overlap]), 1e-3, None))
    span = logs[first + 1] - logs[first]
    share = (-1.0 - logs[first]) / span
    return float(moves[first] + share * (moves[first + 1] - moves[first])), False


def _softness(
    potential: MaskedLanguagePotential, weights: torch.Tensor, masses: torch.Tensor, seed: int
) -> float:
    """Mean ω² of one chain over its largest."""
    same = torch.zeros(1, dtype=torch.int64)
    curvature = Curvature(potential, weights, seed=seed, step=0, chain_ids=same)
    _, diagonal = curvature.rows(masses)
    return float(diagonal.mean()) / float(curvature.largest(masses))


def _eligible(row: Row, excess: float) -> bool:
    options = row.trial.options
    if options is None or options.scheme == "paper" or row.series.failure:
        return False
    if not math.isfinite(row.decorrelation_seconds):
        return False
    if math.isnan(row.bias) or not row.judged:
        return options.batch is None  # nothing exact to hold it against: what cannot be far off
    return abs(row.bias) <= max(ALLOWED * excess, 2 * row.bias_error)


def _average(series: Series) -> Average | None:
    if series.losses.shape[1] < 2 * convergence.MINIMUM_DRAWS:
        return None
    return average(series.losses, burn_in=BURN_IN)


def _settled(
    path: Path,
    potential: MaskedLanguagePotential,
    weights: torch.Tensor,
    norm2: float,
    temperature: float,
    moves: int,
    seed: int,
) -> torch.Tensor:
    wanted = {
        "temperature": temperature,
        "moves": moves,
        "seed": seed,
        "start": digest(weights),
        "norm2": norm2,
    }
    if path.exists():
        tensors, header = read_archive(path, SETTLED)
        got = {key: header.get(key) for key in wanted}
        if got != wanted:
            raise ValueError(f"{path}: must be of {wanted}, got {got}")
        return tensors["weights"]
    # Trials count their steps from 0 too: by their own seed they would replay this noise.
    sampler = Langevin(potential, [temperature] * len(weights), seed=seed + 1, options=FULL_BATCH)
    state = sampler.init(weights, norm2=norm2)
    sampler.run(state, moves)
    write_archive(path, {"weights": state.weights}, {"kind": SETTLED, **wanted})
    return state.weights
