"""Sampling on a GPU as far as it goes without one: the same files whatever made them, one clear
line where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from study_problem import LENGTH, MODEL, trained

from thermosphere.archive import read_archive
from thermosphere.cli import main
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.proteins.dataset import DataSet, MaskedSequences
from thermosphere.runs import device as device_of_runs
from thermosphere.runs.config import Sampling
from thermosphere.runs.config_reading import load_config, preset_text
from thermosphere.runs.device import sampling_device
from thermosphere.runs.run_directory import first_difference
from thermosphere.runs.sample import CHECKPOINT, sample_model
from thermosphere.sampling import moves
from thermosphere.sampling.recorder import CallRecorder


def masked_sequences(count: int, seed: int) -> MaskedSequences:
    random = np.random.default_rng(seed)
    masked = random.random((count, LENGTH)) < 0.2
    masked[:, 3] = True
    return MaskedSequences(random.integers(0, 20, (count, LENGTH), dtype=np.uint8), masked)


DATA = DataSet(masked_sequences(40, 0), masked_sequences(9, 1), masked_sequences(11, 2), {})
SETTINGS = {
    "temperatures": [1e-4, 3e-4],
    "chains": 2,
    "moves_per_draw": 13,
    "batch": 8,
    "adapt_every": 17,
    "noise_draws": 10,
    "noise_draws_max": 20,
    "tether": 0.01,
}


def sample(directory: Path, draws: int) -> xr.Dataset:
    potential = MaskedLanguagePotential(MODEL, DATA.train, backend="autograd")
    settings = Sampling(draws=draws, **SETTINGS)  # type: ignore[arg-type]
    path = sample_model(directory, potential, DATA, trained(), settings, seed=3, resume=True)
    return xr.open_zarr(path).load()


def test_a_run_goes_on_with_captured_moves_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_torch_thread: None
) -> None:
    """Draws 0-2 as on a CPU, 3-5 captured, 6-8 as on a CPU: the files of an unbroken run."""
    unbroken = sample(tmp_path / "unbroken", 9)
    records: list[CallRecorder] = []

    def twin(potential: object) -> CallRecorder:
        records.append(CallRecorder())
        return records[-1]

    sample(tmp_path / "broken", 3)
    with monkeypatch.context() as patch:
        patch.setattr(moves, "graph_recorder", twin)
        sample(tmp_path / "broken", 6)
    assert len(records) == 1
    broken = sample(tmp_path / "broken", 9)
    xr.testing.assert_identical(broken, unbroken)
    assert not broken.isnull().any().to_array().any()
    (one, header), (two, other) = (
        read_archive(tmp_path / name / "checkpoint.safetensors", CHECKPOINT)
        for name in ("unbroken", "broken")
    )
    assert header == other
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_no_gpu_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for verb in ("run", "sample"):
        output = tmp_path / verb
        command = [verb, "--preset", "smoke", "--device", "cuda", "-o", str(output), "--quiet"]
        assert main(command) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert "models.tf1-small.sampling.device = 'cuda' needs a GPU that PyTorch can use" in line
        assert not output.exists()
    assert (
        main(["contacts", "--preset", "smoke", "--device", "cuda", "-o", str(tmp_path / "c")]) == 0
    )


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampling_device("cpu", "device", "fused") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"^device = 'cuda' needs backend auto, .*, got 'fused'$"):
        sampling_device("cuda", "device", "fused")
    with pytest.raises(
        ValueError, match=r"^device = 'cuda' needs a batch of at most 1024, got 2000$"
    ):
        sampling_device("cuda", "device", batch=2000)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(ValueError, match=r"device = 'cuda' needs .* built for the CPU alone$"):
        sampling_device("cuda", "device")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(ValueError, match=r"device = 'cuda' needs .* built for ROCm, which has no"):
        sampling_device("cuda", "device")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"got none \(torch.cuda.is_available\(\) is false\)$"):
        sampling_device("cuda", "device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)

    def none(op: str, device: torch.device) -> str:
        raise RuntimeError(f"{op}: no kernels for {device}")

    monkeypatch.setattr(device_of_runs, "step_backend", none)
    with pytest.raises(ValueError, match=r"^device: no kernels for cuda:1$"):
        sampling_device("cuda", "device")
    monkeypatch.setattr(device_of_runs, "step_backend", lambda op, device: "cuda")
    assert sampling_device("cuda", "device") == torch.device("cuda", 1)


def test_the_flag_is_for_every_model_and_may_change() -> None:
    changes = ["models.tf1.sampling.device=cpu"]
    config = load_config(preset_text("smoke"), where="smoke", changes=changes).sampled_on("cuda")
    assert {m.sampling.device for m in config.models.values()} == {"cuda"}
    assert len(config.models) == 2
    back = config.sampled_on("cpu")
    assert first_difference(config, back, lambda key: True, lambda key: False) is None
