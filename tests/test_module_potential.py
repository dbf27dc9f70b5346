"""Any torch.nn.Module as a potential: what it gives, and what it refuses because it is no function
of the weights and of one example."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound

from thermosphere.models.module_potential import ModulePotential


class Network(torch.nn.Module):
    """Normalisation with running statistics (a buffer), a frozen parameter and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.normal = torch.nn.BatchNorm1d(4)
        self.second = torch.nn.Linear(4, 3, bias=False)
        self.second.weight = torch.nn.Parameter(torch.randn(3, 4))
        self.tied = torch.nn.Linear(3, 4)
        self.tied.weight = self.first.weight
        self.tied.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.second(torch.tanh(self.normal(self.first(x)))))


def squared_error(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (network(x) - y).square().mean(1)


def test_module_potential_of_an_ordinary_module() -> None:
    torch.manual_seed(11)
    network = Network().double()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 4).double()
    network(x)  # running statistics
    network.eval()
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    potential = ModulePotential(network, squared_error, x, y)
    names = [entry.name for entry in potential.layout.entries]
    assert names == ["first.weight", "first.bias", "normal.weight", "normal.bias", "second.weight"]
    losses, gradient = potential(potential.initial())
    loss = squared_error(network, x, y).mean()
    loss.backward()
    expected = torch.cat([dict(network.named_parameters())[name].grad.flatten() for name in names])
    assert_close(losses[0], loss, error_bound(loss, operations=100, dtype=np.float64))
    assert_close(gradient[0], expected, error_bound(expected, operations=100, dtype=np.float64))
    for name, value in network.named_buffers():
        assert_same_bits(value, buffers[name])


def test_module_potential_refuses_what_it_cannot_do() -> None:
    x, y = torch.randn(20, 3), torch.randn(20, 4)
    cases = [
        (
            lambda: ModulePotential(Network(), squared_error, x, y),
            "BatchNorm1d 'normal' must be in",
        ),
        (
            lambda: ModulePotential(
                torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout()), squared_error, x, y
            ),
            "Dropout '1' must be in eval mode",
        ),
        (lambda: ModulePotential(Network().eval(), squared_error, x, y[:5]), "one row an example"),
        (lambda: ModulePotential(Network().eval(), squared_error), "one row an example"),
        (lambda: ModulePotential(torch.nn.ReLU(), squared_error, x, y), "trainable parameters"),
    ]
    for build, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            build()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"loss must return \(4,\), one an example, got \(\)"):
        ModulePotential(Network().eval(), lambda n, x, y: squared_error(n, x, y).mean(), x, y)
    scalar = ModulePotential(Network().eval(), squared_error, x, y)
    with pytest.raises(ValueError, match="flat_row must be"):
        scalar.load(torch.zeros(3))


class Attention(torch.nn.Module):
    """Of every example over three tokens."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attend = torch.nn.MultiheadAttention(4, 1, dropout=dropout, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x[:, :, None].expand(-1, -1, 4)
        found: torch.Tensor = self.attend(tokens, tokens, tokens, need_weights=False)[0]
        return found.mean(1)


class Centred(torch.nn.Linear):
    """Less its mean over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x)
        return found - found.mean(0)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Attention(0.5), "the loss must not be random"),
        (
            torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.RReLU(0.01, 0.9)),
            "the loss must not be random",
        ),
        (
            # So many iterations that the vector it writes has come to rest where it is.
            torch.nn.utils.parametrizations.spectral_norm(
                torch.nn.Linear(3, 4), n_power_iterations=200
            ),
            "must not write to the module, got new values of its buffers parametrizations.weight.0",
        ),
        (Centred(3, 4), "the loss of an example must not depend on the others, got"),
        (
            torch.nn.Sequential(
                torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4, track_running_stats=False)
            ).eval(),
            "BatchNorm1d '1' must have running statistics, got those of the batch",
        ),
    ],
    ids=["dropout in attention", "RReLU", "spectral norm", "batch mean", "batch statistics"],
)
def test_module_potential_refuses_what_is_no_function(
    network: torch.nn.Module, message: str
) -> None:
    torch.manual_seed(4)
    x, y = torch.randn(20, 3), torch.randn(20, 4)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with pytest.raises(ValueError, match=message) as caught:
        ModulePotential(network, squared_error, x, y)
    assert "\n" not in str(caught.value)
    for name, buffer in network.named_buffers():
        assert_same_bits(buffer, before[name])


