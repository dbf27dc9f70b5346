"""One step's arguments, its calls, and how far float32 may take it from the exact step."""

from __future__ import annotations

from typing import NamedTuple

import torch

from thermosphere.ops.langevin_step import (
    UNCONSTRAINED,
    StepWorkspace,
    langevin_momenta,
    langevin_step,
    metric_sums,
    step_coefficients,
)
from thermosphere.ops.philox import Stream, normals

SEED, STEP = 0xFEDC_BA98_7654_3210, 2**35 + 3
UNIT = 2.0**-24  # unit roundoff of float32


SHAPES = [
    (1, 1),
    (1, 3),
    (2, 4),
    (3, 15),
    (1, 16),
    (2, 17),
    (1, 63),
    (2, 64),
    (3, 65),
    (1, 127),
    (5, 1000),
    (2, 4095),
    (1, 4096),
    (3, 4097),
    (2, 8107),
    (1, 8191),
    (2, 12_289),
    (1, 44_245),
]


class Problem(NamedTuple):
    """Arguments of one step, (C, N) float32 and per chain."""

    weights: torch.Tensor
    momenta: torch.Tensor
    gradient: torch.Tensor
    inverse_masses: torch.Tensor
    noise_scales: torch.Tensor
    coefficients: torch.Tensor  # (C, 5) float64
    metric: torch.Tensor  # (C,) float64
    chain_ids: torch.Tensor  # (C,) int64

    def copy(self) -> Problem:
        return Problem(*(tensor.clone() for tensor in self))


