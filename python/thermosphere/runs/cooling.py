"""The second set of samples: each temperature begun where a neighbouring one ended, on the other
side of its ⟨U⟩ than ES weights are. It must agree with the chains that started from these; where
it does not, one of the two is still in the phase that it came from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

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
    """Walk the ladder of DIR/samples.zarr and return DIR/cooling.zarr, in its format.

    Chains from ES weights were heated where these have the lower U, and a second set must come from
    above: the ladder is walked down from its hottest temperature (where these chains only go on,
    which tests nothing). Where ES weights have the higher U, chains came down themselves, and the
    ladder is walked up from the temperature that came down farthest (`walks`). Each walk starts
    from draw number ``draws`` of the samples where it begins; as many chains as they have, and
    ``draws`` at each temperature, a quarter of that more until it has settled, at most
    ``draws_max``. Temperatures colder than any where the samples have settled (where they have at
    one) are only walked through upwards, with ``draws``: there is nothing to hold a second set
    against. Where the two sets differ and the samples have ``draws_max``, these chains go on too.
    Raises ValueError where there are no samples, or a second set that ``resume`` is not to go on
    with.
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
    origin = settings.draws
    if checkpoint.exists():  # of fewer draws, where these were raised since
        _, header = read_archive(checkpoint, CHECKPOINT)
        origin = int(header["fingerprint"]["draws"])
    plan = walks(samples, origin, float(references.early_stopped_losses[:, 0].mean()))
    end = min(settled_at(samples, burn_in), default=ladder[-1])

    def rows_at(rung: float) -> torch.Tensor:
        return (temperature == rung).nonzero().flatten()

    def compared(rows: torch.Tensor) -> bool:
        return float(temperature[rows[0]]) >= end

    def last_draw(rung: float) -> torch.Tensor:
        return torch.from_numpy(read_weights(samples, rows_at(rung).numpy(), [origin - 1])[:, 0])

    down = [rows_at(rung) for rung in plan.down if rung >= end]
    up = [rows_at(rung) for rung in plan.up if end <= plan.up[-1]]
    hot, low = last_draw(ladder[0]), last_draw(plan.lowest)
    walked = [*down, *up]
    first = torch.empty_like(references.early_stopped[start])
    for rung in ladder:
        first[rows_at(rung)] = low if rung in plan.up else hot
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
            first=first,
            tether=references.early_stopped[start],  # as those of the first set
            data=data,
            store_path=store_path,
            checkpoint=checkpoint,
            kind=CHECKPOINT,
            belongs_to={
                "temperatures": ladder,
                "draws": origin,
                "start": [float(one.double().square().cumsum(1).sum()) for one in (hot, low)],
                "up": plan.up,
            },
            bar=bar,
        )
        if checkpoint.exists():
            chains.load()
        else:
            config = str(samples.attrs.get("config", ""))
            new_store(
                store_path, potential, settings, temperature, start, norm2, config, heated=plan.up
            )
        chains.finish_part()
        for walk, weights in ((down, hot), (up, low)):
            for rows in walk:
                if not int(chains.done[rows[0]]):
                    sampler = chains.sampler(rows)
                    q = norm2 if settings.constrained else None
                    chains.put(rows, sampler.init(weights, norm2=q, chain_ids=rows.tolist()))
                chains.advance_all(rows, settings.draws)
                while compared(rows) and not _enough(chains, rows, burn_in):
                    chains.advance(rows, _further(chains, rows))
                weights = chains.part(rows).weights.cpu()
        for rows in filter(compared, walked):
            while not _enough(chains, rows, burn_in) or _at_odds(chains, rows, samples, burn_in):
                chains.advance(rows, _further(chains, rows))
    return store_path


class Walks(NamedTuple):
    """Temperatures in the order in which the second set has them."""

    down: list[float]  # from the hottest
    up: list[float]  # those after `lowest`
    lowest: float  # where the samples have the least U


def walks(samples: xr.Dataset, draws: int, reference: float) -> Walks:
    """By the second half of the first ``draws`` draws (C, draws) of the samples, whose chains began
    at a mean U of ``reference``: down to the coldest temperature that lies above it, with all that
    are hotter, and up from the one with the least U to the next below these."""
    loss = samples["train_loss"].transpose("chain", "draw").values[:, draws // 2 : draws]
    temperature = samples["temperature"].values
    ladder = np.unique(temperature)[::-1]
    mean = np.array([loss[temperature == rung].mean() for rung in ladder])
    below = mean < reference
    down = int(np.argmax(below)) if below.any() else ladder.size
    lowest = int(np.argmin(mean))
    return Walks(ladder[:down].tolist(), ladder[down:lowest][::-1].tolist(), float(ladder[lowest]))


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
