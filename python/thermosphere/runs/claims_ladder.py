"""Claims about loss, specific heat and errors against temperature (Fig. 3; SPEC §7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from thermosphere.analysis.convergence import effective_sample_size
from thermosphere.analysis.significance import Measured, larger_spread
from thermosphere.analysis.thermodynamics import (
    kept_draws,
    means_of_starts,
    start_of_chains,
)
from thermosphere.models.named import named_model
from thermosphere.models.transformer import Transformer
from thermosphere.runs.claims import (
    Finding,
    Open,
    Studies,
    Verdict,
    bracketed,
    check_and_cause,
    compared,
    compatible,
    in_units_of_peak,
    measured,
    only_for,
    open_around,
    peak,
    shown,
    span,
    too_few,
    usable,
)
from thermosphere.runs.config import Config
from thermosphere.runs.report_tables import format_temperature
from thermosphere.runs.study import ModelStudy

FIGURE = "fig3"
NEEDED = 5  # temperatures that count, to speak of a curve
FEW = 3  # to speak of a fall and a rise
SPAN = 10.0  # least ratio of the hottest to the coldest of them
JUMP = 1.5  # chosen: half of the rise of ⟨U⟩ within this factor of temperature is a jump
JUST_ABOVE = 2.0  # chosen: T* to this many T* is "just above"
PUBLISHED_GAIN = (0.01, 0.04)  # of the least test error over that of ES
ROUNDED = 0.005  # half of the last digit of the published gains
ARCHITECTURES = ("tf1", "tf4", "ff")  # those whose gains and ES runs the paper reports
COMPARABLE = 0.02  # chosen: test errors nearer than this; the published gains are 0.01 to 0.04


def is_transformer(study: ModelStudy) -> bool:
    return isinstance(named_model(study.name), Transformer)


def shape_of_the_loss(studies: Studies, config: Config) -> list[Finding]:
    """⟨U⟩(T) rises smoothly for transformers and jumps for the feed-forward network."""
    findings = []
    for study in studies.values():
        smooth = is_transformer(study)
        rise = "smoothly" if smooth else "in a sharp jump"
        claim = f"⟨U⟩ rises {rise} with temperature"
        rows = bracketed(study)
        reason = too_few(study, NEEDED, rows) or _too_narrow(rows)
        if reason:
            findings.append(Finding(FIGURE, study.name, claim, "undecided", "", reason))
            continue
        low, high = rise_factor(rows["temperature"].values, measured(study, rows, "train_loss"))
        numbers = f"half of the rise takes a factor of {low:.2f} to {high:.2f} in T"
        verdict: Verdict = "undecided"
        because = (
            f"the temperatures that count are too far apart to tell it from {JUMP:g}, below which "
            "it is called a jump"
        )
        if low > JUMP or high < JUMP:
            verdict = "agrees" if smooth == (low > JUMP) else "disagrees"
            because = check_and_cause(config, study) if verdict == "disagrees" else ""
        findings.append(Finding(FIGURE, study.name, claim, verdict, numbers, because))
    return findings


def rise_factor(
    temperature: npt.NDArray[np.float64], loss: Sequence[Measured]
) -> tuple[float, float]:
    """Bounds on T₇₅/T₂₅, between which ⟨U⟩ makes the middle half of its rise from the coldest
    temperature to the hottest.  They hold for any rising curve through the 95 % intervals; how it
    runs between two temperatures is not assumed."""
    mean, reach = (np.array([getattr(one, name) for one in loss]) for name in ("mean", "reach"))
    reach[np.isnan(reach)] = math.inf
    low, high = [], []
    for share in (0.25, 0.75):
        level = mean[0] + share * (mean[-1] - mean[0])
        off = (1.0 - share) * reach[0] + share * reach[-1]
        below = temperature[mean + reach < level - off]
        above = temperature[mean - reach > level + off]
        low.append(below.max() if below.size else temperature[0])
        high.append(above.min() if above.size else temperature[-1])
    return max(1.0, float(low[1] / high[0])), float(high[1] / low[0])


def peak_of_the_specific_heat(studies: Studies, config: Config) -> list[Finding]:
    """C of the feed-forward network peaks more sharply than that of any transformer."""
    claim = "the specific heat has a sharp peak, sharper than that of the transformers"
    transformers = [study for study in studies.values() if is_transformer(study)]
    if reason := only_for(studies, "ff"):
        return []
    if not transformers:
        reason = "there is no transformer in this run"
    contrasts = {study.name: peak_contrast(study) for study in (studies["ff"], *transformers)}
    unknown = [name for name, contrast in contrasts.items() if isinstance(contrast, str)]
    if unknown:
        reason = "; ".join(f"{name}: {contrasts[name]}" for name in unknown)
    if reason:
        return [Finding(FIGURE, "ff", claim, "undecided", "", reason)]
    known = {name: one for name, one in contrasts.items() if not isinstance(one, str)}
    numbers = "; ".join(
        f"{name} {math.exp(one.mean):.3g} times (± {one.reach:.0%})" for name, one in known.items()
    )
    each = [compared(known["ff"].minus(known[study.name])) for study in transformers]
    verdict: Verdict = "agrees" if all(one == "agrees" for one in each) else "undecided"
    if "disagrees" in each:
        verdict = "disagrees"
    because = {
        "disagrees": check_and_cause(config, studies["ff"]),
        "undecided": "the errors of C are too large",
    }
    return [
        Finding(
            FIGURE,
            "ff",
            claim,
            verdict,
            f"C at T* above C a factor of 2 away: {numbers}",
            because.get(verdict, ""),
        )
    ]


def peak_contrast(study: ModelStudy) -> Measured | str:
    """ln of C = d⟨U⟩/dT at T* over its mean at the nearest temperatures at least a factor of 2 away
    on both sides; or why it is not known."""
    unit = peak(study)
    if not math.isfinite(unit):
        return "T* is in doubt"
    rows = usable(study)
    temperature = rows["temperature"].values
    heat = measured(study, rows, "loss_slope")
    at = np.flatnonzero(temperature == unit)
    cold = np.flatnonzero(temperature <= unit / 2)
    hot = np.flatnonzero(temperature >= 2 * unit)
    if not (at.size and cold.size and hot.size):
        return "no temperature that counts a factor of 2 away from T* on both sides"
    top, left, right = heat[at[0]], heat[cold[-1]], heat[hot[0]]
    mean = 0.5 * (left.mean + right.mean)
    if not (top.mean > 0 and mean > 0):
        return "d⟨U⟩/dT is not known well enough to be positive"
    error = math.hypot(top.error / top.mean, 0.5 * math.hypot(left.error, right.error) / mean)
    freedom = min(one.freedom for one in (top, left, right))
    return Measured(math.log(top.mean / mean), error, freedom)


def test_error_is_not_monotonic(studies: Studies, config: Config) -> list[Finding]:
    """The test error has a minimum inside the ladder.

    An end of the ladder whose chains have not settled is still known to be above the minimum where
    the chains of every set there are, and do not come down: they are on their way, and monotone
    relaxation is assumed.
    """
    findings = []
    for study in studies.values():
        claim = "the test error falls and rises again with temperature"
        rows = bracketed(study, "test_error")
        if reason := too_few(study, FEW, rows):
            findings.append(Finding(FIGURE, study.name, claim, "undecided", "", reason))
            continue
        temperature, errors = rows["temperature"].values, measured(study, rows, "test_error")
        best = _least(errors)
        numbers = ", ".join(
            f"{shown(errors[index])} at {in_units_of_peak(study, float(temperature[index]))}"
            for index in sorted({0, best, len(errors) - 1})
        )
        cold, hot = (errors[end].beside(errors[best]).above(0.0) for end in (0, -1))
        far = {end: _above_on_the_way(study, errors[best], temperature[best], end)
               for end, known in (("below", cold), ("above", hot)) if not known}  # fmt: skip
        verdict: Verdict = "undecided"
        because = "the minimum is not clear of the ends of the usable ladder"
        if all(far.values()):
            verdict, because = "agrees", ""
            numbers += "".join(f"; {words}" for words in far.values())
        elif (
            _reaches(study, rows)
            and best in (0, len(errors) - 1)
            and compatible(errors, best).sum() == 1
        ):
            verdict, because = "disagrees", check_and_cause(config, study)
        findings.append(Finding(FIGURE, study.name, claim, verdict, numbers, because))
    return findings


def _above_on_the_way(study: ModelStudy, best: Measured, at: float, side: str) -> str:
    """Where colder ("below") or hotter ("above") than this temperature all chains, though not
    settled, have a larger test error that does not come down, in words; empty where nowhere."""
    known = []
    for index, t in enumerate(study.table["temperature"].values):
        if not (t < at if side == "below" else t > at):
            continue
        tables = [study.table] if study.second is None else [study.table, study.second]
        sets = [one.isel(temperature=index) for one in tables]
        if all(_stays_above(one, best) for one in sets if int(one["draws"])):
            known.append((float(sets[0]["test_error"]), float(t)))
    if not known:
        return ""
    error, t = max(known)
    return (
        f"{error:.3f} at {in_units_of_peak(study, t)}, where chains are on their way, but the test "
        "error does not fall (monotone relaxation assumed)"
    )


def _stays_above(row: xr.Dataset, best: Measured) -> bool:
    if "test_error_motion" not in row:
        return False
    value, error = float(row["test_error"]), float(row["test_error_error"])
    motion, spread = float(row["test_error_motion"]), float(row["test_error_motion_error"])
    starts = float(row["starts"]) - 1.0
    here = Measured(value, error, min(float(row["freedom"]), starts))
    moving = Measured(motion, spread, starts)
    known = math.isfinite(moving.reach) and not moving.below(0.0)
    return known and here.minus(best).above(0.0)


def minimum_just_above_the_peak(studies: Studies, config: Config) -> list[Finding]:
    """The temperature of least test error is just above T*."""
    findings = []
    for study in studies.values():
        claim = "the test error is least just above T*"
        rows = bracketed(study, "test_error")
        unit, reason = peak(study), too_few(study, NEEDED, rows)
        if not reason and not math.isfinite(unit):
            caveat = study.table.attrs["peak_caveat"] or "the two sets do not agree there"
            reason = f"T* is in doubt ({caveat})"
        if reason:
            findings.append(Finding(FIGURE, study.name, claim, "undecided", "", reason))
            continue
        errors = measured(study, rows, "test_error")
        least = compatible(errors, _least(errors))
        within = rows["temperature"].values[least]
        low, high = (study.table.attrs[end] for end in ("peak_low", "peak_high"))
        where = ""
        if low != high:  # NaN, which differs from itself: open
            ends = [
                f"T = {format_temperature(end)}" if math.isfinite(end) else "the ladder's end"
                for end in (low, high)
            ]
            where = f", T* between {ends[0]} and {ends[1]}"
        numbers = f"least {span(study, within)}{where}, as far as the errors tell"
        verdict: Verdict = "undecided"
        because = "the minimum is too flat, or T* too uncertain, for the errors"
        beyond = open_around(study, rows, least)
        if within.min() >= high and within.max() <= JUST_ABOVE * low:
            verdict, because = "agrees", ""
            if any(beyond):
                verdict, because = "undecided", beyond.words
        elif within.max() < low or within.min() > JUST_ABOVE * high:
            verdict, because = "disagrees", check_and_cause(config, study)
            if beyond.hot if within.max() < low else beyond.cold:
                verdict, because = "undecided", beyond.words
        findings.append(Finding(FIGURE, study.name, claim, verdict, numbers, because))
    return findings


def gain_over_early_stopping(studies: Studies, config: Config) -> list[Finding]:
    """The least test error is 0.01 to 0.04 below the mean test error of ES."""
    findings = []
    for study in _reported(studies):
        claim = "the least test error is 0.01 to 0.04 below that of ES"
        if reason := too_few(study, 1, bracketed(study, "test_error")):
            findings.append(Finding(FIGURE, study.name, claim, "undecided", "", reason))
            continue
        trained, (sampled, beyond) = _early_stopped(study), least_error(study)
        gain = trained.beside(sampled)
        numbers = f"ES {shown(trained)}, sampled {shown(sampled)}, gain {shown(gain)}"
        least, most = PUBLISHED_GAIN
        verdict: Verdict = "undecided"
        because = f"the gain is known to ± {gain.reach:.2g} only, mostly from few ES runs"
        if gain.above(least - ROUNDED) and gain.below(most + ROUNDED):
            verdict, because = "agrees", ""
            if any(beyond):
                verdict, because = "undecided", beyond.words
        elif gain.below(least) and any(beyond):
            because = beyond.words
        elif gain.above(most) or gain.below(least):
            verdict = "disagrees"
            because = check_and_cause(config, study)
            if gain.above(0.0):
                size = "more" if gain.above(most) else "less"
                because = f"Sampling does better than ES, by {size} than published. {because}"
        findings.append(Finding(FIGURE, study.name, claim, verdict, numbers, because))
    return findings


def _reported(studies: Studies) -> list[ModelStudy]:
    """Those of the three architectures of the paper's comparison."""
    return [study for name, study in studies.items() if name in ARCHITECTURES]


