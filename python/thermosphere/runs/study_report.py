"""The report of a run: its studies put into tables, figures and words."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
import torch
from tqdm import tqdm

from thermosphere import __version__, _core
from thermosphere.analysis.contacts import random_precision_at_l
from thermosphere.analysis.figures import save_png
from thermosphere.analysis.figures_attention import attention_figure
from thermosphere.analysis.figures_ladder import (
    error_figure,
    observable_figure,
    precision_figure,
    specific_heat_figure,
)
from thermosphere.analysis.figures_runs import (
    TrainingCurve,
    tempering_figure,
    trace_figure,
    training_figure,
)
from thermosphere.analysis.figures_weights import norm_figure, similarity_figure
from thermosphere.proteins.dataset import DataSet
from thermosphere.proteins.structure import ContactMap
from thermosphere.proteins.tempering_result import TemperingResult
from thermosphere.runs.config import Config
from thermosphere.runs.report import Figure, Section, Table, format_table, write_report
from thermosphere.runs.report_tables import (
    equilibration_reasons,
    equilibration_warnings,
    format_temperature,
    thermodynamics_table,
    with_error,
)
from thermosphere.runs.study import ModelStudy, study_model
from thermosphere.training import EarlyStopped, References

OVERLAP_PAIRS = 20_000


def write_study(directory: Path, config: Config, *, progress: bool = False) -> str:
    """Analyse every model of the run and write DIR/report.html, figures/ and
    MODEL/thermodynamics.csv.

    Returns what a terminal shows at the end: a table a model and the report's path.
    """
    protein = ContactMap.load(directory / "contacts.toml")
    sampled = directory / "sequences.npz"
    sequences = TemperingResult.load(sampled) if sampled.is_file() else None
    data = DataSet.load(directory / "dataset.npz")
    contacts = protein.matrix()
    pictures = _Pictures(directory / "figures")
    studies: list[ModelStudy] = []
    for name, settings in tqdm(
        config.models.items(), desc="analysis", unit="model", disable=not progress
    ):
        study = study_model(directory / name, name, data, contacts, settings, config.analysis)
        study.table.to_dataframe().to_csv(directory / name / "thermodynamics.csv")
        studies.append(study)

    sections = [_ladder_section(studies, contacts, config, pictures)]
    sections += [_model_section(study, directory, contacts, config, pictures) for study in studies]
    if sequences is not None:
        sections.append(_sequences_section(sequences, config, pictures))
    sections.append(_settings_section(config))
    warnings = [
        line for study in studies for line in equilibration_warnings(study.name, study.table)
    ]
    report = directory / "report.html"
    write_report(
        report,
        title=f"thermosphere: {config.name}",
        sections=sections,
        summary=_summary(studies, protein, data, config),
        warnings=[*(sequences.warnings if sequences is not None else ()), *warnings],
    )
    lines = []
    for study in studies:
        lines += ["", f"{study.name}  (* not equilibrated)"]
        lines.append(format_table(thermodynamics_table(study.table, short=True)))
    return "\n".join([*lines, "", f"report: {report.resolve()}"])


class _Pictures:
    """Figures for the page, each also saved as a PNG under its own name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)

    def __call__(self, name: str, figure: matplotlib.figure.Figure, caption: str) -> Figure:
        save_png(figure, self.directory / f"{name}.png")
        return Figure((self.directory / f"{name}.png").read_bytes(), caption, alt=caption)


def _summary(
    studies: Sequence[ModelStudy], protein: ContactMap, data: DataSet, config: Config
) -> list[str]:
    models = ", ".join(study.name for study in studies)
    return [
        f"Weights of {models} sampled at constant norm and fixed temperature with "
        "pseudo-Langevin dynamics, on masked "
        f"sequences of a protein of {protein.length} residues and {len(protein.contacts)} contacts "
        f"({len(data.train):,} training, {len(data.validation):,} validation, "
        f"{len(data.test):,} test sequences).",
        "U is the mean cross-entropy of the training set in nats; T is in the same unit; ES "
        "are early-stopped, OT over-trained "
        "weights. Error bars are one standard error, from effective sample sizes. Hollow "
        "points and greyed rows "
        "did not equilibrate: their averages depend on the start.",
    ]


