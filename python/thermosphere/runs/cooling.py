"""The second set of samples: the ladder walked down, each temperature begun where the hotter one
ended. It must agree with the chains that started from ES weights; where it does not, one of the
two is still in the phase that it came from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from thermosphere.analysis.thermodynamics import BurnIn, settled, thermodynamics
from thermosphere.archive import read_archive, write_archive
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.proteins.dataset import DataSet
from thermosphere.runs.config import Sampling
from thermosphere.runs.sample import judged_sets, new_store, observe, sampled_potential
from thermosphere.runs.store import SampleStore, open_samples, read_weights
from thermosphere.sampling.langevin import Langevin
from thermosphere.training import References
from thermosphere.training.trainer import check_fingerprint

CHECKPOINT = "thermosphere cooling checkpoint"


def cool_model(
    directory: Path,
    potential: MaskedLanguagePotential,
    data: DataSet,
    references: References,
    settings: Sampling,
    *,
    seed: int,
    burn_in: BurnIn = 0.5,
    resume: bool = False,
    progress: bool = False,
) -> Path:
    """Walk the ladder of DIR/samples.zarr down and return DIR/cooling.zarr, in its format.

    Starts from the last draws at the hottest temperature; as many chains as the samples have, and
    ``draws`` at each temperature, a quarter of that more until it has settled, at most
    ``draws_max``. Ends at the coldest temperature where the samples have settled: below it there is
    nothing to hold a second set against (where none has, at the coldest). A checkpoint a
    temperature. Raises ValueError where there are no samples, or a cooling that ``resume`` is not
    to go on with.
    """
    store_path = directory / "cooling.zarr"
    checkpoint = directory / "cooling.checkpoint.safetensors"
    if (store_path.exists() or checkpoint.exists()) and not resume:
        raise ValueError(
            f"cool: {store_path} is there; --resume goes on with it, or use another --output"
        )
    samples = open_samples(directory / "samples.zarr")
    temperature = torch.from_numpy(samples["temperature"].values)
    start = torch.from_numpy(samples["start"].values)
    ladder = sorted(set(temperature.tolist()), reverse=True)
    norm2 = float(samples.attrs["norm2"])
    hottest = (temperature == ladder[0]).numpy()
    written = np.isfinite(samples["train_loss"].values[hottest]).all(0).nonzero()[0]
    last = torch.from_numpy(read_weights(samples, hottest.nonzero()[0], [written[-1]])[:, 0])
    belongs_to = {
        **asdict(settings.options()),
        "temperatures": ladder,
        "ridge": settings.ridge,
        "tether": settings.tether,
        "draws": settings.draws,
        "moves_per_draw": settings.moves_per_draw,
        "seed": seed,
        "start": float(last.double().square().cumsum(1).sum()),
    }

    def opened(draws: int) -> SampleStore:
        return SampleStore.open(
            store_path, draws=draws, chains=len(temperature), parameters=potential.parameters
        )

    done, weights, first = 0, last, last
    if checkpoint.exists():
        tensors, header = read_archive(checkpoint, CHECKPOINT)
        check_fingerprint(checkpoint, header["fingerprint"], belongs_to)
        done, weights = int(header["temperatures"]), tensors["weights"]
        store = opened(settings.draws)
    else:
        config = str(samples.attrs.get("config", ""))
        store = new_store(store_path, potential, settings, temperature, start, norm2, config)
    sets = judged_sets(potential, data, settings)
    end = min(_settled_at(samples, burn_in), default=ladder[-1])
    walked = [rung for rung in ladder if rung >= end]
    bar = tqdm(
        total=len(walked) * settings.draws * settings.moves_per_draw,
        initial=done * settings.draws * settings.moves_per_draw,
        desc=f"cooling {potential.model.name}, {len(last)} chains",
        unit="move",
        disable=not progress,
    )
    with bar:
        for rung in range(done, len(walked)):
            rows = (temperature == ladder[rung]).nonzero().flatten()
            tethered = references.early_stopped[start[rows]]  # as those of the first set
            energy = sampled_potential(potential, settings, tethered)
            sampler = Langevin(energy, temperature[rows], seed=seed, options=settings.options())
            state = sampler.init(
                weights, norm2=norm2 if settings.constrained else None, chain_ids=rows.tolist()
            )
            draw, to = 0, settings.draws
            while draw < to:
                begun = bar.n
                minibatch_loss = sampler.run(
                    state,
                    settings.moves_per_draw,
                    on_moves=lambda moves: bar.update(begun + moves - bar.n),  # noqa: B023
                )
                observables = observe(potential, sets, sampler, state, first)
                observables["minibatch_loss"] = minibatch_loss
                store.write(draw, observables, state.weights.cpu(), rows)
                draw += 1
                if draw == to < settings.draws_max:
                    so_far = open_samples(store_path).isel(draw=slice(draw))
                    if ladder[rung] in _settled_at(so_far, burn_in):
                        break
                    to = min(to + max(1, settings.draws // 4), settings.draws_max)
                    bar.total += (to - draw) * settings.moves_per_draw
                    store = opened(to)
            weights = state.weights.cpu().clone()
            header = {"kind": CHECKPOINT, "temperatures": rung + 1, "fingerprint": belongs_to}
            write_archive(checkpoint, {"weights": weights}, header)
    return store_path


def _settled_at(samples: xr.Dataset, burn_in: BurnIn) -> list[float]:
    """The temperatures where these chains have settled."""
    table = thermodynamics(samples, burn_in=burn_in)
    found: list[float] = table["temperature"].values[settled(table)].tolist()
    return found