def spread_of_early_stopping(studies: Studies, config: Config) -> list[Finding]:
    """Test errors of ES runs spread more than those of weights sampled at the best temperature.

    The spread of the ensemble is at least that within chains, about their means, and, where chains
    still remember their starts, at most that with the spread of these means.
    """
    findings = []
    for study in _reported(studies):
        claim = "ES runs differ more in test error than sampled weights do"
        rows = bracketed(study, "test_error")
        if reason := too_few(study, 1, rows):
            findings.append(Finding(FIGURE, study.name, claim, "undecided", "", reason))
            continue
        row = rows.isel(temperature=_least(measured(study, rows, "test_error")))
        burn_in = study.table.attrs["burn_in"]
        kept = kept_draws(study.samples, float(row["temperature"]), burn_in=burn_in)
        samples = study.samples["test_error"].transpose("chain", "draw").values
        drawn = samples[np.ix_(kept.chains, kept.draws)].astype(np.float64)
        within, between = float(drawn.var(axis=1, ddof=1).mean()), 0.0
        freedom = freedom_of_all = sum(effective_sample_size(one[None]) - 1.0 for one in drawn)
        means = means_of_starts(drawn, start_of_chains(study.samples, kept.chains))
        if means.size > 1:
            between = float(means.var(ddof=1))
            inverse = within**2 / freedom + between**2 / (means.size - 1)
            freedom_of_all = (within + between) ** 2 / inverse  # Welch and Satterthwaite
        runs = np.asarray(_reference(study, "ES")["test_error"], dtype=np.float64)
        least, most = math.sqrt(within), math.sqrt(within + between)
        p_least, p_most = (
            larger_spread(runs, spread, known)
            for spread, known in ((least, freedom), (most, freedom_of_all))
        )
        own = float(runs.std(ddof=1)) if runs.size > 1 else math.nan
        numbers = (
            f"standard deviation {own:.2g} over {runs.size} ES runs, {least:.2g} within chains, "
            f"{most:.2g} with the means of their starts; one-sided p = {p_least:.2g} and "
            f"{p_most:.2g}"
        )
        verdict: Verdict = "undecided"
        because = f"{runs.size} ES runs do not tell the two apart"
        if p_most < 0.025:
            verdict, because = "agrees", ""
        elif p_least > 0.975:
            verdict, because = "disagrees", check_and_cause(config, study)
        findings.append(Finding(FIGURE, study.name, claim, verdict, numbers, because))
    return findings


