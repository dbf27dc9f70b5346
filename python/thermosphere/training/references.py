"""Stage 2: reference runs, kept where |w|² first reaches Q (ES) and where they saturate (OT)."""

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

KIND = "thermosphere reference weights"
CHECKPOINT = "thermosphere references checkpoint"


@dataclass(frozen=True)
class References:
    """R reference runs. Losses (nats) and errors have columns train, validation, test."""

    norm2: torch.Tensor  # () float64, Q
    early_stopped: torch.Tensor  # (R, N) float32, ES, |w|² = Q
    over_trained: torch.Tensor  # (R, N) float32, OT
    scale: torch.Tensor  # (R,) float64, factor that brought ES from first |w|² ≥ Q to |w|² = Q
    early_stopped_epochs: torch.Tensor  # (R,) float64, with the fraction of the epoch
    over_trained_epochs: torch.Tensor  # (R,) int64
    saturated: torch.Tensor  # (R,) bool, False where max_epochs came first
    early_stopped_losses: torch.Tensor  # (R, 3) float64
    early_stopped_errors: torch.Tensor  # (R, 3) float64
    over_trained_losses: torch.Tensor  # (R, 3) float64
    over_trained_errors: torch.Tensor  # (R, 3) float64
    history_epoch: torch.Tensor  # (H,) int64
    history_train_loss: torch.Tensor  # (R, H) float64, NaN once a run saturated
    history_train_error: torch.Tensor  # (R, H) float64
    history_validation_loss: torch.Tensor  # (R, H) float64
    history_norm2: torch.Tensor  # (R, H) float64

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        write_archive(path, dict(vars(self)), {"kind": KIND})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> References:
        """Read what `save` wrote. OSError when missing; ValueError when it is not such a file."""
        tensors, _ = read_archive(path, KIND)
        try:
            return cls(**tensors)
        except TypeError as error:
            raise ValueError(f"{path}: must be a {KIND} file, got {sorted(tensors)}") from error


def train_references(
    model: Model,
    data: DataSet,
    *,
    norm2: float,
    runs: int = 3,
    seed: int,
    max_epochs: int,
    patience: int = 10,
    tolerance: float = 5e-3,
    check_every: int = 1,
    batch: int = 64,
    warmup: int = 4000,
    learning_rate_factor: float = 1.0,
    dropout: float = 0.1,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    progress: bool = False,
) -> References:
    """Train `runs` networks through |w|² = `norm2` (Q) until training loss and error saturate.

    |w|² is looked at after every step; the first weights with |w|² ≥ Q, scaled to |w|² = Q
    (relative 1e-6), are the ES weights. A run is saturated when over the last third of
    its epochs, at least `patience` checks, all of them after it reached Q, neither its training
    loss (nats) nor its training error has fallen by more than `tolerance` below its value before
    (criterion and defaults chosen; the paper states none). A share of the epochs, because the
    learning rate falls as step^-½: over a fixed number of them every training seems to stand still
    in the end. Checkpoints as in `train_early_stopped`.

    Raises ValueError for options out of range, a Q that the initial weights already exceed, a run
    that does not reach Q within `max_epochs`, and a checkpoint that is damaged or of another
    training.
    """
    for name, value in (
        ("max_epochs", max_epochs),
        ("patience", patience),
        ("check_every", check_every),
        ("checkpoint_every", checkpoint_every),
    ):
        if value < 1:
            raise ValueError(f"train_references: {name} must be at least 1, got {value}")
    if not 0.0 < norm2 < float("inf"):
        raise ValueError(f"train_references: norm2 must be positive and finite, got {norm2}")
    if not 0.0 <= tolerance < float("inf"):
        raise ValueError(f"train_references: tolerance must be at least 0, got {tolerance}")
    options = TrainingOptions(batch, warmup, learning_rate_factor, dropout)
    trainer = Trainer(model, data, runs, seed, options)
    first = float(trainer.norm2().max())
    if first >= norm2:
        raise ValueError(
            f"train_references: norm2 must exceed |w|² of the initial weights, {first:.6g}, "
            f"got {norm2:.6g}: the early-stopped runs that it is the mean of have not learnt "
            "(their validation loss never fell: another learning_rate_factor, or more sequences)"
        )
    expected = fingerprint(
        model,
        data,
        norm2=norm2,
        runs=runs,
        seed=seed,
        patience=patience,
        tolerance=tolerance,
        check_every=check_every,
        **asdict(options),
    )
    validation = MaskedSites(data.validation)
    state = {
        "early_stopped": torch.zeros_like(trainer.weights, requires_grad=False),
        "early_stopped_step": torch.zeros(runs, dtype=torch.int64),  # 0: not reached
        "over_trained_epochs": torch.zeros(runs, dtype=torch.int64),
        "saturated": torch.zeros(runs, dtype=torch.bool),
        # train loss, train error, validation loss, |w|²
        "history": torch.empty(0, 4, runs, dtype=torch.float64),
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
        total=max_epochs, initial=epoch, desc=f"references {model.name}", unit="epoch",
        disable=not progress,
    ) as bar:  # fmt: skip
        while epoch < max_epochs and not bool(state["saturated"].all()):
            active = ~state["saturated"]
            for indices in trainer.shuffle().split(batch, dim=1):
                trainer.update(indices, active)
                new = (trainer.norm2() >= norm2) & (state["early_stopped_step"] == 0)
                state["early_stopped"][new] = trainer.weights.detach()[new]
                state["early_stopped_step"][new] = trainer.step
            epoch += 1
            state["over_trained_epochs"][active] = epoch
            if epoch % check_every == 0:
                _check(state, trainer, validation, active, epoch)
                state["saturated"] |= active & _saturated(state, trainer, patience, tolerance)
                bar.set_postfix(train=f"{float(state['history'][-1, 0].nanmean()):.4f}")
            bar.update()
            done = epoch == max_epochs or bool(state["saturated"].all())
            if checkpoint is not None and (done or epoch % checkpoint_every == 0):
                header = {"kind": CHECKPOINT, "fingerprint": expected, "epoch": epoch}
                write_archive(checkpoint, {**trainer.tensors(), **state}, header)
    if epoch % check_every != 0:  # max_epochs came between two checks; more epochs go on without
        active = ~state["saturated"]
        _check(state, trainer, validation, active, epoch)
        state["saturated"] |= active & _saturated(state, trainer, patience, tolerance)
    return _references(state, trainer, data, norm2, epoch)


