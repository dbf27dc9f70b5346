"""The choice of settings by measured mixing: what is measured, and what is chosen from it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from thermosphere.models.named import named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.proteins.dataset import make_data_set
from thermosphere.runs.calibration import (
    FULL_BATCH,
    PUBLISHED,
    TRIALS,
    _settled,
    calibrate,
    decorrelation,
    judge,
)
from thermosphere.runs.calibration_table import (
    calibration_text,
    read_settings,
    save_calibrations,
)
from thermosphere.runs.config import Sampling
from thermosphere.runs.pilots import calibrated
from thermosphere.runs.trials import Series, Trial, TrialRun
from thermosphere.sampling.options import LangevinOptions

FULL = Trial("full", "full batch", LangevinOptions(batch=None, m1=0.05, stiffness=1.0, modes=8))
SLOW = Trial("slow", "full batch, slow", LangevinOptions(batch=None, m1=0.4, stiffness=1.0))
MINI = Trial("mini", "mini-batches", LangevinOptions(t_ratio=1e-2))
HMC = Trial("hmc", "HMC", steps=3)


def series(  # type: ignore[no-untyped-def]
    mean=2.0, tau=100.0, *, draws=400, seconds=10.0, correlated=0.0, failure="", spread=0.01, seed=0
) -> Series:
    """Draws every 10 moves: losses about `mean`, an overlap that falls as exp(-moves/tau)."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((2, draws))
    for k in range(1, draws):
        noise[:, k] = correlated * noise[:, k - 1] + noise[:, k] * (1 - correlated**2) ** 0.5
    made = 10.0 * (1 + np.arange(draws))
    distance = 2 * (1 - np.exp(-made / tau)) * np.ones((2, 1))
    return Series(mean + spread * noise, distance, made, int(made[-1]), seconds, failure)


def test_the_time_to_lose_the_memory_of_w() -> None:
    moves, extrapolated = decorrelation(series(tau=123.0))
    assert moves == pytest.approx(123.0, rel=1e-3)
    assert not extrapolated
    moves, extrapolated = decorrelation(series(tau=1e5))
    assert moves == pytest.approx(1e5, rel=1e-6)
    assert extrapolated
    nothing = replace(series(), distance=np.zeros((2, 400)))
    assert decorrelation(nothing) == (math.inf, True)
    assert decorrelation(replace(series(), distance=np.zeros((2, 0)))) == (math.inf, True)


def test_the_fastest_unbiased_trial_is_chosen() -> None:
    results = [
        (PUBLISHED, series(tau=1e6)),
        (MINI, series(mean=2.05, tau=50.0)),  # fastest, but hot by a tenth of the excess
        (SLOW, series(tau=3000.0)),
        (FULL, series(mean=2.001, tau=100.0)),
        (HMC, series(tau=80.0, seed=1)),
    ]
    found = judge(1e-4, 1.5, results)
    assert found.chosen is FULL
    assert found.excess == pytest.approx(0.5, abs=0.002)
    assert found.gain(found.row("full")) == pytest.approx(1e4, rel=1e-3)
    assert found.row("mini").bias == pytest.approx(0.05, abs=0.003)
    assert math.isnan(found.row("hmc").bias)  # the reference itself
    assert found.settings() == {"batch": "all", "stiffness": 1.0, "modes": 8, "m1": 0.05}
    without_bias = [(trial, series(tau=50.0) if trial is MINI else s) for trial, s in results]
    chosen = judge(1e-4, 1.5, without_bias)
    assert chosen.chosen is MINI
    assert chosen.settings() == {"batch": 64, "t_ratio": 1e-2, "modes": 0, "m1": 0.1}
    # Nothing exact to hold mini-batches against: they are not trusted.
    assert judge(1e-4, 1.5, [r for r in without_bias if r[0] is not HMC]).chosen is FULL


def test_a_bias_counts_only_where_both_have_mixed() -> None:
    """Chains that stand apart differ from the reference by where they came from."""
    apart = series(mean=2.05, tau=100.0)
    apart = replace(apart, losses=apart.losses + np.array([[-0.1], [0.1]]))
    results = [(FULL, replace(apart, losses=apart.losses + 1.0)), (HMC, series(seed=1))]
    found = judge(1e-4, 1.5, results)
    assert found.chosen is FULL
    assert not found.row("full").judged
    with pytest.raises(ValueError, match=r"^calibrate: expected a pseudo-Langevin trial"):
        judge(1e-4, 1.5, [(FULL, series(mean=3.0, tau=100.0)), (HMC, series(seed=1))])
    with pytest.raises(ValueError, match=r"^calibrate: expected a pseudo-Langevin trial"):
        judge(
            1e-4, 1.5, [(MINI, apart), (HMC, series(seed=1))]
        )  # unmixed mini-batches: not trusted


def test_low_friction_is_slow_however_fast_the_weights_are() -> None:
    """U forgets in 1/m1² moves, 400 of FULL and 6 of SLOW, and a start needs three of them."""
    results = [(FULL, series(tau=50.0)), (SLOW, series(tau=1200.0))]
    assert judge(1e-4, 1.5, results).chosen is SLOW
    results = [(FULL, series(tau=50.0)), (SLOW, series(tau=1300.0))]
    assert judge(1e-4, 1.5, results).chosen is FULL


