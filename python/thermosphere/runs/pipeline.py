"""A run: one directory, one configuration, stages from a structure to a report.

    DIR/config.toml                 the settings, resolved
    DIR/contacts.toml               contacts:  contact map and native sequence; couplings need none
    DIR/sequences.npz (.fasta)      sequences: Potts sequences with their ladder and diagnostics
    DIR/dataset.npz                 dataset:   masks and splits
    DIR/MODEL/stage1.safetensors    train:     early-stopped runs, which fix Q
    DIR/MODEL/references.safetensors           ES and OT weights
    DIR/MODEL/ladder.csv            ladder:    T* and the pilot that found it
    DIR/MODEL/calibration.toml, .csv    calibrate: gradients and friction that mix fastest
    DIR/MODEL/samples.zarr          sample:    observables and weights; checkpoint.safetensors
    beside it
    DIR/MODEL/exact.csv, .safetensors   exact: the same temperatures by hybrid Monte Carlo
    DIR/MODEL/cooling.zarr          cool:      a second set, from neighbouring temperatures
    DIR/report.html, figures/, MODEL/thermodynamics.csv    report
    DIR/provenance.csv              when each stage was done, how long it took, commit, machine

Each stage reads files and writes files, so any of them can be run alone, replaced by hand, or
resumed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import torch

from thermosphere.models.named import named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.proteins.alphabet import ALPHABET
from thermosphere.proteins.dataset import DataSet, make_data_set
from thermosphere.proteins.fasta import read_sequences, write_fasta
from thermosphere.proteins.structure import contact_map, native_2abd
from thermosphere.proteins.tempering import sample_sequences
from thermosphere.proteins.tempering_result import TemperingResult
from thermosphere.runs.calibration import FULL_BATCH
from thermosphere.runs.calibration_table import calibration_text
from thermosphere.runs.config import ModelRun, Sampling
from thermosphere.runs.config_reading import load_config
from thermosphere.runs.cooling import cool_model
from thermosphere.runs.device import sampling_device
from thermosphere.runs.exact import check_model
from thermosphere.runs.exact_table import read_comparisons, save_comparisons
from thermosphere.runs.ladder import find_ladder
from thermosphere.runs.pilots import (
    calibrate_model,
    calibrated,
    ladder_temperatures,
    ladder_unit,
    lowest_loss,
    pilot_start,
)
from thermosphere.runs.provenance import recorded
from thermosphere.runs.run_directory import SEQUENCES_CHECKPOINT, RunDirectory, stage_seed
from thermosphere.runs.sample import CHECKPOINT_FILE, COOLING, sample_model
from thermosphere.runs.sequence_model import (
    check_letters,
    check_networks_read,
    sequence_model,
    starting_sequence,
)
from thermosphere.runs.store import least_loss, open_samples
from thermosphere.runs.train import train_model, training_checkpoints
from thermosphere.training import References

# Stages that go through the models one after the other; the others make what all of them share.
OF_MODELS = ("train", "ladder", "calibrate", "sample", "cool", "exact", "report")


class Run(RunDirectory):
    """The stages of a run."""

    def do(self, stage: str, *, alone: bool = False) -> None:
        """Do one stage; ``alone``: it was asked for by itself.

        Raises ValueError where its input is missing, or its output is there and ``resume`` is off.
        """
        steps: dict[str, Callable[[], None]] = {
            "contacts": self.contacts,
            "sequences": self.sequences,
            "dataset": self.dataset,
            "train": self.train,
            "ladder": self.ladder,
            "calibrate": partial(self.calibrate, every=alone),
            "sample": self.sample,
            "cool": self.cool,
            "exact": self.exact,
            "report": self.report,
        }
        if stage not in steps:
            raise ValueError(f"stage: expected one of {', '.join(steps)}, got {stage!r}")
        with recorded(self.directory, stage, list(self.models) if stage in OF_MODELS else []):
            steps[stage]()

    def contacts(self) -> None:
        """Structure → contacts.toml."""
        output = self.directory / "contacts.toml"
        if self._done(output, "contacts"):
            return
        if not self.config.has_contacts:
            self._say("contacts: none, couplings need no structure (--structure adds its contacts)")
            return
        structure = self.config.structure
        if structure.file is None:
            protein = native_2abd()
        else:
            protein = contact_map(
                structure.file,
                chain=structure.chain,
                model=structure.model,
                cutoff=structure.cutoff,
                min_separation=structure.min_separation,
                gaps=structure.gaps,
            )
        for name, length_of in (
            ("dataset.npz", lambda path: DataSet.load(path).length),
            ("sequences.npz", lambda path: TemperingResult.load(path).sequences.shape[1]),
            ("sequences.fasta", lambda path: read_sequences(path).shape[1]),
        ):
            there = self.directory / name
            if there.is_file() and (length := length_of(there)) != protein.length:
                raise ValueError(
                    f"contacts: the structure must have the {length} sites of {there}, "
                    f"got {protein.length}"
                )
        protein.save(output)
        if incomplete := protein.provenance.get("incomplete_residues"):
            print(
                f"contacts: {incomplete} of {protein.length} residues lack heavy atoms, and "
                "contacts with them",
                file=sys.stderr,
            )
        self._say(
            f"contacts: {protein.length} residues, {len(protein.contacts)} contacts → {output}"
        )

    def sequences(self) -> None:
        """contacts.toml → sequences.npz with its diagnostics; or the user's own sequences →
        sequences.fasta."""
        settings = self.config.sequences
        sampled, listed = self.directory / "sequences.npz", self.directory / "sequences.fasta"
        output = sampled if settings.file is None else listed
        checkpoint = self.directory / SEQUENCES_CHECKPOINT
        if self._done(output, "sequences"):
            checkpoint.unlink(missing_ok=True)  # left by a kill right after the output was written
            if settings.fasta and output == sampled and not listed.exists():
                found = TemperingResult.load(sampled)
                check_letters(found.model.alphabet)
                write_fasta(listed, found.sequences, alphabet=found.model.alphabet)
            return
        self._done(checkpoint, "sequences")  # refuses an unfinished harvest unless resuming
        alphabet = ALPHABET
        if settings.file is not None:
            length = self._protein().length
            tokens = read_sequences(settings.file)
            if tokens.shape[1] != length:
                raise ValueError(
                    f"{settings.file}: sequences must have the {length} sites of the contact map, "
                    f"got {tokens.shape[1]}"
                )
        else:
            protein = self._protein() if self.config.has_contacts else None
            model = sequence_model(self.config, protein, self._say)
            alphabet = model.alphabet
            if settings.fasta:
                check_letters(alphabet)
            seed = stage_seed(self.config.seed, "sequences")
            result = sample_sequences(
                model,
                starting_sequence(model, protein, settings.moves, seed),
                sequences=settings.count,
                temperature=settings.temperature,
                hot=settings.hot_temperature,
                moves=settings.moves,
                method=settings.method,
                harvest_spacing=settings.harvest_spacing,
                seed=seed,
                threads=torch.get_num_threads(),
                checkpoint=checkpoint,
                checkpoint_seconds=settings.checkpoint_seconds,
                progress=self.progress,
            )
            result.save(sampled)
            checkpoint.unlink(missing_ok=True)
            for warning in result.warnings:
                self._say(f"sequences: warning: {warning}")
            tokens = result.sequences
        if settings.file is not None or settings.fasta:
            write_fasta(listed, tokens, alphabet=alphabet)
        self._say(f"sequences: {len(tokens)} of {tokens.shape[1]} sites → {output}")

    def dataset(self) -> None:
        """sequences.npz → dataset.npz."""
        output = self.directory / "dataset.npz"
        if self._done(output, "dataset"):
            return
        settings = self.config.data
        if settings_file := self.config.sequences.file:
            tokens = read_sequences(self._needs("sequences.fasta", "sequences"))
        else:
            result = TemperingResult.load(self._needs("sequences.npz", "sequences"))
            check_networks_read(result.model.alphabet, result.model.states)
            tokens = result.sequences
        data = make_data_set(
            tokens,
            train=settings.train,
            validation=settings.validation,
            test=settings.test,
            rate=settings.mask_rate,
            seed=stage_seed(self.config.seed, "dataset"),
            provenance={"sequences": settings_file or "sampled", "config": self.config.to_toml()},
        )
        data.save(output)
        self._say(
            f"dataset: {len(data.train)} train, {len(data.validation)} validation, "
            f"{len(data.test)} test → {output}"
        )
        if shared := data.also_in_train():
            print(
                f"dataset: {shared} validation and test sequences are in the training set too: "
                "errors on them are too small",
                file=sys.stderr,
            )

    def train(self) -> None:
        """dataset.npz → early-stopped and over-trained weights of every model."""
        data = self._data()
        for name, settings in self.models.items():
            self._train(name, settings, data)

    def ladder(self) -> None:
        """ES weights → T* and the ladder of every model whose temperatures are "auto"."""
        for name, settings in self.models.items():
            if settings.sampling.temperatures != "auto":
                self._say(f"ladder {name}: none to find, the temperatures are given")
                continue
            output = self.directory / name / "ladder.csv"
            checkpoint = output.with_name("ladder.checkpoint.safetensors")
            if self._done(output, "ladder"):
                checkpoint.unlink(missing_ok=True)
                continue
            self._done(checkpoint, "ladder")  # refuses an unfinished pilot unless resuming
            potential, references = self._potential(name, settings)
            found = find_ladder(
                potential,
                pilot_start(references, settings.pilot.chains),
                float(references.norm2),
                coldest=settings.pilot.coldest,
                moves=settings.pilot.ladder_moves,
                seed=stage_seed(self.config.seed, f"ladder {name}"),
                options=FULL_BATCH,
                checkpoint=checkpoint,
                on_temperature=lambda temperature, loss: self._say(
                    f"ladder: T = {temperature:.3g}, <U> = {loss:.4f}"
                ),
            )
            found.save(output)
            checkpoint.unlink(missing_ok=True)
            self._say(f"ladder {name}: T* = {found.peak:.4g} → {output}")

    def calibrate(self, *, every: bool = False) -> None:
        """ES weights → gradients and friction that mix fastest near T*, for every model with
        sampling.calibrated, or for every model.

        Where the temperatures are given, T* is the middle one. What earlier calls measured is kept,
        and longer pilot.trial_seconds add to it.
        """
        for name, settings in self.models.items():
            if not settings.sampling.calibrated and not every:
                continue
            self._done(self.directory / name / "calibration.toml", "calibrate")
            # Hybrid Monte Carlo, the reference, is on the CPU, and all trials are timed beside it.
            potential, references = self._potential(name, settings.sampled_on_cpu())
            ladder = self._ladder(name, settings)
            found = calibrate_model(
                self.directory / name,
                potential,
                references,
                settings.pilot,
                ladder_unit(settings.sampling, ladder),
                ladder,
                seed=stage_seed(self.config.seed, f"calibrate {name}"),
                progress=self.progress,
            )
            for one in found:
                print(calibration_text(one, name), flush=True)

    def sample(self) -> None:
        """ES weights → samples.zarr of every model."""
        data = self._data()
        for name, settings in self.models.items():
            potential, references = self._potential(name, settings, data)
            sample_model(
                self.directory / name,
                potential,
                data,
                references,
                self._sampling(name, settings),
                seed=stage_seed(self.config.seed, f"sample {name}"),
                config=self.config.to_toml(),
                burn_in=self.config.analysis.burn_in,
                resume=self.resume,
                progress=self.progress,
            )

    def exact(self) -> None:
        """samples.zarr → exact.safetensors and .csv of every model with pilot.exact_at: ⟨U⟩ held
        against hybrid Monte Carlo, on the CPU."""
        data: DataSet | None = None
        for name, settings in self.models.items():
            if not settings.pilot.exact_at:
                self._say(f"exact {name}: nothing to do, pilot.exact_at is empty")
                continue
            data = data or self._data()
            self._needs(f"{name}/{CHECKPOINT_FILE}", "sample")
            directory, ladder = self.directory / name, self._ladder(name, settings)
            potential, references = self._potential(name, settings.sampled_on_cpu(), data)
            check_model(
                directory,
                potential,
                references,
                self._sampling(name, settings),
                settings.pilot,
                ladder_unit(settings.sampling, ladder),
                lowest_loss(references, ladder),
                seed=stage_seed(self.config.seed, f"exact {name}"),
                resume=self.resume,
                progress=self.progress,
            )
            seen = [
                least_loss(open_samples(directory / store))
                for store in ("samples.zarr", COOLING)
                if (directory / store).exists()
            ]
            found = read_comparisons(directory, min(seen))
            save_comparisons(found, directory / "exact.csv")
            for one in found:
                print(f"{name}, {one.sentence()}", flush=True)

    def cool(self) -> None:
        """samples.zarr → cooling.zarr of every model: a second set, each temperature from a
        neighbouring one, on the other side of ⟨U⟩."""
        data = self._data()
        for name, settings in self.models.items():
            self._needs(f"{name}/checkpoint.safetensors", "sample")
            potential, references = self._potential(name, settings, data)
            cool_model(
                self.directory / name,
                potential,
                data,
                references,
                self._sampling(name, settings),
                seed=stage_seed(self.config.seed, f"cool {name}"),
                burn_in=self.config.analysis.burn_in,
                resume=self.resume,
                progress=self.progress,
            )

    def report(self) -> None:
        """Everything → figures, MODEL/thermodynamics.csv and report.html."""
        self.check_sampled(self.models)
        # matplotlib and ArviZ are slow to load
        from thermosphere.runs.studied_run import StudiedRun
        from thermosphere.runs.study_report import write_study

        studied = StudiedRun.read(
            self.directory, self.config, models=list(self.models), progress=self.progress
        )
        print(write_study(studied))

    def _train(self, name: str, settings: ModelRun, data: DataSet) -> None:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        output = directory / "references.safetensors"
        checkpoints = training_checkpoints(directory)
        if self._done(output, "train"):
            for checkpoint in checkpoints:  # left by a kill right after the output was written
                checkpoint.unlink(missing_ok=True)
            return
        for checkpoint in checkpoints:
            self._done(checkpoint, "train")  # refuses an unfinished training unless resuming
        seed = self.config.seed
        references = train_model(
            directory,
            named_model(name, length=data.length),
            data,
            settings.training,
            seeds=(stage_seed(seed, f"stage 1 {name}"), stage_seed(seed, f"stage 2 {name}")),
            progress=self.progress,
        )
        self._say(f"train {name}: |w|² = Q = {float(references.norm2):.1f} → {output}")

    def _potential(
        self, name: str, settings: ModelRun, data: DataSet | None = None
    ) -> tuple[MaskedLanguagePotential, References]:
        data = data if data is not None else self._data()
        references = References.load(self._needs(f"{name}/references.safetensors", "train"))
        model = named_model(name, length=data.length)
        sampling, backend = settings.sampling, settings.sampling.backend
        where = f"models.{name}.sampling.device"
        device = sampling_device(sampling.device, where, backend, sampling.batch)
        potential = MaskedLanguagePotential(model, data.train, device=device, backend=backend)
        return potential, references

    def _ladder(self, name: str, settings: ModelRun) -> Path:
        """Where the pilot's ladder is. ValueError where it is needed and missing."""
        if settings.sampling.temperatures == "auto":
            self._needs(f"{name}/ladder.csv", "ladder")
        return self.directory / name / "ladder.csv"

    def _sampling(self, name: str, settings: ModelRun) -> Sampling:
        """The model's sampling with what the pilots found."""
        ladder = self._ladder(name, settings)
        temperatures = ladder_temperatures(settings.sampling, settings.pilot, ladder)
        sampling = msgspec.structs.replace(settings.sampling, temperatures=temperatures)
        if not sampling.calibrated:
            return sampling
        return calibrated(sampling, self._needs(f"{name}/calibration.toml", "calibrate"))


def open_finished(directory: Path) -> tuple[Run, list[str]]:
    """A run that is there, and its models that have been sampled. ValueError, one line, where the
    directory is none or no model has been."""
    saved = directory / "config.toml"
    if not saved.is_file():
        raise ValueError(f"{directory} is no run's directory: {saved} is missing")
    run = Run(directory, load_config(saved.read_text(encoding="utf-8"), where=str(saved)))
    models = list(run.config.models)
    sampled = [name for name in models if (directory / name / CHECKPOINT_FILE).is_file()]
    run.check_sampled(sampled or models)
    return run, sampled
