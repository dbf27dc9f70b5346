"""What is computed from one model's samples: the table over temperature and what the figures show
(arXiv 2603.29529, Figs. 3 to 7)."""

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
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import DataSet, MaskedSequences
from thermosphere.runs.config import Analysis, ModelRun
from thermosphere.runs.store import open_samples, read_weights
from thermosphere.training import References

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BlockAttention:
    """Mean attention of the best block of one start, or of one run of training."""

    attention: Array  # (n, n), averaged over the draws of `start`
    start: int
    best: Mapping[int, int]  # start → its best block, from 0; blocks may exchange roles

    @property
    def block(self) -> int:
        """Zero-based block that `attention` is of."""
        return self.best[self.start]


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
    ]  # "within chains" | "between chains" | "ES" | "OT" → layer → pairs
    norms: Mapping[str, Mapping[str, Array]]  # "samples" | "ES" | "OT" → norm vector → (K, d)
    dimensions: Mapping[
        str, Mapping[str, EffectiveDimension]
    ]  # "samples" | "ES" | "OT" → norm vector
    attention: Mapping[str, BlockAttention]  # "ES" | "OT" | "samples"; empty without attention
    blocks: int  # of attention


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
    """Analyse DIR/samples.zarr with the ES and OT weights beside it.

    contacts: (n, n) contact map; None leaves out attention, which is judged by it.

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
    values = _trained_values(trained, potential, data, settings.sampling.test_sequences)

    typical = _typical_temperature(table)
    typical_weights, chains = _draws(samples, typical, analysis, analysis.similarity_samples)
    layout = model.layout
    attention: dict[str, BlockAttention] = {}
    if contacts is not None and isinstance(model, Transformer):
        read = data.test.subset(slice(analysis.attention_sequences))
        score = _PrecisionOf(model, read, contacts, analysis, progress)
        for label, rows in weights.items():
            runs = np.arange(rows.shape[0])
            strict, tolerant, maps, best = score(rows, runs)
            values[label] |= {"precision_at_l": strict, "precision_at_l_tolerant": tolerant}
            attention[label] = _shown(maps, runs, best)
        table, attention["samples"] = _precision_ladder(table, samples, score, analysis, typical)
    kinds = {
        "samples": typical_weights,
        "ES": trained.early_stopped.numpy(),
        "OT": trained.over_trained.numpy(),
    }
    return ModelStudy(
        name=name,
        samples=samples,
        table=table,
        references=tuple(Reference(label, values[label]) for label in weights),
        typical=typical,
        similarity=_similarity(kinds, chains, layout),
        norms={label: norm_vectors(rows, layout) for label, rows in kinds.items()},
        dimensions={label: effective_dimensions(rows, layout) for label, rows in kinds.items()},
        attention=attention,
        blocks=model.blocks if attention and isinstance(model, Transformer) else 0,
    )


class _PrecisionOf:
    """P@L and P̃@L of weights, block by block; the best block of each start by itself."""

    def __init__(
        self,
        model: Transformer,
        sequences: MaskedSequences,
        contacts: npt.NDArray[np.uint8],
        analysis: Analysis,
        progress: bool = False,
    ) -> None:
        self.model, self.sites, self.contacts = model, MaskedSites(sequences), contacts
        self.analysis, self.progress = analysis, progress

    def __call__(
        self, weights: torch.Tensor, starts: npt.NDArray[np.int64]
    ) -> tuple[Array, Array, Array, dict[int, int]]:
        """weights (K, N), starts (K,) -> P@L (K,), P̃@L (K,), mean attention (K, n, n) of the best
        block, and that block for each start."""
        maps = mean_attention(self.model, weights, self.sites, progress=self.progress)
        strict, tolerant = np.empty(len(maps)), np.empty(len(maps))
        chosen = np.empty((len(maps), *maps.shape[2:]))
        blocks: dict[int, int] = {}
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
            blocks[int(start)] = best.index
        return strict, tolerant, chosen, blocks


def _shown(maps: Array, starts: npt.NDArray[np.int64], best: Mapping[int, int]) -> BlockAttention:
    """The first start's attention; maps (K, n, n) of the best block, starts (K,)."""
    first = int(starts[0])
    return BlockAttention(maps[starts == first].mean(axis=0), first, best)


def _precision_ladder(
    table: xr.Dataset, samples: xr.Dataset, score: _PrecisionOf, analysis: Analysis, typical: float
) -> tuple[xr.Dataset, BlockAttention]:
    """The table with P@L and P̃@L added, and the mean attention of the best block at
    ``typical``."""
    columns: dict[str, list[float]] = {
        name + suffix: []
        for name in ("precision_at_l", "precision_at_l_tolerant")
        for suffix in ("", "_error")
    }
    shown = None
    for temperature in table["temperature"].values:
        weights, chains = _draws(samples, float(temperature), analysis, analysis.attention_samples)
        starts = samples["start"].values[chains]
        strict, tolerant, maps, best = score(torch.from_numpy(weights), starts)
        for name, values in (("precision_at_l", strict), ("precision_at_l_tolerant", tolerant)):
            columns[name].append(float(values.mean()))
            columns[name + "_error"].append(_error_between_chains(values, chains))
        if temperature == typical:
            shown = _shown(maps, starts, best)
    assert shown is not None, typical
    extra = {name: ("temperature", np.array(values)) for name, values in columns.items()}
    return table.assign(extra), shown


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
    weights = read_weights(samples, kept.chains, chosen)  # (chains, draws, N)
    chains = np.repeat(kept.chains, len(chosen))
    return weights.reshape(-1, weights.shape[2]), chains


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
    """Of the equilibrated temperatures (of all, where none is) the one with the least validation
    error."""
    usable = table["equilibrated"].values
    if not usable.any():
        usable = np.ones_like(usable)
    errors = np.where(usable, table["validation_error"].values, np.inf)
    return float(table["temperature"].values[np.argmin(errors)])


def _similarity(
    kinds: Mapping[str, npt.NDArray[np.float32]],
    chains: npt.NDArray[np.int64],
    layout: Layout,
) -> dict[str, dict[str, Array]]:
    """Pairs of samples within and between chains, pairs of runs of ES and of OT; what has no pair
    is left out. kinds: label → (K, N) weights; chains: (K,) of the samples."""
    similarity: dict[str, dict[str, Array]] = {}
    for kind, weights in kinds.items():
        if len(weights) < 2:
            continue
        pairs = layer_similarity(weights, layout)
        if kind != "samples":
            similarity[kind] = pairs
            continue
        between = between_chains(chains)
        for label, which in (("within chains", ~between), ("between chains", between)):
            if which.any():
                similarity[label] = {layer: values[which] for layer, values in pairs.items()}
    return similarity
