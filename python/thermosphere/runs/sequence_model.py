"""What a run samples its sequences from: a contact map with one matrix, or fields and couplings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thermosphere.proteins.alphabet import ALPHABET
from thermosphere.proteins.couplings import GAP, read_couplings
from thermosphere.proteins.fasta import read_sequences
from thermosphere.proteins.interactions import read_interactions
from thermosphere.proteins.potts import PottsModel, interaction_matrix
from thermosphere.proteins.structure import ContactMap, native_2abd
from thermosphere.runs.config import Config


def sequence_model(
    config: Config, protein: ContactMap | None, say: Callable[[str], None]
) -> PottsModel:
    """The model that the settings name.  protein: None where a run with couplings has no structure.

    A gap state is left out unless ``sequences.gaps`` keeps it, and ``say`` is told.
    Raises: ValueError for a wrong file, or couplings of another length than the structure.
    """
    settings = config.sequences
    if settings.couplings is None:
        assert protein is not None
        if settings.interactions is None:
            matrix, letters = interaction_matrix(config.interaction_seed), ALPHABET
        else:
            matrix, letters = read_interactions(settings.interactions, settings.triangle)
        return PottsModel.from_contacts(protein.contacts, matrix, protein.length, letters)
    model = read_couplings(
        settings.couplings,
        settings.couplings_format,
        alphabet=settings.couplings_alphabet,
        threshold=settings.couplings_threshold,
    )
    if protein is not None and protein.length != model.length:
        raise ValueError(
            f"{settings.couplings}: couplings must have the {protein.length} sites of the "
            f"structure, got {model.length}; leave the structure out, or give one of the "
            "alignment's columns"
        )
    if GAP in model.alphabet and not settings.gaps:
        model = model.restricted(model.alphabet.replace(GAP, ""))
        say(
            "sequences: the gap state is left out, the law is the one of sequences without gaps "
            "(sequences.gaps = true keeps it)"
        )
    return model


def check_networks_read(letters: str, states: int) -> None:
    """ValueError unless these are the letters of sequences that the networks read."""
    if letters != ALPHABET:
        raise ValueError(
            f"dataset: the networks read the twenty amino acids {ALPHABET}, the sequences "
            f"are of {states} states {letters or 'without letters (sequences.couplings_alphabet)'}"
        )


def check_readable(config: Config, contacts: Path) -> None:
    """ValueError or OSError where sequences that are yet to be read or sampled will not do, before
    anything is made of them. contacts: where the contact map is, if it is there already."""
    settings = config.sequences
    if settings.file is not None:
        sequences, data = read_sequences(settings.file), config.data
        found, sites = sequences.shape
        if config.structure.file is None or contacts.is_file():
            known = contacts.is_file()
            length = (ContactMap.load(contacts) if known else native_2abd()).length
            if sites != length:
                raise ValueError(
                    f"{settings.file}: sequences must have the {length} sites of "
                    + (f"{contacts}" if known else "the built-in protein")
                    + f", got {sites}; --structure FILE names another"
                )
        if found < data.train + data.validation + data.test:
            raise ValueError(
                f"{settings.file}: data.train + data.validation + data.test = {data.train} + "
                f"{data.validation} + {data.test} sequences needed, got {found}"
            )
        return
    if settings.couplings is not None:
        model = sequence_model(config, None, lambda line: None)
        check_networks_read(model.alphabet, model.states)
    elif settings.interactions is not None:
        matrix, letters = read_interactions(settings.interactions, settings.triangle)
        check_networks_read(letters, len(matrix))


def check_letters(alphabet: str) -> None:
    """ValueError where a list of sequences is asked for and states have no letters."""
    if not alphabet:
        raise ValueError(
            "sequences.fasta needs a letter of each of the states: names in the file of "
            "interactions, or sequences.couplings_alphabet"
        )


def starting_sequence(
    model: PottsModel, protein: ContactMap | None, moves: str, seed: int
) -> NDArray[np.uint8]:
    """(n,) tokens: the structure's sequence, whose composition swap moves keep; for mutation moves,
    where there is none or its letters are no states, a random one.

    Raises: ValueError where swap moves find no sequence in the model's letters.
    """
    if protein is not None and set(protein.sequence) <= set(model.alphabet):
        places = [model.alphabet.index(letter) for letter in protein.sequence]
        return np.array(places, dtype=np.uint8)
    if moves == "swap":
        raise ValueError(
            "sequences.moves = 'swap' keeps the composition of the structure's sequence, which is "
            f"not in the states {model.alphabet!r}; use sequences.moves = 'mutation'"
        )
    generator = np.random.default_rng(seed)
    return generator.integers(0, model.states, model.length, dtype=np.uint8)
