"""Sequences as text: FASTA, or one sequence a line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thermosphere.proteins.alphabet import ALPHABET, check_states
from thermosphere.proteins.text_lines import unpacked

_NO_ID = 255


def _letter_ids() -> NDArray[np.uint8]:
    ids = np.full(256, _NO_ID, dtype=np.uint8)
    for index, letter in enumerate(ALPHABET):
        ids[ord(letter)] = ids[ord(letter.lower())] = index
    return ids


_IDS = _letter_ids()


def _records(lines: list[str], path: Path) -> list[tuple[int, str, list[tuple[int, str]]]]:
    """(line, name, [(line, letters), …]) of every sequence; plain text gives one record a line."""
    fasta = next((line.startswith(">") for line in lines if line.strip()), False)
    records: list[tuple[int, str, list[tuple[int, str]]]] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if text.startswith(">"):
            if not fasta:
                raise ValueError(
                    f"read_sequences: {path} line {number}: a FASTA header in a file that begins "
                    "as plain text"
                )
            records.append((number, text[1:].strip(), []))
        elif fasta:
            records[-1][2].append((number, text))
        else:
            records.append((number, "", [(number, text)]))
    return records


def read_sequences(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read aligned sequences of the twenty amino acids, upper or lower case.

    A file whose first line begins with ``>`` is FASTA (a sequence may run over several lines); any
    other has one sequence a line.  Blank lines are skipped.  ``.gz`` is unpacked.

    Returns: (S, n) uint8, ids in the order of ``ALPHABET``.
    Raises: ValueError with the line number for a letter outside the alphabet, a sequence of another
    length than the first, or an empty record; OSError where the file cannot be read.
    """
    path = Path(path)
    try:
        lines = unpacked(path, f"read_sequences: {path}").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"read_sequences: {path} must be UTF-8 text, got byte "
            f"0x{error.object[error.start]:02x} at offset {error.start}"
        ) from None
    records = _records(lines, path)
    if not records:
        raise ValueError(f"read_sequences: {path} holds no sequence")
    rows = []
    for number, name, pieces in records:
        parts = []
        for piece_number, letters in pieces:
            ids = _IDS[np.frombuffer(letters.encode("ascii", "replace"), dtype=np.uint8)]
            if (ids == _NO_ID).any():
                column = int(np.argmax(ids == _NO_ID))
                raise ValueError(
                    f"read_sequences: {path} line {piece_number}: letter {column + 1} must be one "
                    f"of {ALPHABET}, got {letters[column]!r}"
                )
            parts.append(ids)
        if not parts:
            raise ValueError(f"read_sequences: {path} line {number}: record {name!r} is empty")
        rows.append(np.concatenate(parts))
        if rows[-1].size != rows[0].size:
            raise ValueError(
                f"read_sequences: {path} line {number}: length must be {rows[0].size} like the "
                f"first sequence, got {rows[-1].size}"
            )
    return np.stack(rows)


def write_fasta(
    path: str | os.PathLike[str],
    tokens: ArrayLike,
    names: list[str] | None = None,
    *,
    alphabet: str = ALPHABET,
) -> None:
    """Write sequences as FASTA, one line a sequence, atomically.

    Arguments:
        tokens: (S, n) integers, each the place of its letter in ``alphabet``.
        names: S headers; ``sequence_1`` … by default.
        alphabet: ASCII letters of the states.

    Raises: ValueError for another shape, an id without a letter, or a wrong number of names.
    """
    array = np.asarray(tokens)
    if array.ndim != 2:
        raise ValueError(f"write_fasta: tokens must be (S, n), got shape {array.shape}")
    check_states(array, len(alphabet), "write_fasta: tokens")
    headers = names if names is not None else [f"sequence_{k + 1}" for k in range(len(array))]
    if len(headers) != len(array):
        raise ValueError(f"write_fasta: expected {len(array)} names, got {len(headers)}")
    for header in headers:
        if len(header.splitlines()) > 1:
            raise ValueError(f"write_fasta: a name must be one line, got {header!r}")
    letters = np.frombuffer(alphabet.encode("ascii"), dtype=np.uint8)
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="ascii") as file:
        for header, row in zip(headers, array, strict=True):
            file.write(f">{header}\n{letters[row].tobytes().decode('ascii')}\n")
    os.replace(partial, path)
