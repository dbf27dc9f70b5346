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
        reason = not_equilibrated(study)
        if not reason and not pairs:
            reason = "a single chain, and draws of one chain are alike for longer than it ran"
        if reason:
            findings.append(Finding(SIMILARITY, study.name, claim, "undecided", "", reason))
            continue
        likeness = {
            layer: _over_chains(values, chains)
            for layer, values in pairs.items()
            if layer in study.norms["samples"]
        }
        lowest = min(likeness.values(), key=lambda one: one.mean)
        numbers = ", ".join(f"{layer} {shown(one)}" for layer, one in likeness.items())
        verdict = compared(lowest, bound=CONSERVED)
        because = {
            "disagrees": f"{check_and_cause(config, study)} Least alike: "
            + ", ".join(name for name, one in likeness.items() if one.below(CONSERVED)),
            "undecided": f"too few chains to tell the lowest from {CONSERVED}",
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
        if reason := not_equilibrated(study):
            findings.append(Finding(NORMS, study.name, claim, "undecided", "", reason))
            continue
        gains = last_gains(study.dimensions["samples"])
        split = any(one.split for one in gains.values())
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
        reason = not_equilibrated(study)
        if not reason and found is None:
            reason = "the gains of the last block do not fall into two groups"
        if reason or found is None:
            findings.append(Finding(NORMS, study.name, claim, "undecided", "", reason))
            continue
        allowed = max(2.0 * found.spread, TOLERANCE * published)
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


def not_equilibrated(study: ModelStudy) -> str:
    """Why weights at the typical temperature show no ensemble; empty where they do.  Weights that
    still move away from their start show none, although ⟨U⟩ may stand."""
    row = study.table.sel(temperature=study.typical)
    why = str(row["note"].values)
    if study.typical not in usable(study)["temperature"].values:
        stands = bool(settled(row))
        why = "heating and cooling disagree there" if stands else str(row["reason"].values)
    return f"at {in_units_of_peak(study, study.typical)} {why}" if why else ""


def _over_chains(values: np.ndarray, chains: float) -> Measured:
    """Mean over pairs of draws of different chains; pairs share draws and draws share chains, so
    the error counts the chains alone."""
    known = values[np.isfinite(values)]
    spread = float(known.std(ddof=1)) if known.size > 1 else math.nan
    return Measured(float(known.mean()), spread / math.sqrt(max(1.0, chains)), chains - 1.0)
