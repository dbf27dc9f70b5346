"""Claims about losses and errors where two sets of chains lie on either side of the equilibrium, or
are still on their way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from synthetic_study import CHAINS, DRAWS, RATIOS, ladder, study, trained
from test_paper_claims import X, one

from thermosphere.analysis.significance import Measured
from thermosphere.runs import claims, claims_ladder
from thermosphere.runs.claims import bracketed, measured, usable
from thermosphere.runs.config import Config

HOTTEST = RATIOS[-1]


def column(table: xr.Dataset, name: str, values: Any) -> xr.Dataset:
    return table.assign({name: ("temperature", np.broadcast_to(values, X.shape).copy())})


def test_the_hull_of_two_intervals_holds_both_and_no_error_makes_it_smaller() -> None:
    narrow, wide = Measured(1.0, 0.01, 400.0, (0.9, 1.1)), Measured(2.0, 0.1, 2.0)
    for hull in (narrow.hull(wide), wide.hull(narrow)):
        assert hull.mean == 1.5
        assert hull.mean + hull.reach == pytest.approx(2.0 + wide.reach)
        assert hull.mean - hull.reach <= 1.0 - narrow.reach
        assert hull.starts == ()
    assert narrow.hull(narrow).reach == narrow.reach
    difference = narrow.hull(wide).minus(narrow)
    assert difference.slack == 0.5
    assert not difference.above(0.0)
    assert np.isnan(narrow.hull(Measured(2.0, np.nan, 2.0)).reach)


def test_two_sets_that_do_not_part_hold_the_equilibrium_between_them() -> None:
    first = ladder()
    above = column(ladder(), "train_loss", first["train_loss"].values + 0.2)
    above = column(column(above, "equilibrated", False), "train_loss_motion", -0.05)
    both = study(table=first, second=above)
    assert usable(both)["temperature"].size == 0
    rows = bracketed(both)
    assert rows["temperature"].size == X.size - 1
    for at, value in enumerate(measured(both, rows, "train_loss")):
        low, high = (float(table["train_loss"][at]) for table in (first, above))
        assert value.mean - value.reach < low
        assert high < value.mean + value.reach
        assert value.slack == pytest.approx(0.1)
    # The second set comes down towards the first; a first that comes down too has left it.
    assert bracketed(study(table=column(first, "train_loss_motion", 0.05), second=above)).sizes
    leaving = study(table=column(first, "train_loss_motion", -0.05), second=above)
    assert bracketed(leaving)["temperature"].size == 0
    rising = study(table=first, second=column(above, "train_loss_motion", 0.05))
    assert bracketed(rising)["temperature"].size == 0
    unknown = study(table=first, second=column(above, "train_loss_motion_error", np.nan))
    assert bracketed(unknown)["temperature"].size == 0
    # An observable that parts where the loss does not is not known there.
    parting = study(table=first, second=column(column(above, "test_error", 1.9),
                                              "test_error_motion", 0.05))  # fmt: skip
    values = measured(parting, bracketed(parting), "test_error")
    assert all(np.isnan(value.reach) for value in values)


def test_a_second_set_from_the_same_side_or_the_same_chains_is_no_test() -> None:
    first = ladder()
    settled_too = study(table=first, second=ladder())
    assert claims.tested(settled_too).tolist() == (HOTTEST > X).tolist()
    assert usable(settled_too)["temperature"].size == X.size - 1
    # ES weights at 2: chains at ⟨U⟩ below that came down, and a set from a hotter one did too.
    loss = first["train_loss"].values
    high = trained("ES", (0.52, 0.525, 0.53), (0.2, 0.21, 0.22))
    high.values["train_loss"][:] = 2.0
    same_side = replace(settled_too, references=(high, settled_too.references[1]))
    assert claims.tested(same_side).tolist() == ((loss >= 2.0) & (HOTTEST > X)).tolist()
    heated = same_side.second
    assert heated is not None
    heated.attrs["heated"] = first["temperature"].values[loss < 2.0].tolist()
    assert claims.tested(same_side).tolist() == (HOTTEST > X).tolist()
    assert not claims.tested(study()).any()


@pytest.mark.parametrize(
    ("gap", "verdict"), [(0.0, "agrees"), (0.03, "agrees"), (0.2, "undecided")]
)
def test_a_gap_between_the_sets_is_part_of_the_error(gap: float, verdict: str) -> None:
    curve = ladder()["test_error"].values
    second = column(ladder(), "test_error", curve + gap)
    found = one(claims_ladder.test_error_is_not_monotonic, study(second=second))
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("motion", "level", "verdict"),
    [(0.01, 0.0, "agrees"), (0.0, 0.0, "agrees"), (-0.05, 0.0, "undecided"),
     (0.01, -0.6, "undecided")],
)  # fmt: skip
def test_chains_on_their_way_bound_the_error_they_rise_to(
    motion: float, level: float, verdict: str
) -> None:
    """Below 1.3 T* no chain has settled."""
    cold = X < 1.3
    table = column(ladder(), "equilibrated", ~cold)
    table["test_error"] = ("temperature", table["test_error"].values + level * cold)
    table["test_error_motion"] = ("temperature", motion * cold)
    found = one(claims_ladder.test_error_is_not_monotonic, study(table=table))
    assert found.verdict == verdict
    assert ("monotone relaxation" in found.numbers) == (verdict == "agrees")
    # A second set there must say the same.
    lower = column(ladder(), "test_error", np.where(cold, 0.4, table["test_error"].values))
    found = one(claims_ladder.test_error_is_not_monotonic, study(table=table, second=lower))
    assert found.verdict == "undecided"


def test_a_gain_that_is_hardly_known_agrees_with_nothing() -> None:
    claim = claims_ladder.gain_over_early_stopping
    assert one(claim, study(early=(0.51, 0.53, 0.54))).verdict == "undecided"
    assert one(claim, study(early=(0.5245, 0.525, 0.5255))).verdict == "agrees"
    part = column(ladder(), "equilibrated", X != 1.6)  # next to the least
    found = one(claim, study(table=part, early=(0.5245, 0.525, 0.5255)))
    assert (found.verdict, "a better value may lie" in found.because) == ("undecided", True)
    assert claim({"tf1-small": study("tf1-small")}, Config()) == []  # the paper reports no gain


@pytest.mark.parametrize(
    ("early", "apart", "verdict"),
    [
        ((0.50, 0.55, 0.60), 0.0, "agrees"),
        ((0.50, 0.55, 0.60), 0.05, "undecided"),
        ((0.5, 0.50001, 0.50002), 0.05, "disagrees"),
    ],
)
def test_what_starts_differ_by_may_or_may_not_be_a_spread_of_the_ensemble(
    early: tuple[float, ...], apart: float, verdict: str
) -> None:
    made = study(early=early)
    starts = np.tile([-apart, 0.0, apart], X.size)[:, None] * np.ones(DRAWS)
    assert starts.shape == (CHAINS * X.size, DRAWS)
    moved = made.samples["test_error"] + xr.DataArray(starts, dims=("chain", "draw"))
    samples = made.samples.assign(test_error=moved)
    found = one(claims_ladder.spread_of_early_stopping, replace(made, samples=samples))
    assert found.verdict == verdict
    assert "0.0018 within chains" in found.numbers
