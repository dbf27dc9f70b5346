"""A finished run, read and analysed once: what its report and its publication are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from thermosphere.proteins.dataset import DataSet
from thermosphere.proteins.structure import ContactMap
from thermosphere.runs.config import Config
from thermosphere.runs.study import ModelStudy, study_model
from thermosphere.training import EarlyStopped, References


@dataclass(frozen=True)
class SequenceSets:
    """How many sequences the sets have, and which: a digest of residues and masks."""

    length: int  # n
    train: int
    validation: int
    test: int
    digest: str

    @classmethod
    def of(cls, data: DataSet) -> SequenceSets:
        """Of a data set."""
        digest = hashlib.sha256()
        for part in (data.train, data.validation, data.test):
            digest.update(repr(part.tokens.shape).encode())
            digest.update(part.tokens.tobytes())
            digest.update(part.masked.tobytes())
        sizes = len(data.train), len(data.validation), len(data.test)
        return cls(data.length, *sizes, digest.hexdigest())

    def sentence(self) -> str:
        """The three sizes."""
        return (
            f"{self.train:,} training, {self.validation:,} validation and {self.test:,} test "
            "sequences"
        )


@dataclass(frozen=True)
class StudiedRun:
    """Settings, data, training and studies, by model: of one run, or what was kept of several
    (runs/kept.py)."""

    directory: Path  # with a directory of its own for each model
    config: Config
    protein: ContactMap | None  # None where no contact map was given
    data: SequenceSets
    studies: Mapping[str, ModelStudy]
    stage1: Mapping[str, EarlyStopped]
    trained: Mapping[str, References]

    @classmethod
    def read(
        cls,
        directory: Path,
        config: Config,
        *,
        models: Sequence[str] | None = None,
        progress: bool = False,
    ) -> StudiedRun:
        """Analyse the models of the run; all of them by default.

        Raises ValueError or OSError where a file is missing or damaged, or the contact map has not
        the sites of the sequences.
        """
        protein = ContactMap.load(directory / "contacts.toml") if config.has_contacts else None
        data = DataSet.load(directory / "dataset.npz")
        if protein is not None and protein.length != data.length:
            raise ValueError(
                f"report: {directory / 'contacts.toml'} must have the {data.length} sites of the "
                f"sequences, got {protein.length}"
            )
        contacts = protein.matrix() if protein is not None else None
        studies = {
            name: study_model(
                directory / name,
                name,
                data,
                contacts,
                config.models[name],
                config.analysis,
                progress=progress,
            )
            for name in tqdm(
                models or list(config.models), desc="analysis", unit="model", disable=not progress
            )
        }
        stage1 = {n: EarlyStopped.load(directory / n / "stage1.safetensors") for n in studies}
        trained = {n: References.load(directory / n / "references.safetensors") for n in studies}
        sets = SequenceSets.of(data)
        return cls(directory, config, protein, sets, studies, stage1, trained)

    @property
    def contacts(self) -> npt.NDArray[np.uint8] | None:
        """(n, n); None where no contact map was given."""
        return self.protein.matrix() if self.protein is not None else None