def _ladder_section(
    studies: Sequence[ModelStudy], contacts: np.ndarray, config: Config, pictures: _Pictures
) -> Section:
    tables = {study.name: study.table for study in studies}
    references = {study.name: study.references for study in studies}
    figures = [
        pictures(
            "loss",
            observable_figure(tables, "train_loss", references=references),
            "Mean training loss ⟨U⟩ against temperature (Fig. 3a).",
        ),
        pictures(
            "specific_heat",
            specific_heat_figure(tables),
            "Specific heat (Fig. 3b); its maximum is T*.",
        ),
        pictures(
            "validation_error",
            observable_figure(tables, "validation_error", references=references),
            "Validation error against temperature (Fig. 3c).",
        ),
        pictures(
            "test_error",
            observable_figure(tables, "test_error", references=references),
            "Test error against temperature (Fig. 3d).",
        ),
    ]
    attentive = {name: table for name, table in tables.items() if "precision_at_l" in table}
    if attentive:
        a = config.analysis
        tolerant = {"min_separation": a.min_separation, "tolerance": a.tolerance}
        baselines = (
            random_precision_at_l(contacts, shift=a.contact_shift),
            random_precision_at_l(contacts, shift=a.contact_shift, **tolerant),
        )
        figure = precision_figure(
            attentive,
            references={name: references[name] for name in attentive},
            baselines=baselines,
        )
        caption = (
            "Precision of the mean attention as a contact predictor (Fig. 7), best block of "
            "each start: P@L, and P̃@L with "
            f"|i−j| ≥ {a.min_separation} and tolerance {a.tolerance}."
        )
        figures.append(pictures("precision", figure, caption))
    tables_shown = [
        thermodynamics_table(study.table, caption=f"{study.name}, averages after burn-in")
        for study in studies
    ]
    reasons = [
        f"{study.name}: {line}" for study in studies for line in equilibration_reasons(study.table)
    ]
    peaks = [_peak(study) for study in studies]
    return Section(
        "Temperature ladder", text=[*peaks, *reasons], tables=tables_shown, figures=figures
    )


def _peak(study: ModelStudy) -> str:
    peak, caveat = study.table.attrs["peak_temperature"], study.table.attrs["peak_caveat"]
    found = f"T* = {format_temperature(peak)}" if np.isfinite(peak) else "T* unknown"
    return f"{study.name}: {found}" + (f" ({caveat})." if caveat else ".")


def _model_section(
    study: ModelStudy, directory: Path, contacts: np.ndarray, config: Config, pictures: _Pictures
) -> Section:
    name = study.name
    burn_in = config.analysis.burn_in
    figures = [
        pictures(
            f"{name}_errors",
            error_figure(study.table, references=study.references),
            "Errors against T.",
        ),
        pictures(
            f"{name}_traces",
            trace_figure(study.samples, burn_in=burn_in if isinstance(burn_in, float) else None),
            "Training loss of every chain against the move: level traces have forgotten their "
            "start.",
        ),
    ]
    shown = f"T = {study.typical:.3g}, the equilibrated temperature of least validation error"
    if not study.table["equilibrated"].values.any():
        shown = f"T = {study.typical:.3g} (no temperature equilibrated)"
    if study.attention:
        for label, attention in study.attention.items():
            what = f"sampled at {shown}" if label == "samples" else f"{label} weights"
            caption = f"Mean attention (above the diagonal) and contacts (below), {what} (Fig. 6)."
            if label == "samples" and study.best_block is not None:
                caption += f" Block {study.best_block + 1}."
            figure = attention_figure(attention, contacts, shift=config.analysis.contact_shift)
            figures.append(pictures(f"{name}_attention_{label.lower()}", figure, caption))
    if study.similarity:
        figures.append(
            pictures(
                f"{name}_similarity",
                similarity_figure(study.similarity),
                f"Similarity of sampled weights layer by layer, {shown} (Fig. 4).",
            )
        )
    figures.append(
        pictures(
            f"{name}_norms",
            norm_figure(study.norms, dimensions=study.dimensions),
            f"Gains and biases of the layer norms, {shown} (Fig. 5).",
        )
    )
    references = References.load(directory / name / "references.safetensors")
    stage1 = EarlyStopped.load(directory / name / "stage1.safetensors")
    figures.append(
        pictures(
            f"{name}_training",
            training_figure(_training_curves(stage1), norm2=float(references.norm2)),
            "Stage 1 of training: loss and squared norm (Fig. C1). Circles: the early stop.",
        )
    )
    return Section(
        name,
        text=[
            f"N = {study.samples.sizes['parameter']:,} parameters on the sphere |w|² = Q = "
            f"{float(references.norm2):.1f}."
        ],
        tables=[_reference_table(study), _dimension_table(study)],
        figures=figures,
    )


