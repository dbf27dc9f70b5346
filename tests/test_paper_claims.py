"""Every verdict of every claim, on studies made to earn it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from synthetic_study import PEAK, RATIOS, ladder, study

from thermosphere.runs import claims_attention, claims_ladder, claims_weights
from thermosphere.runs.claims import Finding, measured, usable
from thermosphere.runs.claims_ladder import rise_factor
from thermosphere.runs.config import Config
from thermosphere.runs.config_reading import load_config
from thermosphere.runs.paper_claims import CLAIMS, findings
from thermosphere.runs.products_ladder import second_set_words

X = RATIOS
JUMP = np.where(X < 1, 0.2, 2.5) + 0.01 * np.log(X)
RISING = 0.5 + 0.02 * np.log(X)
FAR_ABOVE = 0.5 + 0.05 * np.log(X / 5) ** 2
FAR_BELOW = 0.5 + 0.05 * np.log(X / 0.3) ** 2
FLAT_C = {"loss_slope": 1e4 / (1 + 0.1 * np.log(X) ** 2)}
SHARP_C = {"loss_slope": 1e4 / (1 + 50 * np.log(X) ** 2)}
FALLING_P = 0.4 - 0.05 * np.log(X / 0.1) ** 2
ROUGH = {"error": 0.5}


def one(claim: Any, *studies: Any) -> Finding:
    """The single finding of a claim, or the first of those that share a verdict."""
    found = claim({each.name: each for each in studies}, Config())
    assert len({each.verdict for each in found}) == 1
    return found[0]


def table(**changes: Any) -> dict[str, Any]:
    return {"table": ladder(**changes)}


L, W, A = claims_ladder, claims_weights, claims_attention
BY_ONE: list[tuple[Any, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # claim, model, changes under which it agrees, disagrees, is undecided
    (L.shape_of_the_loss, "tf1", {}, table(train_loss=JUMP), table(**ROUGH)),
    (L.shape_of_the_loss, "ff", table(train_loss=JUMP), {}, table(train_loss=JUMP, **ROUGH)),
    (L.test_error_is_not_monotonic, "tf1", {}, table(test_error=RISING), table(**ROUGH)),
    (L.minimum_just_above_the_peak, "tf1", {}, table(test_error=FAR_BELOW), table(**ROUGH)),
    (L.minimum_just_above_the_peak, "ff", {}, table(test_error=FAR_BELOW), table(caveat="edge")),
    (
        L.minimum_just_above_the_peak,
        "tf1-small",
        table(peak={"peak_low": 0.85 * PEAK}),
        table(test_error=FAR_ABOVE, peak={"peak_low": math.nan}),
        table(peak={"peak_low": math.nan}),
    ),
    (L.gain_over_early_stopping, "tf1", {}, {"early": (0.45, 0.451, 0.452)}, {"early": (0.5, 0.6)}),
    (L.gain_over_early_stopping, "ff", {}, {"early": (0.7, 0.701, 0.702)}, {"early": (0.52,)}),
    (
        L.spread_of_early_stopping,
        "tf1",
        {"early": (0.50, 0.55, 0.60)},
        {"early": (0.5, 0.50001, 0.50002)},
        {"early": (0.5, 0.502, 0.504)},
    ),
    (
        W.norms_are_conserved,
        "tf1",
        {},
        {"likeness": (0.1, 0.15, 0.2)},
        {"likeness": (0.7, 0.9, 1.0)},
    ),
    (W.gains_fall_into_groups, "tf1", {}, {"away": 64}, table(counts=False)),
    (
        W.gains_fall_into_groups,
        "tf1-small",
        {"size": 26},
        {"size": 26, "away": 9},
        {"size": 26, **table(counts=False)},
    ),
    (W.effective_dimension_is_as_published, "tf1", {}, {"away": 40}, {"away": 64}),
    (
        A.attention_is_self_averaging,
        "tf1",
        {},
        {"alike": (0.3, 0.31, 0.32)},
        {"alike": (0.6, 0.9, 1.0)},
    ),
    (
        A.sampling_finds_more_contacts,
        "tf1",
        {},
        {"found": (0.7, 0.71, 0.72)},
        {"found": (0.1, 0.4, 0.9)},
    ),
    (
        A.contacts_are_best_above_the_minimum,
        "tf1",
        {},
        table(precision_at_l_tolerant=FALLING_P),
        table(**ROUGH),
    ),
]


@pytest.mark.parametrize(
    ("claim", "model", "changes", "verdict"),
    [
        (claim, model, changes, verdict)
        for claim, model, *cases in BY_ONE
        for verdict, changes in zip(("agrees", "disagrees", "undecided"), cases, strict=True)
    ],
)
def test_verdicts_about_one_model(
    claim: Any, model: str, changes: dict[str, Any], verdict: str
) -> None:
    found = one(claim, study(model, **changes))
    assert found.verdict == verdict
    assert found.subject == model
    assert bool(found.because) == (verdict != "agrees")
    assert found.numbers or verdict == "undecided"
    if verdict == "disagrees":
        assert "15 temperatures count" in found.because
        assert "a second set was not run" in found.because


@pytest.mark.parametrize(
    ("claim", "first", "second", "verdict"),
    [
        (L.small_models_keep_up, ("tf1-small", {}), ("tf1", {}), "agrees"),
        (
            L.small_models_keep_up,
            ("tf1-small", table(test_error=0.1 + ladder()["test_error"].values)),
            ("tf1", {}),
            "disagrees",
        ),
        (L.small_models_keep_up, ("tf1-small", table(**ROUGH)), ("tf1", {}), "undecided"),
        (L.peak_of_the_specific_heat, ("ff", table(**SHARP_C)), ("tf1", {}), "agrees"),
        (L.peak_of_the_specific_heat, ("ff", table(**FLAT_C)), ("tf1", {}), "disagrees"),
        (L.peak_of_the_specific_heat, ("ff", table(caveat="edge")), ("tf1", {}), "undecided"),
        (
            A.larger_models_find_more,
            ("tf1", {}),
            ("tf1-small", table(precision_at_l_tolerant=0.1)),
            "agrees",
        ),
        (
            A.larger_models_find_more,
            ("tf4", {}),
            ("tf4-small", table(precision_at_l_tolerant=0.6)),
            "disagrees",
        ),
        (A.larger_models_find_more, ("tf4", table(**ROUGH)), ("tf4-small", {}), "undecided"),
    ],
)
def test_verdicts_about_two_models(claim: Any, first: Any, second: Any, verdict: str) -> None:
    studies = {name: study(name, **changes) for name, changes in (first, second)}
    found = [each for each in claim(studies, Config()) if "this run has no" not in each.because]
    assert [each.verdict for each in found] == [verdict]


def test_nothing_equilibrated_decides_nothing() -> None:
    names = ("tf1", "tf4", "tf1-small", "tf4-small", "ff")
    studies = {name: study(name, **table(counts=False)) for name in names}
    found = findings(studies, Config())
    assert len(found) > 40
    assert {each.verdict for each in found} == {"undecided"}
    assert all("0 of 15" in each.because or "still falling" in each.because
               or "T* is in doubt" in each.because for each in found)  # fmt: skip


def test_temperatures_whose_chains_stand_still_apart_count_with_the_starts_as_draws() -> None:
    apart = ladder(counts=False).assign(
        stationary=("temperature", np.ones(X.size, np.bool_)),
        freedom=("temperature", np.full(X.size, 2.0)),
    )
    found = one(claims_ladder.test_error_is_not_monotonic, study(table=apart))
    assert found.verdict == "agrees"
    # Two degrees of freedom: an error at which four hundred would still decide.
    rough = apart.assign(test_error_error=("temperature", np.full(X.size, 0.025)))
    assert one(claims_ladder.test_error_is_not_monotonic, study(table=rough)).verdict != "agrees"
    many = rough.assign(freedom=("temperature", np.full(X.size, 399.0)))
    assert one(claims_ladder.test_error_is_not_monotonic, study(table=many)).verdict == "agrees"
    disagreeing = study(table=apart.assign(test_error=("temperature", RISING * np.ones(X.size))))
    found = one(claims_ladder.test_error_is_not_monotonic, disagreeing)
    assert found.verdict == "disagrees"
    assert "chains that stay apart" not in found.because  # R̂ is near 1: few draws, not apart
    disagreeing.table["r_hat"] = ("temperature", np.full(X.size, 1.5))
    found = one(claims_ladder.test_error_is_not_monotonic, disagreeing)
    assert "at 15 of them chains that stay apart" in found.because


def test_what_starts_share_drops_out_along_the_ladder_and_against_es() -> None:
    curve = 0.45 + 0.05 * np.log(X / 1.3) ** 2
    table = ladder(counts=False).assign(
        stationary=("temperature", np.ones(X.size, np.bool_)),
        freedom=("temperature", np.full(X.size, 2.0)),
        test_error=("temperature", curve),
        test_error_error=("temperature", np.full(X.size, 0.025)),
    )
    table.attrs["burn_in"] = 0.5
    starts = np.array([-0.04, 0.0, 0.04])  # of a start, at every temperature
    values = np.repeat((curve[:, None] + starts).ravel()[:, None], 40, axis=1)
    samples = xr.Dataset(
        {"test_error": (("chain", "draw"), values), "train_loss": (("chain", "draw"), values)},
        coords={
            "temperature": ("chain", np.repeat(table["temperature"].values, 3)),
            "start": ("chain", np.tile(np.arange(3), X.size)),
        },
    )
    known = replace(study(table=table, early=0.475 + starts), samples=samples)
    unknown = replace(known, samples=samples.drop_vars("start"))
    for claim in (
        claims_ladder.test_error_is_not_monotonic,
        claims_ladder.minimum_just_above_the_peak,
        claims_ladder.gain_over_early_stopping,
    ):
        assert one(claim, known).verdict == "agrees"
        assert one(claim, unknown).verdict == "undecided"


def test_temperatures_where_the_second_set_disagrees_do_not_count() -> None:
    first = ladder()
    second = ladder(train_loss=np.where(X < 1, 1.0, 0.0) + first["train_loss"].values)
    hysteretic = study(table=first, second=second)
    counted = (X >= 1).sum() - 1  # at the hottest the second set goes on where the first ended
    assert usable(hysteretic)["temperature"].size == counted
    words = second_set_words(hysteretic)
    assert "were compared at 14 temperatures" in words
    assert "They disagree at T = 5e-6 (by 1.000 ± 0.003), " in words
    falling = ladder()
    falling["equilibrated"][X < 1] = False  # chains that have not settled say nothing yet
    unsettled = study(table=first, second=falling)
    assert usable(unsettled)["temperature"].size == counted
    assert "has not settled at T = 5e-6 (+0.000), " in second_set_words(unsettled)
    falling["draws"][X < 1] = 0  # not run there
    assert usable(unsettled)["temperature"].size == counted
    assert "At 7 that settled no second set was run." in second_set_words(unsettled)
    agreeing = study(table=ladder(test_error=RISING), second=ladder(test_error=RISING))
    found = one(claims_ladder.test_error_is_not_monotonic, agreeing)
    assert "the two sets agree at all 14 temperatures" in found.because


def test_weights_that_still_wander_decide_nothing_about_weights() -> None:
    wandering = study(**table(note="the weights still move"))
    for claim in (
        claims_weights.norms_are_conserved,
        claims_weights.gains_fall_into_groups,
        claims_weights.effective_dimension_is_as_published,
        claims_attention.attention_is_self_averaging,
    ):
        found = one(claim, wandering)
        assert found.verdict == "undecided"
        assert found.because == "at 1.3 T* the weights still move"
    assert one(claims_ladder.shape_of_the_loss, wandering).verdict == "agrees"


WEIGHT_CLAIMS = (
    claims_weights.norms_are_conserved,
    claims_weights.gains_fall_into_groups,
    claims_weights.effective_dimension_is_as_published,
    claims_attention.attention_is_self_averaging,
)


def test_what_wandering_weights_of_different_starts_share_may_have_come_to_a_level() -> None:
    wandering = table(note="the weights still move")
    known = {"own_starts": True, "halves": (26, 26)}
    for claim in WEIGHT_CLAIMS:
        assert one(claim, study(**wandering, **known)).verdict == "agrees"
        # Chains that may share a start, or that were not looked at by halves, are not independent.
        assert one(claim, study(**wandering, halves=(26, 26))).verdict == "undecided"
        assert one(claim, study(**wandering, own_starts=True)).verdict == "undecided"
        moving = study(**wandering, own_starts=True, halves=(14, 64), motion=0.1)
        assert one(claim, moving).verdict == "undecided"
    found = one(WEIGHT_CLAIMS[2], study(**wandering, own_starts=True, halves=(14, 24)))
    assert found.because == "it still moves, from 14.0 to 24.0"
    # 20 of 26 published is too few by more than is allowed, unless it moves.
    for halves, verdict in (((20, 20), "disagrees"), ((18, 22), "undecided")):
        one_study = study(**wandering, own_starts=True, halves=halves, away=20)
        assert one(WEIGHT_CLAIMS[2], one_study).verdict == verdict
    ungrouped = study(**wandering, own_starts=True, halves=(26, 64))
    for claim in WEIGHT_CLAIMS[1:3]:
        assert "come or go" in one(claim, ungrouped).because
    # What weights on their way still move is part of the error, or the error is not known.
    for claim in (WEIGHT_CLAIMS[0], WEIGHT_CLAIMS[3]):
        unknown = study(**wandering, **known, motion=math.nan)
        assert one(claim, unknown).verdict == "undecided"
        assert one(claim, study(**known, motion=math.nan)).verdict == "agrees"  # at rest
    unsettled = study(**table(counts=False, note="the weights still move"), **known)
    assert "still falling" in one(WEIGHT_CLAIMS[0], unsettled).because


def test_every_layer_must_be_known_to_be_conserved() -> None:
    good = study()
    ensemble = good.ensembles[0]
    pairs = dict(ensemble.similarity["between chains"])
    pairs["blocks.0.norm1.bias"] = np.array([0.8, 0.99, 1.0])  # by their mean not the lowest
    pairs |= {vector: np.full(3, 0.92) for vector in pairs if vector.endswith("gain")}
    rough = replace(ensemble, similarity={"between chains": pairs})
    found = one(claims_weights.norms_are_conserved, replace(good, ensembles=(rough,)))
    assert found.verdict == "undecided"
    assert "norm1.bias" in found.because


def test_a_slope_that_is_not_positive_decides_nothing_and_stops_nothing() -> None:
    flat = ladder().assign(loss_slope=("temperature", np.where(X == 1, 1e4, -100.0)))
    studies = {"ff": study("ff", table=flat), "tf1": study("tf1")}
    (found,) = claims_ladder.peak_of_the_specific_heat(studies, Config())
    assert found.verdict == "undecided"
    assert "not known well enough to be positive" in found.because


def test_slopes_of_few_starts_have_few_degrees_of_freedom() -> None:
    """The same C and errors, known from 3 starts instead of 400 draws."""
    sharp = {"loss_slope": 1e4 / (1 + 3 * np.log(X) ** 2)}
    known = ladder(error=60.0, **sharp)
    few = known.assign(loss_slope_freedom=("temperature", np.full(X.size, 2.0)))
    claim = claims_ladder.peak_of_the_specific_heat
    verdicts = [
        claim({"ff": study("ff", table=table), "tf1": study("tf1")}, Config())[0].verdict
        for table in (known, few)
    ]
    assert verdicts == ["agrees", "undecided"]


def test_a_missing_model_is_named() -> None:
    found = one(claims_ladder.small_models_keep_up, study("tf4"))
    assert (found.verdict, found.because) == ("undecided", "this run has no tf4-small")


def test_the_training_that_differs_is_named() -> None:
    config = load_config("[training]\ndropout = 0.0\n[models.tf1]", where="here")
    changed = {"tf1": study("tf1", **table(test_error=RISING))}
    for settings, cause in (
        (config, "training that differs from the paper's, in dropout 0 (paper 0.1)"),
        (Config(), "other data: sequences of another random interaction matrix"),
    ):
        found = claims_ladder.test_error_is_not_monotonic(changed, settings)
        assert f"Likely cause: {cause}" in found[0].because


def test_the_rise_is_bounded_whatever_lies_between() -> None:
    def bounds(table: xr.Dataset) -> tuple[float, float]:
        return rise_factor(PEAK * X, measured(study(table=table), table, "train_loss"))

    low, high = bounds(ladder(train_loss=JUMP, error=1e-4))
    assert low == 1.0  # both quarters are crossed between 0.85 and 1
    assert high == pytest.approx(1 / 0.85)
    low, high = bounds(ladder(error=1e-4))
    exact = [0.25, 0.75]
    u = 3 * X / (1 + X)
    levels = [u[0] + share * (u[-1] - u[0]) for share in exact]
    crossing = [level / (3 - level) for level in levels]  # inverts 3 x/(1 + x)
    assert low < crossing[1] / crossing[0] < high


def test_all_claims_are_listed() -> None:
    public = {
        function
        for module in (claims_ladder, claims_weights, claims_attention)
        for name, function in vars(module).items()
        if callable(function) and getattr(function, "__annotations__", {}).get("return")
        == "list[Finding]"
    }  # fmt: skip
    assert public == set(CLAIMS)
