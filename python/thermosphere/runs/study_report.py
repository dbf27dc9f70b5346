"""The report of a run: its studies put into tables, figures and words."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
import torch

from thermosphere import __version__
from thermosphere.analysis.figures import save_png
from thermosphere.analysis.figures_attention import attention_figure
from thermosphere.analysis.figures_ladder import (
    Reference,
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
from thermosphere.analysis.figures_sequences import frequencies_figure
from thermosphere.analysis.figures_weights import norm_figure, similarity_figure
from thermosphere.analysis.sequence_statistics import pair_correlations, site_frequencies
from thermosphere.analysis.thermodynamics import settled
from thermosphere.proteins.structure import ContactMap
from thermosphere.proteins.tempering_result import TemperingResult
from thermosphere.runs.claims import peak
from thermosphere.runs.config import Config
from thermosphere.runs.provenance import machine
from thermosphere.runs.report import Figure, Section, Table, format_table, write_report
from thermosphere.runs.report_data import report_data
from thermosphere.runs.report_tables import (
    block_table,
    dimension_table,
    equilibration_reasons,
    equilibration_warnings,
    format_temperature,
    level_table,
    mixing_table,
    reference_table,
    similarity_table,
    thermodynamics_table,
    training_table,
    training_warnings,
    write_table,
)
from thermosphere.runs.studied_run import SequenceSets, StudiedRun
from thermosphere.runs.study import ModelStudy
from thermosphere.runs.study_attention import random_precisions
from thermosphere.training import EarlyStopped, References

MOST_FREQUENCIES = 6_000  # sites × states; their pairs then take 300 MB
OVERLAP_PAIRS = 20_000


def write_study(run: StudiedRun) -> str:
    """Write DIR/report.html, figures/ and MODEL/thermodynamics.csv.

    Returns what a terminal shows at the end: a table a model and the report's path.
    """
    directory, config, contacts = run.directory, run.config, run.contacts
    sampled = directory / "sequences.npz"
    sequences = TemperingResult.load(sampled) if sampled.is_file() else None
    pictures = _Pictures(directory / "figures")
    studies = list(run.studies.values())
    warnings = list(sequences.warnings) if sequences is not None else []
    for study in studies:
        name = study.name
        write_table(study.table, directory / name / "thermodynamics.csv")
        warnings += training_warnings(name, run.stage1[name], run.trained[name])
        warnings += equilibration_warnings(name, study.table)

    sections = [_ladder_section(studies, contacts, config, pictures)]
    sections += [
        _model_section(
            study, run.stage1[study.name], run.trained[study.name], contacts, config, pictures
        )
        for study in studies
    ]
    if sequences is not None:
        sections.append(_sequences_section(sequences, config, pictures))
    sections.append(_settings_section(config))
    report = directory / "report.html"
    write_report(
        report,
        title=f"thermosphere: {config.name}",
        sections=sections,
        summary=_summary(studies, run.protein, run.data, config),
        warnings=warnings,
        data=report_data(studies, run.protein, config),
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
    studies: Sequence[ModelStudy], protein: ContactMap | None, data: SequenceSets, config: Config
) -> list[str]:
    models = ", ".join(study.name for study in studies)
    source = (
        f"a protein of {data.length} residues and {len(protein.contacts)} contacts"
        if protein is not None
        else f"{data.length} sites with couplings from {config.sequences.couplings}, without a "
        "contact map: P@L and attention against contacts need a structure (--structure)"
    )
    return [
        f"Weights of {models} sampled at constant norm and fixed temperature with "
        "pseudo-Langevin dynamics, on masked "
        f"sequences of {source} "
        f"({data.sentence()}).",
        "U is the mean cross-entropy of the training set in nats; T is in the same unit; ES "
        "are early-stopped, OT over-trained "
        "weights. Error bars are one standard error, from effective sample sizes, or of the starts "
        "where chains stand still but those of different starts stay apart, or have few "
        "independent draws (half-filled points). "
        "Hollow points and greyed rows did not equilibrate: their averages depend on the start.",
    ]


def _ladder_section(
    studies: Sequence[ModelStudy],
    contacts: np.ndarray | None,
    config: Config,
    pictures: _Pictures,
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
            "Specific heat (Fig. 3b), from fluctuations; dashed: d⟨U⟩/dT along the ladder, whose "
            "maximum is T*. A triangle at the rim is a temperature beyond it that did not "
            "equilibrate.",
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
    figures += _relative_figures(studies, references, pictures)
    attentive = {name: table for name, table in tables.items() if "precision_at_l" in table}
    if attentive and contacts is not None:
        a = config.analysis
        random = random_precisions(contacts, a)
        figure = precision_figure(
            attentive,
            {name: random[name] for name in ("precision_at_l", "precision_at_l_tolerant")},
            references={name: references[name] for name in attentive},
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
    return Section(
        "Temperature ladder",
        text=[_peak(study) for study in studies],
        warnings=reasons,
        tables=tables_shown,
        stills=figures,
    )


def _relative_figures(
    studies: Sequence[ModelStudy],
    references: Mapping[str, Sequence[Reference]],
    pictures: _Pictures,
) -> list[Figure]:
    """Against T/T*, for models whose T* is beyond doubt; none where there is no such model."""
    trusted = {one.name: one.table for one in studies if math.isfinite(peak(one))}
    if not trusted:
        return []
    models = ", ".join(trusted)
    own = {name: references[name] for name in trusted}
    return [
        pictures(
            "loss_relative",
            observable_figure(trusted, "train_loss", references=own, relative=True),
            f"Mean training loss ⟨U⟩ against T/T* ({models}).",
        ),
        pictures(
            "specific_heat_relative",
            specific_heat_figure(trusted, relative=True),
            f"Specific heat against T/T* ({models}).",
        ),
        pictures(
            "test_error_relative",
            observable_figure(trusted, "test_error", references=own, relative=True),
            f"Test error against T/T* ({models}).",
        ),
    ]


def _peak(study: ModelStudy) -> str:
    peak, caveat = study.table.attrs["peak_temperature"], study.table.attrs["peak_caveat"]
    found = f"T* = {format_temperature(peak)}" if np.isfinite(peak) else "T* unknown"
    return f"{study.name}: {found}" + (f" ({caveat})." if caveat else ".")


def _model_section(
    study: ModelStudy,
    stage1: EarlyStopped,
    trained: References,
    contacts: np.ndarray | None,
    config: Config,
    pictures: _Pictures,
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
    typical = format_temperature(study.typical)
    shown = f"T = {typical}, the settled temperature of least validation error"
    if not settled(study.table).any():
        shown = f"T = {typical} (no temperature settled)"
    for label, one in study.attention.items():
        assert contacts is not None  # there is no attention without them
        start = f"start {one.start + 1}"
        what = f"sampled at {shown}, from {start}" if label == "samples" else f"{label} of {start}"
        figures.append(
            pictures(
                f"{name}_attention_{label.lower()}",
                attention_figure(one.attention, contacts, shift=config.analysis.contact_shift),
                "Mean attention (above the diagonal) and contacts (below), "
                f"{what}, block {one.block + 1} of {study.blocks} (Fig. 6).",
            )
        )
    if study.similarity:
        figures.append(
            pictures(
                f"{name}_similarity",
                similarity_figure(study.similarity),
                f"Similarity of two weight vectors layer by layer: samples at {shown}, ES and OT "
                "of different runs (Fig. 4).",
            )
        )
    figures.append(
        pictures(
            f"{name}_norms",
            norm_figure(study.norms, dimensions=study.dimensions["samples"]),
            f"Gains and biases of the layer norms; samples at {shown} (Fig. 5).",
        )
    )
    training = pictures(
        f"{name}_training",
        training_figure(training_curves(stage1), norm2=float(trained.norm2)),
        "Stage 1 of training: loss and squared norm (Fig. C1). Circles: the early stop.",
    )
    tables = [reference_table(study.references), training_table(trained)]
    if study.blocks > 1:
        tables.append(block_table({label: one.best for label, one in study.attention.items()}))
    if study.similarity:
        tables.append(similarity_table(study.similarity))
    if study.dimensions["samples"]:
        tables.append(dimension_table(study.dimensions, study.typical))
    return Section(
        name,
        text=[
            f"N = {study.parameters:,} parameters on the sphere |w|² = Q = "
            f"{float(trained.norm2):.1f}."
        ],
        tables=tables,
        stills=figures,
        figures=[training],
    )


def training_curves(stage1: EarlyStopped) -> list[TrainingCurve]:
    """Stage 1 of training as `training_figure` draws it."""
    epochs = stage1.history_epoch.numpy()
    return [
        TrainingCurve(
            label=f"run {run + 1}",
            epoch=epochs,
            train_loss=stage1.history_train_loss[run].numpy(),
            validation_loss=stage1.history_validation_loss[run].numpy(),
            norm2=stage1.history_norm2[run].numpy(),
            stop=int(stage1.epochs[run]),
        )
        for run in range(len(stage1.epochs))
    ]


def _sequences_section(sequences: TemperingResult, config: Config, pictures: _Pictures) -> Section:
    """How well the tempering walkers mixed: the quality of everything after it."""
    random = np.random.default_rng(config.seed)
    tokens, walker = sequences.sequences, sequences.walker
    first, second = random.integers(0, len(tokens), (2, OVERLAP_PAIRS))
    apart = first != second
    overlaps = (tokens[first[apart]] == tokens[second[apart]]).mean(axis=1)
    strangers = walker[first[apart]] != walker[second[apart]]
    same_walker = walker[1:] == walker[:-1]
    consecutive = (tokens[1:] == tokens[:-1]).mean(axis=1)[same_walker]
    figure = tempering_figure(
        sequences.temperatures,
        sequences.mean_energy,
        sequences.energy_deviation,
        sequences.visits,
        overlaps,
        consecutive_overlaps=consecutive,
        independent_overlaps=overlaps[strangers] if strangers.any() else None,
        random_overlap=sequences.diagnostics["overlap_baseline"],
    )
    caption = (
        "Energy and visits of every level of the ladder, and overlaps of harvested sequences: any "
        "two, consecutive ones of a walker, and those of two walkers, which are independent."
    )
    figures = [pictures("tempering", figure, caption)]
    model = sequences.model
    if model.length * model.states <= MOST_FREQUENCIES:
        frequencies = frequencies_figure(
            site_frequencies(tokens, model.states),
            pair_correlations(tokens, model.states),
            model.pairs,
            letters=model.alphabet,
        )
        caption = (
            "Above: how often each state stands at each site. Below: how far pairs of sites are "
            "from independent (upper triangle), and which are coupled (lower)."
        )
        figures.append(pictures("frequencies", frequencies, caption))
    return Section(
        "Sequences",
        text=[
            f"{len(tokens):,} sequences at T = {config.sequences.temperature:g} (energy units) "
            f"from adaptive {config.sequences.method} tempering with {config.sequences.moves} "
            "moves.",
            *_couplings_text(config),
        ],
        tables=[mixing_table(sequences), level_table(sequences)],
        figures=figures,
    )


def _couplings_text(config: Config) -> list[str]:
    if config.sequences.couplings is None:
        return []
    gaps = "" if config.sequences.gaps else ", under the condition that no site is a gap"
    return [f"Their law is that of the couplings of {config.sequences.couplings}{gaps}."]


def _settings_section(config: Config) -> Section:
    made_with: Mapping[str, str] = {
        "thermosphere": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": machine(),
        "seed": str(config.seed),
    }
    rows = [[key, value] for key, value in made_with.items()]
    return Section(
        "Settings",
        tables=[Table(["what", "value"], rows, "Made with")],
        code=config.to_toml(),
        folded=True,
    )
