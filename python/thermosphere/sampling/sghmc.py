"""Stochastic gradient Hamiltonian Monte Carlo (SGHMC) as published (Chen, Fox, Guestrin, ICML 2014,
Eq. 15): a baseline, run by the same engine as everything else.

Their recursion for the velocity v, with learning rate η, friction α and noise estimate β̂, of
exp(-U/T) (theirs has T = 1, so their η is T times this one):

    w ← w + v;   v ← (1 - α) v - η g(w) + N(0, 2 α η T - η² V̂)

Langevin's ``leapfrog`` scheme without adaptation is the same recursion, with v = (dt/M) Π, one
mass for all parameters and

    α = m1²,   η = (1 + c1²)/2 · dt²/M = (1 - α/2) dt²/M,   V̂ = its noise variance,

so Langevin differs by its masses, one a parameter and following the noise, by the sphere, and by V̂
measured. As published V̂ is left at 0 in most experiments; parameter i is then hotter than T by
η V_i/2α, V_i the variance of its mini-batch gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from thermosphere.models.potential import Potential
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.state import LangevinState


def sghmc(
    potential: Potential,
    weights: torch.Tensor,
    temperature: float | Sequence[float] | torch.Tensor,
    *,
    learning_rate: float,
    friction: float,
    batch: int = 64,
    measured_noise: bool = False,
    constrained: bool = False,
    norm2: float | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> tuple[Langevin, LangevinState]:
    """A sampler and its state before the first move, ``sampler.run(state, moves)``.

    weights: (N,) for all chains, or (C, N); temperature: T of each chain, in units of U.
    learning_rate: η of the gradient of U; friction: α in (0, 1), what a move takes off a velocity.
    measured_noise: V̂ from mini-batch gradients at the start; default V̂ = 0, as published.
    constrained: on the sphere |w|² = Q, Q = norm2 or that of the weights; default the published,
    unconstrained recursion.

    Raises ValueError for a number out of range, and where V̂ leaves the white noise no room (then
    lower η or raise α).
    """
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"sghmc: learning_rate must be finite and > 0, got {learning_rate}")
    if not 0 < friction < 1:
        raise ValueError(f"sghmc: friction must be in (0, 1), got {friction}")

    def sampler(batch: int | None) -> Langevin:
        return Langevin(
            potential,
            temperature,
            seed=seed,
            threads=threads,
            scheme="leapfrog",
            constrained=constrained,
            metric_correction=False,  # a constant where all masses are equal
            dt=1.0,
            m1=math.sqrt(friction),
            batch=batch,
            adapt_every=0,  # theirs stays: Langevin would measure the noise again
        )

    masses = (1.0 - 0.5 * friction) / learning_rate
    # From the whole set: gradients without noise, so V̂ = 0.
    starter = sampler(batch if measured_noise else None)
    return sampler(batch), starter.init(weights, masses=masses, norm2=norm2)