def make_problem(
    chains: int, parameters: int, *, seed: int = 0, constrained: bool = True, corrected: bool = True
) -> Problem:
    """Weights of order one on their own sphere, masses over three decades, moves of a per cent."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(chains, parameters, generator=g)
    masses = 10 ** (3 * torch.rand(chains, parameters, generator=g))
    dt = 0.5 + torch.arange(chains, dtype=torch.float64) / (2 * chains)
    inverse_masses = masses.reciprocal()
    temperature = 1e-3 * (1 + torch.arange(chains, dtype=torch.float64))
    norm2 = (weights.double() ** 2).sum(1)
    thermal = (temperature[:, None] * masses).sqrt().float()
    return Problem(
        weights=weights,
        momenta=torch.randn(chains, parameters, generator=g) * thermal,
        gradient=torch.randn(chains, parameters, generator=g) * thermal,
        inverse_masses=inverse_masses,
        noise_scales=torch.rand(chains, parameters, generator=g) * thermal,
        coefficients=step_coefficients(
            dt=dt,
            momentum_factor=0.8 + 0.1 * dt,
            gradient_factor=0.95 * dt,
            metric_temperature=temperature * float(corrected),
            norm2=norm2 if constrained else torch.full_like(dt, UNCONSTRAINED),
        ),
        metric=metric_sums(
            weights, inverse_masses, workspace=StepWorkspace(chains, parameters), threads=1
        ),
        chain_ids=torch.arange(chains) * 1000 + 7,
    )


class Stepped(NamedTuple):
    weights: torch.Tensor
    momenta: torch.Tensor
    metric: torch.Tensor
    multiplier: torch.Tensor
    reachable: torch.Tensor


def take_step(
    problem: Problem, *, step: int = STEP, threads: int = 1, backend: str = "auto"
) -> Stepped:
    p = problem.copy()
    multiplier, reachable = langevin_step(
        *p[:5],
        coefficients=p.coefficients,
        metric=p.metric,
        chain_ids=p.chain_ids,
        workspace=StepWorkspace(*p.weights.shape, device=p.weights.device, backend=backend),
        seed=SEED,
        step=step,
        threads=threads,
    )
    return Stepped(p.weights, p.momenta, p.metric, multiplier, reachable)


def take_momenta(
    problem: Problem, *, threads: int = 1, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    p = problem.copy()
    out = torch.full_like(p.momenta, torch.nan)
    energy = langevin_momenta(
        *p[:5],
        coefficients=p.coefficients,
        metric=p.metric,
        chain_ids=p.chain_ids,
        workspace=StepWorkspace(*p.weights.shape, device=p.weights.device, backend=backend),
        seed=SEED,
        step=STEP,
        out=out,
        threads=threads,
    )
    for before, after in zip(problem, p, strict=True):
        assert torch.equal(before, after)  # nothing but `out` changes
    return out, energy


def noise_of(problem: Problem, stream: Stream) -> torch.Tensor:
    """The very numbers the kernel draws, (C, N) float64."""
    rows = [
        normals(seed=SEED, stream=stream, chain=chain, step=STEP, count=problem.weights.shape[1])
        for chain in problem.chain_ids.tolist()
    ]
    return torch.stack(rows).double()


def exact(problem: Problem) -> list[torch.Tensor]:
    return [tensor.double() for tensor in problem[:5]]


def step_bounds(problem: Problem, noise: torch.Tensor) -> Stepped:
    """How far float32 arithmetic in the kernel's order may be from the exact step.

        With u = 2^-24, each term of  Π̃ = a Π - b (g + τ w/(M Σ)) + s η  goes through at most 10
    roundings (constant, factors, products, the three sums, and Σ itself, whose products w²/M are
    rounded once):

        |δΠ̃| ≤ 10 u (|a Π| + |b g| + |b τ w/(M Σ)| + |s η|)
        |δw̃| ≤ u |w| + (dt/M) (|δΠ̃| + 4 u |Π̃|)

    The sums run in float64 over products of float32 numbers, exact to N 2^-53 of their absolute
    terms, so what moves the root of S3 l² + 2 S1 l + S2 - Q is δw̃ and the rounding of w/M.
    Implicitly, with S3 l + S1 = ±sqrt(discriminant) =: ±D,

        |δl| ≤ (l² |δS3| + 2 |l| |δS1| + |δS2|) / (2 D)      |δS2| ≤ 2 Σ |w̃| |δw̃|, …

    The outputs add the rounding of l to float32, of two products and of a sum. The final factor
    1.01 covers what is of second order: δl moves D by a relative S3 δl / D, of order N u, at the
    sizes and moves tested.
    """
    w, momenta, g, inverse, s = exact(problem)
    dt, a, b, tau, norm2 = (column[:, None] for column in problem.coefficients.unbind(1))
    n = w.shape[1]
    pull = w * inverse
    metric_force = tau * pull / (w * pull).sum(1, keepdim=True)
    kicked = a * momenta - b * (g + metric_force) + s * noise
    moved = w + dt * inverse * kicked
    terms = (a * momenta).abs() + (b * g).abs() + (b * metric_force).abs() + (s * noise).abs()
    kicked_error = 10 * UNIT * terms
    moved_error = UNIT * w.abs() + dt * inverse * (kicked_error + 4 * UNIT * kicked.abs())

    def total(x: torch.Tensor) -> torch.Tensor:
        return x.sum(1, keepdim=True)

    summation = n * 2.0**-53
    s1, s2, s3 = total(moved * pull), total(moved**2), total(pull**2)
    s1_error = total(moved_error * pull.abs() + (UNIT + summation) * (moved * pull).abs())
    s2_error = total(2 * moved.abs() * moved_error) + summation * s2
    s3_error = (2 * UNIT + summation) * s3
    discriminant = s1**2 + s3 * (norm2 - s2)
    root = discriminant.clamp(min=0).sqrt()
    multiplier = torch.where(
        norm2 < 0, 0.0, (norm2 - s2) / (s1 + torch.where(s1 >= 0, root, -root))
    )
    multiplier_error = multiplier**2 * s3_error + 2 * multiplier.abs() * s1_error + s2_error
    multiplier_error = torch.where(norm2 < 0, 0.0, multiplier_error / (2 * root))

    new = moved + multiplier * pull
    weights_error = (
        moved_error
        + multiplier_error * pull.abs()
        + 4 * UNIT * (multiplier * pull).abs()
        + UNIT * new.abs()
    )
    shift = (multiplier / dt * w).abs()
    momenta_error = (
        kicked_error
        + multiplier_error / dt * w.abs()
        + 3 * UNIT * shift
        + UNIT * (kicked + multiplier / dt * w).abs()
    )
    metric_error = total(
        2 * (new * inverse).abs() * weights_error + (UNIT + summation) * new**2 * inverse
    )
    return Stepped(
        1.01 * weights_error,
        1.01 * momenta_error,
        1.01 * metric_error[:, 0],
        1.01 * multiplier_error[:, 0],
        torch.zeros(w.shape[0]),
    )
