"""Masked sequences, and their split into training, validation and test sets."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermosphere.proteins.alphabet import MASK, STATES, check_states
from thermosphere.proteins.archive import read_archive, write_archive

FORMAT = "thermosphere data set 1"
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class MaskedSequences:
    """S sequences of n sites, each with the sites that a model has to predict.

    Attributes:
        tokens: (S, n) uint8, true residues 0..19.
        masked: (S, n) bool, at least one site a sequence.

    Raises: ValueError for other shapes or types, an id above 19, or a sequence without a masked
    site (its loss would be 0/0).
    """

    tokens: NDArray[np.uint8]
    masked: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.dtype != np.uint8:
            raise ValueError(
                f"MaskedSequences: tokens must be (S, n) uint8, got {self.tokens.shape} "
                f"{self.tokens.dtype}"
            )
        if self.masked.shape != self.tokens.shape or self.masked.dtype != np.bool_:
            raise ValueError(
                f"MaskedSequences: masked must be {self.tokens.shape} bool, got "
                f"{self.masked.shape} {self.masked.dtype}"
            )
        check_states(self.tokens, STATES, "MaskedSequences: tokens")
        bare = ~self.masked.any(axis=1)
        if bare.any():
            raise ValueError(
                f"MaskedSequences: every sequence needs a masked site, sequence "
                f"{int(np.argmax(bare))} has none"
            )

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def length(self) -> int:
        """Number of sites n."""
        return int(self.tokens.shape[1])

    @property
    def inputs(self) -> NDArray[np.uint8]:
        """(S, n) uint8: the true residues, with MASK (20) at the masked sites."""
        return np.where(self.masked, np.uint8(MASK), self.tokens)

    def subset(self, indices: slice | ArrayLike) -> MaskedSequences:
        """The sequences that a slice, an index array or a boolean (S,) array selects."""
        index = indices if isinstance(indices, slice) else np.asarray(indices)
        return MaskedSequences(self.tokens[index], self.masked[index])


def mask_sequences(tokens: NDArray[np.uint8], rate: float = 0.15, *, seed: int) -> MaskedSequences:
    """Mask each site independently with probability ``rate``, at least one site a sequence.

    A sequence whose draw masks no site is drawn again, so the masks follow the independent law
    conditioned on at least one masked site (for n = 86 and 0.15 that changes one draw in 10⁶).

    Arguments:
        tokens: (S, n) uint8, residues 0..19.
        rate: probability of masking a site, in (0, 1).
        seed: the masks depend on it and on (S, n) only.

    Raises: ValueError for a rate outside (0, 1) or a bad seed or tokens.
    """
    if not 0.0 < rate < 1.0:
        raise ValueError(f"mask_sequences: rate must be in (0, 1), got {rate}")
    if seed < 0:
        raise ValueError(f"mask_sequences: seed must be at least 0, got {seed}")
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"mask_sequences: tokens must be (S, n), n > 0, got {tokens.shape}")
    # Drawing again until a site is masked takes 1 / (rate × n) rounds.
    if rate * tokens.shape[1] < 1e-3:
        raise ValueError(
            f"mask_sequences: rate × length must be at least 0.001, got {rate * tokens.shape[1]:g}"
        )
    generator = np.random.default_rng(seed)
    masked = generator.random(tokens.shape) < rate
    while (bare := np.flatnonzero(~masked.any(axis=1))).size:
        masked[bare] = generator.random((bare.size, tokens.shape[1])) < rate
    return MaskedSequences(tokens, masked)


@dataclass(frozen=True)
class DataSet:
    """Training, validation and test sequences with fixed masks, and where they came from."""

    train: MaskedSequences
    validation: MaskedSequences
    test: MaskedSequences
    provenance: dict[str, Any]

    @property
    def length(self) -> int:
        """Number of sites n."""
        return self.train.length

    def also_in_train(self) -> int:
        """How many validation and test sequences the training set has too."""
        known = {row.tobytes() for row in self.train.tokens}
        others = (row for part in (self.validation, self.test) for row in part.tokens)
        return sum(row.tobytes() in known for row in others)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one compressed npz (arrays, and the provenance as JSON text), atomically."""
        arrays = {
            f"{part}_{name}": getattr(getattr(self, part), name)
            for part in _PARTS
            for name in ("tokens", "masked")
        }
        write_archive(path, FORMAT, {"provenance": self.provenance}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DataSet:
        """Read what ``save`` wrote.

        Raises: ValueError where the file is not a whole data set; OSError where it cannot be read.
        """
        header, arrays = read_archive(path, FORMAT)
        try:
            train, validation, test = (
                MaskedSequences(arrays[f"{part}_tokens"], arrays[f"{part}_masked"])
                for part in _PARTS
            )
            return cls(train, validation, test, header["provenance"])
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is a damaged {FORMAT} file ({error})") from None


def make_data_set(
    tokens: NDArray[np.uint8],
    *,
    train: int = 1000,
    validation: int = 1000,
    test: int = 13000,
    rate: float = 0.15,
    seed: int,
    provenance: dict[str, Any] | None = None,
) -> DataSet:
    """Mask sequences and split them into three sets.

    The sequences are shuffled before the split: neighbours in a Monte Carlo file resemble each
    other, and an unshuffled split would test on other basins than it trains on.  Shuffle and masks
    come from ``seed`` alone.  Sequences beyond train + validation + test are left out.

    Arguments:
        tokens: (S, n) uint8, residues 0..19.
        train, validation, test: sizes of the sets, each at least 1.
        rate: probability of masking a site.
        provenance: anything JSON can hold; sizes, rate and seed are added under ``"data_set"``.

    Raises: ValueError where there are too few sequences or an argument is out of range.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.dtype != np.uint8:
        raise ValueError(
            f"make_data_set: tokens must be (S, n) uint8, got {tokens.shape} {tokens.dtype}"
        )
    sizes = {"train": train, "validation": validation, "test": test}
    for part, size in sizes.items():
        if size < 1:
            raise ValueError(f"make_data_set: {part} must be at least 1, got {size}")
    total = sum(sizes.values())
    if len(tokens) < total:
        raise ValueError(
            f"make_data_set: train + validation + test = {train} + {validation} + {test} = {total} "
            "sequences needed (data.train, data.validation and data.test of a run), "
            f"got {len(tokens)}"
        )
    if seed < 0:
        raise ValueError(f"make_data_set: seed must be at least 0, got {seed}")
    shuffle_seed, mask_seed = (
        int(child.generate_state(1, np.uint64)[0])
        for child in np.random.SeedSequence(seed).spawn(2)
    )
    order = np.random.default_rng(shuffle_seed).permutation(len(tokens))[:total]
    sequences = mask_sequences(tokens[order], rate, seed=mask_seed)
    stated = dict(provenance or {})
    stated["data_set"] = {**sizes, "rate": rate, "seed": seed, "sequences": len(tokens)}
    return DataSet(
        train=sequences.subset(slice(0, train)),
        validation=sequences.subset(slice(train, train + validation)),
        test=sequences.subset(slice(train + validation, total)),
        provenance=json.loads(json.dumps(stated)),
    )
