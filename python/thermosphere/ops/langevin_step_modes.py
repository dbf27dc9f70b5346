"""The constrained pseudo-Langevin step where the stiffest directions have masses of their own
(ops/stiff_modes.py), in PyTorch on any device.

In x̂ = D^-1/2 x (weights and gradients; D^1/2 x̂ for positions, D^-1/2 Π for momenta) and with
A = 1 - V' R V, so that M^-1 = D^-1/2 A² D^-1/2:

    π̃ = a π - b A ĝ + s η̂         ĝ = D^-1/2 (gradient + τ (w/M) / Σ w·(w/M))
    w̃ = w + dt D^-1/2 A π̃
    w' = w̃ + l w/M;   π' = π̃ + (l/dt) A ŵ      l of smaller magnitude with |w'|² = Q

Coefficients, noise and results are those of ops/langevin_step.py, which it equals for R = 0 up to
rounding; the reference is langevin_step_dense_ref. Used where a move takes a gradient over the
whole set: a step is four passes over V.
"""

from __future__ import annotations

import torch

from thermosphere.ops.langevin_step_ref import sphere_root
from thermosphere.ops.philox import Stream, chain_normals, check_counter
from thermosphere.ops.stiff_modes import StiffModes


def langevin_step_modes(
    weights: torch.Tensor,
    momenta: torch.Tensor,
    gradient: torch.Tensor,
    inverse_masses: torch.Tensor,
    noise_scales: torch.Tensor,
    modes: StiffModes,
    *,
    coefficients: torch.Tensor,
    chain_ids: torch.Tensor,
    seed: int,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of every chain, in place on ``weights`` and ``momenta``.

    weights, momenta, gradient: (C, N) float32; inverse_masses, noise_scales: (C, N) float32, 1/D
    and s. coefficients: (C, 5) float64 from ``step_coefficients``.

    Returns multiplier (C,) float64 and reachable (C,) bool as ``langevin_step``: a chain whose
    proposal left the sphere's reach or is not finite keeps weights and momenta. And Σ Π²/2D of the
    momenta as they are now, half a kick behind, (C,) float64.
    """
    check_counter("langevin_step_modes", seed, step)
    dt, a, b, tau, norm2 = (column[:, None] for column in coefficients.unbind(1))
    a, b = a.float(), b.float()
    root = inverse_masses.sqrt()
    normal, pull, metric = _normal(weights, root, modes)
    slope = root * (gradient + (tau / metric).float() * pull)  # ĝ
    noise = chain_normals(
        seed=seed,
        stream=Stream.NOISE,
        chain_ids=chain_ids,
        step=step,
        count=weights.shape[1],
        device=weights.device,
    )
    drift = root * (a * momenta + noise_scales * noise)
    along = modes.project(torch.stack([drift, slope], 1))  # (C, k, 2)
    shrink = modes.shrink
    along_slope = along[:, :, 1]
    along_kicked = along[:, :, 0] - b * (1 - shrink) * along_slope  # V π̃
    back = modes.expand(shrink[:, :, None] * torch.stack([along_slope, along_kicked], 2))
    kicked = drift - b * (slope - back[:, 0])  # π̃
    moved = weights + dt.float() * root * (kicked - back[:, 1])  # w̃

    multiplier, reachable = sphere_root(moved.double(), pull.double(), norm2)
    length = multiplier.float()
    new_weights = moved + length * pull
    new_momenta = (kicked + (multiplier / dt).float() * normal) / root
    weights.copy_(torch.where(reachable, new_weights, weights))
    momenta.copy_(torch.where(reachable, new_momenta, momenta))
    energy = 0.5 * (root * momenta).double().square().sum(1)
    return multiplier[:, 0], reachable[:, 0], energy


def langevin_momenta_modes(
    weights: torch.Tensor,
    momenta: torch.Tensor,
    gradient: torch.Tensor,
    inverse_masses: torch.Tensor,
    noise_scales: torch.Tensor,
    modes: StiffModes,
    *,
    coefficients: torch.Tensor,
    chain_ids: torch.Tensor,
    seed: int,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Full-step momenta (C, N) in the units of D, tangent where there is a sphere, and their
    kinetic energy Σ Π²/2D, (C,) float64; nothing is changed in place. Arguments as above."""
    check_counter("langevin_momenta_modes", seed, step)
    _, a, b, tau, norm2 = (column[:, None] for column in coefficients.unbind(1))
    root = inverse_masses.sqrt()
    normal, pull, metric = _normal(weights, root, modes)
    slope = root * (gradient + (tau / metric).float() * pull)
    noise = chain_normals(
        seed=seed,
        stream=Stream.MOMENTUM_NOISE,
        chain_ids=chain_ids,
        step=step,
        count=weights.shape[1],
        device=weights.device,
    )
    kick = b.float() * modes.shrunk(slope)
    full = a.float() * (root * momenta - kick) + root * noise_scales * noise
    along = (full.double() * normal.double()).sum(1, keepdim=True) / metric
    full = torch.where(norm2 < 0, full, full - along.float() * normal)
    return full / root, 0.5 * full.double().square().sum(1)


def _normal(
    weights: torch.Tensor, root: torch.Tensor, modes: StiffModes
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A ŵ (C, N), w/M (C, N), and Σ w·(w/M) (C, 1) float64."""
    x = root * weights
    along = modes.shrink[:, :, None] * modes.project(x[:, None])  # R V ŵ
    # A² = 1 - V' R (2 - R) V
    both = torch.cat([along, (2 - modes.shrink[:, :, None]) * along], 2)
    back = modes.expand(both)
    normal = x - back[:, 0]
    return normal, root * (x - back[:, 1]), normal.double().square().sum(1, keepdim=True)
