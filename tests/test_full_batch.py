"""Gradients of the whole set: the stiffest curvature, the masses that fit the step to it, the law
then sampled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import SEED, NoisyQuadratic, Q, make_sampler, start_weights

from thermosphere.models.named import named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.proteins.dataset import make_data_set
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.masses import floored_variance, median_variance
from thermosphere.sampling.noise import estimate_noise
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.stiffness import largest_curvature, mean_curvature


class Nonlinear:
    """U = Σ_k ln cosh(X w)_k / K: a curvature that depends on w, and is known."""

    def __init__(self, parameters: int = 30, examples: int = 64) -> None:
        random = np.random.default_rng(5)
        self.parameters, self.examples = parameters, examples
        scale = np.geomspace(0.03, 3.0, parameters)
        self.x = torch.from_numpy(random.standard_normal((examples, parameters)) * scale)

    def __call__(self, weights, batch=None):  # type: ignore[no-untyped-def]
        s = weights.double() @ self.x.T  # (C, K)
        share = torch.full_like(s, 1 / self.examples)
        if batch is not None:
            share = torch.zeros_like(s).scatter_add_(1, batch.indices, batch.weights.double())
        value = (share * torch.log(torch.cosh(s))).sum(1)
        return value.to(weights.dtype), ((share * torch.tanh(s)) @ self.x).to(weights.dtype)

    def hessian(self, weights: torch.Tensor) -> torch.Tensor:
        """(N,) -> (N, N) float64."""
        bend = 1 - torch.tanh(self.x @ weights.double()) ** 2
        return (self.x.T * bend) @ self.x / self.examples


def curvature(potential, weights, masses, **changes):  # type: ignore[no-untyped-def]
    arguments = {"seed": 3, "step": 0, "chain_ids": torch.arange(len(weights)), **changes}
    return largest_curvature(potential, weights, masses, **arguments)


def test_the_largest_curvature_is_that_of_the_hessian() -> None:
    potential = Nonlinear()
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, potential.parameters, generator=generator) * 0.3
    masses = torch.rand(3, potential.parameters, generator=generator) * 4 + 0.5
    exact = []
    for w, m in zip(weights, masses, strict=True):
        root = m.double().rsqrt()
        exact.append(torch.linalg.eigvalsh(root[:, None] * potential.hessian(w) * root)[-1])
    found = curvature(potential, weights, masses)
    torch.testing.assert_close(found, torch.stack(exact), rtol=0.01, atol=0)
    alone = curvature(potential, weights[1:2], masses[1:2], chain_ids=torch.tensor([1]))
    torch.testing.assert_close(alone, found[1:2], rtol=1e-4, atol=0)
    one = curvature(potential, weights, masses, iterations=1)  # a Rayleigh quotient: from below
    assert bool((one < 0.9 * found).all())


def test_the_mean_curvature_is_the_trace_over_n() -> None:
    potential = Nonlinear()
    weights = torch.randn(2, potential.parameters, generator=torch.Generator().manual_seed(0)) * 0.3
    masses = torch.linspace(0.5, 4.0, potential.parameters).expand(2, -1)
    for w, m, found in zip(
        weights,
        masses,
        mean_curvature(potential, weights, masses, seed=3, chain_ids=torch.arange(2), probes=400),
        strict=True,
    ):
        root = m.double().rsqrt()
        hessian = root[:, None] * potential.hessian(w) * root
        size = len(w)
        spread = float((2 * hessian.square().sum() / 400).sqrt()) / size
        assert abs(float(found - hessian.trace() / size)) < 5 * spread


def test_more_iterations_than_directions_are_not_made() -> None:
    toy = NoisyQuadratic(parameters=5)
    found = curvature(toy, start_weights(2)[:, :5].contiguous(), torch.ones(2, 5))
    torch.testing.assert_close(found, torch.full((2,), 3.0, dtype=torch.float64), rtol=1e-3, atol=0)


def test_curvature_of_a_network_is_that_of_autograd() -> None:
    """The fused float32 gradient's differences against the exact Hessian's product, iterated."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 20, (60, 12)).astype(np.uint8)
    data = make_data_set(tokens, train=40, validation=10, test=10, rate=0.15, seed=0)
    model = named_model("tf1-small", length=12)
    potential = MaskedLanguagePotential(model, data.train, backend="fused")
    exact = MaskedLanguagePotential(model, data.train, backend="autograd")
    weights = model.initial(1, torch.Generator().manual_seed(2))
    found = curvature(potential, weights, torch.ones_like(weights))
    wanted = curvature(exact, weights.double(), torch.ones_like(weights), iterations=40)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0)


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_masses_have_the_shape_of_the_noise_and_the_stiffness_asked_for(scheme: str) -> None:
    sampler = make_sampler([1e-3] * 3, batch=None, stiffness=0.5, dt=2.0, scheme=scheme)
    state = sampler.init(start_weights(3), norm2=Q)
    assert bool((state.noise_variance == 0).all())  # the whole set has none
    variance = estimate_noise(
        sampler.potential,
        state.weights[:1],
        seed=SEED,
        step=0,
        chain_ids=torch.zeros(1, dtype=torch.int64),
        batch=32,
        draws=20,
        draws_max=40,
    ).variance
    shape = floored_variance(variance, sampler.options.floor) / median_variance(variance)
    ratio = state.masses.double() / shape
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-5, atol=0)
    stiffest = (sampler.potential.curvature / state.masses[0].double()).max()
    assert float(stiffest.sqrt()) * 2.0 == pytest.approx(0.5, rel=1e-3)
    loss = sampler.run(state, 1)
    assert bool(torch.isfinite(loss).all())


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_masses_follow_a_curvature_that_changes_and_momenta_stay_thermal(factor: float) -> None:
    toy = NoisyQuadratic(parameters=400)
    thermal = torch.randn(4, 400, generator=torch.Generator().manual_seed(1))
    start = toy.centre.float() + thermal * (0.05 / toy.curvature.float()).sqrt()
    sampler = Langevin(toy, [0.05] * 4, seed=1, batch=None, stiffness=0.15, adapt_every=200)
    state = sampler.init(start)
    first = state.masses.double()
    sampler.run(state, 100)
    torch.testing.assert_close(state.masses.double(), first, rtol=0.02, atol=0)
    toy._a = toy._a * factor
    sampler.run(state, 300)
    torch.testing.assert_close(state.masses.double(), first * factor, rtol=0.05, atol=0)
    kinetic = sampler.kinetic_temperature(state) / 0.05
    assert bool(((kinetic - 1).abs() < 5 * (2 / 400) ** 0.5).all())  # standard deviations