def test_what_cannot_be_chosen() -> None:
    failed = series(failure="sampler: chain 0 left the sphere's reach")
    with pytest.raises(ValueError, match=r"^calibrate: expected a pseudo-Langevin trial"):
        judge(1e-4, 1.5, [(FULL, failed), (PUBLISHED, series()), (HMC, series())])
    with pytest.raises(ValueError, match=r"^calibrate: no trial has enough draws"):
        judge(1e-4, 1.5, [(FULL, series(draws=4))])


def test_settings_are_written_and_read(tmp_path: Path) -> None:
    found = judge(
        1e-4, 1.5, [(PUBLISHED, series(tau=1e6)), (FULL, series()), (HMC, series(seed=1))]
    )
    save_calibrations([found, found], found, tmp_path, "tf1")
    assert read_settings(tmp_path / "calibration.toml") == found.settings()
    # What the settings say of the noise of mini-batches goes: the choice has none.
    for noise in (
        {"t_ratio": 1e-3, "t_ratio_max": 2e-3},
        {"variance_floor": 1e-8, "average_axis": 1},
    ):
        chosen = calibrated(Sampling(**noise), tmp_path / "calibration.toml")
        assert chosen.options() == FULL.options
    lines = (tmp_path / "calibration.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3
    assert lines[0].startswith("temperature,trial,milliseconds a move,moves,seconds,<U>")
    text = calibration_text(found, "tf1")
    assert "chosen: full batch" in text
    assert "nan%" not in text
    for bad in ("nothing = 1", "[sampling]\ndraws = 3"):
        (tmp_path / "calibration.toml").write_text(bad)
        with pytest.raises(ValueError, match=r"calibration\.toml: "):
            read_settings(tmp_path / "calibration.toml")


def problem() -> tuple[MaskedLanguagePotential, torch.Tensor]:
    tokens = np.random.default_rng(1).integers(0, 20, (60, 12)).astype(np.uint8)
    data = make_data_set(tokens, train=40, validation=10, test=10, rate=0.15, seed=0)
    model = named_model("tf1-small", length=12)
    weights = model.initial(2, torch.Generator().manual_seed(2))
    return MaskedLanguagePotential(model, data.train), weights


def begun(
    trial: Trial, folder: Path, potential: MaskedLanguagePotential, start: torch.Tensor, seed: int
) -> TrialRun:
    norm2 = float(start[0].double().square().sum())
    path, variance = folder / "trial.safetensors", torch.ones_like(start)
    return TrialRun(trial, path, potential, start, 1e-3, norm2, variance, 0.01, seed=seed)


@pytest.mark.parametrize("trial", [FULL, MINI, HMC, Trial("sghmc", "SGHMC", friction=0.01)])
def test_a_trial_goes_on_where_it_was(trial: Trial, tmp_path: Path) -> None:
    potential, start = problem()

    def run() -> TrialRun:
        return begun(trial, tmp_path, potential, start, 1)

    first = run()
    while not first.series().made.size:  # hybrid Monte Carlo tunes its step before
        first.turn(0.05)
    second = run()
    assert np.array_equal(second.series().losses, first.series().losses)
    assert torch.equal(second.state.weights, first.state.weights)
    second.turn(0.05)
    after = second.series()
    assert after.moves > first.series().moves
    assert after.losses.shape == after.distance.shape == (2, len(after.made))
    steps = np.diff(after.made)
    assert (steps == steps[0]).all()
    # From where the counted moves began: for hybrid Monte Carlo after its warm-up.
    assert torch.equal(second.origin, first.origin)
    assert torch.equal(second.origin, start.double()) == (trial.steps == 0)
    away = (second.state.weights.double() - second.origin).square().sum(1).numpy()
    np.testing.assert_allclose(after.distance[:, -1] * second.norm2, away, rtol=1e-6)
    start = start + 1e-3
    with pytest.raises(ValueError, match="checkpoint must be of the same run: start"):
        run()


def test_calibrate_runs_every_trial_and_adds_to_what_is_there(tmp_path: Path) -> None:
    potential, start = problem()
    turns: list[str] = []

    def go(seconds: float) -> object:
        return calibrate(
            tmp_path,
            potential,
            start,
            float(start[0].double().square().sum()),
            1e-3,
            0.5,
            settling=5,
            seconds=seconds,
            seed=3,
            turn=0.1,
            on_turn=lambda about, spent: turns.append(about),
        )

    found = go(0.3)
    assert set(turns) == {trial.about for trial in TRIALS}
    before = {row.trial.name: row.series.moves for row in found.rows}
    turns.clear()
    go(0.0)
    assert not turns
    again = go(0.5)
    more = [row.series.moves - before[row.trial.name] for row in again.rows]
    assert min(more) >= 0
    assert sum(count > 0 for count in more) > len(more) / 3  # the others had half a second before


def test_no_trial_replays_the_noise_that_made_its_start(tmp_path: Path) -> None:
    """Trials count their steps from 0, as what settled the start did, and have the same chains."""
    potential, start = problem()
    norm2 = float(start[0].double().square().sum())
    settled = _settled(tmp_path / "settled.safetensors", potential, start, norm2, 1e-3, 4, seed=3)
    trial = begun(Trial("full", "full batch", FULL_BATCH), tmp_path, potential, start, 3)
    trial.sampler.run(trial.state, 4)  # from where the other began
    assert not torch.equal(trial.state.weights, settled)
    moved = torch.stack([trial.state.weights - start, settled - start])[:, 0]
    assert abs(float(torch.corrcoef(moved)[0, 1])) < 0.5
