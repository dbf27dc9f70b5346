"""What is computed from one model's samples: the table over temperature and what the figures show
(arXiv 2603.29529, Figs. 3 to 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from thermosphere.analysis.embedding import EffectiveDimension, effective_dimensions, norm_vectors
from thermosphere.analysis.figures_ladder import Reference
from thermosphere.analysis.similarity import (
    between_chains,
    change,
    layer_similarity,
    pair_halves,
)
from thermosphere.analysis.thermodynamics import kept_draws, settled, thermodynamics
from thermosphere.models.layout import Layout
from thermosphere.models.named import named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import DataSet
from thermosphere.runs.config import Analysis, ModelRun
from thermosphere.runs.store import open_samples, read_weights
from thermosphere.runs.study_attention import BlockAttention, PrecisionOf
from thermosphere.training import References

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ensemble:
    """Weight vectors of one kind: draws at one temperature, or the runs that gave ES or OT."""

    label: str  # "samples" | "ES" | "OT"
    temperature: float  # NaN for trained weights
    draws: int  # K, how many vectors
    chains: tuple[int, ...]  # (K,) of the samples, or the runs
    # "within chains" | "between chains" | the label → layer → pairs
    similarity: Mapping[str, Mapping[str, Array]]
    norms: Mapping[str, Array]  # norm vector → (K, d)
    dimensions: Mapping[str, EffectiveDimension]  # norm vector → how much of it is used
    attention: BlockAttention | None  # None for a model without
    # Of samples, from the first half of the draws of every chain to the second: what the mean
    # similarity between chains changes by, layer by layer, and `dimensions` of either half.
    motion: Mapping[str, float] = field(default_factory=dict)
    halves: tuple[Mapping[str, EffectiveDimension], ...] = ()


@dataclass(frozen=True)
class FromWeights:
    """What was computed from weight vectors, which may be gone."""

    parameters: int  # N
    blocks: int  # of attention
    references: tuple[Reference, ...]
    ensembles: tuple[Ensemble, ...]
    columns: Mapping[str, Array]  # of the table over temperature: precisions, with errors


@dataclass(frozen=True)
class ModelStudy:
    """Everything the report says of one model."""

    name: str
    parameters: int  # N
    samples: xr.Dataset
    table: (
        xr.Dataset
    )  # over temperature: thermodynamics, and precision where the model has attention
    references: tuple[Reference, ...]  # ES and OT: losses, errors, precisions of every run
    typical: float  # the temperature whose weights and attention the tables show
    ensembles: tuple[Ensemble, ...]  # samples at every temperature, rising, then ES and OT
    blocks: int  # of attention
    # Thermodynamics of chains begun at a neighbouring temperature, the colder one at those that the
    # attribute `heated` lists.
    second: xr.Dataset | None

    @property
    def shown(self) -> dict[str, Ensemble]:
        """ "samples" (at the typical temperature), "ES" and "OT"."""
        return {
            one.label: one
            for one in self.ensembles
            if one.label != "samples" or one.temperature == self.typical
        }

    @property
    def similarity(self) -> dict[str, Mapping[str, Array]]:
        """ "within chains" | "between chains" | "ES" | "OT" → layer → pairs, of those shown."""
        return {
            kind: pairs for one in self.shown.values() for kind, pairs in one.similarity.items()
        }

    @property
    def norms(self) -> dict[str, Mapping[str, Array]]:
        """ "samples" | "ES" | "OT" → norm vector → (K, d)."""
        return {label: one.norms for label, one in self.shown.items()}

    @property
    def dimensions(self) -> dict[str, Mapping[str, EffectiveDimension]]:
        """ "samples" | "ES" | "OT" → norm vector → its effective dimension."""
        return {label: one.dimensions for label, one in self.shown.items()}

    @property
    def attention(self) -> dict[str, BlockAttention]:
        """ "samples" | "ES" | "OT" → mean attention; empty without attention."""
        return {
            label: one.attention for label, one in self.shown.items() if one.attention is not None
        }


def study_model(
    directory: Path,
    name: str,
    data: DataSet,
    contacts: npt.NDArray[np.uint8] | None,
    settings: ModelRun,
    analysis: Analysis,
    *,
    progress: bool = False,
) -> ModelStudy:
    """Analyse DIR/samples.zarr with the ES and OT weights beside it, and DIR/cooling.zarr where it
    is there: chains that began at the last draws of a neighbouring temperature.

    contacts: (n, n) contact map; None leaves out attention, which is judged by it.

    Raises ValueError where the samples are missing, damaged or have no draw.
    """
    samples = open_samples(directory / "samples.zarr")
    if not np.isfinite(samples["train_loss"].values).any():
        raise ValueError(f"report: {directory / 'samples.zarr'} holds no draw yet")
    trained = References.load(directory / "references.safetensors")
    found = _from_weights(name, samples, trained, data, contacts, settings, analysis, progress)
    return assembled(name, samples, second_samples(directory), found, analysis)


def second_samples(directory: Path) -> xr.Dataset | None:
    """DIR/cooling.zarr; None where it was not run, or has no draw yet."""
    path = directory / "cooling.zarr"
    if not path.exists():
        return None
    samples = open_samples(path)
    return samples if np.isfinite(samples["train_loss"].values).any() else None


def assembled(
    name: str,
    samples: xr.Dataset,
    second: xr.Dataset | None,
    found: FromWeights,
    analysis: Analysis,
    *,
    typical: float | None = None,
) -> ModelStudy:
    """The study of observables (C, draws) over the moves and of what was found from weights.

    typical: the temperature whose weights are shown; by default the one with the least validation
    error of those that settled.
    """
    table = thermodynamics(samples, burn_in=analysis.burn_in)
    columns = {name: ("temperature", column) for name, column in found.columns.items()}
    table = table.assign(columns)
    compared = None
    if second is not None:
        compared = thermodynamics(second, burn_in=analysis.burn_in)
        compared.attrs["heated"] = list(second.attrs.get("heated", []))
    return ModelStudy(
        name=name,
        parameters=found.parameters,
        samples=samples,
        table=table,
        references=found.references,
        typical=_typical_temperature(table) if typical is None else typical,
        ensembles=found.ensembles,
        blocks=found.blocks,
        second=compared,
    )


def _from_weights(
    name: str,
    samples: xr.Dataset,
    trained: References,
    data: DataSet,
    contacts: npt.NDArray[np.uint8] | None,
    settings: ModelRun,
    analysis: Analysis,
    progress: bool,
) -> FromWeights:
    model = named_model(name, length=data.length)
    potential = MaskedLanguagePotential(model, data.train)
    values = _trained_values(trained, potential, data, settings.sampling.test_sequences)
    score: PrecisionOf | None = None
    if contacts is not None and isinstance(model, Transformer):
        read = data.test.subset(slice(analysis.attention_sequences))
        score = PrecisionOf(model, read, contacts, analysis, progress)

    ensembles: list[Ensemble] = []
    ladder: list[dict[str, float]] = []
    for temperature in np.unique(samples["temperature"].values.astype(np.float64)).tolist():
        drawn = _draws(samples, temperature, analysis, analysis.similarity_samples)
        attention = None
        if score is not None:
            few = _draws(samples, temperature, analysis, analysis.attention_samples)
            starts = samples["start"].values[few.chains]
            precision, attention = score(torch.from_numpy(few.weights), starts, few.late)
            ladder.append(_means(precision, starts))
        ensembles.append(_ensemble("samples", temperature, drawn, model.layout, attention))
    for label, rows in (("ES", trained.early_stopped), ("OT", trained.over_trained)):
        runs = np.arange(rows.shape[0])
        attention = None
        if score is not None:
            precision, attention = score(rows, runs)
            values[label] |= precision
        trained_rows = Drawn(rows.numpy(), runs, np.zeros(len(runs), np.bool_))
        ensembles.append(_ensemble(label, math.nan, trained_rows, model.layout, attention))
    return FromWeights(
        parameters=model.layout.size,
        blocks=score.model.blocks if score is not None else 0,
        references=tuple(Reference(label, own) for label, own in values.items()),
        ensembles=tuple(ensembles),
        columns={key: np.array([row[key] for row in ladder]) for key in (ladder or [{}])[0]},
    )


class Drawn(NamedTuple):
    """Some draws of one temperature, or runs of training."""

    weights: npt.NDArray[np.float32]  # (K, N)
    chains: npt.NDArray[np.int64]  # (K,), or runs
    late: npt.NDArray[np.bool_]  # (K,), of the second half of the draws of its chain


def _ensemble(
    label: str,
    temperature: float,
    drawn: Drawn,
    layout: Layout,
    attention: BlockAttention | None,
) -> Ensemble:
    weights, halves = drawn.weights, (~drawn.late, drawn.late)
    similarity, motion = _similarity(label, drawn, layout)
    split = label == "samples" and all(half.any() for half in halves)
    return Ensemble(
        label=label,
        temperature=temperature,
        draws=len(weights),
        chains=tuple(drawn.chains.tolist()),
        similarity=similarity,
        norms=norm_vectors(weights, layout),
        dimensions=effective_dimensions(weights, layout),
        attention=attention,
        motion=motion,
        halves=tuple(effective_dimensions(weights[half], layout) for half in halves if split),
    )


def _means(values: Mapping[str, Array], starts: npt.NDArray[np.int64]) -> dict[str, float]:
    """Mean over the draws (K,) of each value, and its `…_error`."""
    means: dict[str, float] = {}
    for name, one in values.items():
        means[name] = float(one.mean())
        means[name + "_error"] = _error_between_starts(one, starts)
    return means


def _error_between_starts(values: Array, starts: npt.NDArray[np.int64]) -> float:
    """Standard error of the mean from means of starts: draws of one chain are not independent, and
    chains of one start may not be. NaN for one start."""
    means = np.array([values[starts == start].mean() for start in np.unique(starts)])
    return float(means.std(ddof=1) / np.sqrt(means.size)) if means.size > 1 else float("nan")


def _draws(samples: xr.Dataset, temperature: float, analysis: Analysis, count: int) -> Drawn:
    """At most ``count`` weight draws after burn-in, evenly over chains and moves."""
    kept = kept_draws(samples, temperature, burn_in=analysis.burn_in)
    per_chain = max(1, min(len(kept.draws), count // max(1, len(kept.chains))))
    chosen = kept.draws[np.linspace(0, len(kept.draws) - 1, per_chain).round().astype(int)]
    weights = read_weights(samples, kept.chains, chosen)  # (chains, draws, N)
    late = np.tile(np.arange(len(chosen)) >= (len(chosen) + 1) // 2, len(kept.chains))
    return Drawn(weights.reshape(-1, weights.shape[2]), np.repeat(kept.chains, len(chosen)), late)


def _trained_values(
    trained: References, potential: MaskedLanguagePotential, data: DataSet, test_sequences: int
) -> dict[str, dict[str, Array]]:
    """Losses and errors of every ES and OT run, on the sequences that the samples were judged by.

    Training measured them on the whole sets. The samples' test loss is of the first
    ``test_sequences`` only; where these are not all, the test set is looked at again, so that both
    stand on the same sequences.
    """
    whole = test_sequences >= len(data.test)
    values: dict[str, dict[str, Array]] = {}
    for label, weights, losses, errors in (
        (
            "ES",
            trained.early_stopped,
            trained.early_stopped_losses,
            trained.early_stopped_errors,
        ),
        ("OT", trained.over_trained, trained.over_trained_losses, trained.over_trained_errors),
    ):
        if not whole:
            test = potential.evaluate(weights, data.test.subset(slice(test_sequences)))
            losses = torch.column_stack((losses[:, :2], test[0].double()))
            errors = torch.column_stack((errors[:, :2], test[1].double()))
        own = values[label] = {}
        for column, name in enumerate(("train", "validation", "test")):
            own[f"{name}_loss"] = losses[:, column].numpy()
            own[f"{name}_error"] = errors[:, column].numpy()
    return values


def _typical_temperature(table: xr.Dataset) -> float:
    """Of the settled temperatures (of all, where none is) the one with the least validation
    error."""
    usable = settled(table)
    if not usable.any():
        usable = np.ones_like(usable)
    errors = np.where(usable, table["validation_error"].values, np.inf)
    return float(table["temperature"].values[np.argmin(errors)])


def _similarity(
    label: str, drawn: Drawn, layout: Layout
) -> tuple[dict[str, dict[str, Array]], dict[str, float]]:
    """Pairs of samples within and between chains, or pairs of runs of ES or of OT, where there is
    one; and what the mean between chains changes by."""
    if len(drawn.weights) < 2:
        return {}, {}
    pairs = layer_similarity(drawn.weights, layout)
    if label != "samples":
        return {label: pairs}, {}
    between = between_chains(drawn.chains)
    halves = pair_halves(drawn.late)[between]
    return {
        kind: {layer: values[which] for layer, values in pairs.items()}
        for kind, which in (("within chains", ~between), ("between chains", between))
        if which.any()
    }, {layer: change(values[between], halves) for layer, values in pairs.items()}
