"""What goes wrong most often when one brings a module of one's own: each is one clear line, or
simply works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from thermosphere import HybridMonteCarlo, Langevin, ModulePotential, Regularised

pytestmark = pytest.mark.usefixtures("one_torch_thread")

S, D = 96, 4
X = torch.randn(S, D, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(D, 1)


def squares(net: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return net(x).square().sum(1)


def potential(loss: Any = squares) -> ModulePotential:
    return ModulePotential(network(), loss, X)


def test_gradients_of_other_modules_and_of_data_stay_outside() -> None:
    """A teacher that is not frozen, and data that carry their history: the same bits as without."""
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(net: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return (net(x) - teacher(x)).square().sum(1)

    def known(net: Callable[..., torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (net(x) - y).square().sum(1)

    outcomes = []
    for frozen in (False, True):
        teacher.requires_grad_(not frozen)
        for energy in (potential(loss), ModulePotential(network(), known, X, teacher(X))):
            for batch in (None, 16):
                sampler = Langevin(energy, 1e-2, seed=2, batch=batch)
                state = sampler.init(energy.initial()[0])
                losses = sampler.run(state, 20)
                tensors = (losses, state.weights, state.momenta, state.masses)
                assert not any(tensor.requires_grad for tensor in tensors)
                outcomes.append(state.weights.numpy().copy())
    first, second = outcomes[:4], outcomes[4:]
    for one, other in zip(first, second, strict=True):
        assert (one == other).all()


def test_a_loss_that_forgets_its_network() -> None:
    module = network()
    for loss in (lambda net, x: squares(module, x), lambda net, x: squares(net, x).detach()):
        with pytest.raises(ValueError, match="must depend on the network it is given"):
            ModulePotential(module, loss, X)
    # Where the loss is least it has no slope, and is accepted all the same.
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.zero_()
    ModulePotential(module, squares, X)


def test_a_loss_without_curvature() -> None:
    straight = potential(lambda net, x: net(x)[:, 0])
    for modes in (0, 2):
        sampler = Langevin(straight, 1e-2, batch=None, modes=modes)
        with pytest.raises(ValueError, match=r"U must curve upwards .* give `masses` explicitly"):
            sampler.init(straight.initial()[0])


def test_a_state_goes_on_at_its_own_temperatures_alone() -> None:
    energy = potential()
    cold = Langevin(energy, [1e-2, 1e-2], seed=0)
    state = cold.init(energy.initial()[0])
    before = state.weights.clone()
    for other in (Langevin(energy, [5.0, 5.0], seed=0), Langevin(energy, 1e-2, seed=0)):
        with pytest.raises(ValueError, match=r"must have the sampler's temperatures .* goes on at"):
            other.run(state, 3)
    assert torch.equal(state.weights, before)
    hybrid = HybridMonteCarlo(energy, 1e-2, seed=0)
    exact = hybrid.init(energy.initial()[0])
    for method in ("warm_up", "run"):
        with pytest.raises(ValueError, match=f"{method}: the state must have the sampler's"):
            getattr(HybridMonteCarlo(energy, 3.0, seed=0), method)(exact, 1)


def test_the_reference_of_a_tether() -> None:
    energy = potential()
    row = energy.initial()
    one = Regularised(energy, tether=1.0, reference=row)  # (1, N), of all chains
    for batch in (None, 16):
        sampler = Langevin(one, [1e-2] * 3, seed=0, batch=batch, constrained=False)
        state = sampler.init(row[0])
        sampler.run(state, 5)
    two = Regularised(energy, tether=1.0, reference=row.expand(2, -1))
    with pytest.raises(ValueError, match=r"a row for every chain|reference must be"):
        Langevin(two, [1e-2] * 3, seed=0, batch=16, constrained=False).init(row[0])
    for reference, words in ((row.numpy(), "must be a tensor"), (row * torch.nan, "be finite")):
        with pytest.raises(ValueError, match=words):
            Regularised(energy, tether=1.0, reference=reference)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ModulePotential(network(), squares, [X]), "must be tensors of all examples"),
        (lambda: ModulePotential(squares, squares, X), "needs a torch.nn.Module and a function"),
        (lambda: ModulePotential(network(), squares, X, chunk=1.5), "chunk must be a whole"),
        (lambda: potential(lambda net, x: (squares(net, x), 1)), "got tuple"),
        (lambda: Langevin(network(), 1.0), "ModulePotential for a torch.nn.Module.*got Linear"),
        (lambda: HybridMonteCarlo(network(), 1.0), "potential must be a Potential"),
        (lambda: Langevin(potential(), 1.0).init(network().state_dict()), "must be a tensor"),
        (lambda: Langevin(potential(), 1.0, batch=S + 1), f"at most the {S} examples"),
        (lambda: Langevin(potential(), "0.1"), "one positive number a chain, got '0.1'"),
        (lambda: Langevin(potential(), None), "one positive number a chain, got None"),
        (lambda: Langevin(potential(), 1.0, dt="1"), "dt must be a number, got '1'"),
        (lambda: Langevin(potential(), 1.0, constrained="no"), "must be True or False"),
        (lambda: Langevin(potential(), 1.0, batch=None, t_ratio=0.1), "is of mini-batches"),
    ],
)
def test_what_is_no_argument(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_moves_are_whole() -> None:
    energy = potential()
    sampler = Langevin(energy, 1e-2, seed=0)
    state = sampler.init(energy.initial()[0])
    for moves in (1.5, 1e1):
        with pytest.raises(ValueError, match="moves must be a whole number"):
            sampler.run(state, moves)  # type: ignore[arg-type]
    hybrid = HybridMonteCarlo(energy, 1e-2)
    with pytest.raises(ValueError, match="trajectories must be a whole number"):
        hybrid.run(hybrid.init(energy.initial()[0]), 1.5)  # type: ignore[arg-type]
