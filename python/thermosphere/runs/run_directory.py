"""A run's directory: the settings it was made with, and which files of which stage it holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zlib import crc32

import msgspec
import numpy as np
from tqdm import tqdm

from thermosphere.proteins.dataset import DataSet
from thermosphere.proteins.structure import ContactMap
from thermosphere.runs.config import Config, ModelRun
from thermosphere.runs.config_reading import flat, load_config
from thermosphere.runs.provenance import FILE
from thermosphere.runs.sample import CHECKPOINT_FILE

# Settings of results that are there which may become more, and no less: (key's end, the file of the
# model that ends it).
MAY_GROW = {
    **dict.fromkeys((".draws", ".draws_max", ".trial_seconds", ".exact_gradients")),
    ".max_epochs": "stage1.safetensors",
    ".reference_epochs": "references.safetensors",
}

SEQUENCES_CHECKPOINT = "sequences.checkpoint.npz"


def stage_seed(seed: int, stage: str) -> int:
    """The seed of one stage, independent of every other stage's, from the run's."""
    state = np.random.SeedSequence([seed, crc32(stage.encode())]).generate_state(1, np.uint64)
    return int(state[0]) >> 1  # below 2**63, what every generator takes


@dataclass(frozen=True)
class RunDirectory:
    """One run's directory and settings: what is there, what is missing, what may be gone over."""

    directory: Path
    config: Config
    resume: bool = False
    progress: bool = False
    only: tuple[str, ...] = ()  # models that stages work on; none named: all

    @property
    def models(self) -> dict[str, ModelRun]:
        """The models that stages work on, in the order of the settings."""
        named = self.only or tuple(self.config.models)
        return {name: own for name, own in self.config.models.items() if name in named}

    @classmethod
    def open(
        cls,
        directory: Path,
        config: Config,
        *,
        resume: bool = False,
        progress: bool = False,
        only: Iterable[str] = (),
    ) -> Self:
        """Make the directory and save the settings in it, or take up a run that is there.

        only: the models that stages work on; all of the settings where none is named. Processes
        that work on different models may share a directory once dataset.npz is there.

        Raises ValueError for a model that the settings do not have, and where the directory holds
        results that other settings gave.
        """
        only = tuple(only)
        for name in only:
            if name not in config.models:
                expected = ", ".join(config.models)
                raise ValueError(f"--model: expected one of {expected}, got {name!r}")
        saved = directory / "config.toml"
        if saved.is_file():
            before = load_config(saved.read_text(encoding="utf-8"), where=str(saved))
            difference = first_difference(
                before,
                config,
                lambda key: _settled(directory, key),
                lambda key: _may_grow(directory, key),
            )
            if difference is not None:
                raise ValueError(
                    f"{directory} holds results of other settings ({difference}); use another "
                    "--output, or remove them and all that was made from them"
                )
        elif directory.exists() and (
            not directory.is_dir()
            or any(path.name != FILE for path in directory.iterdir())  # that of refusals alone
        ):
            raise ValueError(
                f"--output must be a new or empty directory or a run's, got {directory}"
            )
        directory.mkdir(parents=True, exist_ok=True)
        _write_text(saved, config.to_toml())
        return cls(directory, config, resume, progress, only)

    @property
    def has_results(self) -> bool:
        """Whether a stage has left anything here."""
        return any(path.name not in ("config.toml", FILE) for path in self.directory.iterdir())

    def has_output(self, stage: str) -> bool:
        """Whether a stage that makes what all models share has left anything here."""
        outputs = {
            "contacts": ("contacts.toml",),
            "sequences": ("sequences.npz", "sequences.fasta", SEQUENCES_CHECKPOINT),
            "dataset": ("dataset.npz",),
        }
        return any((self.directory / name).exists() for name in outputs[stage])

    def check_sampled(self, models: Iterable[str]) -> None:
        """ValueError where something is missing that an analysis of these models needs."""
        for name in models:
            self._needs(f"{name}/references.safetensors", "train")
            self._needs(f"{name}/{CHECKPOINT_FILE}", "sample")
        if self.config.has_contacts:
            self._needs("contacts.toml", "contacts")
        self._needs("dataset.npz", "dataset")

    def _protein(self) -> ContactMap:
        return ContactMap.load(self._needs("contacts.toml", "contacts"))

    def _data(self) -> DataSet:
        return DataSet.load(self._needs("dataset.npz", "dataset"))

    def _needs(self, name: str, stage: str) -> Path:
        path = self.directory / name
        if not path.is_file():
            raise ValueError(
                f"{path} is missing: run `thermosphere {stage} -o {self.directory}` first"
            )
        return path

    def _done(self, output: Path, stage: str) -> bool:
        """Whether the output is there; refuses to go over it unless resuming."""
        if not output.exists():
            return False
        if not self.resume:
            raise ValueError(
                f"{stage}: {output} is there; --resume keeps it, or use another --output"
            )
        return True

    def _say(self, line: str) -> None:
        if self.progress:
            tqdm.write(line)


