"""Errors known from few values, and what may be said with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from thermosphere.analysis.significance import Measured, larger_spread


@pytest.mark.parametrize("freedom", [1.0, 1.3, 2.0, 2.6, 3.0, 4.5, 8.0, 15.0, 40.0, 1e6])
def test_the_interval_is_student_s_and_never_too_narrow(freedom: float) -> None:
    exact = stats.t.ppf(0.975, freedom)
    reach = Measured(0.0, 1.0, freedom).reach
    assert exact * (1 - 1e-3) <= reach <= exact * 1.35
    if freedom in (1.0, 2.0, 3.0):
        assert reach == pytest.approx(exact, rel=1e-3)


def test_a_single_run_says_nothing() -> None:
    one, many = Measured.of_runs([3.0]), Measured.of_runs([1.0, 1.1, 0.9])
    assert math.isnan(one.reach)
    difference = one.minus(many)
    assert not difference.above(0.0)
    assert not difference.below(10.0)


def test_differences_of_equal_means_are_found_as_rarely_as_claimed() -> None:
    generator = np.random.default_rng(2)
    wrong = 0
    trials = 4000
    for _ in range(trials):
        first = Measured.of_runs(generator.normal(size=3))
        second = Measured.of_runs(0.2 * generator.normal(size=20))
        difference = first.minus(second)
        wrong += difference.above(0.0) or difference.below(0.0)
    # At most 5 %, by the width of 4 standard deviations of a binomial.
    assert wrong / trials < 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)
    assert wrong / trials > 0.01  # nor by never finding any


def test_variances_are_compared_as_by_the_f_test() -> None:
    values = np.array([0.1, 0.4, -0.3, 0.2])
    for second in (0.1, 0.3, 1.0):
        exact = stats.f.sf(values.var(ddof=1) / second**2, 3, 12)
        found = larger_spread(values, second, 12.0)
        assert abs(found - exact) < 5 * math.sqrt(exact * (1 - exact) / 100_000) + 1e-4
    assert math.isnan(larger_spread(values[:1], 0.3, 12.0))


def test_what_sets_starts_apart_drops_out_of_their_differences() -> None:
    first = Measured(2.0, 0.6, 2.0, (1.0, 2.0, 3.0), 0.03)
    second = Measured(1.5, 0.6, 2.0, (0.6, 1.5, 2.4), 0.04)
    difference = first.beside(second)
    assert difference.mean == 0.5
    assert difference.freedom == 2
    spread = np.std([0.4, 0.5, 0.6], ddof=1) / 3**0.5
    assert difference.error == pytest.approx(np.hypot(spread, 0.05))
    assert difference.above(0.0)
    assert not first.minus(second).above(0.0)
    # Not known start by start, or of different starts: independent numbers.
    for other in (Measured(1.5, 0.6, 2.0), second._replace(starts=(0.6, 2.4))):
        assert first.beside(other) == first.minus(other)
        assert other.beside(first) == other.minus(first)
    assert Measured.of_runs([1.0, 2.0]).starts == (1.0, 2.0)


def test_the_largest_of_equal_values_is_rarely_known_to_be_larger() -> None:
    """Of eight draws of one law the largest is above their mean by its own interval in more than a
    tenth of cases; by the interval of having been chosen in a fortieth."""
    draws = np.random.default_rng(3).normal(size=(4_000, 8)).max(1)
    alone, chosen = (
        np.mean([Measured(x, 1.0, 1e9, among=among).above(0.0) for x in draws]) for among in (1, 8)
    )
    assert alone > 0.15
    assert chosen < 0.035
    worst = Measured(1.0, 0.1, 1e9, among=8).minus(Measured(0.0, 0.0, 1e9))
    assert worst.among == 8
