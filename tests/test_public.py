"""What other projects import is there, and the README's example of it runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import thermosphere

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there() -> None:
    for name in thermosphere.__all__:
        assert getattr(thermosphere, name) is not None
        assert name in dir(thermosphere)
    assert "Minibatch" in thermosphere.__all__  # what a potential of one's own is called with
    with pytest.raises(AttributeError, match="has no attribute 'Langevine'"):
        _ = thermosphere.Langevine


def test_the_version_is_the_extensions_own() -> None:
    from thermosphere import _core

    assert _core.build_info()["version"] == thermosphere.__version__


def test_the_readme_example_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(example, names)
    state, draws = names["state"], names["draws"]
    assert isinstance(state, thermosphere.LangevinState)
    norm2 = (state.weights.double() ** 2).sum(1)
    assert torch.allclose(norm2, state.norm2, rtol=1e-6)
    assert isinstance(draws, list)
    assert torch.stack(draws).isfinite().all()
    assert not torch.equal(draws[0], draws[-1])  # copies
