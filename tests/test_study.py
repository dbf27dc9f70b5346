"""What the report says of a run: blocks of each start, unfinished training, ES and OT beside the
samples, and the table on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import DataSet, MaskedSequences
from thermosphere.runs import study, study_attention, study_report
from thermosphere.runs.config import Analysis, Config, ModelRun
from thermosphere.runs.report import Section
from thermosphere.runs.report_tables import (
    block_table,
    dimension_table,
    similarity_table,
    training_table,
    training_warnings,
    write_table,
)
from thermosphere.runs.study import ModelStudy, study_model
from thermosphere.training import EarlyStopped, References

LENGTH, SEQUENCES, RUNS, DRAWS = 12, 6, 2, 16
TEMPERATURES = (1e-4, 2e-4)
MODEL = Transformer("tiny", blocks=2, embedding=4, hidden=6, length=LENGTH)


def contact_map() -> np.ndarray:
    contacts = np.zeros((LENGTH, LENGTH), np.uint8)
    contacts[0, 7] = contacts[7, 0] = contacts[2, 10] = contacts[10, 2] = 1
    return contacts


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


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with the synthetic model "tiny", whose attention is `attention_by_start`."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "figures").mkdir()
    trained().save(tmp_path / "tiny" / "references.safetensors")
    stage1().save(tmp_path / "tiny" / "stage1.safetensors")
    monkeypatch.setattr(study, "open_samples", lambda path: samples())
    monkeypatch.setattr(study, "named_model", lambda name, length: MODEL)
    monkeypatch.setattr(study_attention, "mean_attention", attention_by_start)
    return tmp_path


def studied(directory: Path, test_sequences: int = SEQUENCES) -> ModelStudy:
    settings = ModelRun()
    sampling = msgspec.structs.replace(settings.sampling, test_sequences=test_sequences)
    return study_model(
        directory / "tiny",
        "tiny",
        data_set(),
        contact_map(),
        msgspec.structs.replace(settings, sampling=sampling),
        Analysis(attention_samples=4, similarity_samples=8),
        progress=True,
    )


def section(directory: Path, found: ModelStudy) -> Section:
    pictures = study_report._Pictures(directory / "figures")
    return study_report._model_section(found, directory, contact_map(), Config(), pictures)


def test_the_block_named_is_the_block_of_the_start_shown(directory: Path) -> None:
    found = studied(directory)
    shown = found.attention["samples"]
    # Start 0 is scored last, start 1 is shown: its contacts are in block 1.
    assert (shown.start, shown.block, dict(shown.best)) == (1, 1, {0: 0, 1: 1})
    assert np.array_equal(shown.attention, contact_map())
    assert (found.attention["ES"].block, dict(found.attention["ES"].best)) == (0, {0: 0, 1: 1})
    assert found.table["precision_at_l_tolerant"].values.min() > 0

    page = section(directory, found)
    captions = [figure.caption for figure in page.figures if "Mean attention" in figure.caption]
    assert len(captions) == 3
    for part in ("ES of start 1, block 1 of 2", "OT of start 1, block 1 of 2"):
        assert any(part in caption for caption in captions)
    assert any("from start 2, block 2 of 2" in caption for caption in captions)
    blocks = next(table for table in page.tables if "Best block" in table.caption)
    assert [list(row) for row in blocks.rows] == [
        ["samples", "1", "2"],
        ["ES", "1", "2"],
        ["OT", "1", "1"],
    ]


def test_block_table_leaves_a_gap_for_a_start_without_samples() -> None:
    table = block_table({"ES": {0: 1, 1: 0}, "samples": {1: 3}})
    assert list(table.columns) == ["weights", "start 1", "start 2"]
    assert [list(row) for row in table.rows] == [["ES", "2", "1"], ["samples", "–", "4"]]


def test_trained_weights_stand_beside_the_samples(directory: Path) -> None:
    found = studied(directory)
    assert list(found.similarity) == ["within chains", "between chains", "ES", "OT"]
    assert all(values.shape == (1,) for values in found.similarity["OT"].values())
    assert list(found.norms) == list(found.dimensions) == ["samples", "ES", "OT"]
    assert found.norms["OT"]["blocks.0.norm1.gain"].shape == (RUNS, 4)

    layers = similarity_table(found.similarity)
    assert list(layers.columns) == ["layer", "within chains", "between chains", "ES", "OT"]
    assert [row[0] for row in layers.rows] == [entry.name for entry in MODEL.layout.entries]
    assert all("±" in row[1] and "±" not in row[3] for row in layers.rows)  # one pair of runs
    norms = dimension_table(found.dimensions, found.typical)
    assert list(norms.columns) == ["norm", "size", "samples", "ES", "OT"]


def test_one_run_has_no_pairs(directory: Path) -> None:
    one = trained()
    for name in ("early_stopped", "over_trained"):
        one = replace(one, **{name: getattr(one, name)[:1]})
    one.save(directory / "tiny" / "references.safetensors")
    assert list(studied(directory).similarity) == ["within chains", "between chains"]


def test_values_of_trained_weights_are_on_the_test_sequences_of_the_samples(
    directory: Path,
) -> None:
    whole, part = (
        {one.label: one.values for one in studied(directory, count).references}
        for count in (SEQUENCES, 3)
    )
    assert np.array_equal(whole["ES"]["test_loss"], [3.0, 6.0])  # as training wrote them
    assert np.array_equal(part["OT"]["train_error"], whole["OT"]["train_error"])
    potential = study.MaskedLanguagePotential(MODEL, data_set().train)
    losses, _ = potential.evaluate(trained().over_trained, data_set().test.subset(slice(3)))
    assert np.array_equal(part["OT"]["test_loss"], losses.double().numpy())


def test_unfinished_training_is_said_in_plain_words(directory: Path) -> None:
    first, second = training_warnings("tf1", stage1(), trained())
    assert first.startswith("tf1: 1 of 3 stage-1 runs did not stop early within max_epochs")
    assert second.startswith("tf1: OT weights of 1 of 2 runs are not saturated")
    done = replace(trained(), saturated=torch.ones(2, dtype=torch.bool))
    stopped = replace(stage1(), stopped=torch.ones(3, dtype=torch.bool))
    assert training_warnings("tf1", stopped, done) == []

    table = training_table(trained())
    assert [list(row) for row in table.rows] == [
        ["1", "4.5", "0.99990", "30", "yes"],
        ["2", "5.2", "0.99980", "40", "no"],
    ]
    assert list(table.doubtful) == [1]
    assert table in section(directory, studied(directory)).tables


def test_table_on_disk_is_whole_and_says_where_the_peak_is(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = studied(directory).table
    table.attrs |= {"peak_temperature": 2e-4, "peak_caveat": "only 1 temperature(s)"}
    path = directory / "tiny" / "thermodynamics.csv"
    write_table(table, path)
    lines = path.read_text().splitlines()
    assert lines[:2] == [
        "# peak_temperature = 0.0002",
        "# peak_caveat = only 1 temperature(s)",
    ]
    read = pd.read_csv(path, comment="#", keep_default_na=False, na_values=["nan", ""])
    assert np.array_equal(read["temperature"], TEMPERATURES)
    assert np.allclose(read["train_loss"], table["train_loss"], rtol=1e-15)
    assert list(read["reason"].fillna("")) == list(table["reason"].values)

    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="disk full"):
        write_table(table, path)
    assert path.read_bytes() == before


def test_relative_figures_only_for_a_trusted_peak(directory: Path) -> None:
    found = studied(directory)
    table = found.table
    table["equilibrated"] = ("temperature", np.ones(2, np.bool_))
    pictures = study_report._Pictures(directory / "figures")
    references = {"tiny": found.references, "other": found.references}

    def drawn(caveat: str, peak: float) -> list[str]:
        one = table.assign_attrs(peak_temperature=peak, peak_caveat=caveat)
        other = table.assign_attrs(peak_temperature=1e-4, peak_caveat="doubtful")
        tables = {"tiny": one, "other": other}
        return [f.caption for f in study_report._relative_figures(tables, references, pictures)]

    assert drawn("at the lower end", 1e-4) == []
    assert drawn("", float("nan")) == []
    captions = drawn("", 1e-4)
    assert len(captions) == 3
    assert all("T/T* (tiny)" in caption for caption in captions)
