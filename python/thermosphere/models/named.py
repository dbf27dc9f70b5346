"""The five networks of the paper by name (arXiv 2603.29529, appendix A)."""

from __future__ import annotations

from thermosphere.models.feedforward import FeedForward
from thermosphere.models.transformer import Transformer

Model = Transformer | FeedForward

NAMES = ("tf1", "tf4", "tf1-small", "tf4-small", "ff")


def named_model(name: str, length: int = 86) -> Model:
    """One of `NAMES` for sequences of `length` sites (N does not depend on it).

    N = 44,245 (tf1), 168,853 (tf4), 8,107 (tf1-small), 8,953 (tf4-small), 173,653 (ff).
    ValueError for another name or a length below 1.
    """
    match name:
        case "tf1":
            return Transformer(name, blocks=1, embedding=64, hidden=256, length=length)
        case "tf4":
            return Transformer(name, blocks=4, embedding=64, hidden=256, length=length)
        case "tf1-small":
            return Transformer(name, blocks=1, embedding=26, hidden=104, length=length)
        case "tf4-small":
            return Transformer(name, blocks=4, embedding=14, hidden=56, length=length)
        case "ff":
            return FeedForward(name, embedding=64, hidden=320, length=length)
    raise ValueError(f"named_model: name must be one of {', '.join(NAMES)}, got {name!r}")