def _check(
    state: dict[str, torch.Tensor],
    trainer: Trainer,
    validation: MaskedSites,
    active: torch.Tensor,  # (R,) bool
    epoch: int,
) -> None:
    """Take losses and errors of the active runs."""
    runs = active.nonzero().squeeze(1)
    weights = trainer.weights.detach()[runs]
    record = torch.full((4, len(active)), torch.nan, dtype=torch.float64)
    record[0, runs], record[1, runs] = trainer.potential.evaluate(weights)
    record[2, runs] = evaluate(trainer.model, weights, validation)[0]
    record[3, runs] = trainer.norm2()[runs]
    state["history"] = torch.cat([state["history"], record[None]])
    state["history_epoch"] = torch.cat([state["history_epoch"], torch.tensor([epoch])])


def _saturated(
    state: dict[str, torch.Tensor], trainer: Trainer, patience: int, tolerance: float
) -> torch.Tensor:  # (R,) bool
    """Whether, in the last third of the epochs, all of it beyond Q, neither training loss nor error
    fell by more than `tolerance`."""
    history, epochs = state["history"][:, :2], state["history_epoch"]  # (H, 2, R), (H,)
    late = max(patience, int((epochs > 2 * epochs[-1] // 3).sum()))  # checks
    if len(history) <= late:
        return torch.zeros_like(state["saturated"])
    fallen = history[:-late].amin(dim=0) - history[-late:].amin(dim=0)  # (2, R); NaN once saturated
    reached = state["early_stopped_step"]
    beyond = (reached > 0) & (reached <= epochs[-late] * trainer.steps_per_epoch)
    return (fallen <= tolerance).all(dim=0) & beyond


def _references(
    state: dict[str, torch.Tensor],
    trainer: Trainer,
    data: DataSet,
    norm2: float,
    epoch: int,
) -> References:
    """The result, once every run has reached Q."""
    missing = (state["early_stopped_step"] == 0).nonzero().squeeze(1)
    if len(missing):
        run = int(missing[0])
        raise ValueError(
            f"train_references: run {run} must reach |w|² = {norm2:.6g}, "
            f"got {float(trainer.norm2()[run]):.6g} after {epoch} epochs"
        )
    crossed = state["early_stopped"].double()
    scale = (norm2 / crossed.square().sum(dim=1)).sqrt()
    early_stopped = (crossed * scale[:, None]).float()
    over_trained = trainer.weights.detach().clone()
    results: dict[str, torch.Tensor] = {}
    for name, weights in (("early_stopped", early_stopped), ("over_trained", over_trained)):
        pairs = [
            evaluate(trainer.model, weights, part)
            for part in (data.train, data.validation, data.test)
        ]
        results[f"{name}_losses"] = torch.stack([losses for losses, _ in pairs], dim=1)
        results[f"{name}_errors"] = torch.stack([errors for _, errors in pairs], dim=1)
    history = state["history"]
    return References(
        norm2=torch.tensor(norm2, dtype=torch.float64),
        early_stopped=early_stopped,
        over_trained=over_trained,
        scale=scale,
        early_stopped_epochs=state["early_stopped_step"].double() / trainer.steps_per_epoch,
        over_trained_epochs=state["over_trained_epochs"],
        saturated=state["saturated"],
        history_epoch=state["history_epoch"],
        history_train_loss=history[:, 0].T.contiguous(),
        history_train_error=history[:, 1].T.contiguous(),
        history_validation_loss=history[:, 2].T.contiguous(),
        history_norm2=history[:, 3].T.contiguous(),
        **results,
    )
