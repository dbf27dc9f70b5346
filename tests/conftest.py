"""What several test files ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from thermosphere import _core

# Without a GPU Triton's kernels run under its interpreter, which must be asked for before Triton is
# first imported; nothing else reads the variable, and torch does not import Triton by itself.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def gpu() -> str:
    """The device of Triton's kernels: a GPU, or the CPU under Triton's interpreter."""
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=_core.isa_available())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set in turn."""
    before = _core.isa_chosen()
    _core.isa_choose(request.param)
    yield request.param
    _core.isa_choose(before)


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Small tensors, many operations: a second thread of PyTorch only spins."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two models on the hairpin; a module may have a `finished` of its own."""
    from hairpin_run import run_hairpin

    return run_hairpin(tmp_path_factory.mktemp("hairpin"))


@pytest.fixture(scope="session")
def published(finished: Path) -> Path:
    """What was published of it, in its directory."""
    from hairpin_run import published_of

    return published_of(finished)
