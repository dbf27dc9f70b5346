"""The layout packs, finds and views the named tensors of a flat vector."""

from __future__ import annotations

import json

import pytest
import torch

from thermosphere.models.layout import Entry, Layout
from thermosphere.models.named import NAMES, named_model

LAYOUT = Layout.from_shapes({"a": (2, 3), "b.gain": (4,), "c": (1, 1, 5)})


def test_packs_without_gaps() -> None:
    assert LAYOUT.entries == (
        Entry("a", (2, 3), 0),
        Entry("b.gain", (4,), 6),
        Entry("c", (1, 1, 5), 10),
    )
    assert LAYOUT.size == 15
    assert LAYOUT.slice("b.gain") == slice(6, 10)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_views_share_memory(lead: tuple[int, ...]) -> None:
    flat = torch.arange(15.0).expand(*lead, 15).clone()
    views = LAYOUT.views(flat)
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "a": (*lead, 2, 3),
        "b.gain": (*lead, 4),
        "c": (*lead, 1, 1, 5),
    }
    assert torch.equal(views["a"].flatten(-2), flat[..., :6])
    views["c"][...] = -1.0
    assert torch.equal(flat[..., 10:], -torch.ones(*lead, 5))
    assert torch.equal(flat[..., :10], torch.arange(10.0).expand(*lead, 10))


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip(name: str) -> None:
    layout = named_model(name).layout
    assert Layout.from_json(layout.to_json()) == layout
    assert json.loads(layout.to_json())[0] == {
        "name": "embedding",
        "shape": list(layout.entries[0].shape),
        "offset": 0,
    }


def test_names_of_the_transformer() -> None:
    names = [entry.name for entry in named_model("tf1").layout.entries]
    assert names == [
        "embedding",
        "blocks.0.query_key",
        "blocks.0.value_output",
        "blocks.0.norm1.gain",
        "blocks.0.norm1.bias",
        "blocks.0.feedforward1.weight",
        "blocks.0.feedforward1.bias",
        "blocks.0.feedforward2.weight",
        "blocks.0.feedforward2.bias",
        "blocks.0.norm2.gain",
        "blocks.0.norm2.bias",
        "output.weight",
        "output.bias",
    ]


def test_wrong_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):
        Layout((Entry("a", (2,), 0), Entry("a", (2,), 2)))
    with pytest.raises(ValueError, match="must start at offset 2, got 3"):
        Layout((Entry("a", (2,), 0), Entry("b", (2,), 3)))
    with pytest.raises(ValueError, match="positive"):
        Layout((Entry("a", (0,), 0),))
    with pytest.raises(ValueError, match=r"flat must be \(\.\.\., 15\), got \(14,\)"):
        LAYOUT.views(torch.zeros(14))
    with pytest.raises(ValueError, match="got 'd'"):
        LAYOUT.slice("d")


@pytest.mark.parametrize("text", ["", "3", "{}x", '[{"name": "a"}]', '[{"name": "a", "shape": 3}]'])
def test_wrong_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a JSON list") as caught:
        Layout.from_json(text)
    assert "\n" not in str(caught.value)
