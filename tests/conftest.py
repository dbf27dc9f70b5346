"""What several test files ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from thermosphere import _core


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