def small_models_keep_up(studies: Studies, config: Config) -> list[Finding]:
    """The small models reach a test error comparable to that of the large ones."""
    findings = []
    for small, large in (("tf1-small", "tf1"), ("tf4-small", "tf4")):
        if small not in studies and large not in studies:
            continue
        subject = f"{small} and {large}"
        claim = "the small model reaches a test error comparable to that of the large one"
        pair = [studies[name] for name in (small, large) if name in studies]
        reason = only_for(studies, small, large) or "; ".join(
            filter(None, (too_few(study, 1, bracketed(study, "test_error")) for study in pair))
        )
        if reason:
            findings.append(Finding(FIGURE, subject, claim, "undecided", "", reason))
            continue
        (first, of_small), (second, of_large) = (least_error(study) for study in pair)
        gap = first.minus(second)
        numbers = f"{small} {shown(first)}, {large} {shown(second)}, difference {shown(gap)}"
        verdict: Verdict = "undecided"
        because = f"the difference is known to ± {gap.reach:.2g} only; comparable is {COMPARABLE}"
        if gap.below(COMPARABLE):
            verdict, because = "agrees", ""
            if any(of_large):
                verdict, because = "undecided", f"{large}: {of_large.words}"
        elif gap.above(COMPARABLE):
            verdict, because = "disagrees", check_and_cause(config, *pair)
            if any(of_small):
                verdict, because = "undecided", f"{small}: {of_small.words}"
        findings.append(Finding(FIGURE, subject, claim, verdict, numbers, because))
    return findings


