"""A run on a structure that is not the built-in one, from the file to the published results."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hairpin_run import MODELS, SITES, rows
from PIL import Image

from thermosphere.cli import main
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.potential import evaluate
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.alphabet import ALPHABET
from thermosphere.proteins.dataset import DataSet
from thermosphere.proteins.structure import ContactMap
from thermosphere.runs import products_ladder, products_weights, publish
from thermosphere.runs.config_reading import load_config
from thermosphere.runs.embedding_dimension import Retraining, saved_retraining
from thermosphere.runs.paper_claims import findings
from thermosphere.runs.product import Data
from thermosphere.runs.studied_run import StudiedRun
from thermosphere.training import EarlyStopped


def test_the_structure_is_what_the_run_is_of(finished: Path) -> None:
    protein = ContactMap.load(finished / "contacts.toml")
    assert protein.length == SITES
    expected = {(k, SITES - 1 - k) for k in range(SITES // 2 - 1)}  # the turn itself is too near
    assert {tuple(pair) for pair in protein.contacts.tolist()} == expected
    assert set(protein.sequence) == set(ALPHABET)


def test_every_product_is_there_and_small(published: Path) -> None:
    page = (published / "README.md").read_text(encoding="utf-8")
    assert page.startswith(publish.MARK)
    for title in ("What equilibrated", "Fig. 3", "Figs. 4 and E5", "Fig. 5", "Figs. 6, E2 and E4",
                  "Figs. 7 and E7", "Table A1", "Table C2", "Fig. C1"):  # fmt: skip
        assert f"\n## {title}" in page
    pictures = {path.name for path in published.glob("*.png")}
    linked = set(re.findall(r'src="([^"]+)"', page))
    assert linked == pictures
    assert {f"fig3{letter}.png" for letter in "abcd"} <= pictures
    for path in published.glob("*.png"):
        assert path.stat().st_size < 100_000
        Image.open(path).verify()
    files = set(re.findall(r"\]\(([^)]+)\)", page))
    assert files == {path.name for path in published.glob("*.csv")} | {"config.toml", "kept"}


def test_the_page_says_how_it_was_made_and_what_it_is_worth(published: Path) -> None:
    page = (published / "README.md").read_text(encoding="utf-8")
    assert f"of {SITES} residues and {SITES // 2 - 1} contacts" in page
    assert "| this page | `thermosphere publish --to study`, of what is kept in [kept](" in page
    for stage in ("contacts", "sequences", "dataset"):
        assert re.search(rf"\| wall time: {stage} \| \d+ (s|min) \(.*cores", page)
    for stage in ("train", "sample", "report"):
        assert re.search(rf"\| wall time: {stage}, tf1-small, ff \| \d+ (s|min) \(.*cores", page)
    # A smoke run proves nothing, and must not seem to.
    assert re.search(r"Of \d+ claims agree: 0, disagree: 0, are undecided: (\d+)", page)
    assert "**agrees**" not in page
    assert "**No temperature of tf1-small, ff settled: what is shown of them is a run" in page
    assert "2 of 2 temperatures are not equilibrated" in page
    assert "A second set was not run" in page
    outside = re.sub(r"<img [^>]*>|<!-- .*? -->", "", page)
    assert "<" not in outside  # all else is text


def test_the_data_are_the_study_s(finished: Path, published: Path) -> None:
    config = load_config((finished / "config.toml").read_text(), where="saved")
    assert (published / "config.toml").read_text() == config.to_toml()
    run = StudiedRun.read(finished, config)
    loss = {
        (row["model"], row["T"]): float(row["train_loss"])
        for row in rows(published / "fig3.csv")
        if row["weights"] == "samples"
    }
    for name, study in run.studies.items():
        for temperature, value in zip(
            study.table["temperature"].values, study.table["train_loss"].values, strict=True
        ):
            assert loss[name, f"{temperature:.6g}"] == pytest.approx(float(value), rel=1e-5)
    trained = [row for row in rows(published / "fig3.csv") if row["weights"] == "OT"]
    assert [(row["model"], row["run"]) for row in trained] == [(m, r) for m in MODELS for r in "12"]
    assert float(trained[0]["test_error"]) == pytest.approx(
        float(run.trained["tf1-small"].over_trained_errors[0, 2]), rel=1e-5
    )
    pairs = rows(published / "fig6_tf1-small.csv")
    assert len(pairs) == SITES * (SITES - 1) // 2
    assert sum(int(row["contact"]) for row in pairs) == SITES // 2 - 1
    shown = run.studies["tf1-small"].attention["ES"].blocks[0]
    found = [float(row["ES block 1"]) / SITES for row in pairs]
    assert np.allclose(found, shown[np.triu_indices(SITES, 1)], rtol=6e-3, atol=0)
    away = [row for row in rows(published / "fig5_dimension.csv") if row["weights"] == "ES"]
    assert len(away) == 4 * len(MODELS)


def test_tables_hold_what_training_gave(finished: Path, published: Path) -> None:
    counted = {row["model"]: int(row["N"]) for row in rows(published / "tableA1.csv")}
    assert counted == {"tf1": 44245, "tf4": 168853, "tf1-small": 8107, "tf4-small": 8953,
                       "ff": 173653}  # fmt: skip
    assert all(row["agrees"] == "yes" for row in rows(published / "tableA1.csv"))
    curve = [row for row in rows(published / "figC1.csv") if row["model"] == "ff"]
    stage1 = EarlyStopped.load(finished / "ff" / "stage1.safetensors")
    last = float(stage1.history_norm2[0, 1])
    assert float(curve[1]["|w|²"]) == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("verb", ["publish", "embedding"])
def test_what_is_no_run_is_one_line(
    verb: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "-o", str(tmp_path), "--quiet"]) == 2
    assert "config.toml is missing" in capsys.readouterr().err
    run = shutil.copytree(finished, tmp_path / "run")
    for model in MODELS:
        (run / model / "checkpoint.safetensors").unlink()
    assert main([verb, "-o", str(run), "--quiet"]) == 2
    assert "run `thermosphere sample" in capsys.readouterr().err


def test_the_embedding_dimension_and_a_retraining(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    asked = ["embedding", "-o", str(run), "--model", "tf1-small", "--quiet"]
    assert main(asked) == 0
    text = capsys.readouterr().out
    for vector in ("norm1.gain", "norm1.bias", "norm2.gain", "norm2.bias"):
        assert re.search(rf"blocks\.0\.{vector} +26 ", text)
    assert "Not an equilibrium result" in text
    assert "no smaller embedding dimension follows" in text  # after a few epochs all are near 1

    assert main([*asked, "--retrain", "8"]) == 0
    text = capsys.readouterr().out
    smaller = Transformer("tf1-small at 8", blocks=1, embedding=8, hidden=32, length=SITES)
    found = saved_retraining(run / "tf1-small")
    assert found is not None
    assert f"over 2 runs retrained at 8 ({smaller.layout.size:,} parameters). Keeps its" in text
    test = MaskedSites(DataSet.load(run / "dataset.npz").test)
    assert torch.equal(evaluate(smaller, found.weights, test)[1].double(), found.retrained)
    assert main([*asked, "--retrain", "8"]) == 2
    assert "--resume keeps it" in capsys.readouterr().err
    assert main([*asked, "--retrain", "9", "--resume"]) == 2
    assert "is of dimension 8, got 9" in capsys.readouterr().err
    assert main([*asked, "--retrain", "8", "--resume"]) == 0
    assert capsys.readouterr().out == text


def test_whether_the_test_error_is_kept() -> None:
    def said(original: list[float], retrained: list[float]) -> str:
        weights = torch.zeros(len(retrained), 10)
        found = Retraining("tf1", 26, torch.tensor(original), torch.tensor(retrained), weights)
        return found.sentence()

    assert "error: yes (it rises by +0.0050" in said([0.50, 0.51], [0.50, 0.52])
    assert "error: no (it rises by +0.0950" in said([0.50, 0.51], [0.60, 0.60])
    assert "cannot be told from single runs" in said([0.50], [0.60])


def test_cooling_and_retraining_are_published_over_what_was_there(
    finished: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, study = shutil.copytree(finished, tmp_path / "run"), tmp_path / "study"
    shutil.copytree(published, study)
    (study / "old.png").write_bytes(b"of a model that is gone")
    (study / "notes.txt").write_text("mine")
    for name, shift in (("tf1-small", 0.0), ("ff", 5.0)):
        cooling = run / name / "cooling.zarr"
        shutil.copytree(run / name / "samples.zarr", cooling)
        group = zarr.open_group(cooling, mode="r+", use_consolidated=False)
        loss = group["train_loss"]
        assert isinstance(loss, zarr.Array)
        shifted = np.asarray(loss[:]) + shift
        if name == "tf1-small":  # on its way: the colder temperature not reached
            temperature = np.asarray(group["temperature"])
            shifted[temperature == temperature.min()] = np.nan
        loss[:] = shifted
    weights = torch.zeros(2, 10)
    errors = torch.tensor([0.5, 0.51], dtype=torch.float64)
    kept = Retraining("ff", 8, errors, errors + 0.001, weights)
    kept.save(run / "ff" / "embedding.safetensors")
    # Of six draws three count by default, too few for an error of the mean.
    text = (run / "config.toml").read_text()
    text = text.replace("burn_in = 0.5", "burn_in = 0.0")
    waiting = "[models.tf4.sampling]\ntest_sequences = 100\n"
    (run / "config.toml").write_text(f"{text}\n{waiting}")

    assert main(["publish", "-o", str(run), "--to", str(study), "--quiet"]) == 0
    page = (study / "README.md").read_text(encoding="utf-8")
    for name in ("tf1-small", "ff"):  # a few draws settle nothing
        assert re.search(f"- {name}: .*The second set settled at no temperature", page)
    assert (study / "cooling_ff.png").is_file()
    data = [(row["model"], row["agree"]) for row in rows(study / "equilibrium.csv")]
    cold, hot = ("tf1-small", "not run"), ("tf1-small", "not settled")
    assert data == [cold, hot, *[("ff", "not settled")] * 2]
    assert kept.sentence() in page
    assert "| not sampled yet | tf4 |" in page
    assert "tf1-small: the gains of its last block do not fall into two groups; there is no" in page
    assert not (study / "old.png").exists()
    assert (study / "notes.txt").read_text() == "mine"

    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    capsys.readouterr()
    assert main(["publish", "-o", str(run), "--to", str(other), "--quiet"]) == 2
    assert "new, empty or published before" in capsys.readouterr().err
    assert (other / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "tf4"], "--model: expected one of tf1-small, ff, got 'tf4'"),
        (["--model", "ff", "--retrain", "8"], "retraining is for transformers, got ff"),
        (["--model", "tf1-small", "--retrain", "26"], "below that of tf1-small, 26, got 26"),
        (["--retrain", "99"], "below that of tf1-small, 26, got 99; embedding: retraining is for"),
        (["--threads", "0"], "--threads must be >= 1, got 0"),
    ],
)
def test_a_wrong_question_about_the_embedding_is_one_line(
    arguments: list[str], expected: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embedding", "-o", str(finished), "--quiet", *arguments]) == 2
    line = capsys.readouterr().err
    assert expected in line
    assert line.count("\n") == 1


def test_without_a_contact_map_attention_is_left_out(finished: Path) -> None:
    config = load_config((finished / "config.toml").read_text(), where="saved")
    run = StudiedRun.read(finished, config, models=["tf1-small"])
    bare = replace(
        run,
        protein=None,
        studies={
            name: replace(
                study,
                table=study.table.drop_vars([v for v in study.table if "precision" in str(v)]),
                ensembles=tuple(replace(one, attention=None) for one in study.ensembles),
            )
            for name, study in run.studies.items()
        },
    )
    assert products_weights.attention(run) is not None
    assert products_weights.attention(bare) is None
    assert products_ladder.contacts_found(bare) is None
    claims = {each.product for each in findings(bare.studies, config)}
    assert claims == {"fig3", "fig4", "fig5"}


def test_data_have_six_digits_and_no_nan() -> None:
    data = Data("x", ["a", "b", "c"], [[1 / 3, float("nan"), True], ["text", 7, np.float64(2e-9)]])
    assert data.text() == "a,b,c\n0.333333,,yes\ntext,7,2e-09\n"


def test_a_publication_that_was_killed_is_made_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(run: StudiedRun) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(publish, "PRODUCTS", (publish.PRODUCTS[0], dying))
        assert (
            main(["publish", "-o", str(finished), "--to", str(tmp_path / "out"), "--quiet"]) == 130
        )
        assert (tmp_path / "out").is_dir()
        patched.setattr(publish, "PRODUCTS", publish.PRODUCTS[:1])
        assert main(["publish", "-o", str(finished), "--to", str(tmp_path / "out"), "--quiet"]) == 0


def test_publish_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        ([], "publish: needs a run, -o DIR, or what was published before, --to"),
        (["--to", str(tmp_path / "new")], "keeps no model; publish a run first (-o DIR)"),
    ):
        capsys.readouterr()
        assert main(["publish", "--quiet", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
