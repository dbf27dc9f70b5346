"""How noisy mini-batch gradients are: the per-parameter variance that the masses are adapted to
(arXiv 2603.29529, appendix D and its reference [26])."""

from __future__ import annotations

from typing import NamedTuple

import torch

from thermosphere.models.potential import Potential
from thermosphere.sampling.noise_draws import NoiseDraws


class NoiseEstimate(NamedTuple):
    variance: torch.Tensor  # (C, N) float32, of one mini-batch gradient
    mean_gradient: torch.Tensor  # (C, N) float32
    draws: torch.Tensor  # (C,) int64 on the CPU, mini-batches used


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
    kept: NoiseDraws | None = None,
) -> NoiseEstimate:
    """Variance of mini-batch gradients at fixed weights ``(C, N)``.

    Rounds of ``draws`` mini-batches, at most ``draws_max``, until a round changes the standard
    deviation of every parameter by no more than ``tolerance``: |sqrt(v_new / v_old) - 1| ≤
    tolerance. A chain that has converged drops out. Draws are numbered (step, draw) on the stream
    ESTIMATE, so that they repeat no mini-batch of the dynamics. chain_ids: (C,) int64 on the CPU.
    kept: buffers and recordings of the same potential, seed and batch, to use again.
    """
    sources = kept or NoiseDraws(potential, seed=seed, batch=batch)
    chains = weights.shape[0]
    mean = torch.zeros_like(weights, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    used = torch.zeros(chains, dtype=torch.int64)
    previous: torch.Tensor | None = None
    active = torch.arange(chains)
    while active.numel() and int(used.max()) < draws_max:
        first = int(used[active[0]])
        last = min(first + draws, draws_max)
        mean[active], squares[active] = sources.sums(len(active)).add(
            weights[active],
            mean[active],
            squares[active],
            chain_ids[active],
            number=(step << 16) + first,
            made=first,
            draws=last - first,
        )
        used[active] = last
        variance = squares[active] / max(last - 1, 1)
        if previous is not None:
            moving = changed(variance, previous, tolerance)
            active, previous = active[moving], variance[moving]
        else:
            previous = variance
    divisor = (used - 1).clamp(min=1)[:, None].double().to(squares.device)
    return NoiseEstimate((squares / divisor).float(), mean.float(), used)


def difference(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """By how much standard deviations differ, relatively, root mean square over the parameters:
    (C, N) variances both -> (C,) float64 on the CPU. Of many parameters the largest would always
    differ by a few standard errors of the estimates."""
    ratio = (new.double() / old.double()).sqrt()
    ratio = torch.where((new == 0) & (old == 0), 1.0, ratio)
    return torch.stack([row.square().mean() for row in ratio - 1]).sqrt().cpu()


def changed(new: torch.Tensor, old: torch.Tensor, tolerance: float) -> torch.Tensor:
    """(C,) bool on the CPU: whether any parameter's standard deviation differs by more than
    ``tolerance``."""
    ratio = (new.double() / old.double()).sqrt()
    same = ((ratio - 1).abs() <= tolerance) | ((new == 0) & (old == 0))
    return ~same.all(dim=1).cpu()
