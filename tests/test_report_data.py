"""The numbers of the report's interactive part are those of the studies and their tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import xarray as xr
from study_problem import (
    CONTACTS,
    DRAWS,
    LENGTH,
    RUNS,
    TEMPERATURES,
    make_run,
    samples,
    studied,
    trained,
)

from thermosphere.analysis.contacts import (
    precision_at_l,
    precision_at_l_tolerant,
    random_precision_at_l,
)
from thermosphere.analysis.self_averaging import SelfAveraging
from thermosphere.models.feedforward import FeedForward
from thermosphere.models.named import named_model
from thermosphere.proteins.structure import ContactMap
from thermosphere.runs import study
from thermosphere.runs.config import Analysis, Config
from thermosphere.runs.report import write_report
from thermosphere.runs.report_data import BINS, TRACE_POINTS, packed, report_data, unpacked
from thermosphere.runs.report_tables import (
    dimension_table,
    reference_table,
    similarity_table,
    thermodynamics_table,
)
from thermosphere.runs.study import Ensemble, ModelStudy
from thermosphere.runs.study_attention import BlockAttention

SEQUENCE = "ARNDCQEGHILK"


def protein(contacts: np.ndarray = CONTACTS) -> ContactMap:
    pairs = np.argwhere(np.triu(contacts)).astype(np.int64).reshape(-1, 2)
    return ContactMap(SEQUENCE[: len(contacts)], pairs)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_run(tmp_path, monkeypatch)


def data_of(
    found: ModelStudy, structure: ContactMap | None, contact_shift: int = 0
) -> dict[str, Any]:
    """What the page reads: through JSON, which refuses NaN."""
    config = msgspec.structs.replace(Config(), analysis=Analysis(contact_shift=contact_shift))
    data = report_data([found], structure, config)
    return json.loads(json.dumps(data, allow_nan=False))


def test_packed_values_are_good_to_half_a_step() -> None:
    values = np.append(np.random.default_rng(0).normal(size=1000), np.nan)
    back = packed(values)
    assert np.array_equal(np.isnan(unpacked(back)), np.isnan(values))
    error = np.abs(unpacked(back)[:-1] - values[:-1]).max()
    assert error <= back["step"] / 2 * (1 + 1e-9)
    assert back["step"] == pytest.approx(np.ptp(values[:-1]) / 65534)
    assert np.array_equal(unpacked(packed([3.5, 3.5])), [3.5, 3.5])
    assert np.isnan(unpacked(packed([np.nan, np.inf]))).all()
    assert unpacked(packed([])).size == 0


def test_the_ladder_is_the_table(directory: Path) -> None:
    found = studied(directory)
    model = data_of(found, protein())["models"][0]
    table = thermodynamics_table(found.table)
    assert (model["columns"], model["rows"]) == (list(table.columns), [*map(list, table.rows)])
    assert np.allclose(model["temperatures"], TEMPERATURES, rtol=1e-5)
    assert model["equilibrated"] == found.table["equilibrated"].values.tolist()
    assert model["reason"] == found.table["reason"].values.tolist()
    assert any(model["reason"])  # draws without memory, yet too few of them here
    for name, column in model["ladder"].items():
        assert np.allclose(column["mean"], found.table[name].values, rtol=1e-5, atol=0), name
    shown = {"train_loss": "⟨U⟩ (nats)", "test_error": "test error", "distance": "|w−w₀|²/Q"}
    shown |= {"precision_at_l": "P@L", "precision_at_l_tolerant": "P̃@L"}
    for name, column_name in shown.items():
        cells = [row[table.columns.index(column_name)] for row in table.rows]
        assert model["ladder"][name]["text"] == cells
    trained_table = reference_table(found.references)
    for reference, row in zip(found.references, trained_table.rows, strict=True):
        own = model["trained"][reference.label]
        for name, values in reference.values.items():
            assert np.allclose(own[name]["runs"], values, rtol=1e-5)
        named = {"train_loss": "training loss", "test_error": "test error", "precision_at_l": "P@L"}
        for name, column_name in named.items():
            assert own[name]["text"] == row[trained_table.columns.index(column_name)]


def test_traces_are_the_samples(directory: Path) -> None:
    found = studied(directory)
    traces = data_of(found, protein())["models"][0]["traces"]
    assert len(traces["chains"]) == 4
    assert traces["averaged"] == 1
    assert traces["from"] == [5 * (DRAWS // 2 + 1)] * 2  # move of the first draw after burn-in
    loss = samples()["train_loss"].values
    for chain, one in enumerate(traces["chains"]):  # already in order of temperature
        step = one["train_loss"]["step"]
        assert np.abs(unpacked(one["train_loss"]) - loss[chain]).max() <= step
        assert (one["temperature"], one["start"]) == (chain // 2, 2 - chain % 2)


def test_weights_are_those_of_the_tables(directory: Path) -> None:
    found = studied(directory)
    model = data_of(found, protein())["models"][0]
    at = model["typical"]
    groups = {
        group["label"]: group
        for one in (model["ensembles"][at], *model["ensembles"][-2:])
        for group in one["similarity"]
    }
    table = similarity_table(found.similarity)
    assert list(groups) == list(table.columns[1:])
    for column, group in enumerate(groups.values(), start=1):
        assert group["text"] == [row[column] for row in table.rows]
        assert all(sum(counts) == group["pairs"] for counts in group["counts"])
        assert all(len(counts) == BINS for counts in group["counts"])
    assert [layer["name"] for layer in model["layers"]] == [row[0] for row in table.rows]

    dimensions = dimension_table(found.dimensions, found.typical)
    for column, one in enumerate((model["ensembles"][at], *model["ensembles"][-2:]), start=2):
        assert one["norms"]["away"] == [row[column] for row in dimensions.rows]
        sizes = [one["draws"] * size for size in one["norms"]["size"]]
        assert [sum(counts) for counts in one["norms"]["counts"]] == sizes


@pytest.mark.parametrize("shift", [0, 1])
def test_maps_and_their_scores(directory: Path, shift: int) -> None:
    found = studied(directory, contact_shift=shift)
    data = data_of(found, protein(), shift)
    rules = {rule["key"]: rule for rule in data["precision"]}
    assert list(rules) == [
        "precision_at_l", "precision_at_l_tolerant",
        "precision_at_l_tolerance_2", "precision_at_l_tolerance_3",
    ]  # fmt: skip
    i, j = np.triu_indices(LENGTH, 1)
    for one, ensemble in zip(data["models"][0]["ensembles"], found.ensembles, strict=True):
        maps = ensemble.attention
        assert maps is not None
        shown = one["attention"]
        assert (shown["start"], shown["best"]) == (maps.start + 1, maps.block)
        for block, attention in zip(shown["blocks"], maps.blocks, strict=True):
            values = unpacked(block["map"])
            inside = j + shift < LENGTH
            assert np.array_equal(np.isfinite(values), inside)
            exact = attention[i[inside] + shift, j[inside] + shift]
            assert np.abs(values[inside] - exact).max() <= block["map"]["step"]
            assert block["precision"]["precision_at_l"] == pytest.approx(
                precision_at_l(attention, CONTACTS, shift=shift), rel=1e-5
            )
            assert block["precision"]["precision_at_l_tolerance_2"] == pytest.approx(
                precision_at_l_tolerant(attention, CONTACTS, shift=shift, tolerance=2), rel=1e-5
            )
            for key, right in block["right"].items():
                assert right.count("1") / len(right) == pytest.approx(
                    block["precision"][key], rel=1e-5
                )
            pairs = np.reshape(block["pairs"]["1"], (-1, 2))
            hits = [bool(CONTACTS[a, b]) for a, b in pairs]
            assert hits == [mark == "1" for mark in block["right"]["precision_at_l"]]
    assert rules["precision_at_l"]["random"] == pytest.approx(
        random_precision_at_l(CONTACTS, shift=shift), rel=1e-5
    )


def test_more_tolerance_never_scores_less(directory: Path) -> None:
    table = studied(directory).table
    one, two, three = (table[f"precision_at_l_tolerance_{t}"].values for t in (1, 2, 3))
    assert np.array_equal(one, table["precision_at_l_tolerant"].values)
    assert np.all(one <= two)
    assert np.all(two <= three)
    assert np.any(one < three)


def test_a_single_draw_of_a_single_chain(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = samples().isel(chain=[0], draw=[0])
    monkeypatch.setattr(study, "open_samples", lambda path: one)
    model = data_of(studied(directory), protein())["models"][0]
    assert model["equilibrated"] == [False]
    assert "too few" in model["reason"][0]
    assert model["ensembles"][0]["similarity"] == []
    assert [e["label"] for e in model["ensembles"]] == ["samples", "ES", "OT"]
    assert model["ladder"]["specific_heat"]["mean"] == [None]
    assert model["ladder"]["precision_at_l"]["error"] == [None]


def test_without_contacts_there_is_no_map(directory: Path) -> None:
    data = data_of(studied(directory, contacts=None), None)
    assert data["protein"] is None
    assert data["precision"] == []
    assert all(one["attention"] is None for one in data["models"][0]["ensembles"])
    assert data["models"][0]["layers"]

    empty = np.zeros_like(CONTACTS)  # a structure in which nothing touches
    data = data_of(studied(directory, contacts=empty), protein(empty))
    assert data["protein"]["contacts"] == []
    assert [rule["random"] for rule in data["precision"]] == [0.0] * 4


def test_a_model_without_attention(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FeedForward("tiny", embedding=4, hidden=6, length=LENGTH)
    generator = torch.Generator().manual_seed(1)
    kinds = ("early_stopped", "over_trained")
    rows = {kind: torch.randn(RUNS, model.layout.size, generator=generator) for kind in kinds}
    replace(trained(), **rows).save(directory / "tiny" / "references.safetensors")
    flat = np.random.default_rng(2).normal(size=(4, DRAWS, model.layout.size))
    drawn = samples().drop_vars("weights")
    drawn["weights"] = (("chain", "draw", "parameter"), flat.astype(np.float32))
    monkeypatch.setattr(study, "open_samples", lambda path: drawn)
    monkeypatch.setattr(study, "named_model", lambda name, length: model)
    one = data_of(studied(directory), protein())["models"][0]
    assert one["blocks"] == 0
    assert "precision_at_l" not in one["ladder"]
    assert all(ensemble["attention"] is None for ensemble in one["ensembles"])
    assert {norm["kind"] for norm in one["norms"]} == {
        "norm1.gain", "norm1.bias", "norm2.gain", "norm2.bias",
    }  # fmt: skip


def test_the_largest_model_of_the_paper_stays_small(directory: Path, tmp_path: Path) -> None:
    """tf4 at 20 temperatures, three chains of 2,000 draws each: below 2 MB, so that a report of
    all five models stays below a few."""
    random = np.random.default_rng(5)
    small, layout = studied(directory), named_model("tf4", length=86).layout
    names = [entry.name for entry in layout.entries]
    norms = [name for name in names if ".norm" in name]
    n, blocks, count = 86, 4, 20
    some = small.ensembles[0]
    dimension = next(iter(some.dimensions.values()))

    def ensemble(label: str, temperature: float) -> Ensemble:
        groups = ("within chains", "between chains") if label == "samples" else (label,)
        maps = random.random((blocks, n, n))
        alike = SelfAveraging(np.zeros((blocks, 0)), np.zeros(0), np.zeros((0, 2), np.int64))
        return Ensemble(
            label,
            temperature,
            100,
            tuple(range(100)),
            {g: {name: random.random(2000) for name in names} for g in groups},
            {name: random.normal(size=(100, 64)) for name in norms},
            dict.fromkeys(norms, dimension),
            BlockAttention(maps + maps.transpose(0, 2, 1), 6, 0, {0: 1}, alike),
        )

    temperatures = np.geomspace(1e-5, 1e-3, count)
    row = small.table.isel(temperature=0, drop=True)
    table = xr.concat([row] * count, "temperature").assign_coords(temperature=temperatures)
    table.attrs = small.table.attrs
    drawn = {
        name: (("chain", "draw"), random.random((3 * count, 2000)))
        for name in small.samples
        if name != "weights"
    }
    large = replace(
        small,
        samples=xr.Dataset(
            {**drawn, "weights": (("chain", "draw", "parameter"), np.zeros((3 * count, 2000, 1)))},
            coords={
                "temperature": ("chain", np.repeat(temperatures, 3)),
                "start": ("chain", np.tile([0, 1, 2], count)),
                "move": ("draw", np.arange(2000)),
            },
            attrs=small.samples.attrs,
        ),
        table=table,
        typical=float(temperatures[3]),
        ensembles=(
            *(ensemble("samples", float(t)) for t in temperatures),
            ensemble("ES", np.nan),
            ensemble("OT", np.nan),
        ),
        blocks=blocks,
    )
    sparse = np.zeros((n, n), np.uint8)
    sparse[0, 10:80] = sparse[10:80, 0] = 1
    structure = ContactMap("A" * n, np.argwhere(np.triu(sparse)).astype(np.int64))
    data = report_data([large], structure, Config())
    assert len(data["models"][0]["traces"]["moves"]) <= TRACE_POINTS
    write_report(tmp_path / "large.html", title="large", sections=[], data=data)
    size = (tmp_path / "large.html").stat().st_size
    assert 0.5e6 < size < 2e6
