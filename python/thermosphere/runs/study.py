"""What is computed from one model's samples: the table over temperature and what the figures show
(SPEC §6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from thermosphere.analysis.contacts import best_block, mean_attention
from thermosphere.analysis.embedding import EffectiveDimension, effective_dimensions, norm_vectors
from thermosphere.analysis.figures_ladder import Reference
from thermosphere.analysis.similarity import between_chains, layer_similarity
from thermosphere.analysis.thermodynamics import kept_draws, thermodynamics
from thermosphere.models.layout import Layout
from thermosphere.models.named import named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import DataSet, MaskedSequences
from thermosphere.runs.config import Analysis, ModelRun
from thermosphere.runs.store import open_samples
from thermosphere.training import References

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ModelStudy:
    """Everything the report says of one model."""

    name: str
    samples: xr.Dataset
    table: (
        xr.Dataset
    )  # over temperature: thermodynamics, and precision where the model has attention
    references: tuple[Reference, ...]  # ES and OT: losses, errors, precisions of every run
    typical: float  # the temperature whose weights and attention are shown
    similarity: Mapping[
        str, Mapping[str, Array]
    ]  # "within chains" | "between chains" → layer → pairs
    norms: Mapping[str, Mapping[str, Array]]  # "samples" | "ES" → norm vector → (K, d)
    dimensions: Mapping[str, EffectiveDimension]  # of the samples
    attention: Mapping[str, Array]  # "samples", "ES", "OT" → (n, n) of the best block
    best_block: int | None


def study_model(
    directory: Path,
    name: str,
    data: DataSet,
    contacts: npt.NDArray[np.uint8],
    settings: ModelRun,
    analysis: Analysis,
    *,
    progress: bool = False,
) -> ModelStudy:
    """Analyse DIR/samples.zarr with the ES and OT weights beside it. contacts: (n, n) contact map.

    Raises ValueError where the samples are missing, damaged or have no draw.
    """
    samples = open_samples(directory / "samples.zarr")
    trained = References.load(directory / "references.safetensors")
    model = named_model(name, length=data.length)
    potential = MaskedLanguagePotential(model, data.train)
    if not np.isfinite(samples["train_loss"].values).any():
        raise ValueError(f"report: {directory / 'samples.zarr'} holds no draw yet")
    table = thermodynamics(samples, burn_in=analysis.burn_in)
    weights = {"ES": trained.early_stopped, "OT": trained.over_trained}
    test = data.test.subset(slice(settings.sampling.test_sequences))
    values = {label: _evaluate(potential, rows, data, test) for label, rows in weights.items()}

    typical = _typical_temperature(table)
    typical_weights, chains = _draws(samples, typical, analysis, analysis.similarity_samples)
    layout = model.layout
    attention: dict[str, Array] = {}
    block = None
    if isinstance(model, Transformer):
        read = data.test.subset(slice(analysis.attention_sequences))
        score = _PrecisionOf(model, read, contacts, analysis)
        for label, rows in weights.items():
            strict, tolerant, maps = score(rows, np.arange(rows.shape[0]))
            values[label] |= {"precision_at_l": strict, "precision_at_l_tolerant": tolerant}
            attention[label] = maps[0]
        table, attention["samples"], block = _precision_ladder(
            table, samples, score, analysis, typical
        )
    return ModelStudy(
        name=name,
        samples=samples,
        table=table,
        references=tuple(Reference(label, values[label]) for label in weights),
        typical=typical,
        similarity=_similarity(typical_weights, chains, layout),
        norms={
            "samples": norm_vectors(typical_weights, layout),
            "ES": norm_vectors(trained.early_stopped.numpy(), layout),
        },
        dimensions=effective_dimensions(typical_weights, layout),
        attention=attention,
        best_block=block,
    )


class _PrecisionOf:
    """P@L and P̃@L of weights, block by block; the best block of each start by itself."""

    def __init__(
        self,
        model: Transformer,
        sequences: MaskedSequences,
        contacts: npt.NDArray[np.uint8],
        analysis: Analysis,
    ) -> None:
        self.model, self.sequences, self.contacts, self.analysis = (
            model,
            sequences,
            contacts,
            analysis,
        )
        self.block = 0  # best block of the start scored last

    def __call__(
        self, weights: torch.Tensor, starts: npt.NDArray[np.int64]
    ) -> tuple[Array, Array, Array]:
        """weights (K, N), starts (K,) -> P@L (K,), P̃@L (K,), mean attention (K, n, n) of the best
        block."""
        maps = mean_attention(self.model, weights, self.sequences)
        strict, tolerant = np.empty(len(maps)), np.empty(len(maps))
        chosen = np.empty((len(maps), *maps.shape[2:]))
        for start in np.unique(starts):
            rows = np.flatnonzero(starts == start)
            best = best_block(
                maps[rows],
                self.contacts,
                shift=self.analysis.contact_shift,
                min_separation=self.analysis.min_separation,
                tolerance=self.analysis.tolerance,
            )
            strict[rows] = best.precision[:, best.index]
            tolerant[rows] = best.precision_tolerant[:, best.index]
            chosen[rows] = maps[rows, best.index]
            self.block = best.index
        return strict, tolerant, chosen


def _precision_ladder(
    table: xr.Dataset, samples: xr.Dataset, score: _PrecisionOf, analysis: Analysis, typical: float
) -> tuple[xr.Dataset, Array, int]:
    """The table with P@L and P̃@L added, and the mean attention of the best block at
    ``typical``."""
    columns: dict[str, list[float]] = {
        name + suffix: []
        for name in ("precision_at_l", "precision_at_l_tolerant")
        for suffix in ("", "_error")
    }
    shown = np.zeros(score.contacts.shape)
    block = 0
    for temperature in table["temperature"].values:
        weights, chains = _draws(samples, float(temperature), analysis, analysis.attention_samples)
        starts = samples["start"].values[chains]
        strict, tolerant, maps = score(torch.from_numpy(weights), starts)
        for name, values in (("precision_at_l", strict), ("precision_at_l_tolerant", tolerant)):
            columns[name].append(float(values.mean()))
            columns[name + "_error"].append(_error_between_chains(values, chains))
        if temperature == typical:
            shown, block = maps[starts == starts[0]].mean(axis=0), score.block
    extra = {name: ("temperature", np.array(values)) for name, values in columns.items()}
    return table.assign(extra), shown, block


def _error_between_chains(values: Array, chains: npt.NDArray[np.int64]) -> float:
    """Standard error of the mean from chain means: draws of one chain are not independent. NaN for
    one chain."""
    means = np.array([values[chains == chain].mean() for chain in np.unique(chains)])
    return float(means.std(ddof=1) / np.sqrt(means.size)) if means.size > 1 else float("nan")


def _draws(
    samples: xr.Dataset, temperature: float, analysis: Analysis, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """At most ``count`` weight draws (K, N) after burn-in, evenly over chains and moves, and the
    chain of each (K,)."""
    kept = kept_draws(samples, temperature, burn_in=analysis.burn_in)
    per_chain = max(1, min(len(kept.draws), count // max(1, len(kept.chains))))
    chosen = kept.draws[np.linspace(0, len(kept.draws) - 1, per_chain).round().astype(int)]
    weights = samples["weights"].isel(chain=kept.chains, draw=chosen).values  # (chains, draws, N)
    chains = np.repeat(kept.chains, len(chosen))
    return weights.reshape(-1, weights.shape[2]), chains


def _evaluate(
    potential: MaskedLanguagePotential, weights: torch.Tensor, data: DataSet, test: MaskedSequences
) -> dict[str, Array]:
    values = {}
    for name, sequences in (("train", data.train), ("validation", data.validation), ("test", test)):
        losses, errors = potential.evaluate(weights, sequences)
        values[f"{name}_loss"], values[f"{name}_error"] = (
            losses.double().numpy(),
            errors.double().numpy(),
        )
    return values


def _typical_temperature(table: xr.Dataset) -> float:
    """Of the equilibrated temperatures (of all, where none is) the one with the least validation
    error."""
    usable = table["equilibrated"].values
    if not usable.any():
        usable = np.ones_like(usable)
    errors = np.where(usable, table["validation_error"].values, np.inf)
    return float(table["temperature"].values[np.argmin(errors)])


def _similarity(
    weights: npt.NDArray[np.float32], chains: npt.NDArray[np.int64], layout: Layout
) -> dict[str, dict[str, Array]]:
    if len(weights) < 2:
        return {}
    pairs = layer_similarity(weights, layout)
    between = between_chains(chains)
    split = {"within chains": ~between, "between chains": between}
    return {
        label: {layer: values[which] for layer, values in pairs.items()}
        for label, which in split.items()
        if which.any()
    }
