"""Masses adapted to the gradient noise, and the white noise that completes it (arXiv 2603.29529,
appendix D and its reference [26]).

A mini-batch gradient carries noise of variance v; with M = v dt² / (4 r T m1²) it supplies the
share r (``t_ratio``) of
the thermal noise and white noise of variance k² = M T m1² - v dt²/4 the rest.
One move displaces parameter i by δ_i = dt sqrt(T / M_i).
"""

from __future__ import annotations

import math

import torch

from thermosphere.models.layout import Layout

# Above this share the leapfrog scheme's white noise k² - v (c1 dt/2)² would be negative: r (1 +
# c1²) ≤ 1.
T_RATIO_LIMIT = 0.5


def friction_factor(m1: float) -> float:
    """c1 = sqrt(1 - m1²), what a half-step's friction leaves of a momentum."""
    return math.sqrt(1.0 - m1 * m1)


def median_variance(variance: torch.Tensor, chain_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Median over the parameters with v > 0 of each chain, (C, N) -> (C,) float64 on the CPU.
    Raises ValueError where all are 0, naming the chain by its identity (C,), default its row."""
    medians = torch.empty(variance.shape[0], dtype=torch.float64)
    for at, row in enumerate(variance):
        noisy = row[row > 0]
        if noisy.numel() == 0:
            chain = at if chain_ids is None else int(chain_ids[at])
            raise ValueError(
                "masses: expected gradient noise, got variance 0 for every parameter of chain "
                f"{chain}: the mini-batch is the whole set? Then give `masses` explicitly"
            )
        medians[at] = noisy.double().median()
    return medians


def floored_variance(
    variance: torch.Tensor,
    floor: str | float,
    *,
    layout: Layout | None = None,
    average_axis: int | None = None,
    chain_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """The variance that sets the masses, (C, N) float64.

    floor: ``"median"``, of the non-zero variances of the chain: parameters that no gradient reaches
    would otherwise be the lightest and
    soak up the norm; or a number, the published absolute floor (1e-8).
    average_axis: replace v of each tensor by its mean over this axis and the ones after it (needs
    ``layout``).
    chain_ids: (C,), what an error calls the chains.
    """
    if average_axis is not None:
        if layout is None:
            raise ValueError("masses: average_axis needs the potential's layout, got None")
        variance = _averaged(variance, layout, average_axis)
    variance = variance.double()
    if floor == "median":
        least = median_variance(variance, chain_ids)[:, None]
        return torch.maximum(variance, least.to(variance.device))
    if isinstance(floor, str) or not 0 < floor < math.inf:
        raise ValueError(
            f'masses: variance_floor must be "median" or a finite positive number, got {floor!r}'
        )
    return variance.clamp(min=float(floor))


def _averaged(variance: torch.Tensor, layout: Layout, axis: int) -> torch.Tensor:
    result = variance.clone()
    for entry, view in zip(layout.entries, layout.views(result).values(), strict=True):
        if axis < len(entry.shape):
            trailing = tuple(range(1 + axis, 1 + len(entry.shape)))  # the chain axis comes first
            view.copy_(view.mean(dim=trailing, keepdim=True).expand_as(view))
    return result


def default_t_ratio(
    variance: torch.Tensor,
    *,
    temperature: torch.Tensor,
    norm2: torch.Tensor,
    m1: float,
    displacement: float = 0.005,
    cap: float = 1e-2,
    chain_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """r = min(cap, v_med (ε σ_w / (2 m1 T))²) of each chain, (C,) float64; ε = ``displacement``,
    σ_w = sqrt(Q / N).

    A move then displaces a parameter of median noise by ε σ_w: the largest that was found stable.
    Above the cap the mini-batch's share of the noise
    biases ⟨U⟩.
    """
    sigma = (norm2.double() / variance.shape[1]).sqrt()
    median = median_variance(variance, chain_ids)
    stable = median * (displacement * sigma / (2 * m1 * temperature)) ** 2
    return stable.clamp(max=cap)


def masses_from_variance(
    floored: torch.Tensor,
    *,
    temperature: torch.Tensor,
    t_ratio: torch.Tensor,
    dt: float,
    m1: float,
) -> torch.Tensor:
    """M = v dt² / (4 r T m1²), (C, N) float32, from the floored variance."""
    scale = dt * dt / (4.0 * m1 * m1 * (t_ratio * temperature).double())
    return (floored.double() * scale[:, None].to(floored.device)).float()


def realised_t_ratio(
    variance: torch.Tensor,
    masses: torch.Tensor,
    *,
    temperature: torch.Tensor,
    dt: float,
    m1: float,
) -> torch.Tensor:
    """r_i = v_i dt² / (4 M_i T m1²) of every parameter, (C, N) float64: what the mini-batch
    supplies now."""
    return (
        variance.double()
        * dt
        * dt
        / (4.0 * m1 * m1 * masses.double() * temperature.double()[:, None].to(masses.device))
    )


def white_noise_scales(
    variance: torch.Tensor,
    masses: torch.Tensor,
    *,
    temperature: torch.Tensor,
    dt: float,
    m1: float,
    scheme: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard deviations (C, N) float32 of the white noise in a position step and in full-step
    momenta.

    Position step: k (``paper``) or sqrt((1 + c1²)(k² - v (c1 dt/2)²)) (``leapfrog``); momenta:
    sqrt(k² + v (dt m1/2)²).
    Raises ValueError where the variance of the position step's noise would be negative: k², that
    is r_i > 1 (``paper``), or k² - v (c1 dt/2)², that is r_i > 1/(1 + c1²) (``leapfrog``).
    """
    c1 = friction_factor(m1)
    v = variance.double() * (dt * dt / 4.0)
    thermal = masses.double() * temperature.double()[:, None].to(masses.device) * (m1 * m1)
    k2 = thermal - v
    if scheme == "paper":
        step2, limit = k2, 1.0
    else:
        step2, limit = (1.0 + c1 * c1) * (k2 - v * (c1 * c1)), 1.0 / (1.0 + c1 * c1)
    if not step2.min() >= 0:  # NaN too
        worst = float((v / thermal).max())
        raise ValueError(
            f"masses: the mini-batch's share of the thermal noise must be <= {limit:.4f} for every "
            f"parameter in the {scheme} scheme, got {worst:.4g}; raise the masses or lower t_ratio"
        )
    return step2.sqrt().float(), (k2 + v * (m1 * m1)).sqrt().float()
