"""The numbers behind the report's interactive part, as JSON: the studies of a run and nothing else.

Texts are those of the tables (`report_tables`), so that a value a reader points at is the one that
the table shows.  Numbers have six digits, NaN is null, long arrays are packed (`packed`).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from thermosphere import __version__
from thermosphere.analysis.contacts import highest_pairs, on_residues
from thermosphere.analysis.figures import split_block
from thermosphere.analysis.figures_runs import thinned
from thermosphere.analysis.similarity import similarity_summary
from thermosphere.analysis.thermodynamics import kept_draws, settled
from thermosphere.proteins.structure import ContactMap
from thermosphere.runs.claims import peak
from thermosphere.runs.config import Analysis, Config
from thermosphere.runs.report_tables import (
    dimension_cell,
    format_temperature,
    reference_table,
    similarity_cell,
    thermodynamics_table,
    with_error,
)
from thermosphere.runs.study import Ensemble, ModelStudy
from thermosphere.runs.study_attention import (
    BlockAttention,
    precision_rules,
    random_precisions,
)

Array = npt.NDArray[np.float64]
Json = dict[str, Any]

# Variables of the table over temperature that the page draws.
LADDER = (
    "train_loss",
    "specific_heat",
    "train_error",
    "validation_error",
    "test_error",
    "distance",
    "kinetic_ratio",
)
TRACE_POINTS = 300  # a chain; a panel is about twice as many pixels wide
BINS = 60
MISSING = 65535


def report_data(studies: Sequence[ModelStudy], protein: ContactMap | None, config: Config) -> Json:
    """All that the page draws; protein None where no contact map was given."""
    analysis = config.analysis
    contacts = protein.matrix() if protein is not None else None
    rules = [] if contacts is None else _precision(contacts, analysis)
    return {
        "made_with": f"thermosphere {__version__}",
        "run": config.name,
        "protein": None if protein is None else _protein(protein),
        "precision": rules,
        "bins": BINS,
        "models": [_model(study, contacts, rules, analysis) for study in studies],
    }


def packed(values: npt.ArrayLike) -> Json:
    """Values of any shape as little-endian 16-bit codes in base64, in C order.

    value = low + step · code, so the error is at most half a step, range/131,068; 65535 is NaN.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    known = np.isfinite(array)
    low = float(array[known].min()) if known.any() else 0.0
    high = float(array[known].max()) if known.any() else 0.0
    step = (high - low) / (MISSING - 1)
    codes = np.full(array.size, MISSING, dtype="<u2")
    codes[known] = np.rint((array[known] - low) / step) if step > 0 else 0
    return {"low": low, "step": step, "codes": base64.b64encode(codes.tobytes()).decode("ascii")}


def unpacked(data: Mapping[str, Any]) -> Array:
    """What `packed` kept, flat; the page does the same."""
    codes = np.frombuffer(base64.b64decode(data["codes"]), dtype="<u2")
    values = data["low"] + data["step"] * codes.astype(np.float64)
    values[codes == MISSING] = np.nan
    return values


def _protein(protein: ContactMap) -> Json:
    return {
        "sequence": protein.sequence,
        "labels": list(protein.labels),
        "contacts": protein.contacts.ravel().tolist(),  # i, j, i, j, … from 0, i < j
    }


def _precision(contacts: npt.NDArray[np.uint8], analysis: Analysis) -> list[Json]:
    """The precisions to choose from, and what a random ranking scores by each."""
    random = random_precisions(contacts, analysis)
    chosen: dict[tuple[int, int], str] = {}
    for name, rule in precision_rules(analysis).items():
        chosen.setdefault(rule, name)  # the tolerance of the settings is also one of the list
    return [
        {
            "key": name,
            "label": "P@L, all pairs"
            if name == "precision_at_l"
            else f"P̃@L, |i−j| ≥ {separation}, tolerance {tolerance}",
            "symbol": "P@L" if name == "precision_at_l" else "P̃@L",
            "separation": separation,
            "tolerance": tolerance,
            "random": number(random[name]),
        }
        for (separation, tolerance), name in sorted(chosen.items())
    ]


