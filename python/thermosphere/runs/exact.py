"""The exact check of ⟨U⟩: samples go on in two ways from their last draws, with hybrid Monte Carlo,
which has no bias, and with the sampler that made them; and in a third, with that sampler a little
hotter, for the law of U.

Chains of different ES starts stand in basins of their own, whose U differ by more than any bias. So
a chain is held against itself: all ways start from the same weights, with as many gradients.
MODEL/exact.safetensors holds all draws of U and the states of all, as a checkpoint and as what
exact_table.py and products_ensemble.py judge.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from tqdm import tqdm

from thermosphere.archive import digest, read_archive, write_archive
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.runs.chains import sampled_potential
from thermosphere.runs.config import Pilot, Sampling
from thermosphere.runs.store import open_samples, read_weights, written_draws
from thermosphere.sampling.hmc import HybridMonteCarlo
from thermosphere.sampling.hmc_state import HybridMonteCarloState
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.state import LangevinState
from thermosphere.training import References
from thermosphere.training.trainer import check_fingerprint

FILE = "exact.safetensors"
KIND = "thermosphere exact check"
HOTTER = "hotter"  # the third way
WARM_UP = 20  # trajectories that tune the step and do not count; as long for the other way
TARGET_ACCEPTANCE = 0.8
MASSES = LangevinOptions(batch=None)  # those of hybrid Monte Carlo, which a step of dt fits


class Continued:
    """Chains that go on with one sampler, and what they have drawn."""

    def __init__(
        self,
        name: str,  # of its tensors in the file
        sampler: HybridMonteCarlo | Langevin,
        state: HybridMonteCarloState | LangevinState,
        moves: int,  # a draw: trajectories, or moves
    ) -> None:
        self.name, self.sampler, self.state, self.moves = name, sampler, state, moves
        self.losses = torch.zeros(len(state.weights), 0, dtype=torch.float64)  # (C, K)
        self.kinetic = self.losses.clone()  # (C, K), 2 K / degrees of freedom

    def draw(self, potential: MaskedLanguagePotential) -> None:
        """Go on to the next draw. U is that of the training set alone, as in the samples."""
        self.sampler.run(self.state, self.moves)  # type: ignore[arg-type]
        losses = potential.evaluate(self.state.weights.float())[0]
        kinetic = self.sampler.kinetic_temperature(self.state)  # type: ignore[arg-type]
        self.losses = torch.cat([self.losses, losses[:, None]], 1)
        self.kinetic = torch.cat([self.kinetic, kinetic[:, None]], 1)

    def tensors(self) -> dict[str, torch.Tensor]:
        named = {"draws.losses": self.losses, "draws.kinetic": self.kinetic, **self.state.tensors()}
        return {f"{self.name}.{key}": tensor for key, tensor in named.items()}

    @classmethod
    def restored(
        cls,
        name: str,
        sampler: HybridMonteCarlo | Langevin,
        moves: int,
        tensors: dict[str, torch.Tensor],
    ) -> Continued:
        own = {
            key.removeprefix(f"{name}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{name}.")
        }
        kind = HybridMonteCarloState if isinstance(sampler, HybridMonteCarlo) else LangevinState
        one = cls(name, sampler, kind.from_tensors(own), moves)
        one.losses, one.kinetic = own["draws.losses"], own["draws.kinetic"]
        return one


def check_model(
    directory: Path,
    potential: MaskedLanguagePotential,
    references: References,
    settings: Sampling,
    pilot: Pilot,
    unit: float,
    lowest: float,
    *,
    seed: int,
    resume: bool = False,
    progress: bool = False,
) -> Path:
    """Go on from DIR/samples.zarr at the temperatures nearest to ``pilot.exact_at`` times ``unit``,
    both ways, for ``pilot.exact_gradients`` full-batch gradients a chain, and return
    DIR/exact.safetensors. Where ``pilot.exact_neighbour`` is not 0, a third way is the samples'
    sampler at a temperature higher by that share, with noise of its own.

    potential: on the CPU. lowest: U_min, kept with the draws. More gradients add to what is there.
    Raises ValueError where the samples are not whole, or a check that ``resume`` is not to go on
    with is there; UnreachableSphereError where the samples' sampler leaves the sphere.
    """
    path = directory / FILE
    if path.exists() and not resume:
        raise ValueError(f"exact: {path} is there; --resume goes on with it")
    samples = open_samples(directory / "samples.zarr")
    written = written_draws(samples)
    if written < settings.draws:
        raise ValueError(
            f"exact: {directory / 'samples.zarr'} holds {written} of {settings.draws} draws: "
            "run `thermosphere sample --resume` first"
        )
    rows = chains_near(samples["temperature"].values, [share * unit for share in pilot.exact_at])
    temperature = torch.from_numpy(samples["temperature"].values[rows])
    start = torch.from_numpy(samples["start"].values[rows])
    found = read_archive(path, KIND) if path.exists() else None
    drawn = np.isfinite(samples["train_loss"].transpose("chain", "draw").values[rows]).sum(1)
    if found is not None:  # the samples may have gone on since
        drawn = np.array(found[1].get("draws", [written] * len(rows)))
    weights = _last_weights(samples, rows, drawn)
    norm2 = float(samples.attrs["norm2"])
    options = settings.options()
    belongs_to = {
        **asdict(options),
        "temperatures": temperature.tolist(),
        "ridge": settings.ridge,
        "tether": settings.tether,
        "exact_steps": pilot.exact_steps,
        "exact_neighbour": pilot.exact_neighbour,
        "seed": seed,
        "start": digest(weights),
    }
    energy = sampled_potential(potential, settings, references.early_stopped[start])
    exact = HybridMonteCarlo(
        energy,
        temperature,
        seed=seed,
        steps=pilot.exact_steps,
        step_size=MASSES.dt,
        target_acceptance=TARGET_ACCEPTANCE,
    )
    sampler = Langevin(energy, temperature, seed=seed, options=options)
    moves = moves_of(pilot.exact_steps, options, potential.examples)
    ways: list[tuple[str, Langevin]] = [("sampled", sampler)]
    if pilot.exact_neighbour:
        hotter = temperature * (1.0 + pilot.exact_neighbour)
        ways.append((HOTTER, Langevin(energy, hotter, seed=seed, options=options)))
    if found is not None:
        tensors, header = found
        check_fingerprint(path, header["fingerprint"], belongs_to)
        every = [
            Continued.restored("exact", exact, 1, tensors),
            *(Continued.restored(name, way, moves, tensors) for name, way in ways),
        ]
    else:
        ids = rows.tolist()
        full = Langevin(energy, temperature, seed=seed, options=MASSES)
        masses = full.init(weights, norm2=norm2, chain_ids=ids).masses
        begun = exact.init(weights, masses=masses, norm2=norm2, chain_ids=ids)
        every = [Continued("exact", exact, begun, 1)]
        for number, (name, way) in enumerate(ways):
            own = [number * len(samples["chain"]) + chain for chain in ids]  # noise of its own
            state = way.init(weights, norm2=norm2, chain_ids=own)
            every.append(Continued(name, way, state, moves))

    def save() -> None:
        header = {
            "kind": KIND,
            "fingerprint": belongs_to,
            "chains": rows.tolist(),
            "draws": drawn.tolist(),
            "unit": unit,
            "lowest": lowest,
        }
        tensors = {"temperature": temperature}
        for one in every:
            tensors |= one.tensors()
        write_archive(path, tensors, header)

    hybrid = every[0].state
    assert isinstance(hybrid, HybridMonteCarloState)
    tuned, done = hybrid.tuned, every[1].losses.shape[1]
    wanted = pilot.exact_gradients // pilot.exact_steps
    saved_at = time.monotonic()
    with tqdm(
        total=(WARM_UP + wanted) * pilot.exact_steps,
        initial=(tuned + done) * pilot.exact_steps,
        desc=f"exact check of {potential.model.name}, {len(rows)} chains, {len(every)} ways",
        unit="gradient",
        disable=not progress,
    ) as bar:
        for turn in range(tuned - WARM_UP, wanted - done):
            if turn < 0:
                exact.warm_up(hybrid, 1)
                for one in every[1:]:
                    one.sampler.run(one.state, moves)  # type: ignore[arg-type]
            else:
                for one in every:
                    one.draw(potential)
            bar.update(pilot.exact_steps)
            last = turn + 1 == wanted - done
            if last or time.monotonic() - saved_at >= settings.checkpoint_seconds:
                save()
                saved_at = time.monotonic()
    return path


def _last_weights(
    samples: xr.Dataset, rows: npt.NDArray[np.int64], drawn: npt.NDArray[np.int64]
) -> torch.Tensor:
    """Weights (R, N) of draw number ``drawn`` of each of these chains."""
    weights = np.zeros((len(rows), samples.sizes["parameter"]), np.float32)
    for count in np.unique(drawn):
        here = drawn == count
        weights[here] = read_weights(samples, rows[here], [int(count) - 1])[:, 0]
    return torch.from_numpy(weights)


def chains_near(temperature: np.ndarray, wanted: list[float]) -> np.ndarray:
    """Rows (R,) of the chains at the temperatures (C,) that are nearest, in ln T, to those
    wanted."""
    ladder = np.unique(temperature)
    nearest = {float(ladder[np.abs(np.log(ladder / one)).argmin()]) for one in wanted}
    return np.flatnonzero(np.isin(temperature, list(nearest)))


def moves_of(gradients: int, options: LangevinOptions, examples: int) -> int:
    """Moves that cost as much as this many full-batch gradients."""
    share = 1.0 if options.batch is None else min(1.0, options.batch / examples)
    each = 2 if options.scheme == "paper" else 1
    return max(1, math.floor(gradients / (share * each)))