def test_module_potential_takes_such_layers_in_eval_mode() -> None:
    x, y = torch.randn(20, 3), torch.randn(20, 4)
    spectral = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 4))
    for network in (Attention(0.5), spectral):
        potential = ModulePotential(network.eval(), squared_error, x, y)
        assert bool(potential(potential.initial())[1].isfinite().all())


class Scaled(torch.nn.Linear):
    """With a scale that has no axis."""

    def __init__(self) -> None:
        super().__init__(3, 4)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale + self.shift


@pytest.mark.parametrize("vectorise", [False, True])
def test_module_potential_of_a_scalar_in_both_dtypes(vectorise: bool) -> None:
    """Weights of another dtype than the module's take its buffers and the data along."""
    torch.manual_seed(5)
    double = Scaled().double()
    single = copy.deepcopy(double).float()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 4).double()
    losses, slopes = [], []
    for network, data in ((double, (x, y)), (single, (x.float(), y.float()))):
        potential = ModulePotential(network, squared_error, *data, vectorise=vectorise)
        for dtype in (torch.float64, torch.float32):
            loss, gradient = potential(potential.initial().to(dtype).expand(2, -1))
            assert loss.dtype == gradient.dtype == dtype
            losses.append(loss.double())
            slopes.append(gradient.double())
    assert list(potential.layout.views(gradient)["scale"].shape) == [2]
    for loss, gradient in zip(losses[1:], slopes[1:], strict=True):
        bound = error_bound(losses[0], operations=100, dtype=np.float32)
        assert_close(loss, losses[0], bound)
        bound = error_bound(slopes[0], operations=100, dtype=np.float32)
        assert_close(gradient, slopes[0], bound)
    potential.load(potential.initial()[0] * 2)
    assert float(single.scale.detach()) == pytest.approx(3.0)


def test_a_chain_is_as_it_is_alone_and_a_chunk_as_long_as_asked() -> None:
    torch.manual_seed(6)
    seen = []

    def loss(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return squared_error(network, x, y)

    network = torch.nn.Linear(3, 4)
    x, y = torch.randn(20, 3), torch.randn(20, 4)
    potential = ModulePotential(network, loss, x, y, chunk=7, vectorise=True)
    weights = potential.initial() + 0.1 * torch.randn(5, potential.parameters)
    seen.clear()
    losses, gradient = potential(weights)
    assert seen == [7, 7, 6]
    alone, own = potential(weights[:1])
    bound = error_bound(own, operations=100, dtype=np.float32)
    assert_close(gradient[:1], own, bound)
    assert_close(losses[:1], alone, error_bound(alone, operations=100, dtype=np.float32))


@pytest.mark.parametrize("begun", [True, False])
def test_a_change_between_training_and_eval_mode_is_refused(begun: bool) -> None:
    """The function was looked at in the other one."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh()).train(begun)
    potential = ModulePotential(network, squared_error, torch.randn(20, 3), torch.randn(20, 4))
    network[1].train(not begun)
    mode, method = ("training", "train") if begun else ("eval", "eval")
    with pytest.raises(
        ValueError, match=rf"Tanh '1' must be in {mode} mode, .* module\.{method}\(\)"
    ):
        potential(potential.initial())
    network.train(begun)
    potential(potential.initial())


def test_what_is_on_different_devices_is_refused() -> None:
    x, y = torch.randn(20, 3), torch.randn(20, 4)
    frozen, buffer = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    frozen.bias = torch.nn.Parameter(torch.zeros(4, device="meta"), requires_grad=False)
    buffer.register_buffer("shift", torch.zeros(4, device="meta"))
    for network, data, message in (
        (torch.nn.Linear(3, 4), (x, y.to("meta")), "data 1 on meta"),
        (frozen, (x, y), "frozen bias on meta"),
        (buffer, (x, y), "buffer shift on meta"),
    ):
        with pytest.raises(
            ValueError, match=f"all must be on the device of the data, cpu, got {message}$"
        ):
            ModulePotential(network, squared_error, *data)