def test_one_rescaling_keeps_the_kinetic_energy() -> None:
    sampler = make_sampler([1e-3] * 3, batch=None)
    state = sampler.init(start_weights(3), norm2=Q)
    sampler.run(state, 20)
    state.masses /= 9.0  # as if the curvature had risen ninefold since
    momenta = _full(sampler, state)
    state.momenta += momenta / 3 - momenta  # thermal for these masses
    before = sampler.kinetic_temperature(state)
    sampler.adaptation.adapt(state, torch.tensor([0, 2]))
    after = sampler.kinetic_temperature(state)
    # To 1/N: the metric correction's share of the kick is not scaled.
    torch.testing.assert_close(after, before, rtol=5e-3, atol=0)
    assert state.masses[0, 0] > 5 * state.masses[1, 0]  # row 1 was not due


def _full(sampler: Langevin, state: LangevinState) -> torch.Tensor:
    """p = Π - (dt/2) g, without noise, (C, N)."""
    _, gradient = sampler.potential(state.weights)
    return (state.momenta - 0.5 * sampler.options.dt * gradient).double()


def test_looks_at_the_curvature_come_ever_later_until_it_changes() -> None:
    sampler = make_sampler([1e-3] * 3, batch=None, adapt_every=150)
    state = sampler.init(start_weights(3), norm2=Q)

    def next_looks(count: int) -> list[int]:
        gaps = []
        for _ in range(count):
            gaps.append(int(state.next_adaptation[0]) - state.step)
            sampler.run(state, gaps[-1])
            sampler.run(state, 1)  # the look comes before a move
            gaps[-1] = int(state.next_adaptation[0]) - state.step + 1
        return gaps

    assert int(state.next_adaptation[0]) == 25
    assert next_looks(4) == [50, 100, 150, 150]
    sampler.potential._a = sampler.potential._a * 2
    assert next_looks(3) == [25, 50, 100]
    never = make_sampler(batch=None, adapt_every=0)
    assert int(never.init(start_weights(3), norm2=Q).next_adaptation[0]) == -1


def test_hot_chains_turn_by_no_more_than_a_tenth_of_a_radian() -> None:
    """However soft U is: the step must not leave the sphere's reach."""
    sampler = make_sampler([1e-3, 1e3, 1e4], batch=None, stiffness=1.5, adapt_every=50)
    state = sampler.init(start_weights(3), norm2=Q)
    sampler.run(state, 400)
    turn = (state.temperature * state.masses.double().reciprocal().sum(1) / Q).sqrt()
    assert float(turn.max()) <= 0.1 * 1.2  # the tolerance of a look
    assert float(turn[1:].min()) >= 0.1 / 1.2
    stiffest = (sampler.potential.curvature / state.masses[0].double()).max().sqrt()
    assert float(stiffest) == pytest.approx(1.5, rel=0.21)


def test_masses_by_hand_stay() -> None:
    sampler = make_sampler(batch=None, adapt_every=5)
    state = sampler.init(start_weights(3), masses=200.0, norm2=Q)
    loss = sampler.run(state, 10)
    assert bool(torch.isfinite(loss).all())
    assert bool((state.masses == 200.0).all())
    exact, _ = sampler.potential(state.weights)
    assert sampler.run(state, 1).tolist() == exact.double().tolist()


def test_bad_numbers_are_refused() -> None:
    for stiffness in (0.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match=r"^sampler: stiffness must be in \(0, 2\), got"):
            make_sampler(batch=None, stiffness=stiffness)
    with pytest.raises(ValueError, match=r"^sampler: noise_batch must be >= 1, got 0"):
        make_sampler(batch=None, noise_batch=0)
    toy = NoisyQuadratic()
    toy._a = -toy._a  # curves downwards everywhere
    sampler = Langevin(toy, [1.0], batch=None)
    with pytest.raises(ValueError, match=r"^masses: U must curve upwards in some direction"):
        sampler.init(start_weights(1), norm2=Q)
