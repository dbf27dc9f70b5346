"""Couplings as CCMpred writes them in its raw output.

A line of fields a site, then for every pair i < j (from 0) a line ``# i j`` and q lines of q
couplings, the state of i down, that of j across.  The last state is the gap; its field is not
written and is zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thermosphere.proteins.alphabet import ALPHABET
from thermosphere.proteins.text_lines import Lines, are_numbers

# The order of twenty-one states.
STATES = ALPHABET + "-"


def read_ccmpred(
    lines: Lines, alphabet: str | None, where: str
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], str]:
    """Pairs (E, 2), couplings (E, q, q), fields (n, q) and letters, as they stand in the file.

    alphabet: letters of the states.
    Raises: ValueError, one line with the line number, expected and got.
    """
    headers, sites = [], []
    for k in np.flatnonzero(lines.first == ord("#")).tolist():
        words = " ".join(lines.words(k)).removeprefix("#").split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            headers.append(k)
            sites.append((int(words[0]), int(words[1])))
    rows = np.flatnonzero((lines.first != 0) & (lines.first != ord("#")))
    if not headers:
        raise ValueError(f"{where}: expected blocks of couplings headed '# i j', got none")
    h_rows, j_rows = np.split(rows, [np.searchsorted(rows, headers[0])])
    if not len(h_rows):
        raise ValueError(f"{where}: expected a line of fields a site before '# i j', got none")
    if not len(j_rows):
        raise lines.wrong(headers[0], where, "lines of couplings after '# i j'")

    def numbers(chosen: NDArray[np.int64], what: str) -> NDArray[np.float64]:
        count = len(lines.words(int(chosen[0])))
        expected = f"{count} {what}"
        table = lines.table(
            chosen,
            np.dtype(np.float64),
            where,
            expected,
            lambda words: len(words) == count and are_numbers(words),
        )
        bad = ~np.isfinite(table).all(axis=1)
        if bad.any():
            raise lines.wrong(int(chosen[np.argmax(bad)]), where, f"finite {what}")
        return table

    fields, values = numbers(h_rows, "fields"), numbers(j_rows, "couplings")
    n, q = len(fields), values.shape[1]
    if fields.shape[1] not in (q - 1, q):
        raise lines.wrong(int(h_rows[0]), where, f"{q - 1} or {q} fields, as couplings have states")
    if fields.shape[1] == q - 1:
        fields = np.column_stack([fields, np.zeros(n)])
    sizes = np.diff(np.append(np.searchsorted(j_rows, headers), len(j_rows)))
    if (sizes != q).any():
        k = int(np.argmax(sizes != q))
        raise ValueError(
            f"{where} line {headers[k] + 1}: expected {q} lines of couplings after "
            f"'# {sites[k][0]} {sites[k][1]}', got {sizes[k]}"
        )
    seen: set[tuple[int, int]] = set()
    for k, (i, j) in zip(headers, sites, strict=True):
        if not i < j < n:
            raise lines.wrong(k, where, f"two sites i < j of 0..{n - 1}, as there are fields")
        if (i, j) in seen:
            raise lines.wrong(k, where, "every pair once")
        seen.add((i, j))
    letters = alphabet if alphabet is not None else STATES if q == 21 else ""
    if letters and len(letters) != q:
        raise ValueError(f"{where}: alphabet must have {q} letters, got {letters!r}")
    return np.array(sites, dtype=np.int64), values.reshape(-1, q, q), fields, letters
