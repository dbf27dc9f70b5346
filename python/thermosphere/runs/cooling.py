"""The second set of samples: the ladder walked down, each temperature begun where the hotter one
ended. It must agree with the chains that started from ES weights; where it does not, one of the
two is still in the phase that it came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from thermosphere.analysis.thermodynamics import BurnIn
from thermosphere.archive import read_archive
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.proteins.dataset import DataSet
from thermosphere.runs.chains import StoredChains, disagreeing, settled_at
from thermosphere.runs.config import Sampling
from thermosphere.runs.sample import COOLING, new_store
from thermosphere.runs.store import open_samples, read_weights
from thermosphere.training import References

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

    Starts from draw number ``draws`` of the samples at the hottest temperature; as many chains as
    they have, and ``draws`` at each temperature, a quarter of that more until it has settled, at
    most ``draws_max``. Ends at the coldest temperature where the samples have settled: below it
    there is nothing to hold a second set against (where none has, at the coldest). Where the two
    sets differ and the samples have ``draws_max``, these chains go on too. Raises ValueError where
    there are no samples, or a cooling that ``resume`` is not to go on with.
    """
    store_path, checkpoint = directory / COOLING, directory / "cooling.checkpoint.safetensors"
    if (store_path.exists() or checkpoint.exists()) and not resume:
        raise ValueError(
            f"cool: {store_path} is there; --resume goes on with it, or use another --output"
        )
    samples = open_samples(directory / "samples.zarr")
    temperature = torch.from_numpy(samples["temperature"].values)
    start = torch.from_numpy(samples["start"].values)
    ladder = sorted(set(temperature.tolist()), reverse=True)
    norm2 = float(samples.attrs["norm2"])
    hottest = (temperature == ladder[0]).nonzero().flatten().numpy()
    origin = settings.draws
    if checkpoint.exists():  # of fewer draws, where these were raised since
        _, header = read_archive(checkpoint, CHECKPOINT)
        origin = int(header["fingerprint"]["draws"])
    last = torch.from_numpy(read_weights(samples, hottest, [origin - 1])[:, 0])
    end = min(settled_at(samples, burn_in), default=ladder[-1])
    walked = [(temperature == rung).nonzero().flatten() for rung in ladder if rung >= end]
    with tqdm(
        desc=f"cooling {potential.model.name}",
        unit="move",
        disable=not progress,
    ) as bar:
        chains = StoredChains(
            potential,
            settings,
            seed,
            temperature,
            first=last.repeat(len(ladder), 1),  # of every rung: rows are temperature by temperature
            tether=references.early_stopped[start],  # as those of the first set
            data=data,
            store_path=store_path,
            checkpoint=checkpoint,
            kind=CHECKPOINT,
            belongs_to={
                "temperatures": ladder,
                "draws": origin,
                "start": float(last.double().square().cumsum(1).sum()),
            },
            bar=bar,
        )
        if checkpoint.exists():
            chains.load()
        else:
            config = str(samples.attrs.get("config", ""))
            new_store(store_path, potential, settings, temperature, start, norm2, config)
        chains.finish_part()
        weights = last
        for rows in walked:
            if not int(chains.done[rows[0]]):
                sampler = chains.sampler(rows)
                q = norm2 if settings.constrained else None
                chains.put(rows, sampler.init(weights, norm2=q, chain_ids=rows.tolist()))
            chains.advance_all(rows, settings.draws)
            while not _enough(chains, rows, burn_in):
                chains.advance(rows, _further(chains, rows))
            weights = chains.part(rows).weights.cpu()
        for rows in walked:
            while not _enough(chains, rows, burn_in) or _at_odds(chains, rows, samples, burn_in):
                chains.advance(rows, _further(chains, rows))
    return store_path


def _further(chains: StoredChains, rows: torch.Tensor) -> int:
    return min(int(chains.done[rows[0]]) + chains.part_draws, chains.settings.draws_max)


def _enough(chains: StoredChains, rows: torch.Tensor, burn_in: BurnIn) -> bool:
    """Whether the chains at this temperature have settled, or ``draws_max``."""
    if int(chains.done[rows[0]]) >= chains.settings.draws_max:
        return True
    return float(chains.temperature[rows[0]]) in settled_at(chains.written(), burn_in)


def _at_odds(
    chains: StoredChains, rows: torch.Tensor, samples: xr.Dataset, burn_in: BurnIn
) -> bool:
    """Whether it is these chains' turn to go on: they differ from the samples, which have
    ``draws_max``."""
    most = chains.settings.draws_max
    if int(chains.done[rows[0]]) >= most:
        return False
    heated = samples["train_loss"].transpose("chain", "draw").values[rows.numpy()]
    if np.isfinite(heated).all(0).sum() < most:
        return False
    temperature = float(chains.temperature[rows[0]])
    return temperature in disagreeing(samples, chains.written(), burn_in)
