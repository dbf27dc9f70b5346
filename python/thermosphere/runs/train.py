"""Training one model: stage 1 fixes Q, stage 2 makes the ES and OT weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thermosphere.models.named import Model
from thermosphere.proteins.dataset import DataSet
from thermosphere.runs.config import Training
from thermosphere.training import (
    EarlyStopped,
    References,
    train_early_stopped,
    train_references,
)


def training_options(settings: Training) -> dict[str, Any]:
    """What both stages of training are told."""
    return {
        "check_every": settings.check_every,
        "batch": settings.batch,
        "warmup": settings.warmup,
        "learning_rate_factor": settings.learning_rate_factor,
        "dropout": settings.dropout,
    }


def training_checkpoints(directory: Path) -> list[Path]:
    """Of stage 1 and stage 2."""
    return [directory / f"stage{stage}.checkpoint.safetensors" for stage in (1, 2)]


def train_model(
    directory: Path,
    model: Model,
    data: DataSet,
    settings: Training,
    *,
    seeds: tuple[int, int],
    progress: bool = False,
) -> References:
    """Both stages, seeds[0] and seeds[1]: DIR/stage1.safetensors and, last,
    DIR/references.safetensors. Goes on from what a killed training left there."""
    checkpoints = training_checkpoints(directory)
    shared = training_options(settings) | {"progress": progress}
    stage1 = directory / "stage1.safetensors"
    if stage1.is_file():
        stopped = EarlyStopped.load(stage1)
    else:
        stopped = train_early_stopped(
            model,
            data,
            runs=settings.runs,
            seed=seeds[0],
            max_epochs=settings.max_epochs,
            patience=settings.patience,
            checkpoint=checkpoints[0],
            **shared,
        )
        stopped.save(stage1)
    references = train_references(
        model,
        data,
        norm2=stopped.mean_norm2,
        runs=settings.references,
        seed=seeds[1],
        max_epochs=settings.reference_epochs,
        patience=settings.saturation_patience,
        tolerance=settings.saturation_tolerance,
        checkpoint=checkpoints[1],
        **shared,
    )
    references.save(directory / "references.safetensors")
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)
    return references
