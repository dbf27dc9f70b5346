"""A contact energy matrix from text: Miyazawa–Jernigan tables, AAindex entries, plain squares.

What the published tables look like, and what is read:
  names   the first line names the columns, each line may begin with the name of its row; names are
          one letter, three letters of an amino acid, or one word of all letters
  commas  separate as spaces do
  halves  a full square, or its lower or upper triangle with the diagonal, row by row
  AAindex the entry as it is: ``M rows = ARND…, cols = ARND…`` and a lower triangle or a square
Table 3 of Miyazawa and Jernigan (J. Mol. Biol. 256:623, 1996) has e_ij above the diagonal and
another quantity, e'_ij, below it; ``triangle`` says which half is meant.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np
from numpy.typing import NDArray

from thermosphere.proteins.alphabet import ALPHABET, STATES
from thermosphere.proteins.potts import check_interactions

_AAINDEX = re.compile(r"M rows = (\S+) cols = (\S+)")
_TRIANGLES = ("upper", "lower")


class _Row(NamedTuple):
    number: int  # of the line
    words: list[str]


def read_interactions(
    path: str | os.PathLike[str], triangle: str | None = None
) -> tuple[NDArray[np.float64], str]:
    """Read a symmetric matrix of contact energies; ``#`` begins a comment.

    Arguments:
        triangle: "upper" or "lower", the half that counts in a square whose halves differ.

    Returns: J (q, q) float64, and the letters of its states.  The twenty amino acids come in the
    order of ``ALPHABET``, whatever the file's; a 20 × 20 matrix without names is taken to be in
    that order.  Other states keep the file's order; without names their letters are "".
    Raises: ValueError, one line with file, line number, expected and got; OSError where the file
    cannot be read.
    """
    where = f"read_interactions: {path}"
    if triangle not in (None, *_TRIANGLES):
        raise ValueError(f"{where}: triangle must be 'upper' or 'lower', got {triangle!r}")
    text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    rows = [
        _Row(number, words)
        for number, line in enumerate(text.splitlines(), start=1)
        if (words := _uncommented(line).replace(",", " ").split())
    ]
    names, rows = _named_rows(rows, where)
    if len(rows) < 2:
        raise ValueError(f"{where}: expected a matrix of at least 2 rows, got {len(rows)}")
    letters = _letters(names, len(rows), where)
    matrix = check_interactions(_square(rows, triangle, letters, where), where)
    if not letters and len(matrix) == STATES:
        letters = ALPHABET
    if sorted(letters.upper()) == sorted(ALPHABET):
        order = [letters.upper().index(letter) for letter in ALPHABET]
        return matrix[np.ix_(order, order)], ALPHABET
    return matrix, letters


def _uncommented(line: str) -> str:
    """The line without its comment; but np.savetxt writes a header as one, and the twenty letters
    alone are no remark."""
    before, _, comment = line.partition("#")
    is_header = not before.strip() and sorted("".join(comment.split())) == sorted(ALPHABET)
    return comment if is_header else before


def _named_rows(rows: list[_Row], where: str) -> tuple[list[str], list[_Row]]:
    """The names of the states, none where the file has none, and the rows without their names."""
    entries = [k for k, row in enumerate(rows) if row.words[:2] == ["M", "rows"]]
    if entries:
        return _aaindex_rows(rows, entries, where)
    names: list[str] = []
    if rows and not any(_is_number(word) for word in rows[0].words):
        names, rows = rows[0].words, rows[1:]
        if len(names) == 1:  # one word of all letters
            names = list(names[0])
        elif len(names) == len(rows) + 1:  # something stands in the corner, above the row names
            names = names[1:]
    if not rows or _is_number(rows[0].words[0]):
        return names, rows
    labels = [row.words[0] for row in rows]
    for k, row in enumerate(rows):
        if _is_number(labels[k]) or (k < len(names) and labels[k].upper() != names[k].upper()):
            expected = names[k] if k < len(names) else "a name"
            raise ValueError(
                f"{where} line {row.number}: expected the row of {expected}, got {labels[k]!r}"
            )
    return names or labels, [_Row(row.number, row.words[1:]) for row in rows]


def _aaindex_rows(rows: list[_Row], entries: list[int], where: str) -> tuple[list[str], list[_Row]]:
    if len(entries) > 1:
        raise ValueError(
            f"{where} line {rows[entries[1]].number}: expected one AAindex entry, "
            f"got {len(entries)}; keep the one you mean"
        )
    header, body = rows[entries[0]], rows[entries[0] + 1 :]
    found = _AAINDEX.fullmatch(" ".join(header.words))
    if found is None or found[1] != found[2]:
        raise ValueError(
            f"{where} line {header.number}: expected 'M rows = LETTERS, cols = LETTERS', the same "
            f"twice, got {' '.join(header.words)[:60]!r}"
        )
    end = next((k for k, row in enumerate(body) if row.words == ["//"]), len(body))
    return list(found[1]), body[:end]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _letters(names: list[str], states: int, where: str) -> str:
    """One letter a state; "" where there are no names."""
    letters = ""
    for name in names:
        residue = gemmi.find_tabulated_residue(name.upper()) if len(name) == 3 else None
        if len(name) == 1:
            letters += name
        elif residue is not None and residue.is_standard() and residue.is_amino_acid():
            letters += residue.one_letter_code
        else:
            raise ValueError(f"{where}: expected names of one or three letters, got {name!r}")
    if letters and len(letters) != states:
        raise ValueError(f"{where}: expected {states} names, one a row, got {len(letters)}")
    if len(set(letters)) != len(letters):
        twice = next(letter for letter in letters if letters.count(letter) > 1)
        raise ValueError(f"{where}: expected every state once, got {twice!r} twice")
    return letters


def _square(
    rows: list[_Row], triangle: str | None, letters: str, where: str
) -> NDArray[np.float64]:
    """The whole matrix from the rows of a square or a triangle."""
    states = len(rows)
    lengths = [len(row.words) for row in rows]
    if len(set(lengths)) == 1 and lengths[0] != states:
        raise ValueError(f"{where}: expected {lengths[0]} rows of {lengths[0]}, got {states}")
    half = None
    if lengths[0] == 1:
        half, expected = "lower", list(range(1, states + 1))
    elif lengths[1] == lengths[0] - 1:
        half, expected = "upper", list(range(states, 0, -1))
    else:
        expected = [states] * states
    for row, length, right in zip(rows, lengths, expected, strict=True):
        if length != right:
            form = f"the {half} triangle" if half else "a square"
            raise ValueError(
                f"{where} line {row.number}: expected {right} numbers, of {form} of {states} "
                f"rows, got {length}"
            )
    if half and triangle not in (None, half):
        raise ValueError(f"{where}: holds the {half} triangle, got triangle = {triangle!r}")
    matrix = np.zeros((states, states))
    for k, row in enumerate(rows):
        first = k if half == "upper" else 0
        matrix[k, first : first + len(row.words)] = _numbers(row, where)
    half = half or triangle
    if half is None and not np.array_equal(matrix, matrix.T, equal_nan=True):
        a, b = np.argwhere(matrix != matrix.T)[0]
        name = letters or [str(k + 1) for k in range(states)]
        raise ValueError(
            f"{where}: expected a symmetric matrix, got J[{name[a]}, {name[b]}] = "
            f"{matrix[a, b]:g}, J[{name[b]}, {name[a]}] = {matrix[b, a]:g}; triangle = 'upper' or "
            "'lower' takes one half"
        )
    if half is not None:
        kept = np.triu(matrix) if half == "upper" else np.tril(matrix).T
        matrix = kept + np.triu(kept, 1).T
    return matrix


def _numbers(row: _Row, where: str) -> list[float]:
    for word in row.words:
        if not _is_number(word):
            raise ValueError(f"{where} line {row.number}: expected a number, got {word!r}")
        if not np.isfinite(float(word)):
            raise ValueError(f"{where} line {row.number}: expected a finite number, got {word!r}")
    return [float(word) for word in row.words]
