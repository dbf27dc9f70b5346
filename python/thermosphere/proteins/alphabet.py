"""The twenty amino acids as small integers, in the order that the paper's data use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ALPHABET = "ARNDCQEGHILKMFPSTWYV"
STATES = 20
MASK = 20
TOKENS = 21

_LETTERS = np.frombuffer(ALPHABET.encode("ascii"), dtype=np.uint8)


def encode(sequence: str) -> NDArray[np.uint8]:
    """Letters to ids 0..19.

    Returns: (n,) uint8.
    Raises: ValueError naming the first letter that is none of the twenty, and its 1-based site.
    """
    ids = np.array([ALPHABET.find(letter) for letter in sequence], dtype=np.int64)
    if (ids < 0).any():
        site = int(np.argmax(ids < 0))
        raise ValueError(
            f"encode: site {site + 1} must be one of {ALPHABET}, got {sequence[site]!r}"
        )
    return ids.astype(np.uint8)


def decode(tokens: NDArray[np.integer]) -> str:
    """Ids 0..19, (n,), to letters.

    Raises: ValueError for another shape or type, or an id above 19 (the mask has no letter).
    """
    if tokens.ndim != 1:
        raise ValueError(f"decode: tokens must be (n,), got shape {tokens.shape}")
    check_states(tokens, STATES, "decode: tokens")
    return _LETTERS[tokens].tobytes().decode("ascii")


def check_states(tokens: NDArray[Any], states: int, where: str) -> None:
    """Refuse, with a ValueError, tokens that are not integers 0..states-1."""
    if tokens.dtype.kind not in "iu":
        raise ValueError(f"{where} must be integers, got {tokens.dtype}")
    if tokens.size and (tokens.min() < 0 or tokens.max() >= states):
        raise ValueError(
            f"{where} must be 0..{states - 1}, got {int(tokens.min())}..{int(tokens.max())}"
        )
