"""The step as the formula reads (Eq. 34-41 of arXiv 2603.29529), in whatever precision
comes in; noise is an argument."""

from __future__ import annotations

from typing import NamedTuple

import torch


class StepResult(NamedTuple):
    weights: torch.Tensor  # (C, N)
    momenta: torch.Tensor  # (C, N)
    metric: torch.Tensor  # (C,) Σ w'²/M
    multiplier: torch.Tensor  # (C,) l = λ dt²
    reachable: torch.Tensor  # (C,) bool


def langevin_step_ref(
    weights: torch.Tensor,
    momenta: torch.Tensor,
    gradient: torch.Tensor,
    inverse_masses: torch.Tensor,
    noise_scales: torch.Tensor,
    *,
    noise: torch.Tensor,
    coefficients: torch.Tensor,
) -> StepResult:
    """Arrays (C, N), ``coefficients`` (C, 5) as in langevin_step; nothing is changed in place."""
    dt, a, b, tau, norm2 = (column[:, None] for column in coefficients.to(weights.dtype).unbind(1))
    pull = weights * inverse_masses  # w/M
    g = gradient + tau * pull / (weights * pull).sum(1, keepdim=True)
    kicked = a * momenta - b * g + noise_scales * noise  # Π̃
    moved = weights + dt * inverse_masses * kicked  # w̃

    s1 = (moved * pull).sum(1, keepdim=True)
    s2 = (moved * moved).sum(1, keepdim=True)
    s3 = (pull * pull).sum(1, keepdim=True)
    discriminant = s1 * s1 + s3 * (norm2 - s2)
    reachable = torch.where(
        norm2 < 0, s2.isfinite(), discriminant >= 0
    )  # False also where a sum is NaN
    sign = torch.where(s1 >= 0, 1.0, -1.0).to(s1)
    # S3 l² + 2 S1 l + (S2 - Q) = 0 (Eq. 36), the root of smaller magnitude
    multiplier = (norm2 - s2) / (s1 + sign * discriminant.clamp(min=0).sqrt())
    multiplier = torch.where((norm2 < 0) | ~reachable, torch.zeros_like(multiplier), multiplier)

    new_weights = torch.where(reachable, moved + multiplier * pull, weights)
    new_momenta = torch.where(reachable, kicked + multiplier / dt * weights, momenta)
    metric = (new_weights * new_weights * inverse_masses).sum(1)
    return StepResult(new_weights, new_momenta, metric, multiplier[:, 0], reachable[:, 0])


def langevin_momenta_ref(
    weights: torch.Tensor,
    momenta: torch.Tensor,
    gradient: torch.Tensor,
    inverse_masses: torch.Tensor,
    noise_scales: torch.Tensor,
    *,
    noise: torch.Tensor,
    coefficients: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Full-step momenta (C, N) and their kinetic energy Σ p²/2M (C,)."""
    _, a, b, tau, norm2 = (column[:, None] for column in coefficients.to(weights.dtype).unbind(1))
    pull = weights * inverse_masses
    metric = (weights * pull).sum(1, keepdim=True)
    g = gradient + tau * pull / metric
    full = a * (momenta - b * g) + noise_scales * noise
    tangent = full - weights * (full * pull).sum(1, keepdim=True) / metric  # Eq. 38-40
    full = torch.where(norm2 < 0, full, tangent)
    return full, 0.5 * (full * full * inverse_masses).sum(1)
