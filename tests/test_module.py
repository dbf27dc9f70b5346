"""Modules whose parameters are views of one flat vector."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound

from thermosphere.models.feedforward import FeedForward
from thermosphere.models.module import FlatModule, as_module
from thermosphere.models.named import Model
from thermosphere.models.transformer import Transformer

MODELS: list[Model] = [
    Transformer("toy", blocks=2, embedding=4, hidden=6, length=7),
    FeedForward("toy", embedding=4, hidden=6, length=7),
]


@pytest.fixture(params=MODELS, ids=["transformer", "feed-forward"])
def module(request: pytest.FixtureRequest) -> FlatModule:
    model: Model = request.param
    return as_module(model, model.initial(1, torch.Generator().manual_seed(0))[0])


def tokens() -> torch.Tensor:
    return torch.randint(0, 21, (3, 7), generator=torch.Generator().manual_seed(1))


def assert_tied(module: FlatModule) -> None:
    """Every parameter lies in `flat`, at its place."""
    for name, view in module.model.layout.views(module.flat).items():
        parameter = module.get_parameter(name)
        assert parameter.data_ptr() == view.data_ptr(), name
        assert parameter.dtype == module.flat.dtype
        assert parameter.shape == view.shape


def test_names_are_those_of_the_layout(module: FlatModule) -> None:
    names = [entry.name for entry in module.model.layout.entries]
    assert [name for name, _ in module.named_parameters()] == names
    assert list(module.state_dict()) == names
    assert_tied(module)


def test_forward_equals_the_model(module: FlatModule) -> None:
    batch = tokens()
    expected = module.model.logits(module.flat[None], batch[None])[0]
    bound = error_bound(expected, operations=1000, dtype=np.float32)
    assert_close(module(batch), expected, bound)
    positions = torch.tensor([[0, 3], [5, 6], [2, 2]])
    some = module(batch, positions)
    assert_close(some, expected.gather(1, positions[..., None].expand(-1, -1, 21)), bound)


def test_training_a_parameter_moves_the_flat_vector(module: FlatModule) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = module.flat.clone()
    module(tokens()).square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
    optimizer.step()
    assert_close(module.flat, before - 0.1 * gradient, 4 * 2.0**-24 * float(before.abs().max()))
    assert float((module.flat - before).abs().max()) > 1e-6
    assert_tied(module)
    module.flat.zero_()
    assert float(module.get_parameter("output.weight").detach().abs().max()) == 0.0


def test_state_dict_round_trip(module: FlatModule) -> None:
    other = as_module(module.model)
    flat = other.flat
    assert not torch.equal(other.flat, module.flat)
    result = other.load_state_dict(module.state_dict())
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert other.flat is flat
    assert_same_bits(other.flat, module.flat)
    assert_tied(other)
    with pytest.raises(ValueError, match="assign must be False"):
        other.load_state_dict(module.state_dict(), assign=True)
    with pytest.raises(RuntimeError, match=r"Missing key.*output\.bias"):
        other.load_state_dict({k: v for k, v in module.state_dict().items() if k != "output.bias"})


def test_dtype_changes_keep_the_ties(module: FlatModule) -> None:
    module(tokens()).sum().backward()
    before = module.flat.clone()
    assert module.double() is module
    assert module.flat.dtype == torch.float64
    assert_tied(module)
    assert module(tokens()).dtype == torch.float64
    assert all(p.grad is not None and p.grad.dtype == torch.float64 for p in module.parameters())
    module.to(torch.float32)
    assert_tied(module)
    assert_same_bits(module.flat, before)


def test_deep_copy_has_weights_of_its_own(module: FlatModule) -> None:
    module.eval()
    twin = copy.deepcopy(module)
    assert_tied(twin)
    assert not twin.training
    assert_same_bits(twin.flat, module.flat)
    twin.flat.add_(1.0)
    assert not torch.equal(twin.flat, module.flat)


def test_the_given_row_is_shared() -> None:
    rows = MODELS[0].initial(2, torch.Generator().manual_seed(2))
    module = as_module(MODELS[0], rows[1])
    with torch.no_grad():
        module.get_parameter("output.bias").fill_(7.0)
    assert bool((rows[1, -21:] == 7.0).all())
    assert not bool((rows[0, -21:] == 7.0).any())


def test_default_weights_follow_the_global_seed() -> None:
    torch.manual_seed(3)
    first = as_module(MODELS[0]).flat
    torch.manual_seed(3)
    assert_same_bits(as_module(MODELS[0]).flat, first)
    assert float(first.abs().max()) > 0.5


def test_dropout_acts_in_training_mode_only() -> None:
    module = as_module(MODELS[0], dropout=0.5)
    module.eval()
    assert_same_bits(module(tokens()), module(tokens()))
    module.train()
    assert not torch.equal(module(tokens()), module(tokens()))


def test_errors() -> None:
    size = MODELS[0].layout.size
    for row in (torch.zeros(3), torch.zeros(2 * size)[::2], torch.zeros(size, dtype=torch.int64)):
        with pytest.raises(ValueError, match=rf"flat_row must be \({size},\) contiguous"):
            as_module(MODELS[0], row)
    with pytest.raises(ValueError, match="dropout must be"):
        as_module(MODELS[0], dropout=1.0)
    with pytest.raises(ValueError, match=r"tokens must be \(1, B, 7\) int64, got \(1, 3, 6\)"):
        as_module(MODELS[0])(tokens()[:, :6])
