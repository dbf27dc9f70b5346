"""Chains of one model that go on at their own pace: each as many draws as its temperature needs,
draws to the store, checkpoints to go on from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from thermosphere import _core
from thermosphere.analysis.hysteresis import hysteresis
from thermosphere.analysis.thermodynamics import BurnIn, settled, thermodynamics
from thermosphere.archive import read_archive, write_archive
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.potential import MaskedLanguagePotential, Potential
from thermosphere.models.regularised import Regularised
from thermosphere.ops.backends import step_backend
from thermosphere.proteins.dataset import DataSet
from thermosphere.runs.config import Sampling
from thermosphere.runs.store import OBSERVABLES, SampleStore, open_samples
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.state import LangevinState
from thermosphere.training.trainer import check_fingerprint


@dataclass
class StoredChains:
    """C chains, their store and their checkpoint.

    Chains that advance together are alike in their draws. On the CPU the bits of one depend on its
    own alone; on a GPU also on how many advance with it, which decides the order of some sums.
    """

    potential: MaskedLanguagePotential
    settings: Sampling
    seed: int
    temperature: torch.Tensor  # (C,) float64
    first: torch.Tensor  # (C, N), what distances are measured from
    tether: torch.Tensor  # (C, N), where a tether ends
    data: DataSet  # what a draw is judged on
    store_path: Path
    checkpoint: Path
    kind: str  # of the checkpoint
    belongs_to: dict[str, Any]  # its fingerprint, with what settings and seed add
    bar: tqdm[None]
    # Of all chains; its step is that of none, see `part`.
    state: LangevinState | None = None
    done: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # (C,) int64, draws

    def __post_init__(self) -> None:
        self.done = torch.zeros(len(self.temperature), dtype=torch.int64)
        self.sets = judged_sets(self.potential, self.data, self.settings)
        self.bits = bits(self.potential, self.settings)
        self.fingerprint = {
            **asdict(self.settings.options()),
            "ridge": self.settings.ridge,
            "tether": self.settings.tether,
            "moves_per_draw": self.settings.moves_per_draw,
            "seed": self.seed,
            **self.belongs_to,
        }

    def load(self) -> None:
        """Take up the checkpoint. ValueError where it is of other settings."""
        tensors, header = read_archive(self.checkpoint, self.kind)
        check_fingerprint(self.checkpoint, header["fingerprint"], self.fingerprint)
        if "done" not in header:
            raise ValueError(
                f"{self.checkpoint} is of an older version, which kept less of a run; remove it "
                f"and {self.store_path.name}, or go on with that version"
            )
        if header["bits"] != self.bits:
            tqdm.write(
                f"{self.checkpoint} was written with {header['bits']}, this is {self.bits}: the "
                "run goes on, but not with the bits of an unbroken one"
            )
        self.state = LangevinState.from_tensors(tensors, self.potential.device)
        self.done = torch.tensor(header["done"], dtype=torch.int64)

    def sampler(self, rows: torch.Tensor) -> Langevin:
        """Of these chains, (R,) int64."""
        energy = sampled_potential(self.potential, self.settings, self.tether[rows])
        return Langevin(
            energy, self.temperature[rows], seed=self.seed, options=self.settings.options()
        )

    def put(self, rows: torch.Tensor, part: LangevinState) -> None:
        """The state of these chains."""
        if self.state is None:
            self.state = part.blank(len(self.temperature))
        self.state.put(rows, part)

    def part(self, rows: torch.Tensor) -> LangevinState:
        """The state of these chains, which have as many draws each."""
        assert self.state is not None
        part = self.state.of(rows)
        part.step = int(self.done[rows[0]]) * self.settings.moves_per_draw
        return part

    def advance(self, rows: torch.Tensor, to: int) -> None:
        """These chains, (R,) int64, which have as many draws each, to this many draws."""
        done, per_draw = int(self.done[rows[0]]), self.settings.moves_per_draw
        store = SampleStore.open(
            self.store_path,
            draws=max(to, int(self.done.max())),
            chains=len(self.temperature),
            parameters=self.potential.parameters,
        )
        sampler, state, first = self.sampler(rows), self.part(rows), self.first[rows]
        self.bar.total = max(self.bar.total or 0, self.bar.n + (to - done) * per_draw)
        self.bar.set_postfix_str(f"{len(rows)} chains, {sampler.moves.way}")
        saved_at = time.monotonic()
        for draw in range(done, to):
            begun = self.bar.n
            minibatch_loss = sampler.run(
                state,
                per_draw,
                on_moves=lambda moves: self.bar.update(begun + moves - self.bar.n),  # noqa: B023
            )
            observables = observe(self.potential, self.sets, sampler, state, first)
            observables["minibatch_loss"] = minibatch_loss
            store.write(draw, observables, state.weights.cpu(), rows)
            if time.monotonic() - saved_at >= self.settings.checkpoint_seconds or draw + 1 == to:
                self.done[rows] = draw + 1
                self.put(rows, state)
                self._save()
                saved_at = time.monotonic()

    def advance_all(self, rows: torch.Tensor, to: int) -> None:
        """These chains to this many draws, those with fewest first and by themselves."""
        while bool((self.done[rows] < to).any()):
            fewest = int(self.done[rows].min())
            behind = rows[self.done[rows] == fewest]
            ahead = self.done[rows][self.done[rows] > fewest]
            self.advance(behind, min(to, int(ahead.min())) if len(ahead) else to)

    def finish_part(self) -> None:
        """Where a process ended within a part, to the end of it: chains are judged there alone."""
        draws, most = self.settings.draws, self.settings.draws_max
        for done in self.done[self.done > draws].unique().tolist():
            over = (done - draws) % self.part_draws
            if over and done < most:
                rows = (self.done == done).nonzero().flatten()
                self.advance(rows, min(done - over + self.part_draws, most))

    @property
    def part_draws(self) -> int:
        """Draws between two judgements."""
        return max(1, self.settings.draws // 4)

    def written(self) -> xr.Dataset:
        """What the checkpoint knows of: a killed process may have written more."""
        samples = open_samples(self.store_path)
        draw = np.arange(samples.sizes["draw"])
        known = xr.DataArray(draw < self.done.numpy()[:, None], dims=("chain", "draw"))
        return samples.drop_vars("weights").assign(
            {name: samples[name].where(known) for name in OBSERVABLES}
        )

    def _save(self) -> None:
        assert self.state is not None
        header = {
            "kind": self.kind,
            "done": self.done.tolist(),
            "fingerprint": self.fingerprint,
            "bits": self.bits,
        }
        write_archive(self.checkpoint, self.state.tensors(), header)


def settled_at(samples: xr.Dataset, burn_in: BurnIn) -> list[float]:
    """The temperatures where these chains have settled."""
    table = thermodynamics(samples, burn_in=burn_in)
    found: list[float] = table["temperature"].values[settled(table)].tolist()
    return found


def disagreeing(first: xr.Dataset, second: xr.Dataset, burn_in: BurnIn) -> list[float]:
    """The temperatures where both sets of samples have settled, and differ."""
    found = hysteresis(*(thermodynamics(one, burn_in=burn_in) for one in (first, second)))
    apart: list[float] = found["temperature"].values[~found["agree"].values].tolist()
    return apart


def sampled_potential(
    potential: MaskedLanguagePotential, settings: Sampling, first: torch.Tensor
) -> Potential:
    """What is sampled: the potential with the settings' harmonic terms. first: (C, N), where the
    tether ends."""
    if not settings.ridge and not settings.tether:
        return potential
    return Regularised(potential, settings.ridge, settings.tether, first)


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


def judged_sets(
    potential: MaskedLanguagePotential, data: DataSet, settings: Sampling
) -> dict[str, MaskedSites]:
    """The sets that every draw is judged on, by name."""
    return {
        "train": potential.sites,
        "validation": MaskedSites(data.validation, potential.device),
        "test": MaskedSites(data.test.subset(slice(settings.test_sequences)), potential.device),
    }


def place(potential: MaskedLanguagePotential) -> str:
    """Where it is evaluated, in words."""
    if potential.device.type == "cpu":
        return "the CPU"
    return torch.cuda.get_device_name(potential.device)


def bits(potential: MaskedLanguagePotential, settings: Sampling) -> str:
    """What the bits of a run depend on, besides its settings."""
    if potential.device.type != "cpu":
        step = step_backend("sample", potential.device)
        return f"{potential.backend} gradients and {step} steps on {place(potential)}"
    bits = f"{potential.backend} gradients on {_core.isa_chosen()}"
    if potential.backend == "autograd" or settings.modes:  # products of PyTorch
        bits += f", {torch.get_num_threads()} threads"
    return bits