def _model(
    study: ModelStudy,
    contacts: npt.NDArray[np.uint8] | None,
    rules: Sequence[Json],
    analysis: Analysis,
) -> Json:
    table = study.table
    shown = thermodynamics_table(table)
    trained = reference_table(study.references)
    layers = _common_ranges(pairs for one in study.ensembles for pairs in one.similarity.values())
    norms = _common_ranges(one.norms for one in study.ensembles)
    present = [name for name in (*LADDER, *precision_rules(analysis)) if name in table]
    return {
        "name": study.name,
        "parameters": int(study.parameters),
        "norm2": number(study.samples.attrs.get("norm2", math.nan)),
        "blocks": study.blocks,
        "peak": number(table.attrs["peak_temperature"]),
        "peak_text": format_temperature(float(table.attrs["peak_temperature"]))
        if math.isfinite(table.attrs["peak_temperature"])
        else "unknown",
        "peak_caveat": str(table.attrs["peak_caveat"]),
        "peak_trusted": math.isfinite(peak(study)),
        "typical": table["temperature"].values.tolist().index(study.typical),
        "temperatures": numbers(table["temperature"].values),
        "temperature_texts": [format_temperature(float(t)) for t in table["temperature"].values],
        "equilibrated": [bool(x) for x in table["equilibrated"].values],
        "settled": [bool(x) for x in settled(table)],
        "reason": [str(x) for x in table["reason"].values],
        "note": [str(x) for x in table["note"].values],
        "chains": [int(x) for x in table["chains"].values],
        "draws": [int(x) for x in table["draws"].values],
        "ess": numbers(table["ess"].values),
        "r_hat": numbers(table["r_hat"].values),
        "columns": list(shown.columns),
        "rows": [list(row) for row in shown.rows],
        "trained_columns": list(trained.columns),
        "trained_rows": [list(row) for row in trained.rows],
        "ladder": {name: _column(table, name) for name in present},
        "slope": {
            "mean": numbers(table["loss_slope"].values),
            "error": numbers(table["loss_slope_error"].values),
        },
        "trained": {
            one.label: {name: _runs(values) for name, values in one.values.items()}
            for one in study.references
        },
        "traces": _traces(study, analysis),
        "layers": [_named(name, *span) for name, span in layers.items()],
        "norms": [_named(name, *span) for name, span in norms.items()],
        "ensembles": [
            _ensemble(one, layers, norms, contacts, rules, analysis.contact_shift)
            for one in study.ensembles
        ],
    }


def _column(table: xr.Dataset, name: str) -> Json:
    mean, error = table[name].values, table[name + "_error"].values
    return {
        "mean": numbers(mean),
        "error": numbers(error),
        "text": [with_error(float(m), float(e)) for m, e in zip(mean, error, strict=True)],
    }


def _runs(values: npt.ArrayLike) -> Json:
    """Every run of training, their mean and standard deviation, as `reference_table` has them."""
    runs = np.asarray(values, dtype=np.float64)
    mean = float(runs.mean())
    deviation = float(runs.std(ddof=1)) if runs.size > 1 else math.nan
    return {
        "runs": numbers(runs),
        "mean": number(mean),
        "deviation": number(deviation),
        "text": with_error(mean, deviation),
    }


