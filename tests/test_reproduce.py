"""`thermosphere reproduce`: pilots, two sets of samples and a published study from one command; the
second set's walk down the ladder."""

from __future__ import annotations

import csv
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from thermosphere.cli import main
from thermosphere.runs import chains, cooling, sample
from thermosphere.runs.cooling import Walks, walks
from thermosphere.runs.exact_table import read_comparisons
from thermosphere.runs.ladder import Ladder
from thermosphere.runs.store import open_samples
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.state import LangevinState
from thermosphere.training import References

SHARES = (0.5, 1.0, 2.0)
SETTINGS = [
    *("--preset", "smoke", "--quiet", "--threads", "1"),
    *("--set", "sampling.temperatures=auto", "--set", f"pilot.shares={list(SHARES)}"),
    *("--set", "sampling.calibrated=true", "--set", "pilot.trial_seconds=0.2"),
    *("--set", "pilot.exact_at=[1.1]", "--set", "pilot.exact_gradients=60"),
    *("--set", "pilot.exact_steps=6"),
    *("--set", "pilot.coldest=1e-5", "--set", "pilot.ladder_moves=4", "--set", "pilot.settling=4"),
]


def all_the_way_down(samples: xr.Dataset, *_: object) -> Walks:
    ladder = sorted(set(samples["temperature"].values.tolist()), reverse=True)
    return Walks(ladder, [], ladder[-1])


