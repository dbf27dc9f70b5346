"""The command line: help everywhere, one clear line and exit code 2 for bad input, and a whole
small run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from thermosphere.cli import STAGES, main
from thermosphere.proteins.dataset import DataSet
from thermosphere.proteins.fasta import read_sequences
from thermosphere.proteins.tempering_result import TemperingResult
from thermosphere.runs import chains, provenance
from thermosphere.runs.config_reading import load_config, preset_text
from thermosphere.runs.provenance import stage_times

TWO_MODELS = "[models.tf1-small]\n[models.tf4-small]"
VERBS = ("doctor", "config", "run", "publish", "embedding", *STAGES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished smoke run."""
    directory = tmp_path_factory.mktemp("cli") / "run"
    assert main(["run", "--preset", "smoke", "-o", str(directory), "--quiet"]) == 0
    return directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run, expect exit code 2 and a single line on stderr; returns it."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("thermosphere: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"thermosphere {verb}" in capsys.readouterr().out


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


def test_a_stage_works_on_the_models_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "two.toml"
    settings.write_text(preset_text("smoke").replace("[models.tf1-small]", TWO_MODELS))
    run = ["--config", str(settings), "-o", str(tmp_path / "run"), "--quiet", "--resume"]
    assert refused(capsys, "train", *run, "--model", "tf4").endswith(
        "--model: expected one of tf1-small, tf4-small, got 'tf4'\n"
    )
    for stage in ("contacts", "sequences", "dataset"):
        assert main([stage, *run]) == 0
    for model in ("tf4-small", "tf1-small"):  # as two processes would
        assert main(["train", *run, "--model", model]) == 0
        assert (tmp_path / "run" / model / "references.safetensors").is_file()
    assert {(one.stage, one.models) for one in stage_times(tmp_path / "run")} == {
        *((stage, "") for stage in ("contacts", "sequences", "dataset")),
        *(("train", model) for model in ("tf4-small", "tf1-small")),
    }
    both = load_config((tmp_path / "run" / "config.toml").read_text(), where="run")
    assert list(both.models) == ["tf1-small", "tf4-small"]
    assert main(["sample", *run, "--model", "tf1-small"]) == 0
    assert not (tmp_path / "run" / "tf4-small" / "samples.zarr").exists()
    assert main(["report", *run, "--model", "tf1-small"]) == 0
    assert main(["report", *run]) == 2  # of both, and one has not been sampled


LONGER = ["--set", "models.tf1-small.sampling.draws_max=11"]


def going_on(run: Path, *settings: str) -> list[str]:
    return ["sample", "-o", str(run), "--quiet", "--threads", "1", "--resume", *settings]


def cold_settled(table: xr.Dataset) -> np.ndarray:
    """As if the first of two temperatures had settled."""
    return np.array([True, False])


def nothing_settled(table: xr.Dataset) -> np.ndarray:
    return np.zeros(table.sizes["temperature"], bool)