def _traces(study: ModelStudy, analysis: Analysis) -> Json:
    """Every chain against the move, thinned; kept: whether averages use it; from: their first
    move."""
    samples = study.samples
    temperature = samples["temperature"].values.astype(np.float64)
    observables = {
        "train_loss": samples["train_loss"].values,
        "validation_error": samples["validation_error"].values,
        "test_error": samples["test_error"].values,
        "distance": samples["distance2"].values / float(samples.attrs.get("norm2", math.nan)),
        "kinetic_ratio": samples["kinetic_temperature"].values / temperature[:, None],
    }
    move = samples["move"].values
    chains = []
    burn_in = []
    for index, own in enumerate(study.table["temperature"].values.tolist()):
        kept = kept_draws(samples, own, burn_in=analysis.burn_in)
        burn_in.append(int(move[kept.draws[0]]) if kept.draws.size else None)
        for chain in np.flatnonzero(temperature == own):
            chains.append(
                {
                    "temperature": index,
                    "start": int(samples["start"].values[chain]) + 1,
                    "kept": bool(np.isin(chain, kept.chains)),
                    **{
                        name: packed(thinned(move, values[chain], TRACE_POINTS)[1])
                        for name, values in observables.items()
                    },
                }
            )
    moves, _ = thinned(move, np.zeros(move.size), TRACE_POINTS)
    return {
        "moves": numbers(moves),
        "averaged": -(-move.size // TRACE_POINTS),
        "from": burn_in,
        "chains": chains,
    }


def _common_ranges(groups: Iterable[Mapping[str, Array]]) -> dict[str, tuple[float, float]]:
    """For each name the range of its values in all groups, a little widened: one histogram axis for
    all temperatures."""
    spans: dict[str, tuple[float, float]] = {}
    for group in groups:
        for name, values in group.items():
            known = values[np.isfinite(values)]
            low, high = spans.get(name, (math.inf, -math.inf))
            if known.size:
                low, high = min(low, float(known.min())), max(high, float(known.max()))
            spans[name] = low, high
    widened = {}
    for name, (low, high) in spans.items():
        if low > high:
            low = high = 0.0
        margin = 0.02 * (high - low) or 0.01 * abs(high) or 0.01
        widened[name] = low - margin, high + margin
    return widened


def _named(name: str, low: float, high: float) -> Json:
    kind, block = split_block(name)
    return {"name": name, "kind": kind, "block": block, "low": low, "high": high}


def _counts(values: Array, span: tuple[float, float]) -> list[int]:
    counts, _ = np.histogram(values[np.isfinite(values)], BINS, span)
    return [int(count) for count in counts]


def _ensemble(
    one: Ensemble,
    layers: Mapping[str, tuple[float, float]],
    norms: Mapping[str, tuple[float, float]],
    contacts: npt.NDArray[np.uint8] | None,
    rules: Sequence[Json],
    shift: int,
) -> Json:
    similarity = []
    for label, pairs in one.similarity.items():
        summary = similarity_summary(dict(pairs))
        similarity.append(
            {
                "label": label,
                "pairs": int(next(iter(pairs.values())).size),
                "mean": numbers([summary[name][0] for name in layers]),
                "deviation": numbers([summary[name][1] for name in layers]),
                "text": [
                    similarity_cell(*summary[name], pairs=pairs[name].size) for name in layers
                ],
                "counts": [_counts(pairs[name], span) for name, span in layers.items()],
            }
        )
    attention = None
    if one.attention is not None and contacts is not None:
        attention = _attention(one.attention, contacts, rules, shift)
    return {
        "label": one.label,
        "draws": one.draws,
        "similarity": similarity,
        "norms": {
            "counts": [_counts(one.norms[name], span) for name, span in norms.items()],
            "away": [dimension_cell(one.dimensions[name]) for name in norms],
            "size": [one.dimensions[name].size for name in norms],
            "threshold": numbers([one.dimensions[name].threshold for name in norms]),
        },
        "attention": attention,
    }


def _attention(
    one: BlockAttention,
    contacts: npt.NDArray[np.uint8],
    rules: Sequence[Json],
    shift: int,
) -> Json:
    """Every block's map on residues, pairs i < j row by row, and the predictions read off it."""
    n = len(contacts)
    upper = np.triu_indices(n, 1)
    blocks = []
    for attention in one.blocks:
        block: Json = {
            "map": packed(on_residues(attention, shift)[upper]),
            "pairs": {},
            "right": {},
            "precision": {},
        }
        for rule in rules:
            pairs, right = highest_pairs(
                attention,
                contacts,
                shift=shift,
                min_separation=rule["separation"],
                tolerance=rule["tolerance"],
            )
            block["pairs"][str(rule["separation"])] = pairs.ravel().tolist()
            block["right"][rule["key"]] = "".join("01"[int(hit)] for hit in right)
            block["precision"][rule["key"]] = number(float(right.mean()))
        blocks.append(block)
    return {"start": one.start + 1, "draws": one.draws, "best": one.block, "blocks": blocks}


def number(value: float) -> float | None:
    """Six significant digits; None for what is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def numbers(values: npt.ArrayLike) -> list[float | None]:
    """`number` of each."""
    return [number(float(value)) for value in np.asarray(values, dtype=np.float64).ravel()]
