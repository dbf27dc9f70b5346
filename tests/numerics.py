"""The one comparator of numerical tests: an error against a bound that follows from the arithmetic.

A result of float arithmetic differs from the exact one by about c · n · eps · norm: eps the
rounding unit of the dtype, n the number of roundings on the way to an element, norm the size of the
terms that are added. Tests state c and n; the norm is taken from the reference.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


def rounding(dtype: torch.dtype | np.dtype | type) -> float:
    """Unit roundoff of a dtype: 2⁻²⁴ for float32, 2⁻⁵³ for float64."""
    limits = torch.finfo(dtype) if isinstance(dtype, torch.dtype) else np.finfo(dtype)
    return float(limits.eps) / 2


def error_bound(
    reference: ArrayLike | torch.Tensor,
    *,
    operations: int,
    dtype: torch.dtype | np.dtype | type,
    constant: float = 4.0,
) -> float:
    """constant · operations · eps · max|reference|, one bound for all elements.

    The constant 4 covers that intermediate terms are larger than the result's largest element.
    """
    scale = float(np.max(np.abs(as_float64(reference)), initial=0.0))
    return constant * operations * rounding(dtype) * scale


def assert_close(
    actual: ArrayLike | torch.Tensor,
    reference: ArrayLike | torch.Tensor,
    bound: float | ArrayLike,
    name: str = "result",
) -> None:
    """Every |actual - reference| ≤ bound; `bound` is a number or an array of the same shape.

    Fails on another shape, on any value that is not finite, on a bound that is not finite or not
    positive (such a test could not fail, or not pass), and when `actual` and `reference` are the
    same memory (a buffer compared with itself always agrees).
    """
    if shares_memory(actual, reference):
        raise AssertionError(f"{name}: actual and reference are the same memory")
    got, expected = as_float64(actual), as_float64(reference)
    limit = np.asarray(bound, dtype=np.float64)
    if got.shape != expected.shape:
        raise AssertionError(f"{name}: shape {got.shape}, expected {expected.shape}")
    if got.size == 0:
        raise AssertionError(f"{name}: nothing to compare")
    if limit.shape not in ((), expected.shape):
        raise AssertionError(f"{name}: bound has shape {limit.shape}, expected {expected.shape}")
    if not (np.isfinite(limit).all() and (limit > 0).all()):
        raise AssertionError(f"{name}: bound must be positive and finite, got {bound}")
    for what, values in (("actual", got), ("reference", expected)):
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).sum())
            raise AssertionError(f"{name}: {count} of {values.size} {what} values not finite")
    excess = np.abs(got - expected) / limit
    if excess.max() > 1.0:
        worst = np.unravel_index(int(excess.argmax()), excess.shape)
        where = tuple(int(k) for k in worst)
        raise AssertionError(
            f"{name}: {int((excess > 1.0).sum())} of {excess.size} beyond the bound; "
            f"worst at {where}: {got[worst]!r}, expected {expected[worst]!r}, "
            f"{excess[worst]:.3g} bounds apart"
        )


def assert_same_bits(
    actual: ArrayLike | torch.Tensor, reference: ArrayLike | torch.Tensor, name: str = "result"
) -> None:
    """Same dtype, shape and bits (so that equal NaN agree), in different memory."""
    if shares_memory(actual, reference):
        raise AssertionError(f"{name}: actual and reference are the same memory")
    got, expected = as_array(actual), as_array(reference)
    if got.dtype != expected.dtype or got.shape != expected.shape:
        raise AssertionError(
            f"{name}: {got.shape} {got.dtype}, expected {expected.shape} {expected.dtype}"
        )
    if np.ascontiguousarray(got).tobytes() != np.ascontiguousarray(expected).tobytes():
        raise AssertionError(f"{name}: {int((got != expected).sum())} of {got.size} values differ")


def as_array(values: ArrayLike | torch.Tensor) -> NDArray:
    """NumPy array of a tensor or array, without change of dtype."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def as_float64(values: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
    """The values as float64, to compare."""
    return as_array(values).astype(np.float64)


def shares_memory(first: ArrayLike | torch.Tensor, second: ArrayLike | torch.Tensor) -> bool:
    """Whether both are arrays on overlapping memory; plain numbers never are."""
    if not all(isinstance(values, np.ndarray | torch.Tensor) for values in (first, second)):
        return False
    return bool(np.shares_memory(as_array(first), as_array(second)))
