"""Claims about the mean attention as a predictor of contacts (Figs. 6 and 7; SPEC §7)."""

from __future__ import annotations

import numpy as np

from thermosphere.analysis.significance import Measured
from thermosphere.analysis.similarity import mean_over_chains
from thermosphere.runs.claims import (
    Finding,
    Open,
    Studies,
    Verdict,
    check_and_cause,
    compared,
    compatible,
    in_units_of_peak,
    measured,
    only_for,
    open_around,
    shown,
    span,
    too_few,
    usable,
)
from thermosphere.runs.claims_ladder import NEEDED
from thermosphere.runs.claims_weights import motion_of, still_moving
from thermosphere.runs.config import Config
from thermosphere.runs.study import ModelStudy

MAPS, PRECISION = "fig6", "fig7"
TOLERANT = "precision_at_l_tolerant"
ALIKE = 0.9  # chosen: correlation of two matrices above this is "very similar"


def sampling_finds_more_contacts(studies: Studies, config: Config) -> list[Finding]:
    """P̃@L of samples is above that of ES and OT for the large models."""
    findings = []
    for name in ("tf1", "tf4"):
        if name not in studies or TOLERANT not in studies[name].table:
            continue
        study = studies[name]
        for label in ("ES", "OT"):
            claim = f"P̃@L of sampled weights is above that of {label}"
            if reason := too_few(study, 1):
                findings.append(Finding(PRECISION, name, claim, "undecided", "", reason))
                continue
            best, at, beyond = best_precision(study)
            runs = next(one.values for one in study.references if one.label == label)
            trained = Measured.of_runs(runs[TOLERANT])
            gain = best.minus(trained)
            numbers = f"sampled {shown(best)} at {at}, {label} {shown(trained)}"
            verdict = compared(gain)
            because = {
                "undecided": f"the difference is known to ± {gain.reach:.2g} only",
                "disagrees": check_and_cause(config, study),
            }
            if verdict == "disagrees" and any(beyond):
                verdict, because["undecided"] = "undecided", beyond.words
            findings.append(
                Finding(PRECISION, name, claim, verdict, numbers, because.get(verdict, ""))
            )
    return findings


def larger_models_find_more(studies: Studies, config: Config) -> list[Finding]:
    """P̃@L of the small models is below that of the large ones; tf4's best block is above tf1."""
    findings = []
    for better, worse in (("tf1", "tf1-small"), ("tf4", "tf4-small"), ("tf4", "tf1")):
        here = [studies[name] for name in (better, worse) if name in studies]
        if not here or any(TOLERANT not in study.table for study in here):
            continue
        subject = f"{better} and {worse}"
        claim = "P̃@L of the large model is above that of the small one"
        if worse == "tf1":
            claim = "P̃@L of the best block of tf4 is above that of tf1"
        reason = only_for(studies, better, worse) or "; ".join(
            filter(None, (too_few(study, NEEDED) for study in here))
        )
        if reason:
            findings.append(Finding(PRECISION, subject, claim, "undecided", "", reason))
            continue
        (first, at, of_first), (second, other, of_second) = map(best_precision, here)
        gain = first.minus(second)
        numbers = f"{better} {shown(first)} at {at}, {worse} {shown(second)} at {other}"
        verdict = compared(gain)
        because = {
            "undecided": f"the difference is known to ± {gain.reach:.2g} only",
            "disagrees": check_and_cause(config, *here),
        }
        if verdict == "agrees" and any(of_second):
            verdict, because["undecided"] = "undecided", f"{worse}: {of_second.words}"
        if verdict == "disagrees" and any(of_first):
            verdict, because["undecided"] = "undecided", f"{better}: {of_first.words}"
        findings.append(
            Finding(PRECISION, subject, claim, verdict, numbers, because.get(verdict, ""))
        )
    return findings


def contacts_are_best_above_the_minimum(studies: Studies, config: Config) -> list[Finding]:
    """P̃@L is largest at a temperature above that of least test error."""
    findings = []
    for study in studies.values():
        if TOLERANT not in study.table:
            continue
        claim = "P̃@L is largest above the temperature of least test error"
        if reason := too_few(study, NEEDED):
            findings.append(Finding(PRECISION, study.name, claim, "undecided", "", reason))
            continue
        rows = usable(study)
        temperature = rows["temperature"].values
        precision, errors = measured(study, rows, TOLERANT), measured(study, rows, "test_error")
        best = int(np.argmax([one.mean for one in precision]))
        least = int(np.argmin([one.mean for one in errors]))
        largest_at, least_at = compatible(precision, best), compatible(errors, least)
        highest, lowest = temperature[largest_at], temperature[least_at]
        numbers = (
            f"P̃@L, {shown(precision[best])}, is largest {span(study, highest)}, the test error, "
            f"{shown(errors[least])}, least {span(study, lowest)}, as far as the errors tell"
        )
        verdict: Verdict = "undecided"
        because = "the two ranges of temperature overlap"
        of_precision, of_error = (open_around(study, rows, one) for one in (largest_at, least_at))
        if highest.min() > lowest.max():
            verdict, because = "agrees", ""
            if of_precision.cold or of_error.hot:
                verdict, because = "undecided", _beyond(of_precision.cold, of_error.hot)
        elif highest.max() < lowest.min():
            verdict, because = "disagrees", check_and_cause(config, study)
            if of_precision.hot or of_error.cold:
                verdict, because = "undecided", _beyond(of_precision.hot, of_error.cold)
        findings.append(Finding(PRECISION, study.name, claim, verdict, numbers, because))
    return findings


def attention_is_self_averaging(studies: Studies, config: Config) -> list[Finding]:
    """Mean attention matrices of single samples are alike."""
    findings = []
    for study in studies.values():
        one = study.shown["samples"].attention
        if one is None:
            continue
        claim = "mean attention matrices of independent samples are very similar"
        starts = len(one.best)
        reason = still_moving(study)
        if not reason and not one.alike.other_start.size:
            reason = "all chains began at the same weights: no two samples are independent"
        if reason:
            findings.append(Finding(MAPS, study.name, claim, "undecided", "", reason))
            continue
        pairs = one.alike.other_start
        motion = motion_of(study, one.alike.motion)
        likeness = mean_over_chains(pairs, one.alike.starts, motion)
        verdict = compared(likeness, bound=ALIKE)
        numbers = f"correlation {shown(likeness)} between samples of {starts} starts"
        because = {
            "undecided": f"known to ± {likeness.reach:.2g} only, too little to tell from {ALIKE}",
            "disagrees": check_and_cause(config, study),
        }
        findings.append(
            Finding(MAPS, study.name, claim, verdict, numbers, because.get(verdict, ""))
        )
    return findings


def _beyond(precision: bool, error: bool) -> str:
    """Which of the two extremes may lie elsewhere."""
    both = [name for name, is_open in (("P̃@L", precision), ("the test error", error)) if is_open]
    return f"{' and '.join(both)} may be better at temperatures between that do not count"


def best_precision(study: ModelStudy) -> tuple[Measured, str, Open]:
    """Largest P̃@L over the temperatures that count, with an interval for having been chosen, where,
    and on which sides a larger one may lie."""
    rows = usable(study)
    precision = measured(study, rows, TOLERANT)
    at = int(np.argmax([one.mean for one in precision]))
    where = in_units_of_peak(study, float(rows["temperature"].values[at]))
    best = precision[at]._replace(among=len(precision))
    return best, where, open_around(study, rows, at)
