"""SGHMC is a case of the leapfrog scheme: held to its published recursion, and to the temperature
it really has where the noise is not measured."""

from __future__ import annotations

import math

import pytest
import torch
from numerics import assert_close
from toy import SEED, NoisyQuadratic, start_weights

from thermosphere.ops.minibatch import draw_minibatch
from thermosphere.ops.philox import Stream, normals
from thermosphere.sampling.sghmc import sghmc

pytestmark = pytest.mark.usefixtures("one_torch_thread")

BATCH = 8
TEMPERATURE = 0.7


@pytest.mark.parametrize("measured", [False, True])
def test_moves_are_those_of_the_published_recursion(measured: bool) -> None:
    """Chen, Fox, Guestrin, Eq. 15, in float64, with the same mini-batches and noise."""
    toy, eta, alpha = NoisyQuadratic(), 0.02, 0.3
    sampler, state = sghmc(
        toy,
        start_weights(3),
        [TEMPERATURE] * 3,
        learning_rate=eta,
        friction=alpha,
        batch=BATCH,
        measured_noise=measured,
        seed=SEED,
    )
    assert bool((state.noise_variance > 0).all()) == measured
    w = state.weights.double()
    v = state.momenta.double() / state.masses.double()
    spread = (2 * alpha * eta * TEMPERATURE - eta**2 * state.noise_variance.double()).sqrt()
    moves = 20
    for step in range(moves):
        minibatch = draw_minibatch(
            seed=SEED,
            step=step,
            stream=Stream.MINIBATCH,
            chain_ids=torch.arange(3),
            batch=BATCH,
            examples=toy.examples,
        )
        _, gradient = toy(w, minibatch)
        noise = [
            normals(seed=SEED, stream=Stream.NOISE, chain=chain, step=step, count=12)
            for chain in range(3)
        ]
        v = (1 - alpha) * v - eta * gradient.double() + spread * torch.stack(noise).double()
        w = w + v
    sampler.run(state, moves)
    # Some ten roundings a move of numbers below 4, friction and curvature keep them from growing.
    bound = moves * 10 * 2.0**-24 * 4
    assert_close(state.weights, w, bound)
    assert_close(state.momenta.double() / state.masses.double(), v, bound)


def test_noise_that_is_not_measured_heats_by_what_is_stated() -> None:
    """T + η V/2α, on the unconstrained quadratic: the exact variance of the recursion."""
    chains, eta, alpha = 2048, 0.1, 0.2
    toy = NoisyQuadratic(noise=2.0)
    hotter = TEMPERATURE + eta * toy.noise_variance(BATCH) / (2 * alpha)
    assert float((hotter / TEMPERATURE).max()) > 1.2
    for measured, temperature in ((False, hotter), (True, torch.full_like(hotter, TEMPERATURE))):
        sampler, state = sghmc(
            toy,
            toy.centre,
            [TEMPERATURE] * chains,
            learning_rate=eta,
            friction=alpha,
            batch=BATCH,
            measured_noise=measured,
            seed=SEED,
        )
        if measured:
            state.noise_variance.copy_(toy.noise_variance(BATCH))
        squares, blocks = torch.zeros(chains, 12, dtype=torch.float64), 20
        sampler.run(state, 150)
        for _ in range(blocks):
            sampler.run(state, 15)
            squares += (state.weights.double() - toy.centre) ** 2 / blocks
        # v' = (1 - α) v - η a w: ⟨w²⟩ = T / (a (1 - η a / (2 (2 - α))))
        distortion = 1 - eta * toy.curvature / (2 * (2 - alpha))
        exact = temperature / (toy.curvature * distortion)
        error = squares.std(0) / chains**0.5
        assert float(((squares.mean(0) - exact) / error).abs().max()) < 4.5
        cold = TEMPERATURE / (toy.curvature * distortion)
        assert measured or float(((squares.mean(0) - cold) / error).abs().max()) > 8


def test_on_the_sphere_it_stays_there() -> None:
    sampler, state = sghmc(
        NoisyQuadratic(), start_weights(2), [1.0, 2.0], learning_rate=0.01, friction=0.1,
        constrained=True, norm2=24.0, batch=BATCH,
    )  # fmt: skip
    sampler.run(state, 200)
    norm2 = (state.weights.double() ** 2).sum(1)
    assert_close(norm2, torch.full_like(norm2, 24.0), 24.0 * 1e-6)
    assert bool((state.weights.double() - start_weights(2)).abs().amax(1).gt(0.1).all())


def test_bad_arguments() -> None:
    cases = {
        "learning_rate must be finite and > 0, got 0.0": {"learning_rate": 0.0},
        "learning_rate must be finite and > 0, got inf": {"learning_rate": math.inf},
        "friction must be in (0, 1), got 1.0": {"friction": 1.0},
        "friction must be in (0, 1), got nan": {"friction": math.nan},
    }
    for message, change in cases.items():
        numbers = {"learning_rate": 0.01, "friction": 0.1, **change}
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
            sghmc(NoisyQuadratic(), start_weights(1), 1.0, **numbers)
        assert str(error.value) == f"sghmc: {message}"
    with pytest.raises(ValueError, match="share of the thermal noise must be <="):
        sghmc(
            NoisyQuadratic(), start_weights(1), 1e-3, learning_rate=1.0, friction=0.1, batch=8,
            measured_noise=True,
        )  # fmt: skip
