"""Sampling one model: chains over the temperature ladder, each as long as its temperature needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from thermosphere.analysis.thermodynamics import BurnIn
from thermosphere.archive import digest
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.proteins.dataset import DataSet
from thermosphere.runs.chains import StoredChains, disagreeing, place, settled_at
from thermosphere.runs.config import Sampling
from thermosphere.runs.store import SampleStore, open_samples
from thermosphere.training import References

CHECKPOINT = "thermosphere sampling checkpoint"
CHECKPOINT_FILE = "checkpoint.safetensors"
COOLING = "cooling.zarr"  # the second set (cooling.py)


def sample_model(
    directory: Path,
    potential: MaskedLanguagePotential,
    data: DataSet,
    references: References,
    settings: Sampling,
    *,
    seed: int,
    config: str = "",
    burn_in: BurnIn = 0.5,
    resume: bool = False,
    progress: bool = False,
) -> Path:
    """Sample every temperature of ``settings`` at once and return the store's path,
    DIR/samples.zarr.

    Chain j of a temperature starts from ES weights j mod (number of references). Row = temperature
    · chains + j. Of the temperatures that have not settled after ``draws``
    (analysis/thermodynamics.py, by ``burn_in``), or where the second set (cooling.py) came
    to another ⟨U⟩, the hottest ``going_on`` go on by themselves, a quarter of that at a time, to
    ``draws_max``: what is colder would take still longer. What others lack is NaN. Raises
    ValueError where the directory holds samples and ``resume`` is off; UnreachableSphereError where
    a chain leaves the sphere.
    """
    store_path, checkpoint = directory / "samples.zarr", directory / CHECKPOINT_FILE
    if (store_path.exists() or checkpoint.exists()) and not resume:
        raise ValueError(
            f"sample: {store_path} is there; --resume goes on with it, or use another --output"
        )
    count = len(settings.temperatures) * settings.chains
    temperature = torch.tensor(settings.temperatures, dtype=torch.float64)
    temperature = temperature.repeat_interleave(settings.chains)
    start = torch.arange(count) % settings.chains % references.early_stopped.shape[0]
    first = references.early_stopped[start]  # w0, (C, N)
    norm2 = float(references.norm2)
    where = f"{potential.backend} gradient on {place(potential)}"
    with tqdm(
        desc=f"sampling {potential.model.name}, {where}",
        unit="move",
        disable=not progress,
    ) as bar:
        chains = StoredChains(
            potential,
            settings,
            seed,
            temperature,
            first=first,
            tether=first,
            data=data,
            store_path=store_path,
            checkpoint=checkpoint,
            kind=CHECKPOINT,
            belongs_to={
                "temperatures": settings.temperatures,
                "chains": settings.chains,
                "model": potential.model.name,
                "training set": digest(potential.sites.inputs, potential.sites.truth),
                "start": digest(first),
            },
            bar=bar,
        )
        every = torch.arange(count)
        if checkpoint.exists():
            chains.load()
        else:
            sampler = chains.sampler(every)
            chains.put(every, sampler.init(first, norm2=norm2 if settings.constrained else None))
            new_store(store_path, potential, settings, temperature, start, norm2, config)
        chains.advance_all(every, settings.draws)
        chains.finish_part()
        while len(rows := _short(chains, directory / COOLING, burn_in)):
            to = int(chains.done[rows[0]]) + chains.part_draws
            chains.advance(rows, min(to, settings.draws_max))
    return store_path


def _short(chains: StoredChains, cooling: Path, burn_in: BurnIn) -> torch.Tensor:
    """Rows (R,) int64, of as many draws each, that go on: of the ``going_on`` hottest temperatures
    that have not settled, or differ from the second set, those with fewest draws. None
    where all of these have ``draws_max``."""
    temperature, settings = chains.temperature, chains.settings
    if settings.draws_max <= settings.draws:
        return torch.zeros(0, dtype=torch.int64)
    written = chains.written()
    stand = settled_at(written, burn_in)
    if cooling.exists():
        apart = disagreeing(written, open_samples(cooling), burn_in)
        stand = [one for one in stand if one not in apart]
    left = sorted(set(temperature.tolist()) - set(stand), reverse=True)[: settings.going_on]
    going = torch.isin(temperature, torch.tensor(left, dtype=torch.float64))
    going &= chains.done < settings.draws_max
    if not bool(going.any()):
        return torch.zeros(0, dtype=torch.int64)
    return (going & (chains.done == chains.done[going].min())).nonzero().flatten()


def new_store(
    path: Path,
    potential: MaskedLanguagePotential,
    settings: Sampling,
    temperature: torch.Tensor,  # (C,)
    start: torch.Tensor,  # (C,)
    norm2: float,
    config: str,
    **more: Any,
) -> SampleStore:
    """An empty store for the settings' draws; ``more`` attributes."""
    model = potential.model
    return SampleStore.create(
        path,
        draws=settings.draws,
        parameters=potential.parameters,
        temperature=temperature.numpy(),
        start=start.numpy(),
        moves_per_draw=settings.moves_per_draw,
        attributes={
            "layout": potential.layout.to_json(),
            "model": json.dumps({"name": model.name, "length": model.length}),
            "backend": potential.backend,
            "norm2": norm2,
            "config": config,
            **more,
        },
    )
