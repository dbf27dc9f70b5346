"""What a claim of the paper comes to in a run: a verdict, the numbers that gave it, and why.

A temperature counts when it equilibrated, or when its chains stand still although they stay apart
(then their starts are the independent draws), and, of a model with a second set, that one, which
came from a neighbouring temperature on the other side of ⟨U⟩ than ES weights, settled there too and
agrees (`usable`).  Of losses and errors less is asked: where neither set moves away from the other,
the equilibrium lies between the two, if both relax towards it, and the interval of the temperature
is the hull of theirs (`bracketed`).  A claim agrees or disagrees when the 95 % interval of what
decides it says so; all else is undecided.  The least or largest of a curve may lie where
temperatures do not count: what would be otherwise then is undecided too (`Open`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import xarray as xr

from thermosphere.analysis.hysteresis import hysteresis
from thermosphere.analysis.significance import Measured
from thermosphere.analysis.thermodynamics import (
    EquilibrationRule,
    kept_draws,
    means_of_starts,
    moved,
    settled,
    start_of_chains,
)
from thermosphere.runs.config import Config
from thermosphere.runs.config_reading import load_config, preset_text
from thermosphere.runs.report_tables import format_temperature, with_error
from thermosphere.runs.study import ModelStudy

Verdict = Literal["agrees", "disagrees", "undecided"]
Studies = Mapping[str, ModelStudy]


@dataclass(frozen=True)
class Finding:
    """One claim, held against one model or several."""

    product: str  # key of the figure it belongs to
    subject: str  # the model, or the models compared
    claim: str  # what the paper reports of it
    verdict: Verdict
    numbers: str  # with errors; empty where there are none
    because: str = ""  # undecided: why.  disagrees: the check that was made and the likely cause


def usable(study: ModelStudy) -> xr.Dataset:
    """The rows of the study's table that count: settled, and where there is a second set it is a
    test there, has settled too and agrees."""
    counts = settled(study.table)
    if study.second is not None:
        compared = two_sets(study, study.second)
        agreeing = compared["temperature"].values[compared["agree"].values]
        counts &= np.isin(study.table["temperature"].values, agreeing)
    rows: xr.Dataset = study.table.isel(temperature=np.flatnonzero(counts))
    return rows


def two_sets(study: ModelStudy, second: xr.Dataset) -> xr.Dataset:
    """The sets compared (`hysteresis`) at the temperatures where the second is a test."""
    compared = hysteresis(study.table, second)
    tests = study.table["temperature"].values[tested(study)]
    kept = np.flatnonzero(np.isin(compared["temperature"].values, tests))
    found: xr.Dataset = compared.isel(temperature=kept)
    return found


def bracketed(study: ModelStudy, name: str = "train_loss") -> xr.Dataset:
    """The rows between whose two sets ⟨U⟩, and this observable, must lie: neither set moves away
    from the other. Without a second set those that are `usable`. What `measured` says of these rows
    holds both sets."""
    if study.second is None:
        return usable(study)
    counts = tested(study) & _between(study, "train_loss") & _between(study, name)
    rows: xr.Dataset = study.table.isel(temperature=np.flatnonzero(counts))
    return rows


def tested(study: ModelStudy) -> npt.NDArray[np.bool_]:
    """(temperatures,): whether a second set was run there that could have disagreed. It must come
    from the other side of ⟨U⟩ than ES weights do, and be no continuation of the first set, as it is
    at the temperature where the walk down begins, the hottest."""
    temperature = study.table["temperature"].values
    if study.second is None:
        return np.zeros(temperature.size, dtype=np.bool_)
    early = next((one for one in study.references if one.label == "ES"), None)
    reference = math.nan if early is None else float(np.asarray(early.values["train_loss"]).mean())
    heated = np.isin(temperature, np.asarray(study.second.attrs.get("heated", []), np.float64))
    other_side = heated == (study.table["train_loss"].values < reference)
    begins = (temperature == temperature.max()) & ~heated
    run: npt.NDArray[np.bool_] = study.second["draws"].values > 0
    return run & other_side & ~begins


def _between(study: ModelStudy, name: str) -> npt.NDArray[np.bool_]:
    """(temperatures,): whether neither set moves away from the other, from the first half of its
    draws to the second, as far as the 95 % intervals over the starts tell."""
    assert study.second is not None
    if name not in study.second or name + "_motion" not in study.second:
        return np.zeros(study.table.sizes["temperature"], dtype=np.bool_)
    gap = study.second[name].values - study.table[name].values
    return ~(_moves(study.table, name, -gap) | _moves(study.second, name, gap) | np.isnan(gap))


def _moves(table: xr.Dataset, name: str, sense: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(temperatures,): whether the observable moves in this sense, or that is not known."""
    columns = (table[one].values for one in (name + "_motion", name + "_motion_error", "starts"))
    found = [Measured(m, e, n - 1.0) for m, e, n in zip(*columns, strict=True)]
    return np.array(
        [
            math.isnan(one.reach) or (one.above(0.0) if up > 0 else one.below(0.0))
            for one, up in zip(found, sense, strict=True)
        ]
    )


