"""The laws the schemes sample, against independent Monte Carlo and against exact Gaussians.

On the 12-dimensional sphere |w|² = 24 with a quadratic potential, noisy gradients and unequal
masses: exp(-U/T) with the metric correction, exp(-U/T) sqrt(Σ w²/M) without it, for both schemes
(Lelièvre, Rousset, Stoltz 2012). Every test must also reject the other law.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from toy import NoisyQuadratic

from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.state import LangevinState

N = 12
Q = 24.0
TEMPERATURE = 1.0
BATCH = 8
CHAINS = 1024
Z_MAX = 4.5  # of about 30 correlated numbers a law: a false alarm in 5,000 seeds

# Stiff directions light, soft ones heavy: all take about as long. The heaviest oscillation has (ω
# dt)² = a dt²/M = 0.02 and the positions of these schemes are wrong by a relative (ω dt)²/4: below
# the statistical error, as halving dt once more showed.
MASSES = np.logspace(1.5, 3.0, N)[::-1].copy()
TIME_STEP = 0.5
M1 = 0.15


class Means(NamedTuple):
    """Means over chains or walkers, with standard errors from their independence."""

    value: np.ndarray
    error: np.ndarray

    @staticmethod
    def over(rows: np.ndarray) -> Means:
        """Of independent rows (C, K)."""
        return Means(rows.mean(0), rows.std(0, ddof=1) / len(rows) ** 0.5)

    def z(self, other: Means) -> np.ndarray:
        return (self.value - other.value) / np.hypot(self.error, other.error)

    def z_of(self, exact: np.ndarray | float) -> np.ndarray:
        return (self.value - exact) / self.error


def log_metric(w: np.ndarray) -> np.ndarray:
    """ln sqrt(Σ w²/M), (C, N) -> (C,)."""
    return 0.5 * np.log((w * w / MASSES).sum(1))


def observables(toy: NoisyQuadratic, w: np.ndarray) -> np.ndarray:
    """w, w², U and, the most telling of the two laws, their log ratio: (C, N) -> (C, 2 N + 2)."""
    return np.concatenate([w, w * w, toy.energy(w)[:, None], log_metric(w)[:, None]], axis=1)


def metropolis(
    toy: NoisyQuadratic,
    log_factor: Callable[[np.ndarray], np.ndarray],
    *,
    walkers: int = 4096,
    steps: int = 1500,
    seed: int,
) -> tuple[Means, np.ndarray]:
    """Random-walk Metropolis for exp(-U/T + log_factor) on the sphere.

    Also returns the walkers' last positions (walkers, N).

    A Gaussian kick, then back to the radius: its density depends on the angle between the two
    points alone, so it is symmetric.
    """
    random = np.random.default_rng(seed)

    def on_sphere(x: np.ndarray) -> np.ndarray:
        return x * np.sqrt(Q / (x * x).sum(1, keepdims=True))

    def cost(x: np.ndarray) -> np.ndarray:
        return toy.energy(x) / TEMPERATURE - log_factor(x)

    w = on_sphere(random.standard_normal((walkers, N)))
    now, total, count = cost(w), np.zeros((walkers, 2 * N + 2)), 0
    for step in range(-300, steps):
        proposal = on_sphere(w + 0.5 * random.standard_normal(w.shape))
        then = cost(proposal)
        accepted = random.exponential(size=walkers) > then - now
        w[accepted], now[accepted] = proposal[accepted], then[accepted]
        if step >= 0 and step % 5 == 0:
            total += observables(toy, w)
            count += 1
    return Means.over(total / count), w


class Laws(NamedTuple):
    toy: NoisyQuadratic
    boltzmann: Means  # exp(-U/T)
    weighted: Means  # exp(-U/T) sqrt(Σ w²/M)
    start: np.ndarray  # (walkers, N) drawn from the first
    start_weighted: np.ndarray


@pytest.fixture(scope="module")
def laws() -> Laws:
    toy = NoisyQuadratic(N, noise=2.0)
    boltzmann, start = metropolis(toy, lambda w: np.zeros(len(w)), seed=1)
    weighted, start_weighted = metropolis(toy, log_metric, seed=2)
    return Laws(toy, boltzmann, weighted, start, start_weighted)


def begin(
    sampler: Langevin, weights: np.ndarray, masses: np.ndarray, norm2: float | None
) -> LangevinState:
    """A state whose noise variance is the exact one: the law is tested here, not the estimate."""
    toy = sampler.potential
    assert isinstance(toy, NoisyQuadratic)
    state = sampler.init(
        torch.from_numpy(weights).float(), masses=torch.from_numpy(masses).float(), norm2=norm2
    )
    state.noise_variance.copy_(toy.noise_variance(BATCH))
    state.next_adaptation.fill_(-1)
    return state


def sample(
    sampler: Langevin, state: LangevinState, *, settle: int, blocks: int, every: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each chain's mean observables (C, K) and kinetic temperature (C,)."""
    toy = sampler.potential
    assert isinstance(toy, NoisyQuadratic)
    sampler.run(state, settle)
    total, kinetic = np.zeros(1), np.zeros(1)
    for _ in range(blocks):
        sampler.run(state, every)
        total = total + observables(toy, state.weights.double().numpy())
        kinetic = kinetic + sampler.kinetic_temperature(state).numpy()
    return total / blocks, kinetic / blocks


