"""Floors, masses and white noise: the formulas and what follows from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from thermosphere.models.layout import Layout
from thermosphere.sampling.masses import (
    default_t_ratio,
    floored_variance,
    friction_factor,
    masses_from_variance,
    median_variance,
    realised_t_ratio,
    white_noise_scales,
)

UNIT = 2.0**-24


def log_uniform(shape: tuple[int, ...], low: float, high: float, seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(10 ** random.uniform(np.log10(low), np.log10(high), shape)).float()


# Floors.


def test_median_skips_parameters_without_noise() -> None:
    variance = torch.tensor([[0.0, 3.0, 0.0, 1.0, 2.0], [5.0, 0.0, 0.0, 0.0, 0.0]])
    assert median_variance(variance).tolist() == [2.0, 5.0]


def test_no_noise_at_all_is_an_error() -> None:
    with pytest.raises(
        ValueError,
        match=r"^masses: expected gradient noise, got variance 0 for every parameter of chain 1: ",
    ):
        median_variance(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))


def test_floor() -> None:
    variance = torch.tensor([[0.0, 3.0, 0.0, 1.0, 2.0]])
    assert floored_variance(variance, "median").tolist() == [[2.0, 3.0, 2.0, 2.0, 2.0]]
    assert floored_variance(variance, 1.5).tolist() == [[1.5, 3.0, 1.5, 1.5, 2.0]]
    assert variance.tolist() == [[0.0, 3.0, 0.0, 1.0, 2.0]]


@pytest.mark.parametrize("floor", ["mean", 0.0, -1.0, float("nan"), float("inf")])
def test_floor_errors(floor: str | float) -> None:
    with pytest.raises(
        ValueError,
        match=r'^masses: variance_floor must be "median" or a finite positive number, got ',
    ):
        floored_variance(torch.ones(1, 3), floor)


def test_average_over_trailing_axes() -> None:
    layout = Layout.from_shapes({"matrix": (2, 3), "gain": (2,)})
    variance = torch.tensor([[1.0, 2, 6, 10, 20, 60, 4, 8], [2.0, 2, 2, 5, 5, 5, 1, 3]])
    rows = floored_variance(variance, 1e-8, layout=layout, average_axis=1)
    assert rows.tolist() == [[3, 3, 3, 30, 30, 30, 4, 8], [2, 2, 2, 5, 5, 5, 1, 3]]
    whole = floored_variance(variance, 1e-8, layout=layout, average_axis=0)
    assert whole.tolist() == [[16.5] * 6 + [6, 6], [3.5] * 6 + [2, 2]]
    with pytest.raises(
        ValueError, match=r"^masses: average_axis needs the potential's layout, got None$"
    ):
        floored_variance(variance, 1e-8, average_axis=0)


# Formulas.


def test_masses_give_the_set_share() -> None:
    variance = log_uniform((3, 50), 1e-9, 1.0)
    temperature = torch.tensor([1e-5, 1e-3, 2.0], dtype=torch.float64)
    t_ratio = torch.tensor([5e-8, 1e-2, 0.5], dtype=torch.float64)
    masses = masses_from_variance(
        variance, temperature=temperature, t_ratio=t_ratio, dt=0.7, m1=0.2
    )
    expected = variance.double() * 0.7**2 / (4 * (t_ratio * temperature)[:, None] * 0.2**2)
    assert torch.allclose(masses.double(), expected, rtol=2 * UNIT, atol=0)
    realised = realised_t_ratio(variance, masses, temperature=temperature, dt=0.7, m1=0.2)
    assert torch.allclose(realised, t_ratio[:, None].expand(3, 50), rtol=2 * UNIT, atol=0)


def test_default_t_ratio_moves_the_median_parameter_by_epsilon() -> None:
    variance = log_uniform((2, 101), 1e-6, 1e-2)
    variance[:, :30] = 0
    temperature = torch.tensor([1e-3, 1e-5], dtype=torch.float64)
    norm2 = torch.tensor([30.0, 50.0], dtype=torch.float64)
    rule = {"temperature": temperature, "norm2": norm2, "m1": 0.1, "displacement": 0.004}
    t_ratio = default_t_ratio(variance, **rule, cap=torch.inf)
    median = median_variance(variance)
    masses = masses_from_variance(
        median[:, None], temperature=temperature, t_ratio=t_ratio, dt=1.0, m1=0.1
    )
    displacement = (temperature[:, None] / masses.double()).sqrt()[:, 0]
    assert torch.allclose(displacement, 0.004 * (norm2 / 101).sqrt(), rtol=4 * UNIT, atol=0)
    capped = default_t_ratio(variance, **rule, cap=float(t_ratio[1]) / 2)
    assert capped.tolist() == [min(float(t_ratio[0]), float(t_ratio[1]) / 2), float(t_ratio[1]) / 2]


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_white_noise_completes_the_mini_batch_noise(scheme: str) -> None:
    """Mini-batch and white noise are thermal together: M T m1², (1 + c1²) of it in the leapfrog."""
    m1, dt = 0.3, 0.8
    c1 = friction_factor(m1)
    assert c1**2 == pytest.approx(1 - m1**2, rel=1e-15)
    temperature = torch.tensor([0.01, 3.0], dtype=torch.float64)
    masses = log_uniform((2, 200), 1.0, 1e3)
    thermal = masses.double() * temperature[:, None] * m1**2
    limit = 1.0 if scheme == "paper" else 1 / (1 + c1**2)
    share = torch.linspace(0, limit, 200, dtype=torch.float64).clone()
    share[-1] -= 1e-6  # the limit itself is one rounding away from an error
    variance = (share * thermal * 4 / dt**2).float()
    step, momenta = (
        scale.double() ** 2
        for scale in white_noise_scales(
            variance, masses, temperature=temperature, dt=dt, m1=m1, scheme=scheme
        )
    )
    v = variance.double() * dt**2 / 4
    if scheme == "paper":
        total, expected = step + v, thermal
    else:
        total, expected = step + (1 + c1**2) ** 2 * v, (1 + c1**2) * thermal
    assert torch.allclose(total, expected, rtol=4 * UNIT, atol=0)
    assert torch.allclose(momenta + c1**2 * v, thermal, rtol=4 * UNIT, atol=0)
    if scheme == "leapfrog":  # (1 + c1²)(k² - v (c1 dt/2)²), as written
        as_written = (1 + c1**2) * (thermal - v - variance.double() * (c1 * dt / 2) ** 2)
        assert torch.allclose(step, as_written, rtol=0, atol=float(4 * UNIT * thermal.max()))


@pytest.mark.parametrize(
    ("scheme", "limit", "share"), [("leapfrog", "0.5025", 0.51), ("paper", "1.0000", 1.01)]
)
def test_too_large_a_share_is_an_error(scheme: str, limit: str, share: float) -> None:
    masses = torch.full((1, 3), 100.0)
    variance = torch.tensor([[0.0, 1.0, 4 * 100 * 0.01 * share]])
    with pytest.raises(
        ValueError,
        match=rf"^masses: .* noise must be <= {limit} .* the {scheme} scheme, got {share}; raise ",
    ):
        white_noise_scales(
            variance,
            masses,
            temperature=torch.ones(1, dtype=torch.float64),
            dt=1.0,
            m1=0.1,
            scheme=scheme,
        )
