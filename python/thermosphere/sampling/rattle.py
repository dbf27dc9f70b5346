"""One step of constrained leapfrog (RATTLE) on the sphere |w|² = Q, in float64, for many chains.

From (w, p) with Σ p w/M = 0 and a step h, diagonal masses M:

    p½ = p - (h/2) ∇V(w) + (l/h) w;   w' = w + (h/M) p½      l of smaller magnitude with |w'|² = Q
    p' = p½ - (h/2) ∇V(w') - μ w'                            μ with Σ p' w'/M = 0

    V(w) = U(w) + (T/2) ln Σ w²/M

It keeps the volume of the constrained phase space for any force that depends on w alone, a rounded
one included: the kicks are shears, tangent after projection, and the move between them is the
exact constrained map of a free particle. It is its own inverse with p reversed where the root that
leads back is again the one of smaller magnitude; :func:`rattle_step` takes the step back, which
needs no new gradient, and says where it does not return (Lelièvre, Rousset, Stoltz, Numer. Math.
143, 379 (2019), section 3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from thermosphere.models.potential import Potential

# How far the step back may end from its start, in units of sqrt(Q). Rounding makes 1e-15; the other
# root lies a good part of sqrt(Q) away.
RETURN_TOLERANCE = 1e-9


class Point(NamedTuple):
    """Where chains are, and the potential there."""

    weights: torch.Tensor  # (C, N) float64
    losses: torch.Tensor  # (C,) float64, U
    gradient: torch.Tensor  # (C, N) float64, dU/dw


class Surface(NamedTuple):
    """The sphere of each chain, the masses, and the temperature of the metric term in V."""

    norm2: torch.Tensor  # (C,) float64, Q
    inverse_masses: torch.Tensor  # (C, N) float64, 1/M
    metric_temperature: torch.Tensor  # (C,) float64: T; 0 leaves the term out


class Stepped(NamedTuple):
    point: Point
    momenta: torch.Tensor  # (C, N) float64
    good: torch.Tensor  # (C,) bool: a root exists, leads back, and all numbers are finite


def evaluate(potential: Potential, weights: torch.Tensor, dtype: torch.dtype) -> Point:
    """U and its gradient on the whole set, called with weights of this dtype."""
    losses, gradient = potential(weights.to(dtype), None)
    return Point(weights, losses.double(), gradient.double())


def effective_potential(point: Point, surface: Surface) -> torch.Tensor:
    """V = U + (T/2) ln Σ w²/M, (C,) float64."""
    metric = (point.weights * point.weights * surface.inverse_masses).sum(1)
    return point.losses + 0.5 * surface.metric_temperature * metric.log()


def kinetic_energy(momenta: torch.Tensor, surface: Surface) -> torch.Tensor:
    """Σ p²/2M, (C,) float64."""
    return 0.5 * (momenta * momenta * surface.inverse_masses).sum(1)


def tangent(weights: torch.Tensor, momenta: torch.Tensor, surface: Surface) -> torch.Tensor:
    """p - w Σ(p w/M) / Σ(w²/M), (C, N): a Gaussian of covariance T M becomes the thermal law of
    the tangent space."""
    pull = weights * surface.inverse_masses
    share = (momenta * pull).sum(1, keepdim=True) / (weights * pull).sum(1, keepdim=True)
    return momenta - share * weights


def rattle_step(
    potential: Potential,
    point: Point,
    momenta: torch.Tensor,  # (C, N) float64
    surface: Surface,
    step_size: torch.Tensor,  # (C,) float64, h
    dtype: torch.dtype,
) -> Stepped:
    """One step of every chain; a chain that is not good keeps its point and momenta."""
    h = step_size[:, None]
    kicked = _kick(point, momenta, surface, 0.5 * h)
    moved, push, reachable = _drift(point.weights, kicked, surface, h)
    there = evaluate(potential, torch.where(reachable[:, None], moved, point.weights), dtype)
    arrived = _kick(there, kicked + push * point.weights, surface, 0.5 * h)
    arrived = tangent(there.weights, arrived, surface)

    reversed_kick = _kick(there, -arrived, surface, 0.5 * h)
    back, _, returns = _drift(there.weights, reversed_kick, surface, h)
    missed = (back - point.weights).square().sum(1)
    returns &= missed <= RETURN_TOLERANCE**2 * surface.norm2
    finite = there.losses.isfinite() & arrived.isfinite().all(1)
    good = reachable & returns & finite

    def where(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        return torch.where(good if new.ndim == 1 else good[:, None], new, old)

    kept = Point(*(where(new, old) for new, old in zip(there, point, strict=True)))
    return Stepped(kept, where(arrived, momenta), good)


def _kick(
    point: Point, momenta: torch.Tensor, surface: Surface, time: torch.Tensor
) -> torch.Tensor:
    """p - t ∇V, with ∇V = g + T (w/M) / Σ(w²/M)."""
    pull = point.weights * surface.inverse_masses
    metric = (point.weights * pull).sum(1, keepdim=True)
    slope = point.gradient + surface.metric_temperature[:, None] * pull / metric
    return momenta - time * slope


def _drift(
    weights: torch.Tensor, momenta: torch.Tensor, surface: Surface, h: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """w' = w + (h/M) p + l w/M on the sphere, l/h (C, 1), and whether there is such an l (C,)."""
    pull = weights * surface.inverse_masses
    moved = weights + h * surface.inverse_masses * momenta
    # S3 l² + 2 S1 l + (S2 - Q) = 0 without cancellation, as in csrc/sphere_root.h
    s1, s2, s3 = (moved * pull).sum(1), (moved * moved).sum(1), (pull * pull).sum(1)
    excess = surface.norm2 - s2
    discriminant = s1 * s1 + s3 * excess
    denominator = s1 + torch.copysign(discriminant.clamp(min=0).sqrt(), s1)
    reachable = (discriminant >= 0) & (denominator != 0)  # False also where a sum is NaN
    multiplier = torch.where(reachable, excess / denominator, 0.0)[:, None]
    return moved + multiplier * pull, multiplier / h, reachable
