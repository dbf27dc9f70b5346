"""The stiffest direction of U, and masses that make the time step fit it.

In x = sqrt(M) w the leapfrog step is stable while ω dt < 2, ω² the largest eigenvalue of the
Hessian M^-1/2 (∂²U/∂w²) M^-1/2, and a harmonic mode of frequency ω is then sampled at the
temperature T / (1 - ω² dt²/4). Few modes of a network are stiff: ``mean_curvature`` beside
``largest_curvature`` says by how much the mean mode, and with it ⟨U⟩, is hotter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from thermosphere.models.potential import Gradient
from thermosphere.ops.philox import Stream, normals

# Differences of two gradients over this share of |w|: float32 gradients are exact to about 1e-6 of
# themselves, which leaves the difference three digits.
DIFFERENCE = 1e-3

SMALLEST = 1e-150  # its square is a number

ITERATIONS = (
    10  # gradient pairs; the largest eigenvalue of a network stands out: exact to 1e-3 then
)


def largest_curvature(
    potential: Gradient,
    weights: torch.Tensor,  # (C, N) float32
    masses: torch.Tensor,  # (C, N)
    *,
    seed: int,
    step: int,
    chain_ids: torch.Tensor,
    iterations: int = ITERATIONS,
) -> torch.Tensor:
    """Largest eigenvalue of M^-1/2 (∂²U/∂w²) M^-1/2 of each chain, (C,) float64, from below.

    Lanczos with full reorthogonalisation, all chains at once; products with the Hessian are central
    differences of full-set gradients, 2 a chain and iteration. Start vectors from
    (seed, step, chain). The sphere is not looked at: one direction of N does not change the
    largest.
    """
    iterations = min(iterations, weights.shape[1])
    product = _hessian_product(potential, weights, masses)
    vectors = [_unit(_start(seed, step, chain_ids, weights.shape[1], weights.device))]
    diagonal, beside = [], []
    for iteration in range(iterations):
        x = product(vectors[-1])
        diagonal.append((x * vectors[-1]).sum(1))
        if iteration + 1 == iterations:
            break
        basis = torch.stack(vectors, 1)  # (C, k, N)
        for _ in range(2):  # twice is enough (Parlett, The Symmetric Eigenvalue Problem, 6-9)
            x = x - ((basis @ x[:, :, None]).transpose(1, 2) @ basis)[:, 0]
        # Where the Krylov space is exhausted nothing is left: a zero vector adds a zero eigenvalue.
        left = x.norm(dim=1)
        x = x * (left > 1e-12 * diagonal[0].abs().clamp(min=SMALLEST))[:, None]
        beside.append(x.norm(dim=1))
        vectors.append(_unit(x))
    tridiagonal = torch.diag_embed(torch.stack(diagonal, 1))
    if beside:
        off = torch.stack(beside, 1)
        tridiagonal = (
            tridiagonal + torch.diag_embed(off, offset=1) + torch.diag_embed(off, offset=-1)
        )
    return torch.linalg.eigvalsh(tridiagonal)[:, -1]


def mean_curvature(
    potential: Gradient,
    weights: torch.Tensor,  # (C, N) float32
    masses: torch.Tensor,  # (C, N)
    *,
    seed: int,
    chain_ids: torch.Tensor,
    probes: int = 8,
) -> torch.Tensor:
    """Mean eigenvalue of M^-1/2 (∂²U/∂w²) M^-1/2 of each chain, (C,) float64: its trace over N from
    Gaussian probes (Hutchinson), to about sqrt(2 Σ λ² / probes) / N."""
    product = _hessian_product(potential, weights, masses)
    total = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    for probe in range(probes):
        x = _start(seed, probe, chain_ids, weights.shape[1], weights.device)
        total += (x * product(x)).sum(1) / weights.shape[1]
    return total / probes


def _hessian_product(
    potential: Gradient, weights: torch.Tensor, masses: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> M^-1/2 (∂²U/∂w²) M^-1/2 x, (C, N) float64 both."""
    root = masses.double().sqrt()
    length = DIFFERENCE * weights.double().norm(dim=1, keepdim=True)

    def product(x: torch.Tensor) -> torch.Tensor:
        direction = x / root
        norm = direction.norm(dim=1, keepdim=True).clamp(min=SMALLEST)
        shift = direction * (length / norm)
        _, ahead = potential((weights + shift).to(weights.dtype), None)
        ahead = ahead.double()  # a copy: a potential may give the same buffer again
        _, behind = potential((weights - shift).to(weights.dtype), None)
        return (ahead - behind.double()) * (norm / (2 * length)) / root

    return product


def _start(
    seed: int, step: int, chain_ids: torch.Tensor, count: int, device: torch.device
) -> torch.Tensor:
    return torch.stack(
        [
            normals(
                seed=seed,
                stream=Stream.CURVATURE,
                chain=chain,
                step=step,
                count=count,
                device=device,
            )
            for chain in chain_ids.tolist()
        ]
    ).double()


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=SMALLEST)
