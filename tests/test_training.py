"""Stage 1 and stage 2 of training on a small problem, interrupted and not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound

from thermosphere.models.named import Model
from thermosphere.models.potential import evaluate
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import DataSet, MaskedSequences
from thermosphere.training import (
    EarlyStopped,
    References,
    early_stopping,
    references,
    train_early_stopped,
    train_references,
)
from thermosphere.training.schedule import learning_rate
from thermosphere.training.trainer import Trainer, TrainingOptions

MODEL: Model = Transformer("toy", blocks=1, embedding=8, hidden=12, length=10)
SHORT = {"seed": 5, "batch": 16, "warmup": 30, "max_epochs": 7, "checkpoint_every": 2}


def data_set(train: int = 40) -> DataSet:
    """Sequences that repeat one motif with every residue changed one time in ten: easy to learn."""
    random = np.random.default_rng(0)
    motif = random.integers(0, 20, 10)
    parts = []
    for size in (train, 30, 20):
        noise = random.integers(0, 20, (size, 10))
        tokens = np.where(random.random((size, 10)) < 0.1, noise, motif).astype(np.uint8)
        masked = random.random((size, 10)) < 0.2
        masked[:, 0] |= ~masked.any(axis=1)
        parts.append(MaskedSequences(tokens, masked))
    return DataSet(*parts, provenance={})


def assert_same_result(first: Any, second: Any) -> None:
    for field in dataclasses.fields(first):
        assert_same_bits(
            getattr(first, field.name), getattr(second, field.name).clone(), field.name
        )


class Killed(Exception):
    pass


def interrupt_after(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies in the middle of an epoch."""
    original = Trainer.update
    count = 0

    def update(self: Trainer, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count > updates:
            raise Killed
        original(self, *arguments)

    monkeypatch.setattr(Trainer, "update", update)


def test_learning_rate_is_the_published_schedule() -> None:
    assert learning_rate(4000, 64, 4000) == pytest.approx((64 * 4000) ** -0.5, rel=1e-15)
    assert learning_rate(1000, 64, 4000) == pytest.approx(1000 * 64**-0.5 * 4000**-1.5, rel=1e-15)
    assert learning_rate(16_000, 64, 4000, 3.0) == pytest.approx(3 * 64**-0.5 / 16_000**0.5)
    trainer = Trainer(MODEL, data_set(), 1, 0, TrainingOptions(warmup=3, learning_rate_factor=2.0))
    for step in range(1, 7):
        (group,) = trainer.optimizer.param_groups
        assert group["lr"] == learning_rate(step, 8, 3, 2.0)
        trainer.update(trainer.shuffle()[:, :4], torch.ones(1, dtype=torch.bool))


def test_one_step_is_adam_on_each_run() -> None:
    """The first Adam step is -lr · g/(|g| + eps), whatever β is; the gradient that of the batch."""
    trainer = Trainer(MODEL, data_set(), 2, 1, TrainingOptions(warmup=3, dropout=0.0))
    before = trainer.weights.detach().clone()
    indices = trainer.shuffle()[:, :5]
    from thermosphere.ops.minibatch import Minibatch

    _, gradient = trainer.potential(before, Minibatch(indices, torch.full((2, 5), 0.2)))
    trainer.update(indices, torch.ones(2, dtype=torch.bool))
    expected = before - learning_rate(1, 8, 3) * gradient / (gradient.abs() + 1e-9)
    bound = error_bound(before, operations=4, dtype=np.float32)
    # where |g| is near eps the quotient is ill-conditioned; nowhere else
    clear = gradient.abs() > 1e-6
    assert_close(trainer.weights.detach()[clear], expected[clear], bound)
    assert bool(clear.any())


def test_shuffle_visits_every_sequence_once() -> None:
    trainer = Trainer(MODEL, data_set(), 3, 2, TrainingOptions())
    order = trainer.shuffle()
    assert_same_bits(order.sort(dim=1).values, torch.arange(40).expand(3, -1).contiguous())
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(order, trainer.shuffle())
    assert trainer.steps_per_epoch == 1


def test_early_stopping_learns_and_keeps_the_best() -> None:
    data = data_set(200)
    result = train_early_stopped(
        MODEL, data, runs=2, seed=3, max_epochs=60, patience=6, check_every=2, batch=20, warmup=50
    )
    # the motif is right nine times in ten: far below ln 20 = 3.0 is possible
    assert bool((result.validation_loss < 1.5).all())
    loss, _ = evaluate(MODEL, result.weights, data.validation)
    assert_close(loss, result.validation_loss, error_bound(loss, operations=200, dtype=np.float32))
    assert_close(
        result.norm2,
        result.weights.double().square().sum(1),
        error_bound(result.norm2, operations=10, dtype=np.float64),
    )
    assert result.mean_norm2 == pytest.approx(float(result.norm2.mean()))
    assert not torch.equal(result.weights[0], result.weights[1])
    for run in range(2):
        curve = result.history_validation_loss[run]
        best = int(torch.argmin(curve.nan_to_num(nan=torch.inf)))
        assert int(result.epochs[run]) == int(result.history_epoch[best])
        assert float(curve[best]) == float(result.validation_loss[run])
        finite = curve.isfinite()
        if bool(result.stopped[run]):
            assert int(finite.sum()) == best + 1 + 6
        assert float(result.history_train_loss[run][finite][-1]) < 1.5
    assert result.history_epoch.tolist() == list(range(2, 2 * len(result.history_epoch) + 1, 2))


def test_a_stopped_run_is_left_alone() -> None:
    trainer = Trainer(MODEL, data_set(), 2, 4, TrainingOptions(warmup=3))
    both = torch.ones(2, dtype=torch.bool)
    trainer.update(trainer.shuffle()[:, :5], both)
    before = trainer.weights.detach().clone()
    trainer.update(trainer.shuffle()[:, :5], torch.tensor([True, False]))
    assert_same_bits(trainer.weights.detach()[1], before[1].clone())
    assert not torch.equal(trainer.weights.detach()[0], before[0])


def test_seed_decides() -> None:
    data = data_set()
    arguments = {**SHORT, "runs": 2, "patience": 9, "max_epochs": 2}
    first = train_early_stopped(MODEL, data, **arguments)
    assert_same_result(first, train_early_stopped(MODEL, data, **arguments))
    other = train_early_stopped(MODEL, data, **{**arguments, "seed": 6})
    assert not torch.equal(first.weights, other.weights)


# 3 updates an epoch; a checkpoint after epochs 2, 4, 6
@pytest.mark.parametrize("updates", [2, 7, 14])
def test_early_stopping_resumes_with_the_same_bits(
    updates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_set()
    arguments: dict[str, Any] = {**SHORT, "runs": 2, "patience": 2}
    unbroken = train_early_stopped(MODEL, data, **arguments)
    path = tmp_path / "stage1.safetensors"
    with monkeypatch.context() as patch:
        interrupt_after(updates, patch)
        with pytest.raises(Killed):
            train_early_stopped(MODEL, data, **arguments, checkpoint=path)
    assert path.exists() == (updates >= 6)
    assert_same_result(train_early_stopped(MODEL, data, **arguments, checkpoint=path), unbroken)
    # a finished training is read, not repeated
    with monkeypatch.context() as patch:
        interrupt_after(0, patch)
        again = train_early_stopped(MODEL, data, **arguments, checkpoint=path)
    assert_same_result(again, unbroken)


def reference_norm2(data: DataSet) -> float:
    """A Q that runs with seed 5 reach in the third epoch or so."""
    trainer = Trainer(MODEL, data, 2, 5, TrainingOptions())
    return float(trainer.norm2().max()) * 1.03


@pytest.mark.parametrize("updates", [2, 7, 14])
def test_references_resume_with_the_same_bits(
    updates: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_set()
    arguments: dict[str, Any] = {**SHORT, "runs": 2, "norm2": reference_norm2(data)}
    unbroken = train_references(MODEL, data, **arguments)
    path = tmp_path / "stage2.safetensors"
    with monkeypatch.context() as patch:
        interrupt_after(updates, patch)
        with pytest.raises(Killed):
            train_references(MODEL, data, **arguments, checkpoint=path)
    assert_same_result(train_references(MODEL, data, **arguments, checkpoint=path), unbroken)


@pytest.mark.parametrize("stage", ["early stopping", "references"])
def test_more_epochs_go_on_as_if_asked_for_at_once(stage: str, tmp_path: Path) -> None:
    """Also where the first max_epochs fell between two checks, which takes one more look."""
    data, path = data_set(), tmp_path / "training.safetensors"
    arguments: dict[str, Any] = {**SHORT, "runs": 2, "check_every": 3}
    train: Any = train_early_stopped
    if stage == "early stopping":
        arguments["patience"] = 2
    else:
        arguments["norm2"] = reference_norm2(data)
        train = train_references
    first = train(MODEL, data, **arguments, checkpoint=path)
    assert first.history_epoch.tolist() == [3, 6, 7]
    assert_same_result(train(MODEL, data, **arguments, checkpoint=path), first)
    longer = {**arguments, "max_epochs": 11}
    unbroken = train(MODEL, data, **longer)
    assert unbroken.history_epoch.tolist() == [3, 6, 9, 11]
    assert_same_result(train(MODEL, data, **longer, checkpoint=path), unbroken)


def test_references_sit_on_the_sphere_and_then_saturate() -> None:
    data = data_set(200)
    norm2 = reference_norm2(data)
    result = train_references(
        MODEL, data, norm2=norm2, runs=2, seed=5, max_epochs=150, patience=8, tolerance=0.05,
        batch=20, warmup=50, dropout=0.0,
    )  # fmt: skip
    squared = result.early_stopped.double().square().sum(1)
    assert_close(squared, np.full(2, norm2), 1e-6 * norm2)
    assert bool((result.scale <= 1.0).all())
    # one step of Adam moves |w| by at most lr sqrt(N)
    step = learning_rate(50, 8, 50) * MODEL.layout.size**0.5
    assert bool((result.scale > 1 - step / norm2**0.5).all())
    assert bool((result.over_trained.double().square().sum(1) > norm2).all())
    assert bool((result.early_stopped_epochs < result.over_trained_epochs).all())
    assert bool(result.saturated.all())
    for name in ("early_stopped", "over_trained"):
        for column, part in enumerate((data.train, data.validation, data.test)):
            losses, errors = evaluate(MODEL, getattr(result, name), part)
            assert_same_bits(getattr(result, f"{name}_losses")[:, column].clone(), losses)
            assert_same_bits(getattr(result, f"{name}_errors")[:, column].clone(), errors)
    assert bool((result.over_trained_losses[:, 0] < result.early_stopped_losses[:, 0]).all())
    for run in range(2):
        curve = result.history_train_loss[run]
        curve = curve[curve.isfinite()]
        epochs = len(curve)
        assert epochs == int(result.over_trained_epochs[run])
        late = max(8, epochs - 2 * epochs // 3)
        assert float(curve[:-late].min() - curve[-late:].min()) <= 0.05
        assert float(result.early_stopped_epochs[run]) <= epochs - late + 1


def test_a_training_that_slows_down_is_not_saturated_by_that() -> None:
    """A loss that falls by as much at each doubling of the epochs, at a look every five of them,
    beside one that stands still, and one that does so but reached Q only lately."""
    steps_per_epoch = 16
    trainer = SimpleNamespace(steps_per_epoch=steps_per_epoch)

    def saturated(epochs: int, patience: int = 20) -> list[bool]:
        epoch = torch.arange(5, epochs + 1, 5)
        falling = 2.0 - 0.1 * torch.log2(epoch)
        still = torch.where(epoch < 60, falling, falling[11])
        history = torch.stack([falling, still, still], dim=1)[:, None].expand(-1, 4, -1)
        reached = torch.tensor([300, 300, int(0.7 * epochs)]) * steps_per_epoch
        state = {
            "history": history,
            "history_epoch": epoch,
            "early_stopped_step": reached,
            "saturated": torch.zeros(3, dtype=torch.bool),
        }
        found: list[bool] = references._saturated(state, trainer, patience, 0.01).tolist()  # type: ignore[arg-type]
        return found

    assert saturated(5_000) == [False, True, False]
    assert saturated(100_000) == [False, True, False]
    assert saturated(350) == [False, False, False]  # Q is less than 20 looks away
    assert saturated(90, patience=18) == [False, False, False]


def test_a_run_that_never_reaches_the_norm() -> None:
    with pytest.raises(
        ValueError, match=r"run 0 must reach \|w\|² = 1e\+06, got .* after 3 epochs"
    ):
        train_references(MODEL, data_set(), norm2=1e6, runs=2, seed=0, max_epochs=3, batch=16)
    with pytest.raises(ValueError, match="must exceed"):
        train_references(MODEL, data_set(), norm2=1.0, runs=2, seed=0, max_epochs=3)


def test_results_round_trip(tmp_path: Path) -> None:
    data = data_set()
    early = train_early_stopped(MODEL, data, runs=2, patience=3, **SHORT)
    late = train_references(MODEL, data, norm2=reference_norm2(data), runs=2, **SHORT)
    early.save(tmp_path / "early.safetensors")
    late.save(tmp_path / "late.safetensors")
    assert_same_result(EarlyStopped.load(tmp_path / "early.safetensors"), early)
    assert_same_result(References.load(tmp_path / "late.safetensors"), late)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "early.safetensors",
        "late.safetensors",
    ]
    with pytest.raises(ValueError, match="must be a thermosphere reference weights file, got"):
        References.load(tmp_path / "early.safetensors")
    with pytest.raises(FileNotFoundError):
        References.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("fault", ["truncated", "empty", "text", "header"])
def test_damaged_files_are_one_line(tmp_path: Path, fault: str) -> None:
    data = data_set()
    path = tmp_path / "stage1.safetensors"
    arguments: dict[str, Any] = {**SHORT, "runs": 1, "patience": 3, "checkpoint": path}
    train_early_stopped(MODEL, data, **arguments)
    whole = path.read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"not a checkpoint at all, but text",
        "header": b"\xff" * 8 + whole[8:],
    }
    path.write_bytes(damaged[fault])
    with pytest.raises(ValueError, match="must be a whole thermosphere early-stopping") as caught:
        train_early_stopped(MODEL, data, **arguments)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="must be a whole thermosphere early-stopped weights"):
        EarlyStopped.load(path)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    data = data_set()
    path = tmp_path / "stage1.safetensors"
    arguments: dict[str, Any] = {**SHORT, "runs": 1, "patience": 3, "checkpoint": path}
    train_early_stopped(MODEL, data, **arguments)
    with pytest.raises(ValueError, match="of the same run: seed expected 6, got 5") as caught:
        train_early_stopped(MODEL, data, **{**arguments, "seed": 6})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="data expected"):
        train_early_stopped(MODEL, data_set(41), **arguments)
    other = dataclasses.replace(MODEL, hidden=13)
    with pytest.raises(ValueError, match=r"model\.hidden expected 13, got 12"):
        train_early_stopped(other, data, **arguments)
    with pytest.raises(ValueError, match="must be a thermosphere references checkpoint"):
        train_references(MODEL, data, norm2=1e9, runs=1, **SHORT, checkpoint=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": 0}, "runs must be at least 1, got 0"),
        ({"seed": -1}, "seed must be in"),
        ({"max_epochs": 0}, "max_epochs must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"check_every": 0}, "check_every must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"warmup": 0}, "warmup must be at least 1"),
        ({"learning_rate_factor": 0.0}, "learning_rate_factor must be positive"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {**SHORT, "runs": 1, "patience": 3, **change}
    with pytest.raises(ValueError, match=message):
        train_early_stopped(MODEL, data_set(), **arguments)
    with pytest.raises(ValueError, match=message):
        train_references(MODEL, data_set(), norm2=1e9, **arguments)


def test_kinds_are_distinct() -> None:
    kinds = {
        early_stopping.KIND, early_stopping.CHECKPOINT, references.KIND, references.CHECKPOINT,
    }  # fmt: skip
    assert len(kinds) == 4