def test_the_two_laws_differ(laws: Laws) -> None:
    """Otherwise nothing below would mean anything."""
    assert np.abs(laws.boltzmann.z(laws.weighted)).max() > 40


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_law_on_the_sphere(laws: Laws, scheme: str, corrected: bool) -> None:
    sampler = Langevin(
        laws.toy,
        [TEMPERATURE] * CHAINS,
        seed=3,
        scheme=scheme,
        metric_correction=corrected,
        batch=BATCH,
        dt=TIME_STEP,
        m1=M1,
        noise_draws=2,
        noise_draws_max=2,
        threads=1,
    )
    own, other = (laws.boltzmann, laws.weighted) if corrected else (laws.weighted, laws.boltzmann)
    start = laws.start if corrected else laws.start_weighted
    state = begin(sampler, start[:CHAINS], MASSES, Q)
    share = state.noise_variance[0] * TIME_STEP**2 / (4 * state.masses[0] * TEMPERATURE * M1**2)
    assert (
        0.02 < float(share.max()) < 0.1
    )  # noise that matters, and small enough for its shape not to
    chains, kinetic = sample(sampler, state, settle=200, blocks=150, every=20)
    means = Means.over(chains)
    assert np.abs(means.z(own)).max() < Z_MAX
    assert np.abs(means.z(other)).max() > 8
    assert abs(means.z(other)[-1]) > 8
    # Equipartition: ⟨Σ p²/2M⟩ = (N - 1) T/2, one degree of freedom lost to the sphere.
    temperature = Means.over(kinetic[:, None])
    assert abs(temperature.z_of(TEMPERATURE)[0]) < Z_MAX
    assert abs(temperature.z_of(TEMPERATURE * N / (N - 1))[0]) > 8
    norm2 = (state.weights.double() ** 2).sum(1)
    assert float((norm2 / Q - 1).abs().max()) < 1e-6


