"""Sampling one model: chains over the temperature ladder, draws to the store, checkpoints to go on
from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import xarray as xr
from tqdm import tqdm

from thermosphere import _core
from thermosphere.analysis.thermodynamics import BurnIn, settled, thermodynamics
from thermosphere.archive import read_archive, write_archive
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.potential import MaskedLanguagePotential, Potential
from thermosphere.models.regularised import Regularised
from thermosphere.ops.backends import step_backend
from thermosphere.proteins.dataset import DataSet
from thermosphere.runs.config import Sampling
from thermosphere.runs.store import SampleStore, open_samples
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.state import LangevinState
from thermosphere.training import References
from thermosphere.training.trainer import check_fingerprint

CHECKPOINT = "thermosphere sampling checkpoint"
CHECKPOINT_FILE = "checkpoint.safetensors"


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
    (analysis/thermodynamics.py, by ``burn_in``) the hottest ``going_on`` go on by themselves, a
    quarter of that at a time, to ``draws_max``: what is colder would take still longer. What others
    lack is NaN. Raises ValueError where the directory holds samples and ``resume`` is off, or more
    draws of all are asked for after some have gone on; UnreachableSphereError where a chain leaves
    the sphere.
    """
    store_path, checkpoint = directory / "samples.zarr", directory / CHECKPOINT_FILE
    if (store_path.exists() or checkpoint.exists()) and not resume:
        raise ValueError(
            f"sample: {store_path} is there; --resume goes on with it, or use another --output"
        )
    chains = len(settings.temperatures) * settings.chains
    temperature = torch.tensor(settings.temperatures, dtype=torch.float64)
    temperature = temperature.repeat_interleave(settings.chains)
    start = torch.arange(chains) % settings.chains % references.early_stopped.shape[0]
    first = references.early_stopped[start]  # w0, (C, N)
    norm2 = float(references.norm2)
    belongs_to = {
        **asdict(settings.options()),
        "temperatures": settings.temperatures,
        "chains": settings.chains,
        "ridge": settings.ridge,
        "tether": settings.tether,
        "moves_per_draw": settings.moves_per_draw,
        "seed": seed,
        "model": potential.model.name,
        "training set": digest(potential.sites.inputs, potential.sites.truth),
        "start": digest(first),
    }
    bits = _bits(potential, settings)

    rows = torch.arange(chains)  # that still move
    if checkpoint.exists():
        tensors, header = read_archive(checkpoint, CHECKPOINT)
        state = LangevinState.from_tensors(tensors, potential.device)
        check_fingerprint(checkpoint, header["fingerprint"], belongs_to)
        if header["bits"] != bits:
            tqdm.write(
                f"sample: {checkpoint} was written with {header['bits']}, this is {bits}: "
                "the run goes on, but not with the bits of an unbroken one"
            )
        done, rows = int(header["draws"]), torch.tensor(header.get("rows", rows.tolist()))
        if len(rows) < chains and settings.draws != header["of_all"]:
            raise ValueError(
                f"sample: {store_path} has {header['of_all']} draws of all chains, and those that "
                f"had not settled went on: sampling.draws must stay {header['of_all']}, got "
                f"{settings.draws}; raise draws_max"
            )
    else:
        energy = sampled_potential(potential, settings, first)
        sampler = Langevin(energy, temperature, seed=seed, options=settings.options())
        state = sampler.init(first, norm2=norm2 if settings.constrained else None)
        done = 0
        new_store(store_path, potential, settings, temperature, start, norm2, config)
    sets = judged_sets(potential, data, settings)
    bar = tqdm(initial=done * settings.moves_per_draw, unit="move", disable=not progress)

    def advance(to: int) -> None:
        """The chains that still move, to this many draws."""
        energy = sampled_potential(potential, settings, first[rows])
        sampler = Langevin(energy, temperature[rows], seed=seed, options=settings.options())
        store = SampleStore.open(
            store_path, draws=max(to, done), chains=chains, parameters=potential.parameters
        )
        bar.total = to * settings.moves_per_draw
        bar.set_description(
            f"sampling {potential.model.name}, {len(rows)} chains on {_place(potential)}, "
            f"{potential.backend} gradient, {sampler.moves.way}"
        )
        saved_at = time.monotonic()
        for draw in range(done, to):
            begun = draw * settings.moves_per_draw
            minibatch_loss = sampler.run(
                state,
                settings.moves_per_draw,
                on_moves=lambda moves: bar.update(begun + moves - bar.n),  # noqa: B023
            )
            observables = observe(potential, sets, sampler, state, first[rows])
            observables["minibatch_loss"] = minibatch_loss
            store.write(draw, observables, state.weights.cpu(), rows)
            if time.monotonic() - saved_at >= settings.checkpoint_seconds or draw + 1 == to:
                header = {
                    "kind": CHECKPOINT,
                    "draws": draw + 1,
                    "rows": rows.tolist(),
                    "of_all": settings.draws,
                    "fingerprint": belongs_to,
                    "bits": bits,
                }
                write_archive(checkpoint, state.tensors(), header)
                saved_at = time.monotonic()

    with bar:
        advance(settings.draws)
        done = max(done, settings.draws)
        part = max(1, settings.draws // 4)
        while done < settings.draws_max:
            if (done - settings.draws) % part == 0:
                written = open_samples(store_path).isel(draw=slice(done))
                going = _unsettled(written, temperature[rows], settings.going_on, burn_in)
                state, rows = state.of(going), rows[going]
                if not len(rows):
                    break
            end = settings.draws + part * ((done - settings.draws) // part + 1)
            end = min(end, settings.draws_max)
            advance(end)
            done = end
    return store_path


def _unsettled(
    samples: xr.Dataset, temperature: torch.Tensor, most: int, burn_in: BurnIn
) -> torch.Tensor:
    """Which of these chains, by their temperatures (R,), are at one of the ``most`` hottest that
    have not settled."""
    table = thermodynamics(samples, burn_in=burn_in)
    still = torch.from_numpy(table["temperature"].values[~settled(table)])
    still = still[torch.isin(still, temperature)].sort(descending=True).values[:most]
    return torch.isin(temperature, still).nonzero().flatten()


def sampled_potential(
    potential: MaskedLanguagePotential, settings: Sampling, first: torch.Tensor
) -> Potential:
    """What is sampled: the potential with the settings' harmonic terms. first: (C, N), where the
    tether ends."""
    if not settings.ridge and not settings.tether:
        return potential
    return Regularised(potential, settings.ridge, settings.tether, first)


def new_store(
    path: Path,
    potential: MaskedLanguagePotential,
    settings: Sampling,
    temperature: torch.Tensor,  # (C,)
    start: torch.Tensor,  # (C,)
    norm2: float,
    config: str,
) -> SampleStore:
    """An empty store for the settings' draws."""
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
        },
    )


