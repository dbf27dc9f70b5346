"""Numbers for the reader: a model's tables and the warnings that go with them."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from thermosphere.analysis.embedding import EffectiveDimension
from thermosphere.analysis.figures_ladder import Reference
from thermosphere.analysis.similarity import similarity_summary
from thermosphere.analysis.thermodynamics import EquilibrationRule, settled
from thermosphere.proteins.tempering_result import TemperingResult
from thermosphere.runs.report import Table
from thermosphere.training import EarlyStopped, References

# Column, variable of the table, whether it has a `…_error`, decimals where it has none.
COLUMNS = (
    ("⟨U⟩ (nats)", "train_loss", 4),
    ("C", "specific_heat", 1),
    ("train error", "train_error", 4),
    ("validation error", "validation_error", 4),
    ("test error", "test_error", 4),
    ("P@L", "precision_at_l", 3),
    ("P̃@L", "precision_at_l_tolerant", 3),
    ("|w−w₀|²/Q", "distance", 3),
    ("kinetic/T", "kinetic_ratio", 3),
)
SHORT_COLUMNS = {
    "train_loss",
    "specific_heat",
    "train_error",
    "validation_error",
    "test_error",
    "precision_at_l_tolerant",
}


def thermodynamics_table(table: xr.Dataset, *, caption: str = "", short: bool = False) -> Table:
    """One row a temperature: mean ± standard error of what the table holds, ESS, R̂, equilibrated.

    table: from `thermodynamics`; variables it lacks make no column, so `precision_at_l_tolerant`
    appears once the caller has added it.  short: only loss, specific heat, errors and P̃@L, without
    standard errors, for a terminal.  Temperatures that have not settled are doubtful rows, and
    have no C: the variance of a drifting loss is no specific heat.
    """
    chosen = [
        (column, name, decimals)
        for column, name, decimals in COLUMNS
        if name in table and (not short or name in SHORT_COLUMNS)
    ]
    columns = ["T", "equilibrated", *(column for column, _, _ in chosen), "ESS", "R̂"]
    rows = []
    for index, temperature in enumerate(table["temperature"].values):
        state = equilibration(table, index)
        row = [format_temperature(float(temperature)), state]
        for _, name, decimals in chosen:
            mean = float(table[name].values[index])
            error = name + "_error"
            if name == "specific_heat" and state == "no":
                row.append("–")
            elif short or error not in table:
                row.append(_fixed(mean, decimals))
            else:
                row.append(with_error(mean, float(table[error].values[index])))
        row.append(_fixed(float(table["ess"].values[index]), 0))
        row.append(_fixed(float(table["r_hat"].values[index]), 2))
        rows.append(row)
    doubtful = np.flatnonzero(~settled(table))
    return Table(columns, rows, caption, tuple(int(index) for index in doubtful))


def equilibration(table: xr.Dataset, index: int) -> str:
    """Of one temperature: "yes", "apart" where chains stand still but apart, or "no"."""
    if table["equilibrated"].values[index]:
        return "yes"
    return "apart" if settled(table)[index] else "no"


def write_table(table: xr.Dataset, path: Path) -> None:
    """Write the table over temperature as CSV, atomically; T* and its caveat lead as comments.

    ``pandas.read_csv(path, comment="#")`` reads it.
    """
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".csv", delete=False, encoding="utf-8", newline=""
    ) as file:
        for name in ("peak_temperature", "peak_caveat"):
            file.write(f"# {name} = {table.attrs[name]}".rstrip() + "\n")
        table.to_dataframe().to_csv(file)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def equilibration_warnings(name: str, table: xr.Dataset) -> list[str]:
    """What a reader of the model `name` must know before any number; empty when all is well."""
    standing = settled(table)
    doubtful, still = ~standing, standing & ~table["equilibrated"].values
    apart = still & (table["r_hat"].values > EquilibrationRule().max_r_hat)
    few = still & ~apart
    wandering = table["note"].values != ""
    sentences = []
    if apart.any():
        sentences.append(
            f"{name}: at {apart.sum()} of {apart.size} temperatures ({_list(table, apart)}) every "
            "chain stands still, but chains from different starts stay apart (half-filled points): "
            "averages are over the starts, and so are error bars."
        )
    if few.any():
        sentences.append(
            f"{name}: at {few.sum()} of {few.size} temperatures ({_list(table, few)}) every chain "
            "stands still, within what a change of T by 5 % would do, but has few independent "
            "draws (half-filled points): averages are over the starts, and so are error bars."
        )
    if doubtful.any():
        sentences.append(
            f"{name}: {doubtful.sum()} of {doubtful.size} temperatures are not equilibrated "
            f"({_list(table, doubtful)}). Their averages (hollow points, rows in italics) are of a "
            "run still on its way, and their error bars are too small."
        )
    if wandering.any():
        sentences.append(
            f"{name}: the weights still move away from their start at {_list(table, wandering)}; "
            "similarities between draws of one chain are too high there."
        )
    caveat = str(table.attrs.get("peak_caveat", ""))
    if caveat:
        sentences.append(f"{name}: the transition temperature T* is doubtful: {caveat}.")
    return sentences


def equilibration_reasons(table: xr.Dataset) -> list[str]:
    """Why each doubtful temperature is not equilibrated, one line a temperature."""
    return [
        f"T = {format_temperature(float(temperature))}: {reason}."
        for temperature, reason in zip(
            table["temperature"].values, table["reason"].values, strict=True
        )
        if reason
    ]


def training_warnings(name: str, stage1: EarlyStopped, trained: References) -> list[str]:
    """Which trainings of the model `name` ended too soon; empty when none."""
    sentences = []
    stopped, saturated = stage1.stopped.numpy(), trained.saturated.numpy()
    if not stopped.all():
        sentences.append(
            f"{name}: {(~stopped).sum()} of {stopped.size} stage-1 runs did not stop early within "
            "max_epochs; Q, the squared norm of everything after, may be too small."
        )
    if not saturated.all():
        sentences.append(
            f"{name}: OT weights of {(~saturated).sum()} of {saturated.size} runs are not "
            "saturated; training loss or error was still falling when reference_epochs ended."
        )
    older = trained.over_trained_epochs.numpy() / trained.early_stopped_epochs.numpy()
    young = older < 1.5  # what saturates goes on for half as long again at least
    if young.any():
        sentences.append(
            f"{name}: OT weights of {young.sum()} of {young.size} runs are "
            f"{older.min():.2f} to {older[young].max():.2f} times as old as ES, and much the same."
        )
    return sentences


def training_table(trained: References) -> Table:
    """Epochs of every reference run; runs that did not saturate are doubtful."""
    saturated = trained.saturated.numpy()
    rows = [
        [
            str(run + 1),
            f"{float(trained.early_stopped_epochs[run]):.1f}",
            f"{float(trained.scale[run]):.5f}",
            str(int(trained.over_trained_epochs[run])),
            "yes" if saturated[run] else "no",
        ]
        for run in range(saturated.size)
    ]
    return Table(
        ["run", "ES epoch", "ES scaled by", "OT epochs", "OT saturated"],
        rows,
        "Reference runs: when |w|² first reached Q (ES), the factor that set it to Q, and the end "
        "(OT)",
        tuple(int(run) for run in np.flatnonzero(~saturated)),
    )


def reference_table(references: Sequence[Reference]) -> Table:
    """ES and OT: mean and spread over runs."""
    columns = {
        "training loss": "train_loss",
        "train error": "train_error",
        "validation error": "validation_error",
        "test error": "test_error",
        "P@L": "precision_at_l",
        "P̃@L": "precision_at_l_tolerant",
    }
    present = {label: key for label, key in columns.items() if key in references[0].values}
    rows = []
    for reference in references:
        row = [reference.label]
        for key in present.values():
            values = np.asarray(reference.values[key])
            spread = float(values.std(ddof=1)) if values.size > 1 else math.nan
            row.append(with_error(float(values.mean()), spread))
        rows.append(row)
    return Table(
        ["weights", *present], rows, "Trained weights: mean ± standard deviation over runs"
    )


def block_table(best: Mapping[str, Mapping[int, int]]) -> Table:
    """Best block of each start; best: label → start → block, both from 0 (shown from 1)."""
    starts = sorted({start for blocks in best.values() for start in blocks})
    rows = [
        [label, *(str(blocks[start] + 1) if start in blocks else "–" for start in starts)]
        for label, blocks in best.items()
    ]
    return Table(
        ["weights", *(f"start {start + 1}" for start in starts)],
        rows,
        "Best block of each start by P̃@L (samples of a start began at its ES weights)",
    )


def similarity_table(similarity: Mapping[str, Mapping[str, npt.NDArray[np.float64]]]) -> Table:
    """Mean ± standard deviation over pairs (a single pair has none): a row a layer, a column a
    label of `similarity`; – where a label has no such layer."""
    summaries = {label: similarity_summary(dict(pairs)) for label, pairs in similarity.items()}
    layers = dict.fromkeys(layer for summary in summaries.values() for layer in summary)
    rows = [
        [
            layer,
            *(
                similarity_cell(*summary[layer], pairs=similarity[label][layer].size)
                if layer in summary
                else "–"
                for label, summary in summaries.items()
            ),
        ]
        for layer in layers
    ]
    return Table(
        ["layer", *summaries], rows, "Similarity q of two weight vectors: mean ± standard deviation"
    )


def similarity_cell(mean: float, deviation: float, *, pairs: int) -> str:
    """Mean ± standard deviation over pairs; a single pair has none."""
    return with_error(mean, deviation) if pairs > 1 else _fixed(mean, 3)


def dimension_table(
    dimensions: Mapping[str, Mapping[str, EffectiveDimension]], temperature: float
) -> Table:
    """Elements away from zero in every norm vector: a column a kind of weights."""
    kinds = list(dimensions)
    vectors = dimensions[kinds[0]]
    rows = [
        [name, str(vector.size), *(dimension_cell(dimensions[kind][name]) for kind in kinds)]
        for name, vector in vectors.items()
    ]
    caption = (
        "Norm elements away from zero, mean ± standard deviation over draws or runs: the effective "
        "embedding dimension where they fall into two groups (one: they do not). Samples at "
        f"T = {format_temperature(temperature)}"
    )
    return Table(["norm", "size", *kinds], rows, caption)


def dimension_cell(dimension: EffectiveDimension) -> str:
    """How many elements are away from zero; all or none of a vector that is one group."""
    if not dimension.split:
        return f"{dimension.count:.0f} (one group)"
    return f"{dimension.count:.1f} ± {dimension.spread:.1f}"


MEAN_OVERLAPS = ("overlap_random", "overlap_consecutive", "overlap_independent", "overlap_baseline")


def mixing_table(sequences: TemperingResult) -> Table:
    """Diagnostics of the tempering walkers, without the mean overlaps: a histogram shows those."""
    labels = {
        "harvest_spacing": "visits of the target between harvests",
        "energy_time": "autocorrelation time of the energy (visits)",
        "overlap_time": "autocorrelation time of the overlap (visits)",
        "harvest_correlation": "correlation of the energies of consecutive harvests",
    }
    rows = [
        [
            labels.get(name, name.replace("_", " ")),
            f"{value:.4g}" if isinstance(value, float) else str(value),
        ]
        for name, value in sequences.diagnostics.items()
        if name not in MEAN_OVERLAPS and value is not None
    ]
    return Table(["what", "value"], rows, "Mixing of the walkers")


def level_table(sequences: TemperingResult) -> Table:
    """A row a level of the tempering ladder."""
    rows = [
        [f"{t:.3f}", f"{e:.1f}", f"{s:.1f}", str(v), f"{a:.3f}", with_error(z, error)]
        for t, e, s, v, a, z, error in zip(
            sequences.temperatures,
            sequences.mean_energy,
            sequences.energy_deviation,
            sequences.visits,
            sequences.acceptance,
            sequences.log_partition,
            sequences.log_partition_error,
            strict=True,
        )
    ]
    return Table(["T", "⟨E⟩", "σ_E", "visits", "acceptance", "ln Z − ln Z_hot"], rows, "The ladder")


def _list(table: xr.Dataset, chosen: npt.NDArray[np.bool_]) -> str:
    return "T = " + ", ".join(format_temperature(float(t)) for t in table["temperature"][chosen])


def format_temperature(temperature: float) -> str:
    """Three significant digits, with a power of ten below 0.01: 0.25, 2.06e-4."""
    if temperature >= 0.01:
        return f"{temperature:.3g}"
    mantissa, exponent = f"{temperature:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def with_error(mean: float, error: float) -> str:
    """Mean ± error, the error at one significant digit, two when it starts with 1.

    1.0853 ± 0.0041 → "1.085 ± 0.004"; – for an unknown mean, no error when that is unknown.  Errors
    below 10⁻⁶ are shown as 0; powers of ten from a million on.
    """
    if not math.isfinite(mean):
        return "–"
    if not math.isfinite(error):
        return f"{mean:.4g}"
    if max(abs(mean), error) >= 1e6:
        return f"{mean:.1e} ± {error:.0e}".replace("e+0", "e").replace("e+", "e")
    if error < 1e-6:
        return f"{mean:.4g} ± 0"
    digit, exponent = f"{error:.0e}".split("e")
    decimals = min(6, (1 if digit == "1" else 0) - int(exponent))
    shown = max(0, decimals)
    return f"{round(mean, decimals):.{shown}f} ± {round(error, decimals):.{shown}f}"


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else "–"