@pytest.fixture(scope="module", autouse=True)
def second_set_of_every_temperature() -> Iterator[None]:
    """So few moves leave it to chance on which side of ES weights ⟨U⟩ is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooling, "walks", all_the_way_down)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("reproduce") / "run"
    assert main(["reproduce", *SETTINGS, "-o", str(output)]) == 0
    return output


def test_every_stage_leaves_its_file(directory: Path) -> None:
    model = directory / "tf1-small"
    for name in ("ladder.csv", "calibration.csv", "calibration.toml", "thermodynamics.csv"):
        assert (model / name).is_file(), name
    assert not (model / "ladder.checkpoint.safetensors").exists()
    page = (directory / "study" / "README.md").read_text(encoding="utf-8")
    assert "Where the ladders go" in page
    assert "sampling efficiency" in page
    with (directory / "study" / "efficiency.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"tf1-small"}
    assert float(rows[0]["times the published"]) == 1.0


def test_the_exact_check_is_published(
    directory: Path,
) -> None:
    page = (directory / "study" / "README.md").read_text(encoding="utf-8")
    chapter = page.split("## Is it exact?")[1].split("## ")[0]
    (found,) = read_comparisons(directory / "tf1-small")
    assert found.sentence().replace("*", "\\*") in chapter
    assert "Not judged" in chapter  # ten draws prove nothing, and must not seem to
    with (directory / "study" / "exact.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["chain"] for row in rows] == ["2", "3", "all"]
    with (directory / "tf1-small" / "exact.csv").open(encoding="utf-8") as file:
        assert [{"model": "tf1-small", **row} for row in csv.DictReader(file)] == rows
    assert float(rows[2]["difference"]) == pytest.approx(found.difference[0], rel=1e-5)


def test_a_check_may_grow_and_is_made_where_it_was_not(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(directory, run)
    again = ["exact", "-o", str(run), "--quiet", "--threads", "1"]
    capsys.readouterr()
    assert main(again) == 2
    assert "exact.safetensors is there; --resume goes on with it" in capsys.readouterr().err
    longer = ["--set", "models.tf1-small.pilot.exact_gradients=84"]
    assert main([*again, *longer, "--resume"]) == 0
    (more,) = read_comparisons(run / "tf1-small")
    assert capsys.readouterr().out == f"tf1-small, {more.sentence()}\n"
    assert more.gradients == 84
    elsewhere = ["--set", "models.tf1-small.pilot.exact_at=[2.0]"]
    assert main([*again, *elsewhere, "--resume"]) == 2
    assert "exact_at: saved [1.1], now [2.0]" in capsys.readouterr().err
    (run / "tf1-small" / "exact.safetensors").unlink()
    (run / "config.toml").write_text(
        (run / "config.toml").read_text().replace("exact_at = [\n    1.1,\n]", "exact_at = []")
    )
    assert main([*again]) == 0  # asked for nothing, does nothing
    assert not (run / "tf1-small" / "exact.safetensors").exists()
    assert main([*again, *elsewhere]) == 0  # a calibrated run may still choose
    (other,) = read_comparisons(run / "tf1-small")
    assert other.chains == (4, 5)


def test_samples_are_taken_where_and_how_the_pilots_say(directory: Path) -> None:
    model = directory / "tf1-small"
    peak = Ladder.load(model / "ladder.csv").peak
    samples = open_samples(model / "samples.zarr")
    ladder = sorted(set(samples["temperature"].values.tolist()))
    np.testing.assert_allclose(ladder, np.array(SHARES) * peak, rtol=1e-3)
    chosen = tomllib.loads((model / "calibration.toml").read_text(encoding="utf-8"))
    assert chosen["temperature"] == peak
    assert set(chosen["sampling"]) <= {"batch", "stiffness", "modes", "t_ratio", "m1"}


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (0.0, Walks([5.0, 4.0, 3.0, 2.0, 1.0], [], 2.0)),  # ES weights below all of them
        (1.7, Walks([5.0, 4.0], [3.0], 2.0)),  # 1 is colder than where ⟨U⟩ is least
        (9.0, Walks([], [3.0, 4.0, 5.0], 2.0)),
        (0.5, Walks([5.0, 4.0, 3.0], [], 2.0)),  # nothing between the walks
    ],
)
def test_the_second_set_comes_from_the_side_where_early_stopped_weights_are_not(
    reference: float, expected: Walks
) -> None:
    loss = dict(zip((1.0, 2.0, 3.0, 4.0, 5.0), (0.6, 0.3, 1.1, 1.8, 2.5), strict=True))
    temperature = np.repeat([3.0, 1.0, 2.0, 5.0, 4.0], 2)
    rising = np.array([[loss[t]] * 4 for t in temperature]) + np.array([9.0, 9.0, 0.0, 0.1])
    later = np.full((10, 2), np.nan)  # those that went on by themselves, and others that did not
    samples = xr.Dataset(
        {"train_loss": (("chain", "draw"), np.hstack([rising, later]))},
        coords={"temperature": ("chain", temperature)},
    )
    assert walks(samples, 4, reference) == expected


def second_set(
    directory: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, plan: Callable[..., Walks]
) -> tuple[xr.Dataset, xr.Dataset]:
    """Both sets of the run, the second made anew as planned."""
    run = not_cooled(directory, copy)
    monkeypatch.setattr(cooling, "walks", plan)
    assert main(["cool", "-o", str(run), "--quiet", "--threads", "1"]) == 0
    model = run / "tf1-small"
    first, second = (open_samples(model / f"{name}.zarr") for name in ("samples", "cooling"))
    return first, second


def test_the_second_set_walks_down_from_the_hottest_and_up_from_the_lowest(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = open_samples(directory / "tf1-small" / "samples.zarr")
    temperature = samples["temperature"].values
    cold, warm, hot = sorted(set(temperature.tolist()))
    plan = Walks([hot], [warm], cold)
    first, second = second_set(directory, tmp_path / "run", monkeypatch, lambda *_: plan)
    assert second.attrs["heated"] == [warm]
    np.testing.assert_array_equal(second["temperature"].values, temperature)
    rows = {rung: np.flatnonzero(temperature == rung) for rung in (cold, warm, hot)}
    assert np.isnan(second["train_loss"].values[rows[cold]]).all()
    for rung, origin in ((hot, hot), (warm, cold)):
        start = first["weights"].values[rows[origin], -1].astype(np.float64)
        weights = second["weights"].values[rows[rung]].astype(np.float64)
        away = ((weights - start[:, None]) ** 2).sum(2)
        np.testing.assert_allclose(second["distance2"].values[rows[rung]], away, rtol=1e-5)
        np.testing.assert_allclose((weights**2).sum(2), second.attrs["norm2"], rtol=1e-5)
        assert (away[:, 0] < away[:, -1]).all()


def test_the_walks_taken_are_those_that_the_samples_ask_for(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = second_set(directory, tmp_path / "run", monkeypatch, walks)
    model = directory / "tf1-small"
    references = References.load(model / "references.safetensors")
    reference = float(references.early_stopped_losses[:, 0].mean())
    plan = walks(first, first.sizes["draw"], reference)
    temperature = second["temperature"].values
    run = np.isfinite(second["train_loss"].values).all(1)
    assert set(temperature[run].tolist()) == {*plan.down, *plan.up}
    assert second.attrs["heated"] == plan.up


def test_a_walk_goes_from_one_temperature_to_the_next(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = open_samples(directory / "tf1-small" / "samples.zarr")
    cold, warm, hot = sorted(set(samples["temperature"].values.tolist()))
    begun: list[torch.Tensor] = []
    real = Langevin.init

    def noted(self: Langevin, weights: torch.Tensor, **named: Any) -> LangevinState:
        begun.append(weights.clone())
        return real(self, weights, **named)

    monkeypatch.setattr(Langevin, "init", noted)
    plan = Walks([hot, warm, cold], [], cold)
    first, second = second_set(directory, tmp_path / "run", monkeypatch, lambda *_: plan)
    temperature = second["temperature"].values
    ends = [(first, hot), (second, hot), (second, warm)]
    assert len(begun) == 3
    for start, (samples, rung) in zip(begun, ends, strict=True):
        last = samples["weights"].values[temperature == rung][:, -1]
        np.testing.assert_array_equal(start.numpy(), last)


def not_cooled(directory: Path, copy: Path) -> Path:
    """The run without its second set."""
    shutil.copytree(directory, copy)
    shutil.rmtree(copy / "tf1-small" / "cooling.zarr")
    (copy / "tf1-small" / "cooling.checkpoint.safetensors").unlink()
    return copy


def test_cooling_goes_on_where_it_has_not_settled_and_ends_where_the_samples_have(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = not_cooled(directory, tmp_path / "run")
    before = open_samples(directory / "tf1-small" / "cooling.zarr")
    first = before.sizes["draw"]
    ladder = sorted(set(before["temperature"].values.tolist()))

    def as_if(table: xr.Dataset) -> np.ndarray:
        """The samples at all but the coldest; those cooled at the hottest, and after a while."""
        cooled = not np.isfinite(table["train_loss"].values[0])
        if not cooled:
            return np.array([False, True, True])
        long = table["draws"].values[1] >= first  # after a burn-in of half
        return np.array([False, long, True])

    monkeypatch.setattr(chains, "settled", as_if)
    longer = f"models.tf1-small.sampling.draws_max={3 * first}"
    assert main(["cool", "-o", str(run), "--quiet", "--threads", "1", "--set", longer]) == 0
    found = open_samples(run / "tf1-small" / "cooling.zarr")
    written = np.isfinite(found["train_loss"].values).sum(1)
    by_rung = [set(written[found["temperature"].values == rung]) for rung in ladder]
    assert by_rung[0] == {0}
    assert by_rung[2] == {first}
    assert by_rung[1] in ({2 * first - 1}, {2 * first})
    rows = found["temperature"].values == ladder[1]
    np.testing.assert_array_equal(
        found["train_loss"].values[rows, :first], before["train_loss"].values[rows]
    )


def test_where_the_two_sets_differ_the_first_goes_on_and_then_the_second(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(directory, run)
    model = run / "tf1-small"
    before = open_samples(directory / "tf1-small" / "samples.zarr")
    first, most = before.sizes["draw"], before.sizes["draw"] + 2
    ladder = sorted(set(before["temperature"].values.tolist()))
    warm = before["temperature"].values == ladder[1]
    monkeypatch.setattr(chains, "settled", lambda table: np.ones(3, bool))
    for kind in (sample, cooling):
        monkeypatch.setattr(kind, "disagreeing", lambda *sets: [ladder[1]])
    longer = ["--set", f"models.tf1-small.sampling.draws_max={most}"]
    again = ["-o", str(run), "--quiet", "--threads", "1", "--resume", *longer]

    def draws(name: str) -> list[int]:
        written = np.isfinite(open_samples(model / f"{name}.zarr")["train_loss"].values).sum(1)
        assert len(set(written[~warm])) == len(set(written[warm])) == 1
        return [int(written[warm][0]), int(written[~warm][0])]

    assert main(["cool", *again]) == 0
    assert draws("cooling") == [first, first]  # those from ES weights can still go on
    assert main(["sample", *again]) == 0
    assert draws("samples") == [most, first]
    assert main(["cool", *again]) == 0
    assert draws("cooling") == [most, first]
    for name in ("samples", "cooling"):
        kept, found = (
            open_samples(where / "tf1-small" / f"{name}.zarr") for where in (directory, run)
        )
        for variable in ("train_loss", "distance2"):
            np.testing.assert_array_equal(found[variable].values[:, :first], kept[variable].values)


def test_with_more_draws_all_goes_on_from_where_it_began(directory: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(directory, run)
    before = open_samples(directory / "tf1-small" / "cooling.zarr")
    first = before.sizes["draw"]
    more = ["--set", f"models.tf1-small.sampling.draws={first + 2}"]
    for stage in ("sample", "cool", "exact"):
        again = ["-o", str(run), "--quiet", "--threads", "1", "--resume", *more]
        assert main([stage, *again]) == 0, stage
    for name in ("samples", "cooling"):
        found = open_samples(run / "tf1-small" / f"{name}.zarr")
        assert np.isfinite(found["train_loss"].values).all()
        assert found.sizes["draw"] == first + 2
    np.testing.assert_array_equal(
        found["train_loss"].values[:, :first], before["train_loss"].values
    )


def test_a_killed_cooling_goes_on_bit_for_bit(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = not_cooled(directory, tmp_path / "run")
    again = ["cool", "-o", str(run), "--quiet", "--threads", "1"]
    real, calls = chains.observe, []

    def dying(*arguments, **named):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 8:  # in the second of three temperatures
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(chains, "observe", dying)
    assert main(again) == 130
    monkeypatch.setattr(chains, "observe", real)
    assert main(again) == 2  # something is there
    assert main([*again, "--resume"]) == 0
    whole, broken = (
        xr.open_zarr(d / "tf1-small" / "cooling.zarr", chunks=None) for d in (directory, run)
    )
    for name in ("weights", "train_loss", "distance2"):
        np.testing.assert_array_equal(whole[name].values, broken[name].values)


def test_calibrate_by_itself_measures_where_its_result_is_not_used(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "tf1-small").mkdir()
    shutil.copy(directory / "dataset.npz", run)
    shutil.copy(directory / "tf1-small" / "references.safetensors", run / "tf1-small")
    settings = [
        "--preset",
        "smoke",
        "--set",
        "pilot.settling=2",
        "--set",
        "pilot.trial_seconds=0.2",
    ]
    (run / "config.toml").write_text((directory / "config.toml").read_text(encoding="utf-8"))
    capsys.readouterr()
    assert main(["calibrate", "-o", str(run), "--quiet", *settings]) == 0
    assert "full batch, m1 = 0.1" in capsys.readouterr().out
    assert (run / "tf1-small" / "calibration.toml").is_file()


def test_stages_say_what_they_miss(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(directory, run)
    model = run / "tf1-small"
    shutil.rmtree(model / "samples.zarr")
    (model / "checkpoint.safetensors").unlink()
    (model / "calibration.toml").unlink()
    capsys.readouterr()
    assert main(["sample", "-o", str(run), "--quiet"]) == 2
    assert "calibration.toml is missing: run `thermosphere calibrate" in capsys.readouterr().err
    (model / "ladder.csv").unlink()
    assert main(["sample", "-o", str(run), "--quiet"]) == 2
    assert "ladder.csv is missing: run `thermosphere ladder" in capsys.readouterr().err
    for verb in ("cool", "exact"):
        assert main([verb, "-o", str(run), "--quiet"]) == 2
        assert "run `thermosphere sample" in capsys.readouterr().err