def test_temperatures_that_have_not_settled_go_on(
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(chains, "settled", cold_settled)
    whole, broken, fewer = (
        shutil.copytree(copied, tmp_path / name) for name in ("whole", "broken", "fewer")
    )
    assert main(going_on(whole, "--set", "models.tf1-small.sampling.draws=11")) == 0
    assert main(going_on(copied, *LONGER)) == 0
    every, some = (
        xr.open_zarr(run / "tf1-small" / "samples.zarr").load() for run in (whole, copied)
    )
    cold = (some["temperature"] == some["temperature"].min()).values
    assert some.sizes["draw"] == 11
    # Those that go on have the bits that they would have had with the others beside them.
    for where in ({"chain": ~cold}, {"chain": cold, "draw": slice(6)}):
        one, other = (samples.isel(where).drop_attrs() for samples in (some, every))
        xr.testing.assert_identical(one, other)
    assert bool(some.isel(chain=cold, draw=slice(6, 11)).isnull().to_array().all())

    calls: list[int] = []

    def dying(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return observe(*arguments)

    observe = chains.observe
    with monkeypatch.context() as patched:
        patched.setattr(chains, "observe", dying)
        often = "models.tf1-small.sampling.checkpoint_seconds=0.0"
        assert main(going_on(broken, *LONGER, "--set", often)) == 130
    assert main(going_on(broken, *LONGER)) == 0
    again = xr.open_zarr(broken / "tf1-small" / "samples.zarr").load()
    xr.testing.assert_identical(again.drop_attrs(), some.drop_attrs())
    assert main(["report", "-o", str(broken), "--quiet"]) == 0

    monkeypatch.setattr(chains, "settled", nothing_settled)
    text = (fewer / "config.toml").read_text().replace("going_on = 4", "going_on = 1")
    (fewer / "config.toml").write_text(text)
    assert main(going_on(fewer, *LONGER)) == 0
    hot = xr.open_zarr(fewer / "tf1-small" / "samples.zarr").load()
    xr.testing.assert_identical(hot.drop_attrs(), some.drop_attrs())  # the hotter of the two

    # Those that stayed behind come up to more draws of all, with the bits of an unbroken run.
    monkeypatch.setattr(chains, "settled", lambda table: np.array([True, True]))
    assert main(going_on(copied, "--set", "models.tf1-small.sampling.draws=8")) == 0
    more = xr.open_zarr(copied / "tf1-small" / "samples.zarr").load()
    for where in ({"chain": ~cold}, {"chain": cold, "draw": slice(8)}):
        one, other = (samples.isel(where).drop_attrs() for samples in (more, every))
        xr.testing.assert_identical(one, other)
    assert bool(more.isel(chain=cold, draw=slice(8, 11)).isnull().to_array().all())


def test_sampling_ends_where_all_have_settled(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "settled", lambda table: np.array([True, True]))
    assert main(going_on(copied, *LONGER)) == 0
    assert xr.open_zarr(copied / "tf1-small" / "samples.zarr").sizes["draw"] == 6


def test_a_refused_first_command_leaves_no_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none.pdb"
    run = tmp_path / "run"
    said = refused(capsys, "contacts", "--structure", str(file), "-o", str(run), "--quiet")
    assert "none.pdb" in said
    assert main(["contacts", "-o", str(run), "--quiet"]) == 0  # the built-in protein
    kept = (run / "config.toml").read_text()
    refused(capsys, "sequences", "--sequences", str(file), "-o", str(run), "--quiet")
    assert (run / "config.toml").read_text() == kept
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.toml").write_text(kept)
    refused(capsys, "contacts", "--structure", str(file), "-o", str(own), "--quiet")
    assert (own / "config.toml").read_text() == kept


def test_doctor_says_what_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for what in ("thermosphere", "instruction set", "threads", "CUDA", "Triton", "torch"):
        assert what in text


def test_config_prints_what_it_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "--preset", "smoke", "--set", "seed=3"]) == 0
    text = capsys.readouterr().out
    config = load_config(text, where="printed")
    assert config.seed == 3
    (tmp_path / "mine.toml").write_text(text)
    assert main(["config", "--config", str(tmp_path / "mine.toml")]) == 0
    assert capsys.readouterr().out == text


def test_a_run_leaves_everything(finished: Path) -> None:
    assert (finished / "report.html").stat().st_size > 100_000
    assert (finished / "contacts.toml").is_file()
    assert len(list((finished / "figures").glob("*.png"))) >= 12
    data = DataSet.load(finished / "dataset.npz")
    assert (len(data.train), data.length) == (100, 86)
    samples = xr.open_zarr(finished / "tf1-small" / "samples.zarr")
    assert dict(samples.sizes) == {"chain": 4, "draw": 6, "parameter": 8107}
    norm2 = (samples["weights"].astype("float64") ** 2).sum("parameter")
    assert float(abs(norm2 / samples.attrs["norm2"] - 1).max()) < 1e-6
    resolved = load_config((finished / "config.toml").read_text(), where="saved")
    assert resolved.name == "smoke"
    assert samples.attrs["config"] == resolved.to_toml()