def _settled(directory: Path, key: str) -> bool:
    """Whether the directory holds results that depend on a setting (a dotted key of the config)."""
    section, _, rest = key.partition(".")
    sampled = [
        directory / name for name in ("sequences.npz", "sequences.fasta", SEQUENCES_CHECKPOINT)
    ]
    match section:
        case "structure":
            outputs = [directory / "contacts.toml"]
        case "sequences" | "interaction_seed":
            outputs = [*sampled, directory / "dataset.npz"]
        case "data":
            outputs = [directory / "dataset.npz", *directory.glob("*/*.safetensors")]
        case "models" if ".sampling." in rest:
            name = rest.split(".")[0]
            outputs = [directory / name / "samples.zarr"]
        case "models" if ".pilot.exact_" in rest:
            name = rest.split(".")[0]
            outputs = [directory / name / "exact.safetensors"]
        case "models" if ".pilot." in rest:
            name = rest.split(".")[0]
            outputs = [directory / name / "ladder.csv", directory / name / "calibration.toml"]
        case "models":
            name = rest.split(".")[0]
            outputs = list((directory / name).glob("*.safetensors"))
        case _:  # the seed
            outputs = sampled
    return any(output.exists() for output in outputs)


def _may_grow(directory: Path, key: str) -> bool:
    """Whether a setting of results that are there may become more: training does not go on once
    what it makes is there."""
    for end, last in MAY_GROW.items():
        if key.endswith(end):
            return last is None or not (directory / key.split(".")[1] / last).exists()
    return False


def _write_text(path: Path, text: str) -> None:
    building = path.with_name(f"{path.name}.new-{os.getpid()}")  # of a process beside this one too
    try:
        building.write_text(text, encoding="utf-8")
        os.replace(building, path)
    finally:
        building.unlink(missing_ok=True)


def first_difference(
    old: Config,
    new: Config,
    settled: Callable[[str], bool],
    may_grow: Callable[[str], bool],
) -> str | None:
    """The first setting of a run that may no longer change, as one line; None where all may go on.

    settled(key) says whether results that depend on the dotted key are there; what has none yet may
    change, and so may the analysis. may_grow(key): whether runs may be made longer by it.
    """
    before, after = flat(msgspec.to_builtins(old)), flat(msgspec.to_builtins(new))
    for key in sorted(before.keys() & after.keys()):
        was, now = before[key], after[key]
        free = key in ("name", "sequences.fasta") or key.startswith("analysis.")
        free = free or key.endswith(("checkpoint_seconds", ".sampling.device", ".going_on"))
        if was == now or free or not settled(key):
            continue
        if may_grow(key) and now > was:
            continue
        return f"{key}: saved {was!r}, now {now!r}"
    return None
