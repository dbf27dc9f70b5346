"""The named layout of a flat weight vector: which entries of the N numbers are which tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch


class Entry(NamedTuple):
    """One named tensor of the flat vector."""

    name: str  # dotted, for example blocks.0.norm1.gain
    shape: tuple[int, ...]
    offset: int  # first element in the flat vector

    @property
    def size(self) -> int:
        """Number of elements, Π shape."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Names, shapes and offsets of the tensors packed without gaps in one vector of N numbers.

    Raises ValueError when a name repeats, a shape is not positive, or the entries leave a gap.
    """

    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        names: set[str] = set()
        offset = 0
        for entry in self.entries:
            if not entry.name or entry.name in names:
                raise ValueError(f"Layout: names must be distinct, not empty, got {entry.name!r}")
            if any(extent < 1 for extent in entry.shape):
                raise ValueError(
                    f"Layout: shape of {entry.name} must be positive, got {entry.shape}"
                )
            if entry.offset != offset:
                raise ValueError(
                    f"Layout: {entry.name} must start at offset {offset}, got {entry.offset}"
                )
            names.add(entry.name)
            offset += entry.size

    @staticmethod
    def from_shapes(shapes: Mapping[str, Iterable[int]]) -> Layout:
        """Pack the named shapes one after another in the order given."""
        entries: list[Entry] = []
        offset = 0
        for name, extents in shapes.items():
            entry = Entry(name, tuple(int(extent) for extent in extents), offset)
            entries.append(entry)
            offset += entry.size
        return Layout(tuple(entries))

    @cached_property
    def size(self) -> int:
        """N, the length of the flat vector."""
        return sum(entry.size for entry in self.entries)

    @cached_property
    def _by_name(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.entries}

    def slice(self, name: str) -> slice:
        """Where the tensor `name` lies in the flat vector. ValueError for an unknown name."""
        entry = self._by_name.get(name)
        if entry is None:
            raise ValueError(f"Layout.slice: name must be that of an entry, got {name!r}")
        return slice(entry.offset, entry.offset + entry.size)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of `flat` (..., N), one (..., *shape) a name; writing to a view writes to `flat`.

        ValueError when the last axis is not N long.
        """
        if flat.ndim < 1 or flat.shape[-1] != self.size:
            raise ValueError(
                f"Layout.views: flat must be (..., {self.size}), got {tuple(flat.shape)}"
            )
        return {
            entry.name: flat[..., entry.offset]
            if entry.shape == ()
            else flat[..., entry.offset : entry.offset + entry.size].unflatten(-1, entry.shape)
            for entry in self.entries
        }

    def to_json(self) -> str:
        """The entries as JSON text: a list of {name, shape, offset}."""
        return json.dumps([entry._asdict() for entry in self.entries])

    @staticmethod
    def from_json(text: str) -> Layout:
        """Inverse of `to_json`. ValueError when the text is not such a list."""
        try:
            rows = json.loads(text)
            entries = tuple(
                Entry(str(row["name"]), tuple(int(e) for e in row["shape"]), int(row["offset"]))
                for row in rows
            )
        except (json.JSONDecodeError, TypeError, KeyError, ValueError) as error:
            raise ValueError(
                "Layout.from_json: text must be a JSON list of {name, shape, offset}, "
                f"got {text[:60]!r}"
            ) from error
        return Layout(entries)