def second_moves(second: xr.Dataset) -> npt.NDArray[np.bool_]:
    """(temperatures,): whether the second set was run there, and has not settled."""
    found: npt.NDArray[np.bool_] = (second["draws"].values > 0) & ~settled(second)
    return found


def measured(study: ModelStudy, rows: xr.Dataset, name: str) -> list[Measured]:
    """An observable at each temperature of the rows; freedom from ESS, or from the starts where the
    error is that of their means (precisions, and where chains stay apart: then start by start), or
    the slope's own. Where the second set has it too and is a test: the hull of both, not known
    where one of the two moves away from the other."""
    first = _of_table(rows, name)
    apart = ~rows["equilibrated"].values
    temperature = rows["temperature"].values
    found = [
        Measured(*one, *(_of_starts(study, float(t), name) if a else ()))
        for t, one, a in zip(temperature, first, apart, strict=True)
    ]
    if study.second is None or name not in study.second or name + "_motion" not in study.second:
        return found
    every = study.table["temperature"].values
    second = _of_table(study.second, name)
    tests, between = tested(study), _between(study, name)
    for index, at in enumerate(np.searchsorted(every, temperature)):
        if tests[at]:
            hull = found[index].hull(Measured(*second[at]))
            found[index] = hull if between[at] else hull._replace(error=math.nan)
    return found


def _of_table(table: xr.Dataset, name: str) -> list[tuple[float, float, float]]:
    """(mean, error, freedom) at each temperature."""
    freedom = table["freedom"].values
    if name.startswith("precision"):
        freedom = table["starts"].values - 1.0
    elif name + "_freedom" in table:
        freedom = table[name + "_freedom"].values
    columns = (table[name].values, table[name + "_error"].values, freedom)
    return [(float(m), float(e), float(f)) for m, e, f in zip(*columns, strict=True)]


def _of_starts(study: ModelStudy, temperature: float, name: str) -> tuple[tuple[float, ...], float]:
    """Means of the chains of the starts, in their order, and what they still moved; nothing where
    the samples do not tell."""
    samples = study.samples
    if name not in samples or "start" not in samples.coords:
        return (), 0.0
    kept = kept_draws(samples, temperature, burn_in=study.table.attrs["burn_in"])
    if not kept.draws.size:
        return (), 0.0
    values = samples[name].transpose("chain", "draw").values[np.ix_(kept.chains, kept.draws)]
    means = means_of_starts(values, start_of_chains(samples, kept.chains))
    return tuple(means.tolist()), moved(values)


class Open(NamedTuple):
    """On which sides of the best of a curve better may lie, at temperatures that do not count."""

    cold: bool
    hot: bool

    @property
    def words(self) -> str:
        side = "on either side of" if self.cold and self.hot else "below" if self.cold else "above"
        return f"a better value may lie {side} it, at temperatures that do not count"


def open_around(study: ModelStudy, rows: xr.Dataset, best: npt.NDArray[np.bool_] | int) -> Open:
    """Of the best of the rows, one or those that may be it: whether the next colder and the next
    hotter temperature of the ladder do not count. At the ladder's own ends there is none."""
    counted, every = rows["temperature"].values, study.table["temperature"].values
    at = np.flatnonzero(np.isin(every, counted[best]))
    missing = ~np.isin(every, counted)
    return Open(bool(missing[max(at[0] - 1, 0)]), bool(missing[min(at[-1] + 1, every.size - 1)]))


def peak(study: ModelStudy) -> float:
    """T*, NaN where it is in doubt, or the two sets do not agree there: temperatures are
    then not given in units of it."""
    found = float(study.table.attrs["peak_temperature"])
    doubtful = not math.isfinite(found) or bool(study.table.attrs["peak_caveat"])
    return math.nan if doubtful or found not in usable(study)["temperature"].values else found


