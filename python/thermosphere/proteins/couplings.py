"""Fields and couplings of direct-coupling analysis, in the text files that its programs write.

Those programs state P(s) ∝ exp(Σ_i h_i(s_i) + Σ_{i<j} J_ij(s_i, s_j)); a ``PottsModel`` holds
energies, so every number changes its sign on the way in and out, and T = 1 is the file's own law.

  bmdca    bmDCA and adabmDCA, see bmdca.py; its states 0..20 are ``-ACDEFGHIKLMNPQRSTVWY``
  ccmpred  CCMpred's raw output, see ccmpred.py; 21 states are ``ARNDCQEGHILKMFPSTWYV-``
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from thermosphere.proteins.alphabet import ALPHABET
from thermosphere.proteins.bmdca import read_bmdca
from thermosphere.proteins.ccmpred import read_ccmpred
from thermosphere.proteins.potts import PottsModel
from thermosphere.proteins.text_lines import Lines, are_numbers

FORMATS = ("bmdca", "ccmpred")
GAP = "-"


def read_couplings(
    path: str | os.PathLike[str],
    file_format: str = "auto",
    *,
    alphabet: str | None = None,
    threshold: float = 0.0,
) -> PottsModel:
    """Read a model of its own fields and couplings; a name that ends in ``.gz`` is unpacked.

    Arguments:
        file_format: "bmdca", "ccmpred", or "auto", which looks at the first line.
        alphabet: the letters of numbered states, in their order; "" for none.
        threshold: pairs whose couplings are nowhere larger than this are left out.

    Returns: PottsModel of the energies −h and −J.  The twenty amino acids come in the order of
    ``ALPHABET`` whatever the file's, a gap after them; other states keep the file's order.
    Raises: ValueError, one line with file, line number, expected and got; OSError where the file
    cannot be read.
    """
    where = f"read_couplings: {path}"
    if file_format not in ("auto", *FORMATS):
        raise ValueError(f"{where}: format must be auto, {', '.join(FORMATS)}, got {file_format!r}")
    if not threshold >= 0.0:
        raise ValueError(f"{where}: threshold must be at least 0, got {threshold}")
    lines = Lines.of(Path(path), where)
    if file_format == "auto":
        file_format = _detect(lines, where)
    read = read_bmdca if file_format == "bmdca" else read_ccmpred
    pairs, couplings, fields, letters = read(lines, alphabet, where)
    if alphabet is not None and sorted(alphabet) != sorted(letters):
        raise ValueError(
            f"{where}: alphabet must be the file's letters {letters!r}, got {alphabet!r}"
        )
    strong = np.abs(couplings).max(axis=(1, 2), initial=0.0) > threshold
    couplings = 0.0 - couplings[strong]
    fields = 0.0 - fields
    known = ALPHABET + GAP if GAP in letters else ALPHABET
    if sorted(letters) == sorted(known) and letters != known:
        order = np.array([letters.index(letter) for letter in known])
        couplings, fields = couplings[:, order[:, None], order], fields[:, order]
        letters = known
    try:
        return PottsModel.from_couplings(pairs[strong], couplings, fields, letters)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def write_couplings(path: str | os.PathLike[str], model: PottsModel) -> None:
    """Write −E as adabmDCA reads it: ``J i j a b value`` and ``h i a value``, sites from 0.

    States are the model's letters, numbers from 0 where it has none.  Numbers are written so that
    reading them gives the same bits.  An interrupted write leaves the old file as it was.

    Raises: OSError where the file cannot be written.
    """
    names = list(model.alphabet) or [str(a) for a in range(model.states)]
    both = [f"{a} {b}" for a in names for b in names]
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    with partial.open("w", encoding="utf-8") as file:
        for (i, j), block in zip(model.pairs.tolist(), model.block.tolist(), strict=True):
            values = (0.0 - model.couplings[block]).ravel().tolist()
            file.writelines(
                f"J {i} {j} {ab} {value!r}\n" for ab, value in zip(both, values, strict=True)
            )
        for i, field in enumerate((0.0 - model.fields).tolist()):
            file.writelines(f"h {i} {a} {value!r}\n" for a, value in zip(names, field, strict=True))
    os.replace(partial, path)


def _detect(lines: Lines, where: str) -> str:
    for k in np.flatnonzero((lines.first != 0) & (lines.first != ord("#"))):
        words = lines.words(int(k))
        if words[0] in ("J", "h"):
            return "bmdca"
        if are_numbers(words):
            return "ccmpred"
        raise lines.wrong(int(k), where, "'J i j a b value', 'h i a value' or a line of numbers")
    raise ValueError(f"{where}: expected fields and couplings, got no line of them")