def test_finished_stages_are_kept_and_not_gone_over(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copied / "sequences.npz").stat().st_mtime_ns
    assert "--resume" in refused(capsys, "sequences", "-o", str(copied))
    assert "--resume" in refused(capsys, "run", "-o", str(copied), "--quiet")
    assert main(["run", "-o", str(copied), "--resume", "--quiet"]) == 0
    assert (copied / "sequences.npz").stat().st_mtime_ns == before
    assert "tf1-small" in capsys.readouterr().out


def test_other_settings_are_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(
        capsys, "run", "--preset", "smoke", "--set", "seed=5", "-o", str(copied), "--resume"
    )
    assert "seed: saved 0, now 5" in line


def test_more_draws_go_on_from_the_last(copied: Path) -> None:
    old = xr.open_zarr(copied / "tf1-small" / "samples.zarr")["weights"].load()
    change = ["--set", "models.tf1-small.sampling.draws=8"]  # of the run's own settings
    assert main(["sample", *change, "-o", str(copied), "--resume", "--quiet"]) == 0
    new = xr.open_zarr(copied / "tf1-small" / "samples.zarr")["weights"].load()
    assert new.sizes["draw"] == 8
    xr.testing.assert_identical(new.isel(draw=slice(6)).drop_vars("move"), old.drop_vars("move"))
    assert bool(abs(new.isel(draw=7) - new.isel(draw=6)).max() > 0)


def test_a_mistake_does_not_spoil_the_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["-o", str(tmp_path / "run"), "--quiet"]
    assert "no.pdb" in refused(
        capsys, "contacts", "--preset", "smoke", "--structure", "no.pdb", *run
    )
    assert main(["contacts", "--preset", "smoke", *run]) == 0
    line = refused(
        capsys, "contacts", "--preset", "smoke", "--structure", "no.pdb", *run, "--resume"
    )
    assert "structure.file" in line


def test_a_refusal_that_took_its_time_does_not_spoil_the_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["-o", str(tmp_path / "run"), "--quiet"]
    monkeypatch.setattr(provenance, "KEPT", 0.0)  # its time is written down
    refused(capsys, "contacts", "--preset", "smoke", "--structure", "no.pdb", *run)
    assert [one.name for one in (tmp_path / "run").iterdir()] == ["provenance.csv"]
    assert main(["contacts", "--preset", "smoke", *run]) == 0


def test_sequences_of_another_length_are_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "short.fasta"
    listed.write_text("".join(f">{k}\nACDEFGHIKL\n" for k in range(400)))
    run = ["run", "--preset", "smoke", "--sequences", str(listed), "-o", str(tmp_path / "run")]
    line = refused(capsys, *run, "--quiet")
    assert "short.fasta: sequences must have the 86 sites of the built-in protein, got 10" in line
    assert not (tmp_path / "run").exists()
    assert main(["contacts", "--preset", "smoke", "-o", str(tmp_path / "run"), "--quiet"]) == 0
    line = refused(capsys, *run, "--quiet", "--resume")
    assert "must have the 86 sites of" in line
    assert "contacts.toml, got 10" in line


def test_a_list_of_sequences_that_a_kill_prevented_is_written_later(copied: Path) -> None:
    asked = ["--set", "sequences.fasta=true", "-o", str(copied), "--resume", "--quiet"]
    assert not (copied / "sequences.fasta").exists()
    assert main(["sequences", *asked]) == 0
    listed = read_sequences(copied / "sequences.fasta")
    np.testing.assert_array_equal(listed, TemperingResult.load(copied / "sequences.npz").sequences)


