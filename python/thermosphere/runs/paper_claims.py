"""Every claim of arXiv 2603.29529 that a run is held against (SPEC §7), in the paper's order."""

from __future__ import annotations

from collections.abc import Callable

from thermosphere.runs import claims_attention, claims_ladder, claims_weights
from thermosphere.runs.claims import Finding, Studies
from thermosphere.runs.config import Config

CLAIMS: tuple[Callable[[Studies, Config], list[Finding]], ...] = (
    claims_ladder.shape_of_the_loss,
    claims_ladder.peak_of_the_specific_heat,
    claims_ladder.test_error_is_not_monotonic,
    claims_ladder.minimum_just_above_the_peak,
    claims_ladder.gain_over_early_stopping,
    claims_ladder.spread_of_early_stopping,
    claims_ladder.small_models_keep_up,
    claims_weights.norms_are_conserved,
    claims_weights.gains_fall_into_groups,
    claims_weights.effective_dimension_is_as_published,
    claims_attention.attention_is_self_averaging,
    claims_attention.sampling_finds_more_contacts,
    claims_attention.larger_models_find_more,
    claims_attention.contacts_are_best_above_the_minimum,
)


def findings(studies: Studies, config: Config) -> list[Finding]:
    """The verdict on every claim about the models that were run."""
    return [finding for claim in CLAIMS for finding in claim(studies, config)]
