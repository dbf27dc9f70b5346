"""The Zarr store opens in xarray and ArviZ, survives a kill between writes, and refuses damage in
one line."""

from __future__ import annotations

from pathlib import Path

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from thermosphere.runs.store import (
    OBSERVABLES,
    SampleStore,
    open_samples,
    written_draws,
)

CHAINS, DRAWS, PARAMETERS = 3, 8, 11


def make_store(path: Path) -> SampleStore:
    return SampleStore.create(
        path,
        draws=DRAWS,
        parameters=PARAMETERS,
        temperature=np.array([1e-4, 1e-4, 2e-4]),
        start=np.array([0, 1, 0]),
        moves_per_draw=5,
        attributes={"layout": "[]", "norm2": 4.0, "config": "seed = 0"},
    )


def numbers(draw: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(draw)
    observables = {
        name: torch.randn(CHAINS, generator=generator, dtype=torch.float64) for name in OBSERVABLES
    }
    return observables, torch.randn(CHAINS, PARAMETERS, generator=generator)


def test_xarray_and_arviz_read_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "samples.zarr")
    for draw in range(DRAWS):
        store.write(draw, *numbers(draw))
    samples = xr.open_zarr(tmp_path / "samples.zarr")  # warnings are errors here
    assert dict(samples.sizes) == {"chain": CHAINS, "draw": DRAWS, "parameter": PARAMETERS}
    assert samples["temperature"].values.tolist() == [1e-4, 1e-4, 2e-4]
    assert samples["move"].values.tolist() == [5 * (draw + 1) for draw in range(DRAWS)]
    assert samples.attrs["norm2"] == 4.0
    for draw in range(DRAWS):
        observables, weights = numbers(draw)
        np.testing.assert_array_equal(samples["weights"][:, draw].values, weights.numpy())
        for name in OBSERVABLES:
            np.testing.assert_array_equal(samples[name][:, draw].values, observables[name].numpy())
    ess = az.ess(samples[["train_loss"]].load())
    assert 1 < float(ess["train_loss"]) < 10 * CHAINS * DRAWS


def test_unwritten_draws_are_nan(tmp_path: Path) -> None:
    store = make_store(tmp_path / "samples.zarr")
    for draw in range(3):
        store.write(draw, *numbers(draw))
    samples = open_samples(tmp_path / "samples.zarr")
    assert written_draws(samples) == 3
    assert np.isnan(samples["weights"][:, 3:].values).all()


def test_a_longer_run_grows_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "samples.zarr")
    store.write(0, *numbers(0))
    grown = SampleStore.open(
        tmp_path / "samples.zarr", draws=DRAWS + 4, chains=CHAINS, parameters=PARAMETERS
    )
    grown.write(DRAWS + 3, *numbers(9))
    samples = open_samples(tmp_path / "samples.zarr")
    assert samples.sizes["draw"] == DRAWS + 4
    assert samples["move"].values[-1] == 5 * (DRAWS + 4)
    np.testing.assert_array_equal(samples["weights"][:, 0].values, numbers(0)[1].numpy())
    np.testing.assert_array_equal(samples["weights"][:, -1].values, numbers(9)[1].numpy())


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_and_damaged_stores(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a Zarr store at") as missing:
        open_samples(tmp_path / "nothing.zarr")
    one_line(missing)
    store = make_store(tmp_path / "samples.zarr")
    store.write(0, *numbers(0))
    chunk = next(
        p for p in (tmp_path / "samples.zarr" / "train_loss").rglob("c/*/*") if p.is_file()
    )
    chunk.write_bytes(chunk.read_bytes()[:5])  # a truncated chunk
    with pytest.raises(ValueError, match="is not a usable store") as damaged:
        open_samples(tmp_path / "samples.zarr")
    one_line(damaged)
    (tmp_path / "samples.zarr" / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="is not a usable store") as broken:
        SampleStore.open(tmp_path / "samples.zarr", draws=1, chains=CHAINS, parameters=PARAMETERS)
    one_line(broken)


def test_a_store_of_other_size_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "samples.zarr")
    with pytest.raises(ValueError, match=r"must hold \(4 chains, 11 parameters\), got 3, 11"):
        SampleStore.open(tmp_path / "samples.zarr", draws=1, chains=4, parameters=PARAMETERS)


def test_a_kill_while_the_store_grew_is_repaired(tmp_path: Path) -> None:
    store = make_store(tmp_path / "samples.zarr")
    store.write(0, *numbers(0))
    group = zarr.open_group(tmp_path / "samples.zarr", mode="r+", use_consolidated=False)
    group["weights"].resize((CHAINS, DRAWS + 2, PARAMETERS))  # type: ignore[union-attr]
    sizes = {"draws": DRAWS + 2, "chains": CHAINS, "parameters": PARAMETERS}
    grown = SampleStore.open(tmp_path / "samples.zarr", **sizes)
    grown.write(DRAWS + 1, *numbers(9))
    samples = open_samples(tmp_path / "samples.zarr")
    assert dict(samples.sizes) == {"chain": CHAINS, "draw": DRAWS + 2, "parameter": PARAMETERS}
    np.testing.assert_array_equal(samples["train_loss"][:, -1], numbers(9)[0]["train_loss"])
