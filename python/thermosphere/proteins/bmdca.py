"""Couplings as bmDCA and adabmDCA write them: ``J i j a b value`` and ``h i a value``.

Lines come in any order, sites from 0 or 1, states as numbers or as letters.  Couplings that are not
there are zero (adabmDCA prunes), fields must be there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thermosphere.proteins.text_lines import Lines, are_numbers

# The order of twenty-one states numbered from 0.  Programs that number from 1 differ in where the
# gap stands, so their states have no letters unless they are given.
STATES = "-ACDEFGHIKLMNPQRSTVWY"

_FIELD = np.dtype([("kind", "S2"), ("i", "i8"), ("a", "S4"), ("value", "f8")])
_COUPLING = np.dtype(
    [("kind", "S2"), ("i", "i8"), ("j", "i8"), ("a", "S4"), ("b", "S4"), ("value", "f8")]
)


class _Fields(NamedTuple):
    values: NDArray[np.float64]  # (n, q)
    base: int  # the number of the first site
    words: list[str]  # the states as they stand in the file
    letters: str


def read_bmdca(
    lines: Lines, alphabet: str | None, where: str
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], str]:
    """Pairs (E, 2), couplings (E, q, q), fields (n, q) and letters, as they stand in the file.

    alphabet: letters of numbered states.
    Raises: ValueError, one line with the line number, expected and got.
    """
    strange = ~np.isin(lines.first, [0, ord("#"), ord("J"), ord("h")])
    if strange.any():
        raise lines.wrong(int(np.argmax(strange)), where, "'J i j a b value' or 'h i a value'")
    fields = _read_fields(lines, alphabet, where)
    n, q = fields.values.shape
    at = np.flatnonzero(lines.first == ord("J"))
    if not len(at):
        pairs = np.zeros((0, 2), dtype=np.int64)
        return pairs, np.zeros((0, q, q)), fields.values, fields.letters

    table = lines.table(at, _COUPLING, where, "'J i j a b value'", _is_coupling)

    def refuse(bad: NDArray[np.bool_], expected: str) -> None:
        if bad.any():
            raise lines.wrong(int(at[np.argmax(bad)]), where, expected)

    refuse(table["kind"] != b"J", "'J i j a b value'")
    refuse(~np.isfinite(table["value"]), "a finite coupling")
    i, j = table["i"] - fields.base, table["j"] - fields.base
    outside = (np.minimum(i, j) < 0) | (np.maximum(i, j) >= n)
    refuse(outside, f"sites {fields.base}..{fields.base + n - 1}, as there are fields")
    refuse(i == j, "two different sites")
    a, b = (_state_ids(table[name], fields.words) for name in ("a", "b"))
    refuse((a < 0) | (b < 0), f"states {_listed(fields.words)}, as there are fields")

    mirrored = i > j
    i, j = np.where(mirrored, j, i), np.where(mirrored, i, j)
    a, b = np.where(mirrored, b, a), np.where(mirrored, a, b)
    coupled = np.zeros(n * n, dtype=bool)
    coupled[i * n + j] = True
    block = np.cumsum(coupled) - 1
    place = (block[i * n + j] * q + a) * q + b
    order = np.argsort(place, kind="stable")
    again = np.flatnonzero(place[order][1:] == place[order][:-1])
    then, now = order[again], order[again + 1]
    # J i j a b and J j i b a are the same number, and some programs write both.
    twice = (mirrored[then] == mirrored[now]) | (table["value"][then] != table["value"][now])
    if twice.any():
        raise lines.wrong(int(at[now[twice].min()]), where, "every coupling once")
    couplings = np.zeros((int(coupled.sum()), q, q))
    couplings.reshape(-1)[place] = table["value"]
    pairs = np.column_stack(np.divmod(np.flatnonzero(coupled), n))
    return pairs, couplings, fields.values, fields.letters


def _read_fields(lines: Lines, alphabet: str | None, where: str) -> _Fields:
    at = np.flatnonzero(lines.first == ord("h"))
    if not len(at):
        raise ValueError(f"{where}: expected 'h i a value' of every site and state, got none")
    table = lines.table(at, _FIELD, where, "'h i a value'", _is_field)
    for bad, expected in (
        (table["kind"] != b"h", "'h i a value'"),
        (~np.isfinite(table["value"]), "a finite field"),
    ):
        if bad.any():
            raise lines.wrong(int(at[np.argmax(bad)]), where, expected)
    base, last = int(table["i"].min()), int(table["i"].max())
    if base not in (0, 1):
        raise lines.wrong(int(at[np.argmin(table["i"])]), where, "sites from 0 or 1")
    keys, seen = np.unique(table["a"], return_index=True)
    words = [key.decode("utf-8", errors="replace") for key in keys[np.argsort(seen)]]
    q = len(words)
    if all(word.isdigit() for word in words):
        words = sorted(words, key=int)
        start = min(int(words[0]), 1)
        if [int(word) for word in words] != list(range(start, start + q)):
            raise ValueError(f"{where}: expected states 0, 1, 2, …, got {_listed(words)}")
        letters = STATES if q == 21 and start == 0 else ""
        letters = letters if alphabet is None else alphabet
        if letters and len(letters) != q:
            raise ValueError(f"{where}: alphabet must have {q} letters, got {letters!r}")
    elif all(len(word) == 1 for word in words):
        letters = "".join(words)
    else:
        k = next(k for k, word in enumerate(words) if len(word) != 1)
        raise lines.wrong(int(at[np.sort(seen)[k]]), where, "a state of one letter")
    place = (table["i"] - base) * q + _state_ids(table["a"], words)
    order = np.argsort(place, kind="stable")
    twice = order[1:][place[order][1:] == place[order][:-1]]
    if len(twice):
        raise lines.wrong(int(at[twice.min()]), where, "every field once")
    if len(place) != (last - base + 1) * q:
        # They are distinct, so one of the first len(place) + 1 is not there.
        i, a = divmod(int(np.setdiff1d(np.arange(len(place) + 1), place)[0]), q)
        raise ValueError(
            f"{where}: expected a field of every site {base}..{last} and state {_listed(words)}, "
            f"got none of site {i + base}, state {words[a]}"
        )
    return _Fields(table["value"][order].reshape(-1, q), base, words, letters)


def _state_ids(tokens: NDArray[np.bytes_], words: list[str]) -> NDArray[np.int64]:
    """The place of each token in ``words``, -1 where it is not there.

    Four bytes are compared as one number: 0.18 s for 3 million, as strings 0.44 s.
    """
    codes = np.ascontiguousarray(tokens).view(np.uint32)
    keys = np.array([word.encode() for word in words], dtype="S4").view(np.uint32)
    order = np.argsort(keys)
    found = np.minimum(np.searchsorted(keys[order], codes), len(keys) - 1)
    return np.where(keys[order][found] == codes, order[found], -1)


def _listed(words: list[str]) -> str:
    return ", ".join(words) if len(words) <= 3 else f"{words[0]}, {words[1]}, … {words[-1]}"


def _is_site(word: str) -> bool:
    return word.isdigit() and len(word) < 10


def _is_field(words: list[str]) -> bool:
    return len(words) == 4 and _is_site(words[1]) and are_numbers(words[3:])


def _is_coupling(words: list[str]) -> bool:
    return len(words) == 6 and all(map(_is_site, words[1:3])) and are_numbers(words[5:])
