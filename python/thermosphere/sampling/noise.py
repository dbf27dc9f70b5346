"""How noisy mini-batch gradients are: the per-parameter variance that the masses are adapted to
(arXiv 2603.29529, appendix D and its reference [26])."""

from __future__ import annotations

from typing import NamedTuple

import torch

from thermosphere.models.potential import Potential
from thermosphere.ops.minibatch import draw_minibatch
from thermosphere.ops.philox import Stream


class NoiseEstimate(NamedTuple):
    variance: torch.Tensor  # (C, N) float32, of one mini-batch gradient
    mean_gradient: torch.Tensor  # (C, N) float32
    draws: torch.Tensor  # (C,) int64, mini-batches used


def estimate_noise(
    potential: Potential,
    weights: torch.Tensor,
    *,
    seed: int,
    step: int,
    chain_ids: torch.Tensor,
    batch: int,
    draws: int = 100,
    draws_max: int = 1000,
    tolerance: float = 0.1,
) -> NoiseEstimate:
    """Variance of mini-batch gradients at fixed weights ``(C, N)``.

    Rounds of ``draws`` mini-batches, at most ``draws_max``, until a round changes the standard
    deviation of every parameter by no
    more than ``tolerance``: |sqrt(v_new / v_old) - 1| ≤ tolerance. A chain that has converged drops
    out. Draws are numbered
    (step, draw) on the stream ESTIMATE, so that they repeat no mini-batch of the dynamics.
    """
    chains = weights.shape[0]
    mean = torch.zeros_like(weights, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    used = torch.zeros(chains, dtype=torch.int64)
    previous: torch.Tensor | None = None
    active = torch.arange(chains)
    while active.numel() and int(used.max()) < draws_max:
        rows, ids, at = weights[active].contiguous(), chain_ids[active].contiguous(), mean[active]
        spread = squares[active]
        first = int(used[active[0]])
        last = min(first + draws, draws_max)
        for draw in range(first, last):
            minibatch = draw_minibatch(
                seed=seed,
                step=(step << 16) + draw,
                stream=Stream.ESTIMATE,
                chain_ids=ids,
                batch=batch,
                examples=potential.examples,
            )
            _, gradient = potential(rows, minibatch)
            deviation = gradient.double() - at  # Welford: no cancellation for a small variance
            at += deviation / (draw + 1)
            spread += deviation * (gradient - at)
        mean[active], squares[active], used[active] = at, spread, last
        variance = spread / max(last - 1, 1)
        if previous is not None:
            active = active[changed(variance, previous, tolerance)]
            previous = variance[changed(variance, previous, tolerance)]
        else:
            previous = variance
    divisor = (used - 1).clamp(min=1)[:, None].double()
    return NoiseEstimate((squares / divisor).float(), mean.float(), used)


def changed(new: torch.Tensor, old: torch.Tensor, tolerance: float) -> torch.Tensor:
    """(C,) bool: whether any parameter's standard deviation differs by more than ``tolerance``."""
    ratio = (new.double() / old.double()).sqrt()
    same = ((ratio - 1).abs() <= tolerance) | ((new == 0) & (old == 0))
    return ~same.all(dim=1)
