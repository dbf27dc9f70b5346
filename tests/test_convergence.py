"""ESS, R̂, standard errors and drift against AR(1) chains, whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thermosphere.analysis import convergence

SEED = 20260329


def ar1_chains(
    generator: np.random.Generator, chains: int, draws: int, memory: float
) -> np.ndarray:
    """Stationary x_t = memory·x_{t−1} + noise with unit variance, (chains, draws)."""
    values = generator.normal(size=(chains, draws))
    for draw in range(1, draws):
        values[:, draw] *= math.sqrt(1.0 - memory**2)
        values[:, draw] += memory * values[:, draw - 1]
    return values


@pytest.mark.parametrize("memory", [0.0, 0.6, 0.9])
def test_effective_sample_size_of_ar1(memory: float) -> None:
    # The integrated autocorrelation time of AR(1) is (1 + memory)/(1 − memory).
    draws = 4000
    sizes = [
        convergence.effective_sample_size(
            ar1_chains(np.random.default_rng(SEED + run), 2, draws, memory)
        )
        for run in range(12)
    ]
    expected = 2 * draws * (1 - memory) / (1 + memory)
    error = np.std(sizes, ddof=1) / math.sqrt(len(sizes))
    # Capped at the number of draws, so white noise may fall a little short of it.
    assert abs(np.mean(sizes) - expected) < 4 * error + 0.05 * expected


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_standard_error_covers_the_true_mean(memory: float) -> None:
    # z = mean/error over independent runs: unit variance if the error is right.  The larger of two
    # estimates is wide, so the variance of z may fall short of 1, but not exceed it by chance
    # (sd of a variance of 200 standard normals: √(2/199) = 0.1).
    z = []
    for run in range(200):
        values = ar1_chains(np.random.default_rng(SEED + run), 2, 400, memory)
        z.append(values.mean() / convergence.standard_error(values))
    assert 0.5 < np.var(z, ddof=1) < 1.0 + 4 * math.sqrt(2 / 199)
    assert abs(np.mean(z)) < 4 / math.sqrt(200)


def test_standard_error_is_not_naive() -> None:
    values = ar1_chains(np.random.default_rng(SEED), 2, 2000, 0.9)
    naive = values.std() / math.sqrt(values.size)
    assert convergence.standard_error(values) > 3.0 * naive  # exactly √19 times on average


def test_standard_error_sees_chains_that_disagree() -> None:
    values = np.random.default_rng(SEED).normal(size=(2, 400))
    apart = values + np.array([[-5.0], [5.0]])
    # Two chains stuck 10 apart pin their common mean to about 5.
    assert convergence.standard_error(apart) > 2.0
    assert convergence.standard_error(values) < 0.1


def test_variance_of_gaussian_and_its_error() -> None:
    z = []
    for run in range(200):
        values = 3.0 * ar1_chains(np.random.default_rng(SEED + run), 2, 600, 0.7) + 1e4
        variance, error = convergence.variance_with_error(values)
        z.append((variance - 9.0) / error)
    # The error and the variance rise and fall together, which skews z; hence the wider bound.
    assert 0.4 < np.var(z, ddof=1) < 1.6
    assert abs(np.mean(z)) < 0.5


def test_variance_survives_a_large_offset() -> None:
    values = np.random.default_rng(SEED).normal(size=(2, 100)) * 1e-6
    plain, _ = convergence.variance_with_error(values)
    shifted, _ = convergence.variance_with_error(values + 3.0)
    # Adding 3 rounds every value by at most 2 eps; relative to the spread of 1e-6 that is 4e-10.
    assert shifted == pytest.approx(plain, rel=1e-8)


def test_r_hat_of_agreeing_and_disagreeing_chains() -> None:
    values = np.random.default_rng(SEED).normal(size=(2, 1000))
    assert convergence.r_hat(values) < 1.01
    assert convergence.r_hat(values + np.array([[0.0], [3.0]])) > 1.5
    assert convergence.r_hat(values + 3.0 * (np.arange(1000) >= 500)) > 1.5  # halves disagree


def test_drift_of_stationary_chains_is_standard_normal_or_narrower() -> None:
    z = [
        convergence.drift(ar1_chains(np.random.default_rng(SEED + run), 2, 400, 0.5))
        for run in range(200)
    ]
    assert np.var(z, ddof=1) < 1.0 + 4 * math.sqrt(2 / 199)
    assert abs(np.mean(z)) < 4 / math.sqrt(200)
    assert np.max(np.abs(z)) < 4.0


def test_drift_finds_a_planted_step_with_its_sign() -> None:
    values = ar1_chains(np.random.default_rng(SEED), 2, 400, 0.5)
    values[:, 200:] += 1.0
    assert convergence.drift(values) > 5.0
    assert convergence.drift(-values) < -5.0


def test_r_hat_of_a_single_chain_is_that_of_its_halves(
    capfd: pytest.CaptureFixture[str],
) -> None:
    still = np.random.default_rng(4).standard_normal((1, 400))
    step = still + np.where(np.arange(400) < 200, 0.0, 5.0)
    assert convergence.r_hat(still) < 1.05
    assert convergence.r_hat(step) > 1.5
    assert math.isnan(convergence.r_hat(still[:, :7]))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_few_draws_give_nan(draws: int) -> None:
    values = np.random.default_rng(SEED).normal(size=(2, draws))
    assert math.isnan(convergence.effective_sample_size(values))
    assert math.isnan(convergence.r_hat(values))
    assert math.isnan(convergence.standard_error(values))
    assert math.isnan(convergence.drift(values))
    assert all(math.isnan(number) for number in convergence.variance_with_error(values))


def test_constant_chains() -> None:
    same = np.full((2, 20), 0.25)
    assert convergence.effective_sample_size(same) == 40
    assert convergence.r_hat(same) == 1.0
    assert convergence.standard_error(same) == 0.0
    assert convergence.drift(same) == 0.0
    stuck = np.array([[0.0], [1.0]]) * np.ones((2, 20))
    assert convergence.r_hat(stuck) == math.inf


def test_automatic_burn_in_drops_a_transient_and_keeps_a_stationary_run() -> None:
    values = ar1_chains(np.random.default_rng(SEED), 2, 400, 0.3)
    assert convergence.automatic_burn_in(values) <= 120
    relaxing = values + 20.0 * np.exp(-np.arange(400) / 30.0)
    assert 80 <= convergence.automatic_burn_in(relaxing) <= 280


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(4), "must be (chains, draws)"),
        (np.zeros((2, 0)), "must be (chains, draws)"),
        (np.array([[0.0, np.nan]]), "must be finite"),
    ],
)
def test_bad_values_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match="standard_error: values") as caught:
        convergence.standard_error(values)
    assert message in str(caught.value)