def _training_curves(stage1: EarlyStopped) -> list[TrainingCurve]:
    epochs = stage1.history_epoch.numpy()
    return [
        TrainingCurve(
            label=f"run {run + 1}",
            step=epochs,
            train_loss=stage1.history_train_loss[run].numpy(),
            validation_loss=stage1.history_validation_loss[run].numpy(),
            norm2=stage1.history_norm2[run].numpy(),
            stop=int(stage1.epochs[run]),
        )
        for run in range(len(stage1.epochs))
    ]


def _reference_table(study: ModelStudy) -> Table:
    """ES and OT: mean and spread over runs."""
    columns = {
        "training loss": "train_loss",
        "train error": "train_error",
        "validation error": "validation_error",
        "test error": "test_error",
        "P@L": "precision_at_l",
        "P̃@L": "precision_at_l_tolerant",
    }
    present = {label: key for label, key in columns.items() if key in study.references[0].values}
    rows = []
    for reference in study.references:
        row = [reference.label]
        for key in present.values():
            values = np.asarray(reference.values[key])
            row.append(
                with_error(
                    float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else np.nan
                )
            )
        rows.append(row)
    return Table(
        ["weights", *present], rows, "Trained weights: mean ± standard deviation over runs"
    )


def _dimension_table(study: ModelStudy) -> Table:
    rows = [
        [
            name,
            str(d.size),
            f"{d.count:.1f}",
            f"{d.spread:.1f}",
            "two groups" if d.split else "one group",
        ]
        for name, d in study.dimensions.items()
    ]
    caption = (
        f"Norm elements away from zero at T = {format_temperature(study.typical)}: "
        "the effective embedding dimension"
    )
    return Table(["norm", "size", "away from zero", "spread", "distribution"], rows, caption)


def _sequences_section(sequences: TemperingResult, config: Config, pictures: _Pictures) -> Section:
    """How well the tempering walkers mixed: the quality of everything after it."""
    random = np.random.default_rng(config.seed)
    tokens, walker = sequences.sequences, sequences.walker
    first, second = random.integers(0, len(tokens), (2, OVERLAP_PAIRS))
    apart = first != second
    overlaps = (tokens[first[apart]] == tokens[second[apart]]).mean(axis=1)
    same_walker = walker[1:] == walker[:-1]
    consecutive = (tokens[1:] == tokens[:-1]).mean(axis=1)[same_walker]
    figure = tempering_figure(
        sequences.temperatures,
        sequences.mean_energy,
        sequences.energy_deviation,
        sequences.visits,
        overlaps,
        consecutive_overlaps=consecutive,
        random_overlap=sequences.diagnostics["overlap_baseline"],
    )
    caption = "Energy and visits of every level of the ladder, and overlaps of harvested sequences."
    rows = [
        [name.replace("_", " "), _number(value)] for name, value in sequences.diagnostics.items()
    ]
    levels = [
        [f"{t:.3f}", f"{e:.1f}", f"{s:.1f}", str(v), f"{a:.3f}", f"{z:.2f}"]
        for t, e, s, v, a, z in zip(
            sequences.temperatures,
            sequences.mean_energy,
            sequences.energy_deviation,
            sequences.visits,
            sequences.acceptance,
            sequences.log_partition,
            strict=True,
        )
    ]
    return Section(
        "Sequences",
        text=[
            f"{len(tokens):,} sequences at T = {config.sequences.temperature:g} (energy units) "
            "from adaptive simulated "
            f"tempering with {config.sequences.moves} moves."
        ],
        tables=[
            Table(["what", "value"], rows, "Mixing of the walkers"),
            Table(
                ["T", "⟨E⟩", "σ_E", "visits", "acceptance", "ln Z − ln Z_hot"], levels, "The ladder"
            ),
        ],
        figures=[pictures("tempering", figure, caption)],
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _settings_section(config: Config) -> Section:
    machine: Mapping[str, str] = {
        "thermosphere": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {_core.isa_chosen()}",
        "seed": str(config.seed),
    }
    rows = [[key, value] for key, value in machine.items()]
    return Section(
        "Settings",
        tables=[Table(["what", "value"], rows, "Made with")],
        code=config.to_toml(),
        folded=True,
    )