def in_units_of_peak(study: ModelStudy, temperature: float) -> str:
    """A temperature as a reader wants it: 1.3 T*, or T = 2e-4 where T* is in doubt."""
    unit = peak(study)
    if math.isfinite(unit):
        return f"{temperature / unit:.2g} T*"
    return f"T = {format_temperature(temperature)}"


def span(study: ModelStudy, temperatures: npt.NDArray[np.float64]) -> str:
    """Where several temperatures lie: at 1.3 T*, or between 1.1 T* and 1.6 T*."""
    ends = [in_units_of_peak(study, float(t)) for t in (temperatures.min(), temperatures.max())]
    return f"at {ends[0]}" if ends[0] == ends[1] else f"between {ends[0]} and {ends[1]}"


def shown(value: Measured) -> str:
    """Mean ± standard error."""
    return with_error(value.mean, value.error)


def too_few(study: ModelStudy, needed: int, rows: xr.Dataset | None = None) -> str:
    """Why there are fewer than `needed` temperatures that count (these rows; by default those that
    are usable); empty where there are enough."""
    every = study.table
    count = (usable(study) if rows is None else rows).sizes["temperature"]
    if count >= needed:
        return ""
    standing = int(settled(every).sum())
    words = f"{standing} of {every.sizes['temperature']} temperatures of {study.name} settled"
    if standing > count:
        words += (
            f", and at {standing - count} of these the second set disagrees, has not settled, came "
            "from the same side, or was not run"
        )
    return words if count == 0 else f"{words}; {needed} must count"


def check_and_cause(config: Config, *studies: ModelStudy) -> str:
    """What was looked at before a disagreement is believed, and what may lie behind it."""
    looked = " ".join(_checks(study) for study in studies)
    names = [study.name for study in studies]
    return f"{looked} Likely cause: {training_differences(config, *names) or OTHER_DATA}."


def _checks(study: ModelStudy) -> str:
    rows = usable(study)
    if study.second is None:
        second = "a second set was not run"
    else:
        compared = two_sets(study, study.second)
        count = compared.sizes["temperature"]
        agreeing = int(compared["agree"].values.sum())
        where = f"at {agreeing} of the {count} temperatures compared, the others left out"
        if agreeing == count:
            where = f"at all {count} temperatures compared" if count > 1 else "at the one compared"
        second = f"the two sets agree {where}"
        if not count:
            second = "the second set settled nowhere"
    far = rows["r_hat"].values > EquilibrationRule().max_r_hat
    apart = int((~rows["equilibrated"].values & far).sum())
    return (
        f"Checked for {study.name}: {rows.sizes['temperature']} temperatures count, with at least "
        f"{float(rows['ess'].min()):.0f} effective draws and R̂ ≤ {float(rows['r_hat'].max()):.2f}"
        + (f", at {apart} of them chains that stay apart" if apart else "")
        + f"; {second}."
    )


OTHER_DATA = "other data: sequences of another random interaction matrix than the paper's"
TRAINING = ("runs", "references", "dropout", "warmup", "batch", "learning_rate_factor")  # published


def training_differences(config: Config, *names: str) -> str:
    """In what the training of the models differs from the published one (which the preset `paper`
    repeats); empty where in nothing."""
    paper = load_config(preset_text("paper"), where="preset paper").models
    differences: dict[str, None] = {}
    for name in names:
        if name not in config.models or name not in paper:
            continue
        ours = msgspec.to_builtins(config.models[name].training)
        theirs = msgspec.to_builtins(paper[name].training)
        for key in TRAINING:
            if ours[key] != theirs[key]:
                differences[f"{key} {ours[key]:g} (paper {theirs[key]:g})"] = None
    if not differences:
        return ""
    return f"training that differs from the paper's, in {', '.join(differences)}"


def only_for(studies: Studies, *names: str) -> str:
    """Which of the models are missing from the run, as a reason; empty where none is."""
    missing = [name for name in names if name not in studies]
    return f"this run has no {' and no '.join(missing)}" if missing else ""


def compatible(values: list[Measured], best: int) -> npt.NDArray[np.bool_]:
    """Which of the values may be as extreme as the best one, the 95 % interval of the difference
    holding zero."""
    differences = [value.beside(values[best]) for value in values]
    return np.array(
        [
            index == best or not (one.above(0.0) or one.below(0.0))
            for index, one in enumerate(differences)
        ]
    )


def compared(difference: Measured, *, bound: float = 0.0) -> Verdict:
    """Of a claim that the difference is above `bound`."""
    if difference.above(bound):
        return "agrees"
    return "disagrees" if difference.below(bound) else "undecided"
