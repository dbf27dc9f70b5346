"""Sampled weights and their attention: Figs. 4 and E5, 5, and 6, E2 and E4."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from thermosphere.analysis.contacts import on_residues
from thermosphere.analysis.figures import split_block
from thermosphere.analysis.figures_attention import attention_grid
from thermosphere.analysis.figures_weights import norm_edges, norm_figure, similarity_figure
from thermosphere.analysis.similarity import similarity_histogram, similarity_summary
from thermosphere.runs.claims import in_units_of_peak
from thermosphere.runs.claims_attention import MAPS
from thermosphere.runs.claims_weights import (
    NORMS,
    SIMILARITY,
    embedding_dimension,
    last_gains,
    not_equilibrated,
)
from thermosphere.runs.embedding_dimension import saved_retraining
from thermosphere.runs.product import Cell, Data, Picture, Product
from thermosphere.runs.report import Table
from thermosphere.runs.report_tables import dimension_cell, similarity_cell, similarity_table
from thermosphere.runs.studied_run import StudiedRun
from thermosphere.runs.study import ModelStudy

Array = npt.NDArray[np.float64]
BINS = 100  # of the similarities, on [−1, 1]
COLUMNS = 4  # maps beside each other
MOST_MAPS = 12  # temperatures in Fig. E2


def similarity(run: StudiedRun) -> Product:
    """Figs. 4 and E5: how alike two weight vectors are, layer by layer."""
    first = {
        study.name: {
            layer: pairs
            for layer, pairs in _independent(study).items()
            if split_block(layer)[1] in (None, 0)
        }
        for study in run.studies.values()
        if _independent(study)
    }
    pictures = []
    tables = []
    if first:
        caption = (
            "Fig. 4. Similarity q of two sampled weight vectors of different chains, embedding, "
            "first block and output of every model."
        )
        kinds = {
            name: {split_block(layer)[0]: values for layer, values in pairs.items()}
            for name, pairs in first.items()
        }
        pictures.append(Picture("fig4", similarity_figure(first, bins=BINS), caption))
        tables.append(similarity_table(kinds))
    for study in run.studies.values():
        if study.similarity:
            several = study.blocks > 1 and _independent(study)
            shown = {"samples": _independent(study)} if several else study.similarity
            what = "of different chains, by block" if several else "of samples, of ES and of OT"
            caption = f"Fig. E5, {study.name}. Similarity of every layer, two weight vectors {what}"
            caption += f", at {in_units_of_peak(study, study.typical)}."
            pictures.append(
                Picture(f"figE5_{study.name}", similarity_figure(shown, bins=BINS), caption)
            )
    return Product(
        SIMILARITY,
        "Figs. 4 and E5: similarity of sampled weights",
        "Gains and biases of the norms are highly conserved (q near 1); value and embedding layers "
        "less so, output and query–key at intermediate values, the rest near 0 or broad. In the "
        "small models most layers move to higher q.",
        text=[_shown_temperatures(run)],
        tables=tables,
        pictures=pictures,
        data=[_similarity_data(run)],
    )


def norms(run: StudiedRun) -> Product:
    """Fig. 5: gains and biases, the two-component fit, the effective embedding dimension."""
    pictures = []
    for study in run.studies.values():
        last = {vector.removesuffix("gain") for vector in last_gains(study.dimensions["samples"])}
        shown = {
            label: {
                vector: values
                for vector, values in vectors.items()
                if vector.removesuffix("gain").removesuffix("bias") in last
            }
            for label, vectors in study.norms.items()
        }
        block = f" of block {study.blocks}" if study.blocks > 1 else ""
        caption = (
            f"Fig. 5, {study.name}. Elements of the gains and biases{block}; samples at "
            f"{in_units_of_peak(study, study.typical)}. Dotted: the cut between elements at zero "
            "and away from it, where there are two groups."
        )
        cuts = {v: one for v, one in study.dimensions["samples"].items() if v in shown["samples"]}
        figure = norm_figure(shown, dimensions=cuts)
        pictures.append(Picture(f"fig5_{study.name}", figure, caption))
    rows = [
        [study.name, vector, str(one.size)]
        + [dimension_cell(study.dimensions[kind][vector]) for kind in study.dimensions]
        for study in run.studies.values()
        for vector, one in last_gains(study.dimensions["samples"]).items()
    ]
    columns = ["model", "gains of the last block", "size", "samples", "ES", "OT"]
    caption = (
        "Elements away from zero, mean ± standard deviation over draws or runs: the effective "
        "embedding dimension where they fall into two groups"
    )
    return Product(
        NORMS,
        "Fig. 5: norm gains and biases, effective embedding dimension",
        "At d = 64 the elements form two groups, one at zero; those away from it number 26 (tf1) "
        "and 14 (last block of tf4). Models retrained at these dimensions have one group and keep "
        "their test error. ES weights have a single group.",
        text=[_shown_temperatures(run), *_retrained(run)],
        tables=[Table(columns, rows, caption)],
        pictures=pictures,
        data=[_norm_data(run), _dimension_data(run)],
    )


def attention(run: StudiedRun) -> Product | None:
    """Figs. 6, E2 and E4: mean attention against the contact map; None without either."""
    studies = [study for study in run.studies.values() if study.attention]
    if not studies or run.contacts is None:
        return None
    shift = run.config.analysis.contact_shift
    pictures = []
    for study in studies:
        best = study.attention["samples"].block + 1
        kinds = {
            label: [(f"{label}, block {b + 1}" if study.blocks > 1 else label, one.blocks[b])
                    for b in range(study.blocks)]
            for label, one in study.attention.items()
        }  # fmt: skip
        at = in_units_of_peak(study, study.typical)
        caption = (
            f"Figs. 6 and E4, {study.name}. Mean attention (above the diagonal) and contacts "
            f"(below): samples of one start at {at} (best block {best} of {study.blocks}), ES and "
            "OT of the first run."
        )
        columns = study.blocks if study.blocks > 1 else len(kinds)
        every = [entry for entries in kinds.values() for entry in entries]
        figure = attention_grid(every, run.contacts, columns=columns, shift=shift)
        pictures.append(Picture(f"fig6_{study.name}", figure, caption))
        sampled = [one for one in study.ensembles if one.attention is not None]
        sampled = [one for one in sampled if one.label == "samples"]
        chosen = np.unique(np.linspace(0, len(sampled) - 1, MOST_MAPS).round().astype(int))
        maps = [
            (in_units_of_peak(study, one.temperature), one.attention.attention)
            for one in (sampled[index] for index in chosen)
            if one.attention is not None
        ]
        grid = attention_grid(maps, run.contacts, columns=COLUMNS, shift=shift)
        caption = f"Fig. E2, {study.name}. Mean attention of the best block against temperature."
        pictures.append(Picture(f"figE2_{study.name}", grid, caption))
    return Product(
        MAPS,
        "Figs. 6, E2 and E4: mean attention and the contact map",
        "The mean attention of tf1 at intermediate temperatures resembles the contact map, that of "
        "ES and OT does not; in tf4 one block does so better than tf1, the others not at all. "
        "Samples at one temperature give nearly the same matrix: it is self-averaging.",
        text=[
            "Two matrices are compared by their Pearson correlation over the pairs i < j. Samples "
            "of one start share a chain or the weights it began from; those of two starts share "
            "nothing, and only their best blocks are compared."
        ],
        tables=[_alike_table(studies)],
        pictures=pictures,
        data=[_alike_data(studies), *(_map_data(study, run.contacts, shift) for study in studies)],
    )


def _independent(study: ModelStudy) -> Mapping[str, Array]:
    """Similarity of sampled weights of different chains; empty for one chain."""
    return study.shown["samples"].similarity.get("between chains", {})


def _shown_temperatures(run: StudiedRun) -> str:
    """At which temperature the weights of each model are looked at."""
    words = []
    for study in run.studies.values():
        doubt = ", not yet draws of an ensemble" if not_equilibrated(study) else ""
        words.append(f"{study.name} {in_units_of_peak(study, study.typical)}{doubt}")
    return f"Samples are those at the least validation error ({'; '.join(words)})."


def _retrained(run: StudiedRun) -> list[str]:
    lines = []
    for name, study in run.studies.items():
        found = saved_retraining(run.directory / name)
        if found is not None:
            lines.append(found.sentence())
        elif embedding_dimension(study.dimensions["samples"]) is None:
            lines.append(
                f"{name}: the gains of its last block do not fall into two groups; there is no "
                "smaller dimension to retrain it at."
            )
        else:
            lines.append(
                f"{name}: not retrained at its effective dimension "
                f"(`thermosphere embedding --model {name} --retrain`)."
            )
    return lines


def _similarity_data(run: StudiedRun) -> Data:
    _, edges = similarity_histogram([], bins=BINS)
    columns = ["model", "T", "weights", "layer", "pairs", "mean", "deviation"]
    columns += [f"density from {edge:.2f}" for edge in edges[:-1]]
    rows: list[list[Cell]] = []
    for study in run.studies.values():
        for kind, layers in study.similarity.items():
            summary = similarity_summary(dict(layers))
            temperature = "" if kind in ("ES", "OT") else study.typical
            for layer, pairs in layers.items():
                density, _ = similarity_histogram(pairs, bins=BINS)
                head: list[Cell] = [study.name, temperature, kind, layer, int(pairs.size)]
                rows.append([*head, *summary[layer], *(f"{value:.3g}" for value in density)])
    return Data("fig4", columns, rows)


def _norm_data(run: StudiedRun) -> Data:
    bins = 60
    columns = ["model", "T", "weights", "vector", "from", "to"]
    columns += [f"count {number + 1}" for number in range(bins)]
    rows: list[list[Cell]] = []
    for study in run.studies.values():
        edges = norm_edges(study.norms, bins=bins)
        for label, vectors in study.norms.items():
            temperature = "" if label in ("ES", "OT") else study.typical
            for name, values in vectors.items():
                own = edges[split_block(name)[0]]
                counts, _ = np.histogram(values, own)
                head: list[Cell] = [study.name, temperature, label, name]
                rows.append([*head, float(own[0]), float(own[-1]), *counts.tolist()])
    return Data("fig5", columns, rows)


def _dimension_data(run: StudiedRun) -> Data:
    columns = ["model", "T", "weights", "vector", "size", "two groups", "away from zero"]
    columns += ["deviation", "threshold", "separation"]
    rows: list[list[Cell]] = []
    for study in run.studies.values():
        for one in study.ensembles:
            temperature = "" if math.isnan(one.temperature) else one.temperature
            for name, d in one.dimensions.items():
                head: list[Cell] = [study.name, temperature, one.label, name, d.size, d.split]
                rows.append([*head, d.count, d.spread, d.threshold, d.separation])
    return Data("fig5_dimension", columns, rows)


def _alike_table(studies: list[ModelStudy]) -> Table:
    rows = []
    for study in studies:
        for label, one in study.attention.items():
            alike, block = one.alike, one.block
            own = alike.same_start[block]
            cells = [
                similarity_cell(float(pairs.mean()), float(pairs.std()), pairs=pairs.size)
                if pairs.size
                else "–"
                for pairs in (own, alike.other_start)
            ]
            at = f" at {in_units_of_peak(study, study.typical)}" if label == "samples" else ""
            rows.append([study.name, f"{label}{at}", str(block + 1), *cells])
    columns = ["model", "weights", "best block of the first start", "one start", "two starts"]
    caption = "Correlation of two mean attention matrices, mean ± standard deviation over pairs"
    return Table(columns, rows, caption)


def _alike_data(studies: list[ModelStudy]) -> Data:
    columns = ["model", "T", "weights", "starts", "block", "pairs", "mean", "deviation"]
    rows: list[list[Cell]] = []
    for study in studies:
        for one in study.ensembles:
            if one.attention is None:
                continue
            temperature = "" if math.isnan(one.temperature) else one.temperature
            alike = one.attention.alike
            groups: list[tuple[str, Cell, Array]] = [
                ("one", block + 1, pairs) for block, pairs in enumerate(alike.same_start)
            ]
            groups.append(("two", "best", alike.other_start))
            rows += [
                [
                    study.name, temperature, one.label, starts, block, int(pairs.size),
                    float(pairs.mean()), float(pairs.std()),
                ]
                for starts, block, pairs in groups
                if pairs.size
            ]  # fmt: skip
    return Data("fig6_alike", columns, rows)


def _map_data(study: ModelStudy, contacts: npt.NDArray[np.uint8], shift: int) -> Data:
    """Attention in units of 1/n, three digits, pairs of residues from 1."""
    n = len(contacts)
    i, j = np.triu_indices(n, 1)
    columns = ["i", "j", "contact"]
    values = []
    for label, one in study.attention.items():
        for block, attention in enumerate(one.blocks):
            columns.append(f"{label} block {block + 1}")
            values.append(n * on_residues(attention, shift)[i, j])
    rows: list[list[Cell]] = [
        [int(a) + 1, int(b) + 1, int(contacts[a, b]), *(f"{value[k]:.3g}" for value in values)]
        for k, (a, b) in enumerate(zip(i, j, strict=True))
    ]
    return Data(f"fig6_{study.name}", columns, rows)
