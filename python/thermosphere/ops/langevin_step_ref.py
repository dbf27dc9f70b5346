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

    multiplier, reachable = sphere_root(moved, pull, norm2)
    new_weights = torch.where(reachable, moved + multiplier * pull, weights)
    new_momenta = torch.where(reachable, kicked + multiplier / dt * weights, momenta)
    metric = (new_weights * new_weights * inverse_masses).sum(1)
    return StepResult(new_weights, new_momenta, metric, multiplier[:, 0], reachable[:, 0])


def sphere_root(
    moved: torch.Tensor, pull: torch.Tensor, norm2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The l of smaller magnitude with |w̃ + l w/M|² = Q (Eq. 36), and whether there is one.

    w̃ and w/M (C, N), Q (C, 1), negative for none; both results (C, 1).
    """
    s1 = (moved * pull).sum(1, keepdim=True)
    s2 = (moved * moved).sum(1, keepdim=True)
    s3 = (pull * pull).sum(1, keepdim=True)
    discriminant = s1 * s1 + s3 * (norm2 - s2)
    reachable = torch.where(
        norm2 < 0, s2.isfinite(), discriminant >= 0
    )  # False also where a sum is NaN
    sign = torch.where(s1 >= 0, 1.0, -1.0).to(s1)
    # S3 l² + 2 S1 l + (S2 - Q) = 0
    multiplier = (norm2 - s2) / (s1 + sign * discriminant.clamp(min=0).sqrt())
    return torch.where((norm2 < 0) | ~reachable, 0.0, multiplier), reachable


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


def langevin_step_dense_ref(
    weights: torch.Tensor,
    momenta: torch.Tensor,
    gradient: torch.Tensor,
    half: torch.Tensor,
    *,
    noise: torch.Tensor,
    coefficients: torch.Tensor,
) -> StepResult:
    """The same with any masses: ``half`` (C, N, N) is one root of their inverse, M^-1 = half half'.

    ``momenta`` (C, N) are in units of unit masses, π = half' p, and so is the noise: they and
    kinetic energies π²/2 do not depend on the root taken but by a rotation.
    """
    dt, a, b, tau, norm2 = (column[:, None] for column in coefficients.to(weights.dtype).unbind(1))

    def down(x: torch.Tensor) -> torch.Tensor:
        return (half.transpose(1, 2) @ x[:, :, None])[:, :, 0]

    def up(x: torch.Tensor) -> torch.Tensor:
        return (half @ x[:, :, None])[:, :, 0]

    normal = down(weights)
    pull = up(normal)
    g = gradient + tau * pull / (weights * pull).sum(1, keepdim=True)
    kicked = a * momenta - b * down(g) + noise
    moved = weights + dt * up(kicked)
    multiplier, reachable = sphere_root(moved, pull, norm2)
    new_weights = torch.where(reachable, moved + multiplier * pull, weights)
    new_momenta = torch.where(reachable, kicked + multiplier / dt * normal, momenta)
    metric = down(new_weights).square().sum(1)
    return StepResult(new_weights, new_momenta, metric, multiplier[:, 0], reachable[:, 0])
