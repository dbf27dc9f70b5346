"""Claims about sampled weights: similarity, norms, effective dimension (Figs. 4 and 5; SPEC §7)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from thermosphere.analysis.embedding import EffectiveDimension
from thermosphere.analysis.figures import split_block
from thermosphere.analysis.similarity import mean_over_chains, pairs_of
from thermosphere.analysis.thermodynamics import settled, start_of_chains
from thermosphere.models.named import named_model
from thermosphere.models.transformer import Transformer
from thermosphere.runs.claims import (
    Finding,
    Studies,
    Verdict,
    check_and_cause,
    in_units_of_peak,
    second_moves,
    shown,
    tested,
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
        sampled = study.shown["samples"]
        pairs = sampled.similarity.get("between chains", {})
        reason = still_moving(study)
        if not reason and not pairs:
            reason = "a single chain, and draws of one chain are alike for longer than it ran"
        if (
            not reason
            and np.unique(start_of_chains(study.samples, np.array(sampled.chains))).size < 2
        ):
            reason = "all chains began at the same weights: no two samples are independent"
        if reason:
            findings.append(Finding(SIMILARITY, study.name, claim, "undecided", "", reason))
            continue
        both = pairs_of(sampled.chains)
        both = start_of_chains(study.samples, both[both[:, 0] != both[:, 1]])
        apart = both[:, 0] != both[:, 1]
        likeness = {
            layer: mean_over_chains(
                values[apart], both[apart], motion_of(study, sampled.motion.get(layer))
            )
            for layer, values in pairs.items()
            if layer in study.norms["samples"]
        }
        numbers = ", ".join(f"{layer} {shown(one)}" for layer, one in likeness.items())
        below = [layer for layer, one in likeness.items() if one.below(CONSERVED)]
        unknown = [layer for layer, one in likeness.items() if not one.above(CONSERVED)]
        verdict: Verdict = "agrees"
        because = ""
        if below:
            verdict = "disagrees"
            because = f"{check_and_cause(config, study)} Less alike: {', '.join(below)}"
        elif unknown:
            verdict = "undecided"
            because = f"not known well enough to tell from {CONSERVED}: {', '.join(unknown)}"
        findings.append(Finding(SIMILARITY, study.name, claim, verdict, f"q = {numbers}", because))
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
        halves = study.shown["samples"].halves
        counts = [one.count for half in halves if (one := embedding_dimension(half)) is not None]
        if not reason and len(counts) < len(halves):
            reason = "the two groups come or go from the first half of the draws to the second"
        if reason or found is None:
            findings.append(Finding(NORMS, study.name, claim, "undecided", "", reason))
            continue
        moved = abs(counts[1] - counts[0]) if counts else 0.0
        allowed = TOLERANCE * published
        off = abs(found.count - published)
        verdict: Verdict = "undecided"
        because = f"it still moves, from {counts[0]:.1f} to {counts[1]:.1f}" if counts else ""
        if off + moved <= allowed:
            verdict, because = "agrees", ""
        elif off - moved > allowed:
            verdict, because = "disagrees", check_and_cause(config, study)
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
    why = str(row["reason"].values)
    if stands:
        assert study.second is not None  # or it would count
        table = study.second.sel(temperature=study.typical)
        why = "the two sets disagree"
        if bool(second_moves(table)):
            why = "the second set has not settled"
        elif not int(table["draws"]):
            why = "the second set was not run"
        elif not tested(study)[study.table["temperature"].values == study.typical].any():
            why = "the second set came from the same side"
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


def motion_of(study: ModelStudy, measured: float | None) -> float:
    """What a mean over weights at the typical temperature still moves, as measured by halves.
    Where that is not known: none, if the weights have come to rest; NaN if not."""
    if measured is not None and math.isfinite(measured):
        return measured
    at_rest = not str(study.table.sel(temperature=study.typical)["note"].values)
    return 0.0 if at_rest else math.nan
