"""What is kept of published models: pages made again, put together from several runs, and never of
two studies."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import xarray as xr
from hairpin_run import MODELS, rows, smoke_config

from thermosphere.analysis.embedding import EffectiveDimension
from thermosphere.archive import read_archive, write_archive
from thermosphere.cli import main
from thermosphere.runs import kept
from thermosphere.runs.studied_run import StudiedRun


def part_of(finished: Path, model: str, folder: Path) -> Path:
    """A copy of the run in which this model alone has been sampled."""
    run = shutil.copytree(finished, folder / model / "run", ignore=shutil.ignore_patterns("study"))
    for other in MODELS:
        if other != model:
            (run / other / "checkpoint.safetensors").unlink()
    return run


def contents(study: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(study)): path.read_bytes()
        for path in study.rglob("*")
        if path.is_file()
    }


def test_a_page_is_put_together_from_runs_of_single_models(
    finished: Path, published: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    for model, here in (("ff", ("ff",)), ("tf1-small", MODELS)):
        run = part_of(finished, model, tmp_path)
        assert main(["publish", "-o", str(run), "--to", str(study), "--quiet"]) == 0
        assert {row["model"] for row in rows(study / "fig3.csv")} == set(here)
        page = (study / "README.md").read_text(encoding="utf-8")
        waiting = "| not sampled yet | tf1-small |"
        assert (waiting in page) == (model == "ff")
    assert contents(study) == contents(published)


def test_the_page_is_made_again_of_what_was_kept(published: Path, tmp_path: Path) -> None:
    study = shutil.copytree(published, tmp_path / "study")
    before = contents(study)
    for path in study.glob("*.*"):
        path.unlink()
    assert main(["publish", "--to", str(study), "--quiet"]) == 0
    assert contents(study) == before
    kept_size = sum(len(data) for name, data in before.items() if name.startswith("kept/"))
    assert kept_size < 300_000


def test_what_is_kept_is_what_the_run_says(finished: Path, published: Path) -> None:
    config = smoke_config(finished)
    run, back = StudiedRun.read(finished, config), kept.read_kept(published / "kept")
    assert back.config == config
    assert back.data == run.data
    assert list(back.studies) == list(run.studies)
    for name, study in run.studies.items():
        again = back.studies[name]
        assert again.typical == study.typical
        assert again.blocks == study.blocks
        xr.testing.assert_allclose(again.table, study.table, rtol=1e-4, atol=1e-6)
        for one, two in zip(study.references, again.references, strict=True):
            assert one.label == two.label
            for key, values in one.values.items():
                np.testing.assert_allclose(two.values[key], values, rtol=1e-6)
        for own, other in zip(study.ensembles, again.ensembles, strict=True):
            assert (own.label, own.draws) == (other.label, other.draws)
            np.testing.assert_equal(asdict_of(own.dimensions), asdict_of(other.dimensions))
            assert other.motion == own.motion
            assert len(other.halves) == len(own.halves)
            for half, again_half in zip(own.halves, other.halves, strict=True):
                np.testing.assert_equal(asdict_of(half), asdict_of(again_half))
            if own.attention is not None:
                assert other.attention is not None
                assert other.attention.best == own.attention.best
                np.testing.assert_allclose(
                    other.attention.blocks, own.attention.blocks, rtol=1e-3, atol=1e-7
                )
                np.testing.assert_allclose(
                    other.attention.alike.other_start, own.attention.alike.other_start, rtol=1e-6
                )
        for kind, layers in study.similarity.items():
            for layer, pairs in layers.items():
                np.testing.assert_allclose(again.similarity[kind][layer], pairs, atol=1e-6)
        for kind, vectors in study.norms.items():
            for vector, values in vectors.items():
                np.testing.assert_allclose(again.norms[kind][vector], values, rtol=1e-6)
        assert torch.equal(back.stage1[name].history_norm2, run.stage1[name].history_norm2)
        assert back.trained[name].early_stopped.shape[1] == 0  # no weights


def asdict_of(dimensions: Mapping[str, EffectiveDimension]) -> dict[str, dict[str, float]]:
    return {vector: asdict(one) for vector, one in dimensions.items()}


def test_models_of_another_study_are_not_put_beside(
    finished: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = shutil.copytree(published, tmp_path / "study")
    path = study / "kept" / "ff" / "study.safetensors"
    tensors, header = read_archive(path, kept.KIND)
    before = contents(study)
    run = StudiedRun.read(finished, smoke_config(finished), models=["tf1-small"])
    for key, value in (("sequences.digest", "0" * 64), ("seed", 5), ("analysis.burn_in", 0.1)):
        other = json.loads(json.dumps(header))
        section, _, entry = key.partition(".")
        if entry:
            other["belongs"][section][entry] = value
        else:
            other["belongs"][section] = value
        write_archive(path, tensors, other)
        with pytest.raises(ValueError, match=rf"kept/ff is of another run \({key} differs\)"):
            kept.keep(run, study / "kept")
        write_archive(path, tensors, header)
    assert contents(study) == before
    path.write_bytes(path.read_bytes()[:1000])
    capsys.readouterr()
    assert main(["publish", "--to", str(study), "--quiet"]) == 2
    assert "must be a whole thermosphere kept study file" in capsys.readouterr().err
    assert (study / "README.md").read_bytes() == before["README.md"]


def test_a_study_that_replaces_another_is_whole_or_refused(
    finished: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after the first of two models: never one page of two studies."""
    study = shutil.copytree(published, tmp_path / "study")
    before = contents(study)
    config = smoke_config(finished)
    other = msgspec.structs.replace(config.analysis, burn_in=0.25)
    run = StudiedRun.read(finished, msgspec.structs.replace(config, analysis=other))

    def dying(source: Path, target: Path) -> None:
        if Path(source).name == "ff.new":
            raise KeyboardInterrupt
        os.rename(source, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kept.os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            kept.keep(run, study / "kept")
    capsys.readouterr()
    assert main(["publish", "--to", str(study), "--quiet"]) == 2
    assert "is of another run (analysis.burn_in differs)" in capsys.readouterr().err
    assert (study / "README.md").read_bytes() == before["README.md"]
    kept.keep(run, study / "kept")  # goes over what the kill left
    assert sorted(path.name for path in (study / "kept").iterdir()) == [
        "contacts.toml", "ff", "tf1-small"
    ]  # fmt: skip
    assert kept.read_kept(study / "kept").config.analysis.burn_in == 0.25


def test_contacts_are_those_of_the_models(finished: Path, tmp_path: Path) -> None:
    run = StudiedRun.read(finished, smoke_config(finished), models=["ff"])
    kept.keep(run, tmp_path)
    assert kept.read_kept(tmp_path).protein is not None
    (tmp_path / "contacts.toml").unlink()
    with pytest.raises(ValueError, match=r"/ff is of another run \(contacts differs\)"):
        kept.read_kept(tmp_path)
    kept.keep(replace(run, protein=None), tmp_path)
    assert kept.read_kept(tmp_path).protein is None
