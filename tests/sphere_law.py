"""Exact averages of exp(-U/T) on a sphere for a quadratic U, by quadrature."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize
from toy import NoisyQuadratic


class SphereLaw(NamedTuple):
    mean: np.ndarray  # (N,), ⟨w⟩
    square: np.ndarray  # (N,), ⟨w²⟩
    energy: float  # ⟨U⟩


def sphere_law(toy: NoisyQuadratic, *, norm2: float, temperature: float) -> SphereLaw:
    """With U = Σ a (w - b)²/2 the delta function of |w|² - Q, written as ∫ ds exp(s (Q - |w|²)),
    leaves Gaussians of precision 2 (s + a/2T) around h/2(s + a/2T), h = a b/T:

        Z = ∫ ds exp(s Q) Π_i (s + α_i)^(-1/2) exp(h_i²/4(s + α_i)),     α = a/2T

    along a line parallel to the imaginary axis, through the saddle point, where ⟨|w|²⟩ = Q. The
    trapezoidal sum converges faster than any power of its spacing; the tail beyond t falls as
    t^(-N/2). Checked by Σ ⟨w²⟩ = Q.
    """
    a, b = toy.curvature.numpy(), toy.centre.numpy()
    alpha, h = a / (2 * temperature), a * b / temperature

    def moments(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        precision = 2 * (s[:, None] + alpha)
        mean = h / precision
        return mean, mean**2 + 1 / precision

    def excess(s: float) -> float:
        return float(moments(np.array([s]))[1].sum()) - norm2

    lowest = -alpha.min()
    saddle = optimize.brentq(excess, lowest + 1e-9, lowest + 1e6)
    t = np.arange(-400.0, 400.0, 2e-3)
    s = saddle + 1j * t
    shifted = s[:, None] + alpha
    weight = np.exp((s - saddle) * norm2 + (h**2 / 4 / shifted - 0.5 * np.log(shifted)).sum(1))
    weight /= weight.sum()
    mean, square = moments(s)
    first, second = (weight @ mean).real, (weight @ square).real
    assert abs(second.sum() / norm2 - 1) < 1e-9
    energy = float((a / 2 * (second - 2 * b * first + b**2)).sum())
    return SphereLaw(first, second, energy)
