"""The effective embedding dimension as a procedure (arXiv 2603.29529, Sect. III.2).

    1. Sample at the temperature of least validation error, of those that equilibrated.
    2. Cut the elements of the last block's gains in two groups, at zero and away from it.
    3. The number away from zero is the dimension d' that the model needs.
    4. Train a model with d' in place of d, m' = 4 d', by the same early stopping: it keeps its test
       error where the mean rises by no more than runs differ from one another.

Steps 1 to 3 read a run's samples; step 4 writes DIR/MODEL/embedding.safetensors.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from thermosphere.archive import read_archive, write_archive
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import named_model
from thermosphere.models.potential import evaluate
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import DataSet
from thermosphere.runs.claims_weights import embedding_dimension, not_equilibrated
from thermosphere.runs.config import Config, ModelRun
from thermosphere.runs.report import format_table
from thermosphere.runs.report_tables import dimension_table, with_error
from thermosphere.runs.run_directory import stage_seed
from thermosphere.runs.study import ModelStudy, study_model
from thermosphere.runs.train import training_options
from thermosphere.training import EarlyStopped, train_early_stopped

KIND = "thermosphere retraining at another embedding dimension"
FILE = "embedding.safetensors"


@dataclass(frozen=True)
class Retraining:
    """Early-stopped runs of a model and of the same one with fewer embedding dimensions."""

    name: str
    dimension: int  # d'
    original: torch.Tensor  # (R,) float64, test errors of the model's stage-1 runs
    retrained: torch.Tensor  # (R',) float64
    weights: torch.Tensor  # (R', N') float32, retrained

    @property
    def rise(self) -> float:
        """Mean test error retrained less the original's."""
        return float(self.retrained.mean() - self.original.mean())

    @property
    def spread(self) -> float:
        """Standard deviation of the difference of two runs, one of each; NaN for a single run."""
        if min(len(self.original), len(self.retrained)) < 2:
            return math.nan
        return math.sqrt(float(self.original.var() + self.retrained.var()))

    def sentence(self) -> str:
        """Both test errors, and whether the smaller model keeps it."""
        smaller = f"retrained at {self.dimension} ({self.weights.shape[1]:,} parameters)"
        both = ", ".join(
            f"{_mean_and_deviation(errors)} over {len(errors)} runs {which}"
            for which, errors in (("of the model", self.original), (smaller, self.retrained))
        )
        if math.isnan(self.spread):
            verdict = "cannot be told from single runs"
        else:
            verdict = "yes" if self.rise <= self.spread else "no"
        return (
            f"{self.name}: test error (mean ± standard deviation) {both}. Keeps its test error: "
            f"{verdict} (it rises by {self.rise:+.4f}, two runs differ by {self.spread:.4f})."
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        tensors = {name: getattr(self, name) for name in ("original", "retrained", "weights")}
        header = {"kind": KIND, "name": self.name, "dimension": self.dimension}
        write_archive(path, tensors, header)


def _mean_and_deviation(errors: torch.Tensor) -> str:
    deviation = float(errors.std()) if len(errors) > 1 else math.nan
    return with_error(float(errors.mean()), deviation)


def saved_retraining(directory: Path) -> Retraining | None:
    """What `retrain` saved in DIR/MODEL; None where it has not been run. ValueError for another
    file."""
    path = directory / FILE
    if not path.is_file():
        return None
    tensors, header = read_archive(path, KIND)
    return Retraining(header["name"], int(header["dimension"]), **tensors)


def dimension_study(directory: Path, config: Config, name: str) -> ModelStudy:
    """The study of one model without its attention, which takes seconds."""
    data = DataSet.load(directory / "dataset.npz")
    return study_model(directory / name, name, data, None, config.models[name], config.analysis)


def found_dimension(study: ModelStudy) -> int | None:
    """d', to the nearest whole number; None where no gain of the last block falls in two groups."""
    found = embedding_dimension(study.dimensions["samples"])
    return None if found is None else round(found.count)


def dimension_text(study: ModelStudy) -> str:
    """The table over norm vectors, d', and whether it may be believed."""
    dimension = found_dimension(study)
    table = dimension_table(study.dimensions, study.typical)
    lines = [format_table(table), f"{table.caption}."]
    if dimension is None:
        lines.append(
            f"{study.name}: the gains of the last block do not fall into two groups; no smaller "
            "embedding dimension follows."
        )
    else:
        lines.append(f"{study.name}: effective embedding dimension {dimension}.")
    if doubt := not_equilibrated(study):
        lines.append(f"Not an equilibrium result: {doubt}.")
    return "\n".join(lines)


def unsuited(name: str, dimension: int) -> str:
    """Why this model cannot be retrained at this dimension; empty where it can."""
    try:
        smaller_model(name, dimension, length=2)
    except ValueError as error:
        return str(error)
    return ""


def smaller_model(name: str, dimension: int, length: int) -> Transformer:
    """The named transformer at embedding dimension d', m' = 4 d'. ValueError for a model without
    attention or a dimension that is not below its own."""
    model = named_model(name, length=length)
    if not isinstance(model, Transformer):
        raise ValueError(f"embedding: retraining is for transformers, got {name}")
    if not 2 <= dimension < model.embedding:
        raise ValueError(
            f"embedding: the dimension must be at least 2 and below that of {name}, "
            f"{model.embedding}, got {dimension}"
        )
    return Transformer(
        f"{name} at {dimension}",
        blocks=model.blocks,
        embedding=dimension,
        hidden=4 * dimension,
        length=length,
    )


def retrain(
    directory: Path,
    name: str,
    dimension: int,
    settings: ModelRun,
    seed: int,
    *,
    resume: bool = False,
    progress: bool = False,
) -> Retraining:
    """Train `name` at d', early stopped as its own stage 1 was, and save both test errors.

    seed: the run's.  ValueError where a retraining is there and ``resume`` is off, or it is of
    another dimension.
    """
    folder = directory / name
    before = saved_retraining(folder)
    checkpoint = folder / "embedding.checkpoint.safetensors"
    if before is not None or checkpoint.exists():
        if not resume:
            there = folder / FILE if before is not None else checkpoint
            raise ValueError(f"embedding: {there} is there; --resume keeps it, or remove it")
        if before is not None and before.dimension != dimension:
            raise ValueError(
                f"embedding: {folder / FILE} is of dimension {before.dimension}, "
                f"got {dimension}; remove it first"
            )
        if before is not None:
            return before
    data = DataSet.load(directory / "dataset.npz")
    model = smaller_model(name, dimension, data.length)
    training = settings.training
    stopped = train_early_stopped(
        model,
        data,
        runs=training.runs,
        seed=stage_seed(seed, f"embedding {name} {dimension}"),
        max_epochs=training.max_epochs,
        patience=training.patience,
        checkpoint=checkpoint,
        progress=progress,
        **training_options(training),
    )
    test = MaskedSites(data.test)
    own = EarlyStopped.load(folder / "stage1.safetensors")
    result = Retraining(
        name,
        dimension,
        evaluate(named_model(name, length=data.length), own.weights, test)[1].double(),
        evaluate(model, stopped.weights, test)[1].double(),
        stopped.weights,
    )
    result.save(folder / FILE)
    checkpoint.unlink(missing_ok=True)
    return result
