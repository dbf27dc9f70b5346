"""What the report says of a run: blocks of each start, unfinished training, ES and OT beside the
samples, and the table on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from study_problem import (
    MODEL,
    RUNS,
    SEQUENCES,
    TEMPERATURES,
    contact_map,
    data_set,
    make_run,
    samples,
    stage1,
    studied,
    trained,
)

from thermosphere.analysis.embedding import effective_dimensions
from thermosphere.runs import study, study_report
from thermosphere.runs.config import Config
from thermosphere.runs.report import Section
from thermosphere.runs.report_tables import (
    block_table,
    dimension_table,
    similarity_table,
    training_table,
    training_warnings,
    write_table,
)
from thermosphere.runs.study import ModelStudy


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_run(tmp_path, monkeypatch)


def section(directory: Path, found: ModelStudy) -> Section:
    pictures = study_report._Pictures(directory / "figures")
    return study_report._model_section(
        found, stage1(), trained(), contact_map(), Config(), pictures
    )


def test_the_block_named_is_the_block_of_the_start_shown(directory: Path) -> None:
    found = studied(directory)
    shown = found.attention["samples"]
    # Start 0 is scored last, start 1 is shown: its contacts are in block 1.
    assert (shown.start, shown.block, dict(shown.best)) == (1, 1, {0: 0, 1: 1})
    assert np.array_equal(shown.attention, contact_map())
    assert (found.attention["ES"].block, dict(found.attention["ES"].best)) == (0, {0: 0, 1: 1})
    assert found.table["precision_at_l_tolerant"].values.min() > 0

    page = section(directory, found)
    captions = [figure.caption for figure in page.stills if "Mean attention" in figure.caption]
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


def test_halves_are_those_of_the_draws_of_every_chain(directory: Path) -> None:
    one = studied(directory).shown["samples"]
    # Draws 8 to 15 are kept; of two chains four each: 8 and 10 are early, 13 and 15 are late.
    first = 2 * TEMPERATURES.index(one.temperature)
    weights = samples()["weights"].values[first : first + 2]
    for layer, changed in one.motion.items():
        own = weights[:, :, MODEL.layout.slice(layer)].astype(np.float64)
        unit = own / np.linalg.norm(own, axis=2, keepdims=True)

        def mean(draws: list[int], unit: np.ndarray = unit) -> float:
            return float((unit[0, draws] @ unit[1, draws].T).mean())

        assert changed == pytest.approx(mean([13, 15]) - mean([8, 10]), abs=1e-12)
    early, late = one.halves
    assert early == effective_dimensions(weights[:, [8, 10]].reshape(4, -1), MODEL.layout)
    assert late == effective_dimensions(weights[:, [13, 15]].reshape(4, -1), MODEL.layout)
    assert one.attention is not None
    assert one.attention.alike.motion == 0.0  # every map is the contact map, always
    for trained_one in studied(directory).ensembles[-2:]:
        assert (dict(trained_one.motion), trained_one.halves) == ({}, ())


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
    soon = replace(done, over_trained_epochs=torch.tensor([5, 40]))
    (said,) = training_warnings("tf1", stopped, soon)
    assert "OT weights of 1 of 2 runs are 1.11 to 1.11 times as old as ES" in said

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
        other = table.assign_attrs(peak_temperature=hot, peak_caveat="doubtful")
        both = [replace(found, table=one), replace(found, name="other", table=other)]
        return [f.caption for f in study_report._relative_figures(both, references, pictures)]

    hot = float(table["temperature"][-1])
    assert drawn("at the lower end", hot) == []
    assert drawn("", float("nan")) == []
    captions = drawn("", hot)
    assert len(captions) == 3
    assert all("T/T* (tiny)" in caption for caption in captions)
