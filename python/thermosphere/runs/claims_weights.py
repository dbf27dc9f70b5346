"""Claims about sampled weights: similarity, norms, effective dimension (Figs. 4 and 5; SPEC §7)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from thermosphere.analysis.embedding import EffectiveDimension
from thermosphere.analysis.figures import split_block
from thermosphere.analysis.significance import Measured
from thermosphere.analysis.thermodynamics import settled
from thermosphere.models.named import named_model
from thermosphere.models.transformer import Transformer
from thermosphere.runs.claims import (
    Finding,
    Studies,
    Verdict,
    check_and_cause,
    compared,
    in_units_of_peak,
    shown,
    usable,
)
from thermosphere.runs.config import Config
from thermosphere.runs.study import ModelStudy

SIMILARITY, NORMS = "fig4", "fig5"
CONSERVED = 0.9  # chosen: q above this is "near 1"
DIMENSIONS = {"tf1": 26, "tf4": 14}  # published
TOLERANCE = 0.2  # chosen: effective dimensions within this share of the published one agree


def norms_are_conserved(studies: Studies, config: Config) -> list[Finding]:
    """Gains and biases of the norms are nearly the same in all samples."""
    findings = []
    for study in studies.values():
        claim = "gains and biases of the norms are conserved (q near 1)"
        pairs = study.shown["samples"].similarity.get("between chains", {})
        chains = float(study.table.sel(temperature=study.typical)["chains"])
        reason = still_moving(study)
        if not reason and not pairs:
            reason = "a single chain, and draws of one chain are alike for longer than it ran"
        if reason:
            findings.append(Finding(SIMILARITY, study.name, claim, "undecided", "", reason))
            continue
        moved = study.shown["samples"].motion
        likeness = {
            layer: over_pairs(values, chains, moved.get(layer, 0.0))
            for layer, values in pairs.items()
            if layer in study.norms["samples"]
        }
        lowest = min(likeness.values(), key=lambda one: one.mean)
        numbers = ", ".join(f"{layer} {shown(one)}" for layer, one in likeness.items())
        verdict = compared(lowest, bound=CONSERVED)
        because = {
            "disagrees": f"{check_and_cause(config, study)} Least alike: "
            + ", ".join(name for name, one in likeness.items() if one.below(CONSERVED)),
            "undecided": f"the lowest is known to ± {lowest.reach:.2g} only, too little to tell "
            f"from {CONSERVED}",
        }
        findings.append(
            Finding(
                SIMILARITY, study.name, claim, verdict, f"q = {numbers}", because.get(verdict, "")
            )
        )
    return findings


def gains_fall_into_groups(studies: Studies, config: Config) -> list[Finding]:
    """Gains of the last block are bimodal at d = 64 and unimodal in the small models."""
    findings = []
    for study in studies.values():
        if not isinstance(named_model(study.name), Transformer):
            continue
        large = not study.name.endswith("-small")
        form = "two groups, one at zero" if large else "one group away from zero"
        claim = f"the gains of the last block form {form}"
        gains = last_gains(study.dimensions["samples"])
        split = any(one.split for one in gains.values())
        reason = still_moving(study)
        halves = [last_gains(half) for half in study.shown["samples"].halves]
        if not reason and any(any(one.split for one in half.values()) != split for half in halves):
            reason = "groups come or go from the first half of the draws to the second"
        if reason:
            findings.append(Finding(NORMS, study.name, claim, "undecided", "", reason))
            continue
        numbers = ", ".join(
            f"{name} {'two groups' if one.split else 'one group'} (separation "
            f"{one.separation:.1f}, {one.count:.1f} of {one.size} away from zero)"
            for name, one in gains.items()
        )
        verdict: Verdict = "agrees"
        if split != large or (not large and any(one.count == 0 for one in gains.values())):
            verdict = "disagrees"
        because = check_and_cause(config, study) if verdict == "disagrees" else ""
        findings.append(Finding(NORMS, study.name, claim, verdict, numbers, because))
    return findings


def effective_dimension_is_as_published(studies: Studies, config: Config) -> list[Finding]:
    """26 of 64 elements of tf1, 14 of 64 of tf4, are away from zero."""
    findings = []
    for name, published in DIMENSIONS.items():
        if name not in studies:
            continue
        study = studies[name]
        claim = f"the effective embedding dimension is {published}"
        found = embedding_dimension(study.dimensions["samples"])
        reason = still_moving(study)
        if not reason and found is None:
            reason = "the gains of the last block do not fall into two groups"
        parts = [embedding_dimension(half) for half in study.shown["samples"].halves]
        counts = [math.nan if one is None else one.count for one in parts]
        allowed = TOLERANCE * published
        if found is not None:
            allowed = max(2.0 * found.spread, allowed)
        if not reason and counts and not abs(counts[1] - counts[0]) <= allowed:
            reason = f"the number still moves, from {counts[0]:.1f} to {counts[1]:.1f}"
        if reason or found is None:
            findings.append(Finding(NORMS, study.name, claim, "undecided", "", reason))
            continue
        verdict: Verdict = "agrees" if abs(found.count - published) <= allowed else "disagrees"
        because = ""
        if verdict == "disagrees":
            because = check_and_cause(config, study)
        numbers = f"{found.count:.1f} ± {found.spread:.1f} of {found.size}, over draws"
        numbers += f" at {in_units_of_peak(study, study.typical)}"
        findings.append(Finding(NORMS, study.name, claim, verdict, numbers, because))
    return findings


def last_gains(dimensions: Mapping[str, EffectiveDimension]) -> dict[str, EffectiveDimension]:
    """The gain vectors of the last block, or of a network without blocks."""
    blocks = [split_block(name)[1] for name in dimensions]
    last = max((block for block in blocks if block is not None), default=None)
    return {
        name: one
        for name, one in dimensions.items()
        if name.endswith(".gain") and split_block(name)[1] == last
    }


def embedding_dimension(dimensions: Mapping[str, EffectiveDimension]) -> EffectiveDimension | None:
    """The effective embedding dimension: of the last block's gains that fall into two groups, the
    one that keeps most elements away from zero.  An element that either norm uses is needed.  None
    where no gain does."""
    split = [one for one in last_gains(dimensions).values() if one.split]
    return max(split, key=lambda one: one.count, default=None)


def not_settled(study: ModelStudy) -> str:
    """Why the typical temperature does not count; empty where it does."""
    if study.typical in usable(study)["temperature"].values:
        return ""
    row = study.table.sel(temperature=study.typical)
    stands = bool(settled(row))
    why = "heating and cooling disagree there" if stands else str(row["reason"].values)
    return f"at {in_units_of_peak(study, study.typical)} {why}"


def not_equilibrated(study: ModelStudy) -> str:
    """Why weights at the typical temperature show no ensemble; empty where they do.  Weights that
    still move away from their start show none, although ⟨U⟩ may stand."""
    why = str(study.table.sel(temperature=study.typical)["note"].values)
    if reason := not_settled(study):
        return reason
    return f"at {in_units_of_peak(study, study.typical)} {why}" if why else ""


def still_moving(study: ModelStudy) -> str:
    """Why what is said of weights at the typical temperature, between chains, would say nothing of
    an ensemble; empty where it may.

    Weights that still move away from where they began are no draws of their chain, but those of
    chains from different starts are independent all the same, and whether what is asked of them has
    come to a level is seen in the halves of the draws.  Not so where chains share a start, or
    nothing was looked at by halves.
    """
    if study.shown["samples"].halves and _own_starts(study):
        return not_settled(study)
    return not_equilibrated(study)


def _own_starts(study: ModelStudy) -> bool:
    """Whether every chain at the typical temperature is known to have a start of its own."""
    if "start" not in study.samples.coords:
        return False
    here = study.samples["temperature"].values == study.typical
    return np.unique(study.samples["start"].values[here]).size == int(here.sum()) > 1


def over_pairs(values: np.ndarray, independent: float, motion: float) -> Measured:
    """Mean over pairs of draws of different chains, of so many that are independent.  Pairs share
    draws and draws share chains, so the error counts these alone; what the mean still moved is part
    of it."""
    known = values[np.isfinite(values)]
    spread = float(known.std(ddof=1)) if known.size > 1 else math.nan
    error = math.hypot(spread / math.sqrt(max(1.0, independent)), motion)
    return Measured(float(known.mean()), error, independent - 1.0)
