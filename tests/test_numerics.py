"""The comparators catch planted faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound, rounding


@pytest.fixture
def reference() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 11))


def test_agreement_passes(reference: np.ndarray) -> None:
    bound = error_bound(reference, operations=1, dtype=np.float32)
    assert_close(reference.astype(np.float32), reference, bound)
    assert_close(torch.from_numpy(reference.copy()), reference, bound)
    assert_same_bits(reference.copy(), reference)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "not finite"),
        ("infinite", "not finite"),
        ("sign", "beyond the bound"),
        ("one element", "1 of 77 beyond the bound"),
        ("shape", "shape"),
        ("stale buffer", "same memory"),
        ("nan reference", "reference values not finite"),
    ],
)
def test_planted_faults_fail(reference: np.ndarray, fault: str, message: str) -> None:
    bound = error_bound(reference, operations=1, dtype=np.float32)
    actual = reference.copy()
    match fault:
        case "nan":
            actual[3, 4] = np.nan
        case "infinite":
            actual[0, 0] = np.inf
        case "sign":
            actual = -actual
        case "one element":
            actual[6, 10] += 2 * bound
        case "shape":
            actual = actual[:, :1]  # would broadcast
        case "stale buffer":
            actual = reference[:]
        case "nan reference":
            reference = reference.copy()
            reference[0, 0] = np.nan
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, reference, bound)


@pytest.mark.parametrize("bound", [0.0, -1.0, np.inf, np.nan])
def test_a_bound_that_tests_nothing_fails(reference: np.ndarray, bound: float) -> None:
    with pytest.raises(AssertionError, match="bound must be"):
        assert_close(reference.copy(), reference, bound)


def test_empty_comparison_fails() -> None:
    with pytest.raises(AssertionError, match="nothing to compare"):
        assert_close(np.empty(0), np.zeros(0), 1.0)


def test_elementwise_bound(reference: np.ndarray) -> None:
    bound = np.full_like(reference, 1e-3)
    bound[2, 2] = 1e-9
    actual = reference + 5e-4
    with pytest.raises(AssertionError, match=r"1 of 77 .* at \(2, 2\)"):
        assert_close(actual, reference, bound)


def test_same_bits_sees_one_bit(reference: np.ndarray) -> None:
    actual = reference.copy()
    actual[1, 1] = np.nextafter(actual[1, 1], 10.0)
    with pytest.raises(AssertionError, match="1 of 77 values differ"):
        assert_same_bits(actual, reference)
    with pytest.raises(AssertionError, match="float32"):
        assert_same_bits(reference.astype(np.float32), reference)
    with pytest.raises(AssertionError, match="same memory"):
        assert_same_bits(reference, reference)
    with_nan = np.array([np.nan, 1.0])
    assert_same_bits(with_nan.copy(), with_nan)


def test_rounding_units() -> None:
    assert rounding(torch.float32) == rounding(np.float32) == 2.0**-24
    assert rounding(torch.float64) == rounding(np.float64) == 2.0**-53
