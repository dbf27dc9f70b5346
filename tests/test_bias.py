"""Averages with errors from the ESS, and the bias of one against another."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thermosphere.analysis.bias import Average, at_zero_share, average, bias, paired_difference


def chains_of(mean: float, seed: int, *, chains: int = 4, draws: int = 800) -> np.ndarray:
    """AR(1) chains of unit variance with correlation 0.8: ESS = draws · (1 - 0.8)/(1 + 0.8)."""
    random = np.random.default_rng(seed)
    kicks = 0.6 * random.standard_normal((chains, draws))
    values = np.empty((chains, draws))
    values[:, 0] = random.standard_normal(chains)
    for k in range(1, draws):
        values[:, k] = 0.8 * values[:, k - 1] + kicks[:, k]
    return mean + values


def test_errors_of_averages_are_those_of_correlated_draws() -> None:
    """Over many repetitions the mean scatters by the error stated, 3 times the naive one."""
    results = [average(chains_of(1.0, seed)) for seed in range(100)]
    z = np.array([(r.mean - 1.0) / r.error for r in results])
    assert 0.6 < z.std() < 1.15  # `standard_error` takes the larger of two estimates
    assert abs(z.mean()) < 4 * z.std() / 10
    expected = 4 * 600 * 0.2 / 1.8
    assert np.mean([r.effective_draws for r in results]) == pytest.approx(expected, rel=0.1)
    assert max(r.r_hat for r in results) < 1.1


def test_burn_in_is_left_out() -> None:
    values = chains_of(0.0, 1)
    values[:, :200] += 100.0
    assert abs(average(values).mean) < 1.0
    assert average(values, burn_in=0.0).mean > 20.0


def test_bias_in_its_three_units() -> None:
    exact = Average(mean=2.0, error=0.003, effective_draws=100.0, r_hat=1.0)
    sampled = Average(mean=2.02, error=0.004, effective_draws=100.0, r_hat=1.0)
    b = bias(sampled, exact, temperature=1e-3, slope=400.0, lowest=1.5)
    assert b.difference == pytest.approx(0.02)
    assert b.error == pytest.approx(0.005)
    assert b.z == pytest.approx(4.0)
    assert (b.of_excess, b.of_excess_error) == (pytest.approx(0.04), pytest.approx(0.01))
    assert (b.of_temperature, b.of_temperature_error) == (
        pytest.approx(0.05),
        pytest.approx(0.0125),
    )


def test_paired_differences_take_the_larger_error() -> None:
    def chains(*means: float) -> list[Average]:
        return [Average(mean, 0.03, 100.0, 1.0) for mean in means]

    difference, error, freedom, *_ = paired_difference(chains(2.1, 3.1), chains(2.0, 3.0))
    assert difference == pytest.approx(0.1)
    assert error == pytest.approx(0.03)  # √(2 · 0.03² · 2)/2
    assert freedom == 198
    difference, error, freedom, *_ = paired_difference(chains(2.3, 3.1), chains(2.0, 3.2))
    assert difference == pytest.approx(0.1)
    assert error == pytest.approx(0.2)  # ±0.2 about their mean
    assert freedom == 1
    error = paired_difference(chains(2.1), chains(2.0)).error
    assert error == pytest.approx(0.03 * 2**0.5)
    with pytest.raises(ValueError, match="a chain of both, got 1 and 0"):
        paired_difference(chains(2.0), [])


def test_a_line_through_the_shares() -> None:
    """Against repeated draws of a known line: the intercept's scatter is its error."""
    shares, errors = np.array([1e-3, 1e-2, 3e-2, 1e-2]), np.array([0.004, 0.002, 0.003, 0.002])
    random = np.random.default_rng(0)
    z, chi2 = [], []
    for _ in range(2000):
        means = 2.0 + 1.5 * shares + errors * random.standard_normal(4)
        fit = at_zero_share(
            shares, [Average(*numbers, 100.0, 1.0) for numbers in zip(means, errors, strict=True)]
        )
        z.append((fit[0] - 2.0) / fit[1])
        chi2.append(fit[2])
    assert abs(np.mean(z)) < 4 / 2000**0.5
    assert abs(np.var(z) - 1) < 4 * (2 / 2000) ** 0.5
    assert abs(np.mean(chi2) - 1) < 4 / 2000**0.5
    with pytest.raises(ValueError, match=r"3 or more T_ratios, got 2 at \[0.001, 0.01\]"):
        at_zero_share(shares[:2], [Average(2.0, 0.1, 10.0, 1.0)] * 2)


def test_bad_arguments() -> None:
    exact = Average(2.0, 0.1, 10.0, 1.0)
    with pytest.raises(ValueError, match=r"burn_in must be in \[0, 1\), got 1.0"):
        average(np.zeros((2, 10)), burn_in=1.0)
    with pytest.raises(ValueError, match="at least 4 draws after burn-in, got 3"):
        average(np.zeros((2, 6)), burn_in=0.5)
    with pytest.raises(ValueError, match="must be finite"):
        average(np.full((2, 10), math.nan))
    with pytest.raises(ValueError, match=r"lowest must be below 2.0, got 2.0"):
        bias(exact, exact, temperature=1.0, slope=1.0, lowest=2.0)
    with pytest.raises(ValueError, match=r"slope must be > 0, got nan"):
        bias(exact, exact, temperature=1.0, slope=math.nan, lowest=1.0)
