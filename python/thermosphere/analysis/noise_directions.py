"""Where mini-batch noise points: along stiff directions of U or evenly over all of them.

In x = sqrt(M) w, where the masses are one, white noise has the same strength in every direction.
Mini-batch noise is made to have a share r_i of it in every coordinate, but its covariance is not
diagonal: it has the directions of single examples' gradients. Where those are stiff and few, they
get all of the noise that N coordinates were to share, and are hot, while the flat directions that
the white noise is then missing in are cold but cost no energy. The kinetic temperature, a mean over
all of them, stays T; ⟨U⟩ rises in proportion to the share. If the stiff directions are harmonic and
all others flat, by

    N T r̄ / 2,    r̄ the mean of r_i over the parameters;

benchmarks/bias_table.py prints it beside what is measured, which for tf1-small is several times
larger: directions at many times T are no longer harmonic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from thermosphere.models.potential import Potential
from thermosphere.ops.minibatch import draw_minibatch
from thermosphere.ops.philox import Stream


class NoiseDirections(NamedTuple):
    """Mean curvature ξᵀ(∂²U/∂x²)ξ / |ξ|², in units of a squared frequency, of one chain."""

    along_noise: float  # of mini-batch noise
    along_noise_error: float
    along_uncorrelated: float  # of Gaussians with the same variances, coordinate by coordinate
    along_uncorrelated_error: float
    effective_rank: float  # (Σ λ)² / Σ λ² of the covariance, from below: at most the draws


def noise_directions(
    potential: Potential,
    weights: torch.Tensor,  # (1, N)
    masses: torch.Tensor,  # (1, N)
    temperature: float,
    *,
    batch: int = 64,
    draws: int = 40,
    seed: int = 0,
    displacement: float = 0.05,
) -> NoiseDirections:
    """From `draws` mini-batches at one place; curvatures by central differences of the full
    gradient over a length of `displacement` times the thermal one, sqrt(N T) in x.

    Costs 4 full gradients a draw. ValueError for more than one chain, or no noise.
    """
    if weights.ndim != 2 or weights.shape[0] != 1 or weights.shape != masses.shape:
        raise ValueError(
            "noise_directions: weights and masses must be (1, N), got "
            f"{tuple(weights.shape)} and {tuple(masses.shape)}"
        )
    root = masses.double().sqrt()
    length = displacement * (temperature * weights.shape[1]) ** 0.5
    _, mean = potential(weights, None)

    def curvature(direction: torch.Tensor) -> float:  # (1, N) in x
        step = length * direction / direction.norm()
        ends = [potential((weights + sign * step / root).to(weights), None)[1] for sign in (1, -1)]
        slope = (ends[0].double() - ends[1].double()) / root
        return float((slope * step).sum() / (2 * length**2))

    noises, chain = [], torch.zeros(1, dtype=torch.int64)
    for draw in range(draws):
        minibatch = draw_minibatch(
            seed=seed,
            step=draw,
            stream=Stream.ESTIMATE,
            chain_ids=chain,
            batch=batch,
            examples=potential.examples,
        )
        _, gradient = potential(weights, minibatch)
        noises.append((gradient.double() - mean.double()) / root)
        if not bool(noises[-1].any()):
            raise ValueError(
                f"noise_directions: expected gradient noise, got none in mini-batch {draw}"
            )
    spread = torch.cat(noises).square().mean(0, keepdim=True).sqrt()
    generator = torch.Generator().manual_seed(seed)
    along = torch.tensor([curvature(noise) for noise in noises])
    even = torch.tensor(
        [
            curvature(spread * torch.randn(spread.shape, generator=generator, dtype=torch.float64))
            for _ in range(draws)
        ]
    )
    gram = torch.cat(noises) @ torch.cat(noises).T
    return NoiseDirections(
        float(along.mean()),
        float(along.std()) / draws**0.5,
        float(even.mean()),
        float(even.std()) / draws**0.5,
        float(gram.trace() ** 2 / gram.square().sum()),
    )
