"""Averages, specific heat and equilibration of synthetic ladders with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

from thermosphere.analysis.specific_heat import Rise, StartMeans, peak_of, slope
from thermosphere.analysis.thermodynamics import (
    EquilibrationRule,
    kept_draws,
    settled,
    thermodynamics,
)

SEED = 7
NORM2 = 100.0


def gaussian_ladder(
    temperatures: list[float], *, chains: int = 2, draws: int = 400, heat: float = 500.0
) -> xr.Dataset:
    """Energies of `heat`·2 harmonic modes: ⟨U⟩ = 0.5 + heat·T, Var U = heat·T², so C = heat."""
    generator = np.random.default_rng(SEED)
    ladder = np.repeat(temperatures, chains)
    noise = generator.normal(size=(ladder.size, draws))
    for draw in range(1, draws):
        noise[:, draw] = 0.5 * noise[:, draw - 1] + math.sqrt(0.75) * noise[:, draw]
    loss = 0.5 + heat * ladder[:, None] + math.sqrt(heat) * ladder[:, None] * noise
    kinetic = ladder[:, None] * (1.0 + 0.01 * generator.normal(size=loss.shape))
    distance2 = NORM2 * (0.5 + 0.01 * generator.normal(size=loss.shape))
    return xr.Dataset(
        {
            "train_loss": (("chain", "draw"), loss),
            "test_error": (("chain", "draw"), 0.3 + 0.01 * noise),
            "distance2": (("chain", "draw"), distance2),
            "kinetic_temperature": (("chain", "draw"), kinetic),
        },
        coords={
            "temperature": ("chain", ladder),
            "start": ("chain", np.tile(np.arange(chains), len(temperatures))),
            "move": ("draw", 10 * np.arange(draws)),
        },
        attrs={"norm2": NORM2},
    )


LADDER = [1e-4, 2e-4, 4e-4, 8e-4]


def test_known_means_and_specific_heat() -> None:
    table = thermodynamics(gaussian_ladder(LADDER))
    assert table["temperature"].values.tolist() == LADDER
    z = (table["train_loss"] - 0.5 - 500.0 * table["temperature"]) / table["train_loss_error"]
    assert np.abs(z).max() < 4.0
    z = (table["specific_heat"] - 500.0) / table["specific_heat_error"]
    assert np.abs(z).max() < 4.0
    # 400 draws with an autocorrelation time of 3: the error of a variance is about √(2·3/400).
    relative = (table["specific_heat_error"] / table["specific_heat"]).values
    assert np.all((relative > 0.04) & (relative < 0.3))
    assert np.all(np.abs(table["kinetic_ratio"] - 1.0) < 5 * table["kinetic_ratio_error"])
    assert table["distance"].values == pytest.approx([0.5] * 4, abs=0.01)
    assert table["equilibrated"].values.all()
    assert (table["reason"].values == "").all()
    assert table["chains"].values.tolist() == [2] * 4
    assert table["draws"].values.tolist() == [200] * 4


def test_slope_equals_specific_heat_in_equilibrium() -> None:
    temperatures = np.geomspace(1e-4, 2e-4, 6).tolist()
    table = thermodynamics(gaussian_ladder(temperatures))
    # Curvature of U(ln T) biases a difference over the spacing h = 0.14 by about h²/6.
    bias = 500.0 * 0.14 * 0.05
    difference = np.abs(table["loss_slope"].values - 500.0)
    assert np.all(difference < 4 * table["loss_slope_error"].values + bias)


def test_slope_is_linear_with_propagated_errors() -> None:
    temperature = np.array([1.0, 2.0, 4.0, 8.0])
    logarithm, error = slope(temperature, 3.0 * np.log(temperature), np.full(4, 0.1))
    assert logarithm == pytest.approx(3.0 / temperature, rel=1e-12)
    square, _ = slope(temperature, np.log(temperature) ** 2, np.zeros(4))  # second order: exact
    assert square == pytest.approx(2.0 * np.log(temperature) / temperature, abs=1e-12)
    # Inner points: (m₊ − m₋)/(2 ln 2 T); ends: (−3 m₀ + 4 m₁ − m₂)/(2 ln 2 T).
    per_log = np.array([26**0.5, 2**0.5, 2**0.5, 26**0.5]) / (2.0 * math.log(2.0))
    assert error == pytest.approx(0.1 * per_log / temperature, rel=1e-12)


@pytest.mark.parametrize("ratio", [1.05, 1.2, 1.5])
def test_a_specific_heat_that_rises_or_falls_to_the_end_has_no_peak_inside(ratio: float) -> None:
    rungs = ratio ** np.arange(8.0)
    rising = peak_of(rise_of(rungs.tolist(), (rungs**1.5).tolist(), 1e-9))
    assert "upper end" in rising.caveat
    falling = peak_of(rise_of(rungs.tolist(), (rungs**0.5).tolist(), 1e-9))
    assert "lower end" in falling.caveat


def test_slope_skips_unknown_means() -> None:
    temperature = np.array([1.0, 2.0, 4.0])
    derivative, _ = slope(temperature, np.array([0.0, np.nan, 2.0]), np.full(3, 0.1))
    assert math.isnan(derivative[1])
    assert derivative[0] == pytest.approx(2.0 / math.log(4.0))
    alone, _ = slope(temperature, np.array([0.0, np.nan, np.nan]), np.full(3, 0.1))
    assert np.isnan(alone).all()


def test_planted_drift_is_found_and_named() -> None:
    samples = gaussian_ladder(LADDER)
    spread = samples["train_loss"][0].values.std()
    samples["train_loss"][:2] += 4.0 * spread * np.linspace(1.0, 0.0, 400)
    table = thermodynamics(samples)
    assert table["equilibrated"].values.tolist() == [False, True, True, True]
    assert table["drift"].values[0] < -3.0
    assert "still falling" in str(table["reason"].values[0])


def test_stationary_ladders_pass() -> None:
    # 40 temperatures in equilibrium with 200 kept draws: three standard deviations reject 0.3 %.
    table = thermodynamics(gaussian_ladder(np.geomspace(1e-5, 1e-2, 40).tolist()))
    assert table["equilibrated"].values.sum() >= 39


def test_disagreeing_chains_are_found() -> None:
    samples = gaussian_ladder(LADDER)
    samples["train_loss"][1] += 5.0 * samples["train_loss"][1].values.std()
    table = thermodynamics(samples)
    assert not table["equilibrated"].values[0]
    assert "disagree" in str(table["reason"].values[0])


def apart(distance: float = 5.0) -> xr.Dataset:
    """Three chains a temperature; at the first one they stay apart by so many deviations."""
    samples = gaussian_ladder(LADDER, chains=3)
    spread = samples["train_loss"][0].values.std()
    samples["train_loss"][:3] += distance * spread * np.array([[-1.0], [0.0], [2.0]])
    return samples


def test_chains_that_stand_still_apart_are_the_draws() -> None:
    samples = apart()
    table = thermodynamics(samples)
    assert table["equilibrated"].values.tolist() == [False, True, True, True]
    assert table["stationary"].values.tolist() == [True, False, False, False]
    assert settled(table).all()
    means = samples["train_loss"][:3, 200:].values.mean(1)
    assert float(table["train_loss"][0]) == pytest.approx(means.mean())
    halves = samples["train_loss"][:3, 200:].values.reshape(3, 2, 100).mean((0, 2))
    error = np.hypot(means.std(ddof=1) / 3**0.5, halves[1] - halves[0])
    assert float(table["train_loss_error"][0]) == pytest.approx(error)
    assert abs(halves[1] - halves[0]) < 0.05 * 500.0 * LADDER[0]  # what the rule allows
    assert table["freedom"].values[0] == 2
    assert float(table["freedom"][1]) == float(table["ess"][1]) - 1
    # The specific heat is that within a chain, not of the distance between them.
    z = (table["specific_heat"] - 500.0) / table["specific_heat_error"]
    assert np.abs(z).max() < 4.0
    assert table.attrs["peak_temperature"] in LADDER
    assert "settled" not in table.attrs["peak_caveat"]


def test_chains_of_one_start_are_one_draw() -> None:
    """Six chains in the three places of three starts: two of a place know it no better than one."""
    one = apart()
    both = xr.concat([one.isel(chain=slice(0, 3))] * 2, "chain")
    samples = both.assign_coords(start=("chain", [0, 1, 2, 0, 1, 2]))
    table = thermodynamics(samples)
    alone = thermodynamics(one.isel(chain=slice(0, 3)))
    assert table["stationary"].values.all()
    assert table["chains"].values.tolist() == [6]
    assert table["starts"].values.tolist() == [3]
    for name in ("train_loss", "train_loss_error", "freedom"):
        assert float(table[name][0]) == pytest.approx(float(alone[name][0]))
    # Without a start told every chain is one, and of a single start no error is known.
    untold = thermodynamics(both.drop_vars("start"))
    assert untold["freedom"].values.tolist() == [5]
    same = thermodynamics(both.assign_coords(start=("chain", np.zeros(6, np.int64))))
    assert same["freedom"].values.tolist() == [0]


@pytest.mark.parametrize("fault", ["all fall", "one falls", "one stopped", "at its start"])
def test_chains_apart_that_move_are_not_settled(fault: str) -> None:
    samples = apart()
    change = 500.0 * LADDER[0]  # of ⟨U⟩, as a change of T to 2 T would make
    if fault == "all fall":  # by 7.5 % of it from half to half of what is kept
        samples["train_loss"][:3] += 0.3 * change * np.linspace(1.0, 0.0, 400)
    elif fault == "one falls":
        samples["train_loss"][0] += 0.9 * change * np.linspace(1.0, 0.0, 400)
    elif fault == "one stopped":
        samples["train_loss"][1, 50:] = np.nan
    else:
        samples["distance2"][:3] = 0.002 * NORM2
    table = thermodynamics(samples)
    assert not table["equilibrated"].values[0]
    assert not table["stationary"].values[0]
    assert settled(table).tolist() == [False, True, True, True]
    if fault.endswith(("fall", "falls")):
        loose = thermodynamics(samples, rule=EquilibrationRule(max_motion=0.2))
        assert loose["stationary"].values[0]
        # A chain on its way to a level is no fluctuation.
        z = (loose["specific_heat"][0] - 500.0) / loose["specific_heat_error"][0]
        assert abs(float(z)) < 4.0


def test_a_fall_along_a_curve_is_no_heat() -> None:
    """Its variance would let a chain move as far as it does."""
    samples = apart()
    fall = 40.0 * 500.0 * LADDER[0] * np.exp(-np.linspace(0.0, 3.0, 400))
    samples["train_loss"][:3] += fall
    assert not thermodynamics(samples)["stationary"].values[0]


def test_chains_that_never_left_their_start_are_found() -> None:
    samples = gaussian_ladder(LADDER)
    samples["distance2"][:2] = 0.002 * NORM2
    table = thermodynamics(samples)
    assert "hardly left their start" in str(table["reason"].values[0])
    assert thermodynamics(samples, rule=EquilibrationRule(min_distance=0.0))["equilibrated"].all()


def test_frozen_loss_is_found() -> None:
    samples = gaussian_ladder(LADDER)
    samples["train_loss"][:2] = 0.25
    table = thermodynamics(samples)
    assert "never changed" in str(table["reason"].values[0])
    assert table["specific_heat"].values[0] == 0.0


def test_weights_that_wander_are_noted_but_do_not_spoil_the_loss() -> None:
    samples = gaussian_ladder(LADDER)
    samples["distance2"][:2] += NORM2 * np.linspace(0.0, 0.5, 400)
    table = thermodynamics(samples)
    assert table["equilibrated"].values[0]
    assert "still move away" in str(table["note"].values[0])
    assert str(table["note"].values[1]) == ""


def test_unwritten_draws_are_left_out() -> None:
    samples = gaussian_ladder(LADDER)
    full = thermodynamics(samples.isel(draw=slice(0, 300)))
    samples["train_loss"][:, 300:] = np.nan
    cut = thermodynamics(samples)
    assert cut["draws"].values.tolist() == [150] * 4
    assert cut["train_loss"].values.tolist() == full["train_loss"].values.tolist()


def test_a_chain_that_stopped_early_is_left_out_and_reported() -> None:
    samples = gaussian_ladder(LADDER)
    samples["train_loss"][1, 50:] = np.nan
    table = thermodynamics(samples)
    assert table["chains"].values.tolist() == [1, 2, 2, 2]
    assert "1 of 2 chains stopped early" in str(table["reason"].values[0])


def test_observables_measured_more_rarely_than_the_loss() -> None:
    samples = gaussian_ladder(LADDER)
    samples["test_error"][:, 1::2] = np.nan
    table = thermodynamics(samples)
    assert np.all(np.isfinite(table["test_error"].values))
    assert table["draws"].values.tolist() == [200] * 4


@pytest.mark.parametrize("draws", [0, 1, 3, 5, 12])
def test_few_draws_are_not_equilibrated_and_do_not_crash(draws: int) -> None:
    samples = gaussian_ladder(LADDER)
    for name in samples.data_vars:
        samples[name][:, draws:] = np.nan
    table = thermodynamics(samples)
    assert not table["equilibrated"].values.any()
    assert all("too few" in str(reason) for reason in table["reason"].values)
    if draws == 0:
        assert math.isnan(table.attrs["peak_temperature"])


def test_one_chain_and_one_temperature() -> None:
    table = thermodynamics(gaussian_ladder([1e-4], chains=1))
    assert table["equilibrated"].values.all()
    assert np.isnan(table["loss_slope"].values).all()
    assert table.attrs["peak_temperature"] == 1e-4
    assert "only 1 temperature" in table.attrs["peak_caveat"]


def test_automatic_burn_in_keeps_more_of_a_stationary_run() -> None:
    samples = gaussian_ladder(LADDER)
    assert thermodynamics(samples, burn_in="auto")["draws"].values.mean() > 250


def rise_of(temperature: list[float], mean: list[float], error: float) -> Rise:
    count = len(temperature)
    return Rise(np.array(temperature), np.array(mean), np.full(count, error), np.full(count, 399.0))


STEP = [1.0, 2.0, 3.0, 6.0, 7.0, 8.0]  # in U, along even temperatures: steepest from 3 to 6


def test_the_peak_is_where_the_loss_rises_most() -> None:
    rungs = np.exp(0.1 * np.arange(6)).tolist()
    found = peak_of(rise_of(rungs, STEP, 1e-3))
    assert found.temperature == rungs[2]  # beside the step, where T is smaller: d/dT = (d/d ln T)/T
    assert (found.low, found.high) == (rungs[2], rungs[2])
    assert found.caveat == ""
    rough = peak_of(rise_of(rungs, STEP, 1.0))
    assert rough.temperature == rungs[2]
    assert math.isnan(rough.low)
    assert math.isnan(rough.high)
    assert "anywhere" in rough.caveat
    bumps, even = [0.0, 0.1, 2.5, 2.6, 2.7, 6.0, 6.1, 6.2], np.exp(0.1 * np.arange(8))
    twice = peak_of(rise_of(even.tolist(), bumps, 0.15))
    assert twice.temperature == even[4]
    assert twice.low in even[1:3]  # across the dip between two maxima
    rising = peak_of(rise_of(rungs, np.exp(np.arange(6.0)).tolist(), 1e-3))
    assert "upper end" in rising.caveat
    assert math.isnan(rising.high)
    assert "lower end" in peak_of(rise_of(rungs, (-np.exp(-np.arange(6.0))).tolist(), 1e-3)).caveat
    single = peak_of(rise_of([1.0], [1.0], 0.1))
    assert single.temperature == 1.0
    assert single.caveat == "only 1 temperature(s) to choose from"


def test_a_difference_of_slopes_counts_the_loss_both_hang_on_once() -> None:
    """Neighbouring slopes share a ⟨U⟩: the error of their difference, by drawing."""
    rungs, mean = np.array([1.0, 1.1, 1.3, 1.6, 2.0]), np.array([0.0, 1.0, 1.8, 2.0, 2.1])
    rise = rise_of(rungs.tolist(), mean.tolist(), 0.1)
    drawn = mean + 0.1 * np.random.default_rng(1).normal(size=(20_000, 5))
    slopes = np.array([slope(rungs, one, np.zeros(5))[0] for one in drawn])
    for first, second in ((1, 2), (0, 4), (2, 3)):
        found = rise.difference(first, second)
        each = slopes[:, first] - slopes[:, second]
        assert found.error == pytest.approx(each.std(), rel=0.03)
        assert found.mean == pytest.approx(each.mean(), abs=4 * each.std() / 20_000**0.5)
    assert rise.at(1).error == pytest.approx(slopes[:, 1].std(), rel=0.03)


def test_what_sets_starts_apart_drops_out_of_the_slope() -> None:
    rungs = np.geomspace(1.0, 2.0, 6)
    curve = np.tanh(4 * (rungs - 1.4))
    apart = np.array([-5.0, 0.0, 7.0])

    def at(index: int) -> StartMeans:
        own = curve[index] + apart
        return StartMeans((0, 1, 2), own, own, own)

    means = [at(index) for index in range(6)]
    errors, freedom = np.full(6, 3.5), np.full(6, 2.0)
    together = Rise(rungs, curve + apart.mean(), errors, freedom, means)
    alone, _ = slope(rungs, curve, np.zeros(6))
    assert [together.at(k).mean for k in range(6)] == pytest.approx(alone)
    assert max(together.at(k).error for k in range(6)) < 1e-12
    assert together.at(0).freedom == 2.0
    found = peak_of(together)
    assert found.temperature == found.low == found.high == rungs[int(np.argmax(alone))]
    # What starts still move in common is part of the error, although they all move alike.
    moving = [StartMeans(one.starts, one.whole, one.early, one.late + 0.3 * k) for k, one in
              enumerate(means)]  # fmt: skip
    moved = Rise(rungs, curve + apart.mean(), errors, freedom, moving)
    expected, _ = slope(rungs, 0.3 * np.arange(6.0), np.zeros(6))
    assert [moved.at(k).error for k in range(6)] == pytest.approx(np.abs(expected))


def test_the_peak_ignores_what_has_not_settled() -> None:
    rungs = np.geomspace(1e-4, 8e-4, 7)
    samples = gaussian_ladder(rungs.tolist())
    slow = samples["train_loss"].values[:2].std()
    samples["train_loss"][:2] -= 40 * slow * np.linspace(0.0, 1.0, 400)  # the coldest falls: steep
    table = thermodynamics(samples)
    assert not table["equilibrated"].values[0]
    assert table.attrs["peak_temperature"] > rungs[0]
    assert math.isnan(table["loss_slope"].values[0])
    for index in range(len(samples["chain"])):
        samples["train_loss"][index] -= 40 * slow * np.linspace(0.0, 1.0, 400)
    table = thermodynamics(samples)
    assert not settled(table).any()
    assert "no temperature settled" in table.attrs["peak_caveat"]


def test_slopes_of_chains_apart_are_those_of_their_starts() -> None:
    rungs = np.geomspace(1e-4, 2e-4, 6).tolist()
    samples = gaussian_ladder(rungs, chains=3)
    spread = samples["train_loss"][0].values.std()
    samples["train_loss"] += 5 * spread * np.tile([-1.0, 0.0, 2.0], 6)[:, None]
    table = thermodynamics(samples)
    assert table["stationary"].values.all()
    bias = 500.0 * 0.14 * 0.05
    difference = np.abs(table["loss_slope"].values - 500.0)
    assert np.all(difference < 6 * table["loss_slope_error"].values + bias)
    assert (table["loss_slope_freedom"].values == 2.0).all()
    _, naive = slope(np.array(rungs), table["train_loss"].values, table["train_loss_error"].values)
    assert np.all(table["loss_slope_error"].values < 0.3 * naive)
    unknown = thermodynamics(samples.drop_vars("start"))
    assert unknown["loss_slope_error"].values == pytest.approx(naive)


def test_kept_draws_index_the_samples() -> None:
    kept = kept_draws(gaussian_ladder(LADDER), 2e-4, burn_in=0.25)
    assert kept.chains.tolist() == [2, 3]
    assert kept.draws.tolist() == list(range(100, 400))
    assert kept.dropped_chains == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"burn_in": 1.0}, r"burn_in must be in \[0, 1\)"),
        ({"burn_in": "some"}, r"burn_in must be in \[0, 1\)"),
        ({"temperature": 3e-4}, "no chain has temperature 0.0003"),
    ],
)
def test_kept_draws_refuses_bad_input(change: dict, message: str) -> None:
    arguments = {"temperature": 1e-4, "burn_in": 0.5} | change
    with pytest.raises(ValueError, match=message):
        kept_draws(gaussian_ladder(LADDER), **arguments)


def test_missing_loss_and_negative_temperature_are_refused() -> None:
    samples = gaussian_ladder(LADDER)
    with pytest.raises(ValueError, match="samples must hold 'train_loss'"):
        thermodynamics(samples.drop_vars("train_loss"))
    with pytest.raises(ValueError, match="temperature must be positive"):
        thermodynamics(samples.assign_coords(temperature=-samples["temperature"]))
