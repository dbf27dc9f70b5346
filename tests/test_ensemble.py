"""The ensemble as `physical_validation` judges it (Merz, Shirts, PLoS ONE 13, e0202764 (2018)), for
both Langevin schemes and hybrid Monte Carlo on the toy sphere: kinetic energies are
gamma-distributed with N - 1 degrees of freedom, and ln[P(U|T2)/P(U|T1)] is linear in U with slope
1/T1 - 1/T2. Both checks are also shown faults that they must find.

The second check compares two temperatures, so a factor of the density that is the same at both,
such as sqrt(Σ w²/M), escapes it; test_laws.py and test_hmc.py look at that.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from synthetic_study import ladder, study
from toy import NoisyQuadratic, Q, start_weights

from thermosphere import HybridMonteCarlo, Langevin
from thermosphere.analysis import ensemble
from thermosphere.runs import products_ensemble
from thermosphere.runs.study import ModelStudy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import physical_validation
    from physical_validation.data import (
        EnsembleData,
        ObservableData,
        SimulationData,
        SystemData,
        UnitData,
    )

pytestmark = pytest.mark.usefixtures("one_torch_thread")

N = 12
COLD, HOT = 1.0, 1.5
CHAINS = 256  # half of them at each temperature
DRAWS = 24
BATCH = 8
# Distances in standard errors: six numbers here a scheme, one false alarm in 10,000 seeds.
LIMIT = 4.5


class Draws(NamedTuple):
    """Of all chains at one temperature, far enough apart in moves to count as independent."""

    kinetic: np.ndarray  # (K,)
    potential: np.ndarray  # (K,)


def simulation(draws: Draws, temperature: float, *, freedom: int = N - 1) -> SimulationData:
    """In units where k_B = 1; N weights are N/3 atoms, the sphere is one constraint."""
    return SimulationData(
        units=UnitData(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        system=SystemData(
            natoms=N // 3, nconstraints=N - freedom, ndof_reduction_tra=0, ndof_reduction_rot=0
        ),
        ensemble=EnsembleData("NVT", natoms=N // 3, volume=1.0, temperature=temperature),
        observables=ObservableData(kinetic_energy=draws.kinetic, potential_energy=draws.potential),
    )


def kinetic_distances(data: SimulationData) -> np.ndarray:
    """Mean and width of the kinetic energies from those expected, (2,)."""
    return np.abs(
        physical_validation.kinetic_energy.distribution(
            data, strict=False, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
        )
    )


def kinetic_p_value(data: SimulationData) -> float:
    """Kolmogorov-Smirnov against the gamma distribution."""
    return float(
        physical_validation.kinetic_energy.distribution(
            data, strict=True, verbosity=0, data_is_uncorrelated=True
        )
    )


def ensemble_distance(cold: SimulationData, hot: SimulationData) -> float:
    """The slope of ln[P(U|T2)/P(U|T1)] from 1/T1 - 1/T2."""
    (distance,) = physical_validation.ensemble.check(
        cold, hot, verbosity=0, data_is_uncorrelated=True
    )
    return abs(float(distance))


def by_temperature(kinetic: list[torch.Tensor], potential: list[np.ndarray]) -> tuple[Draws, Draws]:
    k, u = torch.stack(kinetic).numpy(), np.stack(potential)
    half = CHAINS // 2
    return (
        Draws(k[:, :half].ravel(), u[:, :half].ravel()),
        Draws(k[:, half:].ravel(), u[:, half:].ravel()),
    )


TEMPERATURES = torch.tensor([COLD, HOT]).repeat_interleave(CHAINS // 2)


def langevin_draws(scheme: str, *, share: float, accounted: bool = True) -> tuple[Draws, Draws]:
    """share: of the thermal noise that mini-batches supply; accounted False: white noise is not
    reduced by it."""
    toy = NoisyQuadratic(N, noise=2.0)
    dt, m1 = 0.5, 0.3
    variance = toy.noise_variance(BATCH)
    masses = variance * dt**2 / (4 * share * COLD * m1**2)
    sampler = Langevin(
        toy,
        TEMPERATURES,
        seed=5,
        scheme=scheme,
        batch=BATCH,
        dt=dt,
        m1=m1,
        metric_correction=True,
        noise_draws=20,
        noise_draws_max=20,
        adapt_every=0,  # the noise stays what is set
        threads=1,
    )
    state = sampler.init(start_weights(CHAINS), masses=masses, norm2=Q)
    state.noise_variance.copy_(variance if accounted else torch.zeros_like(variance))
    kinetic, potential = [], []
    sampler.run(state, 150)
    for _ in range(DRAWS):
        sampler.run(state, 30)
        kinetic.append(sampler.kinetic_temperature(state) * (N - 1) / 2)
        potential.append(toy.energy(state.weights.double().numpy()))
    return by_temperature(kinetic, potential)


def hmc_draws() -> tuple[Draws, Draws]:
    toy = NoisyQuadratic(N)
    sampler = HybridMonteCarlo(
        toy, TEMPERATURES, seed=6, steps=5, step_size=0.7, dtype=torch.float64
    )
    masses = torch.logspace(1.5, 0.0, N)
    state = sampler.init(start_weights(CHAINS), masses=masses, norm2=Q)
    kinetic, potential = [], []
    sampler.run(state, 40)
    for _ in range(DRAWS):
        sampler.run(state, 5)
        kinetic.append(sampler.kinetic_temperature(state) * (N - 1) / 2)
        potential.append(state.losses.numpy().copy())
    return by_temperature(kinetic, potential)


@pytest.mark.parametrize("sampler", ["leapfrog", "paper", "hmc"])
def test_ensemble(sampler: str) -> None:
    cold, hot = hmc_draws() if sampler == "hmc" else langevin_draws(sampler, share=0.015)
    pair = simulation(cold, COLD), simulation(hot, HOT)
    for data in pair:
        assert kinetic_distances(data).max() < LIMIT
        assert kinetic_p_value(data) > 1e-5
    assert ensemble_distance(*pair) < LIMIT
    # The constraint forgotten, and a wrong temperature, are seen.
    assert kinetic_distances(simulation(cold, COLD, freedom=N)).max() > 8
    assert kinetic_p_value(simulation(cold, COLD, freedom=N)) < 1e-8
    assert kinetic_distances(simulation(hot, 1.1 * HOT)).max() > 8
    assert ensemble_distance(pair[0], simulation(hot, 1.15 * HOT)) > 5


def test_mini_batch_noise_that_is_not_accounted_for_is_found() -> None:
    cold, hot = langevin_draws("leapfrog", share=0.15, accounted=False)
    pair = simulation(cold, COLD), simulation(hot, HOT)
    assert kinetic_distances(pair[0]).max() > 8
    assert kinetic_p_value(pair[0]) < 1e-8


def test_judgements_of_a_run_find_what_is_wrong() -> None:
    """analysis.ensemble on made-up draws: Gaussians of equal variance σ² whose means differ by
    σ² (1/T1 - 1/T2) are two temperatures of one density of states."""
    random = np.random.default_rng(3)
    parameters, cold, hot, sigma = 3001, 0.01, 0.0105, 0.3
    right = cold * random.chisquare(parameters - 1, 400) / (parameters - 1)
    found = ensemble.kinetic_distances(right, cold, parameters)
    assert abs(found.mean) < LIMIT
    assert abs(found.width) < LIMIT
    assert abs(ensemble.kinetic_distances(1.02 * right, cold, parameters).mean) > LIMIT
    narrow = cold + 0.3 * (right - cold)
    assert abs(ensemble.kinetic_distances(narrow, cold, parameters).width) > LIMIT

    step = sigma**2 * (1 / cold - 1 / hot)
    low, high = (sigma * random.standard_normal(2000) + mean for mean in (0.0, step))
    pair = (cold, hot)
    assert ensemble.ensemble_distance(low, high, pair, parameters) < LIMIT
    assert ensemble.ensemble_distance(low, high + 0.3 * step, pair, parameters) > LIMIT
    assert np.isnan(ensemble.ensemble_distance(low, high + 100 * sigma, pair, parameters))


def test_draws_are_thinned_to_independent_ones() -> None:
    random = np.random.default_rng(0)
    walk = np.zeros((2, 4000))
    noise = random.standard_normal(walk.shape)
    for k in range(1, walk.shape[1]):
        walk[:, k] = 0.9 * walk[:, k - 1] + noise[:, k]
    kept = ensemble.independent(walk)
    assert 2 * 4000 / 40 < len(kept) < 2 * 4000 / 10  # one in 19


def kinetic_study(width: float) -> ModelStudy:
    """Three chains a temperature, each in a place of its own; kinetic energies of the law, but for
    their width."""
    apart = ladder(counts=False)
    standing = np.arange(apart.sizes["temperature"]) % 2 == 0
    made = study(table=apart.assign(stationary=("temperature", standing)))
    freedom = made.parameters - 1
    ideal = np.random.default_rng(3).chisquare(freedom, made.samples["train_loss"].shape) / freedom
    temperature = made.samples["temperature"].values[:, None]
    kinetic = temperature * (1 + width * (ideal - 1))
    samples = made.samples.assign(kinetic_temperature=(("chain", "draw"), kinetic))
    return replace(made, samples=samples)


@pytest.mark.parametrize(("width", "far"), [(1.0, False), (3.0, True)])
def test_kinetic_energies_are_judged_where_chains_stand_apart(width: float, far: bool) -> None:
    made = kinetic_study(width)
    run = SimpleNamespace(
        studies={"tf1": made},
        config=SimpleNamespace(analysis=SimpleNamespace(burn_in=0.5)),
        directory=Path("nowhere"),
    )
    product = products_ensemble.ensemble(run)  # type: ignore[arg-type]
    assert product is not None
    (data,) = product.data
    assert [row[1] for row in data.rows] == list(made.table["temperature"].values[::2])
    assert all(float(row[2]) >= ensemble.JUDGED for row in data.rows)
    assert all(row[7] == "" for row in data.rows)  # potential energies remember the start
    widths = [float(row[4]) for row in data.rows]
    assert (np.median(widths) > products_ensemble.FAR) == far
    assert all(float(row[3]) < products_ensemble.FAR for row in data.rows)
    assert ("0 of them above" in product.text[1]) != far


@pytest.mark.parametrize(("true", "far"), [(1.0, False), (2.0, True)])
def test_chains_in_basins_of_their_own_have_the_slope_of_their_temperatures(
    true: float, far: bool
) -> None:
    """U of n harmonic modes at T above a floor that differs from chain to chain by more than it
    fluctuates; `true`: how many times farther apart the temperatures are than what is said."""
    random, modes, cold = np.random.default_rng(6), 2000, 1e-4
    floor = np.array([[1.0], [1.3], [0.8], [2.0], [1.1]])

    def losses(temperature: float) -> np.ndarray:
        return floor + 0.5 * temperature * random.chisquare(modes, (5, 60))

    hot = 1.03 * cold
    pair = ensemble.apart(losses(cold), losses(cold + true * (hot - cold)))
    assert all(len(draws) >= 150 for draws in pair)
    distance = ensemble.ensemble_distance(*pair, (cold, hot), modes)
    assert (distance > products_ensemble.FAR) == far
    assert far or distance < 3.0
