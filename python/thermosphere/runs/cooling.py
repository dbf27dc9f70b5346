"""The second set of samples: the ladder walked down, each temperature begun where the hotter one
ended. It must agree with the chains that started from ES weights; where it does not, one of the
two is still in the phase that it came from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

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
    resume: bool = False,
    progress: bool = False,
) -> Path:
    """Walk the ladder of DIR/samples.zarr down and return DIR/cooling.zarr, in its format.

    Starts from the last draws at the hottest temperature; as many chains, draws and moves a
    temperature as the samples have. A checkpoint a temperature. Raises ValueError where there are
    no samples, or a cooling that ``resume`` is not to go on with.
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
    hottest = (temperature == ladder[0]).nonzero().flatten()
    last = torch.from_numpy(read_weights(samples, hottest.numpy(), [settings.draws - 1])[:, 0])
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
    done, weights, first = 0, last, last
    if checkpoint.exists():
        tensors, header = read_archive(checkpoint, CHECKPOINT)
        check_fingerprint(checkpoint, header["fingerprint"], belongs_to)
        done, weights = int(header["temperatures"]), tensors["weights"]
        store = SampleStore.open(
            store_path,
            draws=settings.draws,
            chains=len(temperature),
            parameters=potential.parameters,
        )
    else:
        config = str(samples.attrs.get("config", ""))
        store = new_store(store_path, potential, settings, temperature, start, norm2, config)
    sets = judged_sets(potential, data, settings)
    bar = tqdm(
        total=len(ladder) * settings.draws * settings.moves_per_draw,
        initial=done * settings.draws * settings.moves_per_draw,
        desc=f"cooling {potential.model.name}, {len(last)} chains",
        unit="move",
        disable=not progress,
    )
    with bar:
        for rung in range(done, len(ladder)):
            rows = (temperature == ladder[rung]).nonzero().flatten()
            tethered = references.early_stopped[start[rows]]  # as those of the first set
            energy = sampled_potential(potential, settings, tethered)
            sampler = Langevin(energy, temperature[rows], seed=seed, options=settings.options())
            state = sampler.init(
                weights, norm2=norm2 if settings.constrained else None, chain_ids=rows.tolist()
            )
            for draw in range(settings.draws):
                begun = bar.n
                minibatch_loss = sampler.run(
                    state,
                    settings.moves_per_draw,
                    on_moves=lambda moves: bar.update(begun + moves - bar.n),  # noqa: B023
                )
                observables = observe(potential, sets, sampler, state, first)
                store.write(
                    draw,
                    {**observables, "minibatch_loss": minibatch_loss},
                    state.weights.cpu(),
                    rows=rows,
                )
            weights = state.weights.cpu().clone()
            header = {"kind": CHECKPOINT, "temperatures": rung + 1, "fingerprint": belongs_to}
            write_archive(checkpoint, {"weights": weights}, header)
    return store_path
