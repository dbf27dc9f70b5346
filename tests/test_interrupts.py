"""Ctrl-C in a run of a sampler: it comes between moves, and the state goes on with its bits."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from toy import NoisyQuadratic, Q, start_weights

from thermosphere.ops.minibatch import Minibatch
from thermosphere.sampling.hmc import HybridMonteCarlo
from thermosphere.sampling.hmc_state import HybridMonteCarloState
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.uninterrupted import Uninterrupted


class Interrupting(NoisyQuadratic):
    """Sends SIGINT in the call of this number, this many times."""

    at = 0
    times = 1

    def __call__(
        self, weights: torch.Tensor, batch: Minibatch | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = super().__call__(weights, batch)
        if self.calls == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return found


OPTIONS = {
    "leapfrog": {"batch": 8},
    "paper": {"batch": 8, "scheme": "paper"},
    "a look": {"batch": None, "modes": 2},
    "an estimate": {"batch": 8, "adapt_every": 4},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("after", range(1, 20, 3))
def test_an_interrupted_run_goes_on_with_the_bits_of_an_unbroken_one(
    options: dict[str, object], after: int
) -> None:
    toy = Interrupting()
    sampler = Langevin(toy, [0.5, 1.0], noise_draws=20, noise_draws_max=20, seed=3, **options)
    state = sampler.init(start_weights(2), norm2=Q)
    straight = LangevinState.from_tensors(state.tensors())
    sampler.run(straight, 20)
    toy.at = toy.calls + after
    with pytest.raises(KeyboardInterrupt):
        sampler.run(state, 20)
    toy.at = 0
    assert state.step < 20
    sampler.run(state, 20 - state.step)
    for name, tensor in straight.tensors().items():
        assert torch.equal(state.tensors()[name], tensor), name


def test_a_noise_estimate_does_not_hold_an_interrupt_back() -> None:
    """It takes as long as hundreds of moves, and leaves the state alone."""
    toy = Interrupting()
    sampler = Langevin(toy, [0.5, 1.0], noise_draws=20, noise_draws_max=20, batch=8, adapt_every=4)
    state = sampler.init(start_weights(2), norm2=Q)
    sampler.run(state, 4)
    before = LangevinState.from_tensors(state.tensors())
    toy.at = toy.calls + 5
    with pytest.raises(KeyboardInterrupt):
        sampler.run(state, 1)
    assert toy.calls == toy.at
    for name, tensor in before.tensors().items():
        assert torch.equal(state.tensors()[name], tensor), name


def test_an_interrupted_trajectory_ends_first() -> None:
    toy = Interrupting(noise=0.0)
    sampler = HybridMonteCarlo(toy, [0.5, 1.0], seed=3, steps=5)
    state = sampler.init(start_weights(2), norm2=Q)
    straight = HybridMonteCarloState.from_tensors(state.tensors())
    sampler.warm_up(straight, 4)
    sampler.run(straight, 4)
    for advance in (sampler.warm_up, sampler.run):
        toy.at = toy.calls + 7
        done: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            advance(state, 4, done.append)
        assert len(done) < 3
        advance(state, 4 - len(done) - 1)
    for name, tensor in straight.tensors().items():
        assert torch.equal(state.tensors()[name], tensor), name


def test_the_second_interrupt_comes_at_once_and_the_handler_is_put_back() -> None:
    handler = signal.getsignal(signal.SIGINT)
    reached = []

    def twice() -> None:
        with Uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("after one")
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("after two")

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert reached == ["after one"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_is_seen_before_the_interrupt() -> None:
    def failing() -> None:
        with Uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("of the potential")

    with pytest.raises(KeyboardInterrupt) as caught:
        failing()
    assert isinstance(caught.value.__context__, RuntimeError)