def test_adaptation_keeps_the_law(laws: Laws) -> None:
    """Masses measured, raised and reset every 100 moves, chain by chain: still exp(-U/T)."""
    sampler = Langevin(
        laws.toy,
        [TEMPERATURE] * CHAINS,
        seed=4,
        batch=BATCH,
        dt=TIME_STEP,
        m1=M1,
        t_ratio=0.02,
        adapt_every=100,
        adapt_every_max=100,
        reset_probability=0.3,
        noise_draws=50,
        noise_draws_max=100,
        threads=1,
    )
    state = sampler.init(torch.from_numpy(laws.start[:CHAINS]).float(), norm2=Q)
    masses = state.masses.clone()
    chains, kinetic = sample(sampler, state, settle=200, blocks=75, every=20)
    assert float((state.masses != masses).any(1).double().mean()) > 0.98  # a few never reset
    means = Means.over(chains)
    assert np.abs(means.z(laws.boltzmann)).max() < Z_MAX
    assert abs(Means.over(kinetic[:, None]).z_of(TEMPERATURE)[0]) < Z_MAX


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_unconstrained_law_is_the_exact_gaussian(scheme: str) -> None:
    """Mean b and variance T/a of the Gaussian, and how a finite dt distorts it.

    For shares of mini-batch noise up to 40 per cent.
    The moves are linear in w here, so their stationary second moments are known for any dt.
    Eliminating the momentum, w'' = (1 + c1²)(1 - h) w' - c1² w + noise, h = a dt²/2M, and in both
    schemes the noise of Π, from mini-batches and white, has variance (1 + c1²) M T m1² whatever the
    mini-batch's share: Var w = T / (a (1 - a dt²/4M)).
    """
    chains, dt, m1, temperature = 4096, 0.9, 0.3, 0.7
    toy = NoisyQuadratic(N, noise=2.0)
    random = np.random.default_rng(5)
    noise = toy.noise_variance(BATCH).numpy()
    shares = random.permutation(np.linspace(0.02, 0.4, N))
    masses = noise * dt**2 / (4 * shares * temperature * m1**2)
    a, b = toy.curvature.numpy(), toy.centre.numpy()
    distortion = 1 - a * dt**2 / (4 * masses)
    assert 0.1 < (1 - distortion).max() < 0.6  # a finite time step is visible in the exact law
    variance = temperature / (a * distortion)
    sampler = Langevin(
        toy,
        [temperature] * chains,
        seed=6,
        scheme=scheme,
        constrained=False,
        batch=BATCH,
        dt=dt,
        m1=m1,
        noise_draws=500,
        noise_draws_max=500,
        threads=1,
    )
    state = begin(sampler, b, masses, None)
    sampler.run(state, 200)
    total, squares, kinetic = np.zeros(1), np.zeros(1), np.zeros(1)
    blocks = 60
    for _ in range(blocks):
        sampler.run(state, 10)
        away = state.weights.double().numpy() - b
        total, squares = total + away, squares + away**2
        kinetic = kinetic + sampler.kinetic_temperature(state).numpy()
    z_mean = Means.over(total / blocks).z_of(0.0)
    assert np.abs(z_mean).max() < Z_MAX
    spread = Means.over(squares / blocks)
    assert np.abs(spread.z_of(variance)).max() < Z_MAX
    assert np.abs(spread.z_of(temperature / a)).max() > 8  # the test sees a few per cent
    # ⟨Σ p²/2M⟩ = N T/2: all degrees of freedom
    assert abs(Means.over((kinetic / blocks)[:, None]).z_of(temperature)[0]) < Z_MAX


def test_small_time_steps_reach_the_undistorted_gaussian() -> None:
    """The same with a dt²/4M below 1e-3: T/a itself."""
    chains, dt, temperature = 4096, 0.2, 0.7
    toy = NoisyQuadratic(N, noise=1.0)
    masses = np.linspace(30.0, 10.0, N)
    a, b = toy.curvature.numpy(), toy.centre.numpy()
    assert (a * dt**2 / (4 * masses)).max() < 0.004
    sampler = Langevin(
        toy,
        [temperature] * chains,
        seed=7,
        constrained=False,
        batch=BATCH,
        dt=dt,
        m1=0.3,
        noise_draws=2,
        noise_draws_max=2,
        threads=1,
    )
    random = np.random.default_rng(8)
    start = b + np.sqrt(temperature / a) * random.standard_normal((chains, N))
    state = begin(sampler, start, masses, None)
    sampler.run(state, 300)
    away = state.weights.double().numpy() - b
    assert np.abs(Means.over(away).z_of(0.0)).max() < Z_MAX
    assert np.abs(Means.over(away**2).z_of(temperature / a)).max() < Z_MAX
