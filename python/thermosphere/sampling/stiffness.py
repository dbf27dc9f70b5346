"""The stiffest direction of U, and masses that make the time step fit it.

In x = sqrt(M) w the leapfrog step is stable while ω dt < 2, ω² the largest eigenvalue of the
Hessian M^-1/2 (∂²U/∂w²) M^-1/2, and a harmonic mode of frequency ω is then sampled at the
temperature T / (1 - ω² dt²/4). Few modes of a network are stiff: the mean of `balance`'s diagonal
beside ``largest_curvature`` says by how much the mean mode, and with it ⟨U⟩, is hotter.
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

# Gradient pairs of the largest eigenvalue: that of a network stands out, exact to 1e-3 then.
ITERATIONS = 10

# And of the lengths of rows: with ten, masses of tf1-small and tf1 are as good as with forty.
PROBES = 10


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
    first = _vector(Stream.CURVATURE, seed, step, chain_ids, weights.shape[1], weights.device)
    vectors = [_unit(first)]
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


def balance(
    potential: Gradient,
    weights: torch.Tensor,  # (C, N) float32
    masses: torch.Tensor,  # (C, N)
    *,
    seed: int,
    step: int,
    chain_ids: torch.Tensor,
    probes: int = PROBES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Length of each row of A = M^-1/2 (∂²U/∂w²) M^-1/2, and its diagonal, both (C, N) float64.

    From Gaussian vectors x: E (A x)² is the squared length, E x (A x) the diagonal (Bekas,
    Kokiopoulou, Saad, Appl. Numer. Math. 57, 1214 (2007)). A length is off by 1/sqrt(2 probes) of
    itself, the mean of the diagonal by sqrt(2 Σ λ² / probes) / N. Masses times these lengths
    condition A better, positive or not (equilibration: Dauphin, de Vries, Bengio, NeurIPS 28
    (2015)).
    """
    product = _hessian_product(potential, weights, masses)
    square = torch.zeros(weights.shape, dtype=torch.float64, device=weights.device)
    diagonal = torch.zeros_like(square)
    for probe in range(probes):
        x = _vector(
            Stream.PROBE, seed, step * probes + probe, chain_ids, weights.shape[1], weights.device
        )
        y = product(x)
        square += y.square() / probes
        diagonal += x * y / probes
    return square.sqrt(), diagonal


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


def _vector(
    stream: Stream,
    seed: int,
    step: int,
    chain_ids: torch.Tensor,
    count: int,
    device: torch.device,
) -> torch.Tensor:
    """Gaussian, (C, count) float64."""
    return torch.stack(
        [
            normals(seed=seed, stream=stream, chain=chain, step=step, count=count, device=device)
            for chain in chain_ids.tolist()
        ]
    ).double()


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=SMALLEST)
