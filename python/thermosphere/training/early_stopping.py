"""Stage 1: independent runs, each stopped at its lowest validation loss (appendix C)."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from thermosphere.archive import read_archive, write_archive
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model
from thermosphere.models.potential import evaluate
from thermosphere.proteins.dataset import DataSet
from thermosphere.training.trainer import (
    Trainer,
    TrainingOptions,
    check_fingerprint,
    fingerprint,
)

KIND = "thermosphere early-stopped weights"
CHECKPOINT = "thermosphere early-stopping checkpoint"


@dataclass(frozen=True)
class EarlyStopped:
    """R runs at their lowest validation loss, and the H checks on the way (NaN once stopped)."""

    weights: torch.Tensor  # (R, N) float32
    norm2: torch.Tensor  # (R,) float64, |w|²
    validation_loss: torch.Tensor  # (R,) float64, nats, the lowest
    epochs: torch.Tensor  # (R,) int64, epoch of the lowest
    stopped: torch.Tensor  # (R,) bool, False where max_epochs came first
    history_epoch: torch.Tensor  # (H,) int64
    history_train_loss: torch.Tensor  # (R, H) float64, without dropout
    history_validation_loss: torch.Tensor  # (R, H) float64
    history_norm2: torch.Tensor  # (R, H) float64

    @property
    def mean_norm2(self) -> float:
        """Q, the mean of |w|² over runs."""
        return float(self.norm2.mean())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        write_archive(path, dict(vars(self)), {"kind": KIND})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EarlyStopped:
        """Read what `save` wrote. OSError when missing; ValueError when it is not such a file."""
        tensors, _ = read_archive(path, KIND)
        try:
            return cls(**tensors)
        except TypeError as error:
            raise ValueError(f"{path}: must be a {KIND} file, got {sorted(tensors)}") from error


def train_early_stopped(
    model: Model,
    data: DataSet,
    *,
    runs: int,
    seed: int,
    max_epochs: int,
    patience: int,
    check_every: int = 1,
    batch: int = 64,
    warmup: int = 4000,
    learning_rate_factor: float = 1.0,
    dropout: float = 0.1,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    progress: bool = False,
) -> EarlyStopped:
    """Train `runs` networks until the validation loss has not fallen for `patience` checks.

    An epoch passes once over the training set; every `check_every` epochs the losses on the
    training and validation sets are taken without dropout. With `checkpoint` the state is written
    there every `checkpoint_every` epochs and at the end, and a file already there is continued with
    the same bits as an unbroken training (`max_epochs` may be raised on the way).

    Raises ValueError for options out of range, sequences that do not fit the model, and a
    checkpoint that is damaged or of another training.
    """
    _at_least_one(
        max_epochs=max_epochs,
        patience=patience,
        check_every=check_every,
        checkpoint_every=checkpoint_every,
    )
    options = TrainingOptions(batch, warmup, learning_rate_factor, dropout)
    trainer = Trainer(model, data, runs, seed, options)
    expected = fingerprint(
        model,
        data,
        runs=runs,
        seed=seed,
        patience=patience,
        check_every=check_every,
        **asdict(options),
    )
    validation = MaskedSites(data.validation)
    state = {
        "best_weights": trainer.weights.detach().clone(),
        "best_loss": torch.full((runs,), torch.inf, dtype=torch.float64),
        "best_epoch": torch.zeros(runs, dtype=torch.int64),
        "stale": torch.zeros(runs, dtype=torch.int64),  # checks since the best
        "history": torch.empty(0, 3, runs, dtype=torch.float64),  # train, validation loss, |w|²
        "history_epoch": torch.empty(0, dtype=torch.int64),
    }
    epoch = 0
    if checkpoint is not None and Path(checkpoint).exists():
        tensors, header = read_archive(checkpoint, CHECKPOINT)
        check_fingerprint(checkpoint, header["fingerprint"], expected)
        trainer.restore(tensors)
        state = {name: tensors[name] for name in state}
        epoch = int(header["epoch"])
    with tqdm(
        total=max_epochs, initial=epoch, desc=f"training {model.name}", unit="epoch",
        disable=not progress,
    ) as bar:  # fmt: skip
        while epoch < max_epochs and bool((state["stale"] < patience).any()):
            active = state["stale"] < patience
            for indices in trainer.shuffle().split(batch, dim=1):
                trainer.update(indices, active)
            epoch += 1
            if epoch % check_every == 0:
                _check(state, trainer, validation, active, epoch)
                bar.set_postfix(validation=f"{float(state['best_loss'].mean()):.4f}")
            bar.update()
            done = epoch == max_epochs or bool((state["stale"] >= patience).all())
            if checkpoint is not None and (done or epoch % checkpoint_every == 0):
                header = {"kind": CHECKPOINT, "fingerprint": expected, "epoch": epoch}
                write_archive(checkpoint, {**trainer.tensors(), **state}, header)
    if epoch % check_every != 0:  # max_epochs came between two checks; more epochs go on without
        _check(state, trainer, validation, state["stale"] < patience, epoch)
    history = state["history"]
    return EarlyStopped(
        weights=state["best_weights"],
        norm2=state["best_weights"].double().square().sum(dim=1),
        validation_loss=state["best_loss"],
        epochs=state["best_epoch"],
        stopped=state["stale"] >= patience,
        history_epoch=state["history_epoch"],
        history_train_loss=history[:, 0].T.contiguous(),
        history_validation_loss=history[:, 1].T.contiguous(),
        history_norm2=history[:, 2].T.contiguous(),
    )


def _check(
    state: dict[str, torch.Tensor],
    trainer: Trainer,
    validation: MaskedSites,
    active: torch.Tensor,  # (R,) bool
    epoch: int,
) -> None:
    """Take the losses of the active runs; note which improved."""
    runs = active.nonzero().squeeze(1)
    weights = trainer.weights.detach()[runs]
    record = torch.full((3, len(active)), torch.nan, dtype=torch.float64)
    record[0, runs] = trainer.potential.evaluate(weights)[0]
    record[1, runs] = evaluate(trainer.model, weights, validation)[0]
    record[2, runs] = trainer.norm2()[runs]
    better = record[1] < state["best_loss"]  # False for NaN
    state["best_weights"][better] = trainer.weights.detach()[better]
    state["best_loss"][better] = record[1, better]
    state["best_epoch"][better] = epoch
    state["stale"] = torch.where(better, 0, state["stale"] + active)
    state["history"] = torch.cat([state["history"], record[None]])
    state["history_epoch"] = torch.cat([state["history_epoch"], torch.tensor([epoch])])


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"train_early_stopped: {name} must be at least 1, got {value}")
