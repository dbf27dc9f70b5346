"""A run's samples on disk: observables and weights in Zarr, as xarray and ArviZ read them.

Arrays are made at full size, draws not yet written are NaN (and take no space), and
`xarray.open_zarr(path)` works at any time. A draw goes to the store first and to the checkpoint
(runs/sample.py) after, so a run killed between the two writes the same draw again, bit for bit.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
import zarr

OBSERVABLES = {
    "minibatch_loss": "mean mini-batch loss over the moves since the last draw",
    "train_loss": "potential U: mean masked cross-entropy of the training set",
    "train_error": "fraction of masked sites predicted wrong, training set",
    "validation_loss": "mean masked cross-entropy of the validation set",
    "validation_error": "fraction of masked sites predicted wrong, validation set",
    "test_loss": "mean masked cross-entropy of the test set",
    "test_error": "fraction of masked sites predicted wrong, test set",
    "distance2": "squared distance from the start |w - w0|²",
    "kinetic_temperature": "2 K / degrees of freedom, in units of U",
}


class SampleStore:
    """The Zarr group of one model's samples: dimensions chain, draw, parameter."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self._group = group

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        draws: int,
        parameters: int,
        temperature: np.ndarray,
        start: np.ndarray,
        moves_per_draw: int,
        attributes: Mapping[str, str | float | int],
    ) -> SampleStore:
        """A new store for ``draws`` draws of C = len(temperature) chains of N = ``parameters``;
        replaces what was there.

        start: (C,) int, which ES start a chain began from. attributes: layout, model, norm2,
        config.
        """
        chains = len(temperature)
        building = path.with_name(path.name + ".new")
        shutil.rmtree(building, ignore_errors=True)
        group = zarr.create_group(building, zarr_format=3)

        def array(name: str, dimensions: tuple[str, ...], dtype: str, about: str) -> zarr.Array:
            sizes = {"chain": chains, "draw": draws, "parameter": parameters}
            shape = tuple(sizes[d] for d in dimensions)
            chunks = tuple(
                1 if d == "draw" and "parameter" in dimensions else sizes[d] for d in dimensions
            )
            return group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                fill_value=np.nan if dtype.startswith("float") else 0,
                dimension_names=dimensions,
                attributes={"long_name": about},
            )

        array("temperature", ("chain",), "float64", "T, in units of U")[:] = temperature
        array("start", ("chain",), "int64", "index of the early-stopped start")[:] = start
        array("move", ("draw",), "int64", "moves made")[:] = (1 + np.arange(draws)) * moves_per_draw
        for name, about in OBSERVABLES.items():
            array(name, ("chain", "draw"), "float64", about)
        array("weights", ("chain", "draw", "parameter"), "float32", "flat weight vector")
        group.attrs.update({**attributes, "coordinates": "temperature start move"})
        _consolidate(building)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(building, path)
        return cls(path, zarr.open_group(path, mode="r+", use_consolidated=False))

    @classmethod
    def open(cls, path: Path, *, draws: int, chains: int, parameters: int) -> SampleStore:
        """The store of a run that goes on; grown where ``draws`` exceeds it. Raises ValueError
        where it does not fit."""
        with _readable(path):
            group = zarr.open_group(path, mode="r+", use_consolidated=False)
            arrays = {name: group[name] for name in ("weights", "move", *OBSERVABLES)}
            shape = arrays["weights"].shape
            if shape[0] != chains or shape[2] != parameters:
                raise ValueError(
                    f"it must hold ({chains} chains, {parameters} parameters), "
                    f"got {shape[0]}, {shape[2]}"
                )
            per_draw = int(np.asarray(arrays["move"][:1])[0])
            short = [array for array in arrays.values() if array.shape[array.ndim > 1] < draws]
            for array in short:  # each by itself: a kill may have come between two of them
                axis = 1 if array.ndim > 1 else 0
                array.resize((*array.shape[:axis], draws, *array.shape[axis + 1 :]))
            if short:
                arrays["move"][:] = (1 + np.arange(draws)) * per_draw
                _consolidate(path)
        return cls(path, group)

    def write(
        self,
        draw: int,
        observables: Mapping[str, torch.Tensor],
        weights: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> None:
        """Write draw number ``draw``: observables (C,) each, weights (C, N); of these chains (C,)
        where not of all."""
        which = slice(None) if rows is None else rows.numpy()
        with _readable(self.path):
            for name in OBSERVABLES:
                self._array(name).oindex[which, draw] = observables[name].numpy()
            self._array("weights").oindex[which, draw] = weights.numpy()

    def _array(self, name: str) -> zarr.Array:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array


def open_samples(path: Path) -> xr.Dataset:
    """The samples as a lazily read dataset. Raises ValueError, one line, where the store is missing
    or damaged."""
    if not Path(path).is_dir():
        raise ValueError(f"samples: expected a Zarr store at {path}, got nothing there")
    with _readable(path):
        samples = xr.open_zarr(path, chunks=None)
        missing = {"weights", "temperature", "start", "move", *OBSERVABLES} - set(samples.variables)
        if missing:
            raise ValueError(f"arrays missing: {', '.join(sorted(missing))}")
        for name in OBSERVABLES:
            samples[name].load()
    return samples


def read_weights(
    samples: xr.Dataset,
    chains: npt.NDArray[np.int64],
    draws: npt.NDArray[np.int64] | Sequence[int],
) -> npt.NDArray[np.float32]:
    """Weights (len(chains), len(draws), N) of an open store. ValueError, one line, for damage."""
    with _readable(Path(samples.encoding.get("source", "samples"))):
        weights: npt.NDArray[np.float32] = samples["weights"].isel(chain=chains, draw=draws).values
    return weights


def written_draws(samples: xr.Dataset) -> int:
    """How many draws have been written (a run in progress has NaN after them)."""
    return int(np.isfinite(samples["train_loss"].values).all(axis=0).sum())


def least_loss(samples: xr.Dataset) -> float:
    """The least U of the training set in the draws; inf where none is written."""
    losses = samples["train_loss"].values
    return float(losses[np.isfinite(losses)].min(initial=np.inf))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged store raises (zarr and its codecs raise many kinds) into one line."""
    try:
        yield
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"samples: {path} is not a usable store ({_line(error)})") from error


def _consolidate(path: Path) -> None:
    with warnings.catch_warnings():
        # Not yet in the Zarr 3 specification; without it xarray warns each time the store is
        # opened.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