def test_a_checkpoint_of_other_weights_is_refused(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from thermosphere.archive import write_archive
    from thermosphere.training import References

    path = copied / "tf1-small" / "references.safetensors"
    references = References.load(path)
    references.early_stopped.mul_(-1.0)
    write_archive(path, dict(vars(references)), {"kind": "thermosphere reference weights"})
    line = refused(capsys, "sample", "-o", str(copied), "--resume", "--quiet")
    assert "must be of the same run: start expected" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--preset", "nothing"], "preset: expected one of demo, laptop, paper, smoke"),
        (["run", "--config", "nothing.toml"], "nothing.toml: No such file"),
        (["run", "--preset", "smoke", "--set", "sed=1"], "unknown key 'sed'; did you mean 'seed'"),
        (
            ["run", "--preset", "smoke", "--set", "sampling.draws_max=5"],
            "sampling.draws_max must be 0 or >= draws = 6, got 5",
        ),
        (["run", "--preset", "smoke", "--set", "seed=-1"], "seed: Expected `int` >= 0, got"),
        (["contacts", "--preset", "smoke", "--structure", "no.pdb"], "no.pdb"),
        (["run", "--preset", "smoke", "--threads", "0"], "--threads must be >= 1, got 0"),
        (["dataset", "--preset", "smoke"], "run `thermosphere sequences"),
        (["run", "--device", "tpu"], "--device must be one of cpu, cuda, got 'tpu'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capsys, *arguments, "-o", str(tmp_path / "new"))


def test_bad_structure_and_sequences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pdb").write_text("this is no structure\n")
    (tmp_path / "bad.fasta").write_text(">one\nACDX1\n")
    smoke = ["--preset", "smoke", "-o", str(tmp_path / "new")]
    assert "bad.pdb" in refused(
        capsys, "contacts", *smoke, "--structure", str(tmp_path / "bad.pdb")
    )
    shutil.rmtree(tmp_path / "new")
    assert main(["contacts", *smoke, "--sequences", str(tmp_path / "bad.fasta"), "--quiet"]) == 0
    assert "bad.fasta" in refused(capsys, "sequences", "-o", str(tmp_path / "new"))


@pytest.mark.parametrize(
    ("file", "verb"),
    [
        ("contacts.toml", "report"),
        ("sequences.npz", "report"),
        ("dataset.npz", "report"),
        ("tf1-small/references.safetensors", "report"),
        ("tf1-small/checkpoint.safetensors", "sample"),
    ],
)
def test_a_truncated_file_is_one_line(
    file: str, verb: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert path.name in refused(capsys, verb, "-o", str(copied), "--resume", "--quiet")


def test_a_truncated_store_is_one_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = copied / "tf1-small" / "samples.zarr"
    chunk = next(p for p in (store / "train_loss").rglob("c/*/*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:4])
    assert "samples.zarr" in refused(capsys, "report", "-o", str(copied), "--quiet")


def test_truncated_weights_are_one_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = copied / "tf1-small" / "samples.zarr"
    for chunk in (store / "weights").rglob("c/*/*/*"):
        chunk.write_bytes(chunk.read_bytes()[:9])
    assert "samples.zarr" in refused(capsys, "report", "-o", str(copied), "--quiet")


def test_text_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    assert "mine.toml: not UTF-8" in refused(
        capsys, "config", "--config", str(tmp_path / "mine.toml")
    )


def test_a_directory_of_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert "new or empty directory" in refused(
        capsys, "contacts", "--preset", "smoke", "-o", str(tmp_path)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_leaving_the_sphere_is_one_line_and_loses_nothing(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The same run again, with masses so light that the first moves leave the sphere.
    text = (copied / "config.toml").read_text()
    text = re.sub(r"temperatures = \[[^]]*\]", "temperatures = [0.1, 10.0]", text)
    text = text.replace("moves_per_draw = 5", "moves_per_draw = 200\nt_ratio = 0.4")
    (copied / "config.toml").write_text(text)
    shutil.rmtree(copied / "tf1-small" / "samples.zarr")
    (copied / "tf1-small" / "checkpoint.safetensors").unlink()
    capsys.readouterr()
    assert main(["sample", "-o", str(copied), "--quiet"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "dt = 1" in line
    assert "T_ratio = 0.4" in line
    assert (copied / "tf1-small" / "references.safetensors").is_file()