def judged_sets(
    potential: MaskedLanguagePotential, data: DataSet, settings: Sampling
) -> dict[str, MaskedSites]:
    """The sets that every draw is judged on, by name."""
    return {
        "train": potential.sites,
        "validation": MaskedSites(data.validation, potential.device),
        "test": MaskedSites(data.test.subset(slice(settings.test_sequences)), potential.device),
    }


def observe(
    potential: MaskedLanguagePotential,
    sets: Mapping[str, MaskedSites],
    sampler: Langevin,
    state: LangevinState,
    first: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The observables of a draw, (C,) float64 on the CPU each (Eq. 26-30 of arXiv 2603.29529):
    losses and errors on the named sets, distance from the start and kinetic temperature.

    first: (C, N), where the chains started.
    """
    observables: dict[str, torch.Tensor] = {}
    for name, sites in sets.items():
        observables[f"{name}_loss"], observables[f"{name}_error"] = potential.evaluate(
            state.weights, sites
        )
    away = state.weights - first.to(state.weights.device)
    observables["distance2"] = (away.double() ** 2).sum(1)
    observables["kinetic_temperature"] = sampler.kinetic_temperature(state)
    return {name: values.cpu() for name, values in observables.items()}


def _place(potential: MaskedLanguagePotential) -> str:
    if potential.device.type == "cpu":
        return "the CPU"
    return torch.cuda.get_device_name(potential.device)


def _bits(potential: MaskedLanguagePotential, settings: Sampling) -> str:
    """What the bits of a run depend on, besides its settings."""
    if potential.device.type != "cpu":
        step = step_backend("sample", potential.device)
        return f"{potential.backend} gradients and {step} steps on {_place(potential)}"
    bits = f"{potential.backend} gradients on {_core.isa_chosen()}"
    if potential.backend == "autograd" or settings.modes:  # products of PyTorch
        bits += f", {torch.get_num_threads()} threads"
    return bits


def digest(*tensors: torch.Tensor) -> str:
    """What tells one set of numbers from another, 16 hexadecimal digits."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(tensor.cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]
