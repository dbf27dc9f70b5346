"""A small run that was never sampled: what the report's tests study.

Two temperatures of two chains each, a transformer of two blocks, attention that is the contact map
in the block that a start calls its own.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import xarray as xr

from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import DataSet, MaskedSequences
from thermosphere.runs import study, study_attention
from thermosphere.runs.config import Analysis, ModelRun
from thermosphere.runs.study import ModelStudy, study_model
from thermosphere.training import EarlyStopped, References

LENGTH, SEQUENCES, RUNS, DRAWS = 12, 6, 2, 16
TEMPERATURES = (1e-4, 2e-4)
MODEL = Transformer("tiny", blocks=2, embedding=4, hidden=6, length=LENGTH)


def contact_map() -> np.ndarray:
    contacts = np.zeros((LENGTH, LENGTH), np.uint8)
    contacts[0, 7] = contacts[7, 0] = contacts[2, 10] = contacts[10, 2] = 1
    return contacts


CONTACTS = contact_map()


def weights_of(generator: torch.Generator, count: int) -> torch.Tensor:
    return 0.3 * torch.randn(count, MODEL.layout.size, generator=generator)


def trained() -> References:
    generator = torch.Generator().manual_seed(7)
    history = torch.ones(RUNS, 3, dtype=torch.float64)
    numbers = torch.arange(3.0 * RUNS, dtype=torch.float64).reshape(RUNS, 3)
    return References(
        norm2=torch.tensor(20.0, dtype=torch.float64),
        early_stopped=weights_of(generator, RUNS),
        over_trained=weights_of(generator, RUNS),
        scale=torch.tensor([0.9999, 0.9998], dtype=torch.float64),
        early_stopped_epochs=torch.tensor([4.5, 5.25], dtype=torch.float64),
        over_trained_epochs=torch.tensor([30, 40]),
        saturated=torch.tensor([True, False]),
        early_stopped_losses=1.0 + numbers,
        early_stopped_errors=0.1 + 0.01 * numbers,
        over_trained_losses=2.0 + numbers,
        over_trained_errors=0.2 + 0.01 * numbers,
        history_epoch=torch.arange(3),
        history_train_loss=history.clone(),
        history_train_error=history.clone(),
        history_validation_loss=history.clone(),
        history_norm2=history.clone(),
    )


def stage1() -> EarlyStopped:
    history = torch.ones(3, 4, dtype=torch.float64)
    return EarlyStopped(
        weights=weights_of(torch.Generator().manual_seed(8), 3),
        norm2=torch.full((3,), 20.0, dtype=torch.float64),
        validation_loss=torch.ones(3, dtype=torch.float64),
        epochs=torch.tensor([1, 2, 3]),
        stopped=torch.tensor([True, False, True]),
        history_epoch=torch.arange(4),
        history_train_loss=history.clone(),
        history_validation_loss=history.clone(),
        history_norm2=history.clone(),
    )


def samples() -> xr.Dataset:
    """Four chains, two a temperature, the later start first: chain 0 began at ES run 1."""
    generator = np.random.default_rng(3)
    chains = 2 * len(TEMPERATURES)
    names = (
        "train_loss", "train_error", "validation_loss", "validation_error", "test_loss",
        "test_error", "distance2", "kinetic_temperature", "minibatch_loss",
    )  # fmt: skip
    variables = {
        name: (("chain", "draw"), 1.0 + 0.1 * generator.random((chains, DRAWS))) for name in names
    }
    flat = 0.3 * generator.normal(size=(chains, DRAWS, MODEL.layout.size))
    weights = (("chain", "draw", "parameter"), flat.astype(np.float32))
    return xr.Dataset(
        {**variables, "weights": weights},
        coords={
            "temperature": ("chain", np.repeat(TEMPERATURES, 2)),
            "start": ("chain", np.array([1, 0, 1, 0])),
            "move": ("draw", 5 * np.arange(1, DRAWS + 1)),
        },
        attrs={"norm2": 20.0},
    )


def data_set() -> DataSet:
    generator = np.random.default_rng(4)

    def part() -> MaskedSequences:
        tokens = generator.integers(0, 20, (SEQUENCES, LENGTH)).astype(np.uint8)
        masked = np.zeros((SEQUENCES, LENGTH), np.bool_)
        masked[:, :2] = True
        return MaskedSequences(tokens, masked)

    return DataSet(part(), part(), part(), {})


def attention_by_start(
    model: Transformer, weights: torch.Tensor, sequences: MaskedSequences, *, progress: bool = False
) -> np.ndarray:
    """Contacts in block 1 of the draws of start 1 and of ES run 1, in block 0 of all others."""
    assert progress
    flat = samples()["weights"].values
    first_start = {row.tobytes() for chain in (0, 2) for row in flat[chain]}
    first_start.add(trained().early_stopped[1].numpy().tobytes())
    maps = np.zeros((len(weights), 2, LENGTH, LENGTH))
    for index, row in enumerate(weights.numpy()):
        maps[index, int(row.tobytes() in first_start)] = contact_map()
    return maps


def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with the synthetic model "tiny", whose attention is `attention_by_start`."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "figures").mkdir()
    trained().save(tmp_path / "tiny" / "references.safetensors")
    stage1().save(tmp_path / "tiny" / "stage1.safetensors")
    monkeypatch.setattr(study, "open_samples", lambda path: samples())
    monkeypatch.setattr(study, "named_model", lambda name, length: MODEL)
    monkeypatch.setattr(study_attention, "mean_attention", attention_by_start)
    return tmp_path


def studied(
    directory: Path,
    test_sequences: int = SEQUENCES,
    *,
    contacts: np.ndarray | None = CONTACTS,
    contact_shift: int = 0,
) -> ModelStudy:
    settings = ModelRun()
    sampling = msgspec.structs.replace(settings.sampling, test_sequences=test_sequences)
    return study_model(
        directory / "tiny",
        "tiny",
        data_set(),
        contacts,
        msgspec.structs.replace(settings, sampling=sampling),
        Analysis(attention_samples=4, similarity_samples=8, contact_shift=contact_shift),
        progress=True,
    )
