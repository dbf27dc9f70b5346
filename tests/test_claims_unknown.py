"""Claims of the paper where something is not known: better values may lie elsewhere, chains share a
start, ends and errors are uncertain. Nothing is decided then that would be decided otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from synthetic_study import ladder, study
from test_paper_claims import FLAT_C, RISING, SHARP_C, X, one, table

from thermosphere.analysis.significance import Measured
from thermosphere.runs import claims_attention, claims_ladder, claims_weights
from thermosphere.runs.claims_ladder import rise_factor
from thermosphere.runs.config import Config


@pytest.mark.parametrize(
    ("claim", "curves", "gone", "because"),
    [
        (
            claims_ladder.gain_over_early_stopping,
            {"test_error": RISING + 0.2},
            X < 1,
            "a better value may lie below it, at temperatures that do not count",
        ),
        (
            claims_ladder.minimum_just_above_the_peak,
            {"test_error": RISING},
            X < 1,
            "may lie below it",
        ),
        (
            claims_attention.sampling_finds_more_contacts,
            {"precision_at_l_tolerant": 0.15 - 0.01 * RISING},
            X < 1,
            "may lie below it",
        ),
        (
            claims_attention.contacts_are_best_above_the_minimum,
            {},
            np.isin(X, (1.3, 1.6)),
            "the test error may be better at temperatures between that do not count",
        ),
    ],
)
def test_the_best_may_lie_where_temperatures_do_not_count(
    claim: Any, curves: dict[str, Any], gone: Any, because: str
) -> None:
    """With all of the ladder the verdict is clear; with part of it it is not."""
    whole = ladder(**curves)
    part = whole.assign(equilibrated=("temperature", ~gone))
    assert one(claim, study(table=whole)).verdict in ("agrees", "disagrees")
    for found in claim({"tf1": study(table=part)}, Config()):
        assert found.verdict == "undecided"
        assert because in found.because


def test_models_are_compared_where_the_better_of_either_is_known() -> None:
    part = np.isin(X, (0.7, 0.85, 1, 2.5, 3.5))  # not beside the least at 1.3
    gone = {"equilibrated": ("temperature", part)}
    claim = claims_ladder.small_models_keep_up
    near, far = ladder(), ladder(test_error=0.1 + ladder()["test_error"].values)
    for small, large, verdict in (
        (near, near, "agrees"),
        (near.assign(gone), near, "agrees"),
        (near, near.assign(gone), "undecided"),
        (far, near, "disagrees"),
        (far, near.assign(gone), "disagrees"),
        (far.assign(gone), near, "undecided"),
    ):
        found = one(claim, study("tf1-small", table=small), study("tf1", table=large))
        assert found.verdict == verdict


def test_chains_of_one_start_are_one_draw() -> None:
    """Two chains a start: pairs of the same start say nothing of the ensemble, and errors are those
    of the starts."""
    made = study(starts=2, likeness=(0.99, 0.7, 0.7), motion=0.0)
    drawn = made.samples.sizes["chain"]
    apart = made.samples.assign_coords(start=("chain", np.tile([0, 0, 1], drawn // 3)))
    found = one(claims_weights.norms_are_conserved, replace(made, samples=apart))
    assert found.verdict != "agrees"
    assert "0.99" not in found.numbers
    alone = made.samples.assign_coords(start=("chain", np.zeros(drawn, np.int64)))
    found = one(claims_weights.norms_are_conserved, replace(made, samples=alone))
    assert found.verdict == "undecided"
    assert "all chains began at the same weights" in found.because


def test_a_flat_end_decides_nothing() -> None:
    curve = np.concatenate([[0.3, 0.3005, 0.301], np.linspace(0.31, 0.8, X.size - 3)])
    rough = ladder(test_error=curve, error=0.05)
    assert one(claims_ladder.test_error_is_not_monotonic, study(table=rough)).verdict == "undecided"
    fine = ladder(test_error=curve, error=1e-5)
    assert one(claims_ladder.test_error_is_not_monotonic, study(table=fine)).verdict == "disagrees"


def test_every_transformer_must_be_known_to_peak_less_sharply() -> None:
    sharp, flat = table(**SHARP_C), table(**FLAT_C)
    vague = study("tf4", **flat)
    error = vague.table["loss_slope_error"] * 1e6
    vague = replace(vague, table=vague.table.assign(loss_slope_error=error))
    claim = claims_ladder.peak_of_the_specific_heat
    known = (study("ff", **sharp), study("tf1", **flat))
    assert one(claim, *known, study("tf4", **flat)).verdict == "agrees"
    assert one(claim, *known, vague).verdict == "undecided"


def test_a_wide_scatter_of_dimensions_agrees_with_nothing() -> None:
    made = study(away=40.0)
    spread = {name: replace(one, spread=8.0) for name, one in made.dimensions["samples"].items()}
    (ensemble,) = made.ensembles
    wide = replace(made, ensembles=(replace(ensemble, dimensions=spread),))
    found = one(claims_weights.effective_dimension_is_as_published, wide)
    assert found.verdict == "disagrees"


def test_where_the_second_set_waits_nothing_is_said_to_disagree() -> None:
    settled_there = study()
    second = settled_there.table.assign(
        equilibrated=("temperature", X != 1.3), stationary=("temperature", np.zeros(X.size, bool))
    )
    found = one(claims_weights.norms_are_conserved, study(second=second))
    assert found.verdict == "undecided"
    assert "the second set has not settled" in found.because


def test_the_rise_is_bounded_by_what_its_ends_may_be() -> None:
    """Were the last mean 0.8, half of the rise would lie from 0.2 to 0.6, maybe all at T = 2."""
    temperature = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    means, errors = (0.0, 0.26, 0.7, 0.8, 1.0), (0.0, 0.0, 0.0, 0.0, 0.1)

    def bounds(share: float, freedom: float) -> tuple[float, float]:
        loss = [Measured(m, share * e, freedom) for m, e in zip(means, errors, strict=True)]
        return rise_factor(temperature, loss)

    assert bounds(1.0, 400.0) == (1.0, 16.0)
    assert bounds(0.2, 400.0) == (2.0, 8.0)
    # Of two starts a standard error says six times less.
    assert bounds(0.2, 1.0) == (1.0, 16.0)