def least_error(study: ModelStudy) -> tuple[Measured, Open]:
    """Least test error over the temperatures that count, with an interval for having been chosen,
    and where a lesser one may lie."""
    rows = bracketed(study, "test_error")
    errors = measured(study, rows, "test_error")
    best = _least(errors)
    return errors[best]._replace(among=len(errors)), open_around(study, rows, best)


def _least(values: list[Measured]) -> int:
    return int(np.argmin([value.mean for value in values]))


def _early_stopped(study: ModelStudy) -> Measured:
    return Measured.of_runs(_reference(study, "ES")["test_error"])


def _reference(study: ModelStudy, label: str) -> Mapping[str, npt.ArrayLike]:
    return next(one.values for one in study.references if one.label == label)


def _too_narrow(rows: xr.Dataset) -> str:
    temperature = rows["temperature"].values
    ratio = float(temperature[-1] / temperature[0])
    if ratio >= SPAN:
        return ""
    return (
        f"the temperatures that count span a factor of {ratio:.1f} only; the rise is seen whole in "
        f"{SPAN:g} or more"
    )


def _reaches(study: ModelStudy, rows: xr.Dataset) -> bool:
    """Whether the ladder that counts goes far enough on both sides of T* to miss no minimum."""
    unit, temperature = peak(study), rows["temperature"].values
    return bool(temperature[0] <= unit / 3 and temperature[-1] >= 2 * unit)
