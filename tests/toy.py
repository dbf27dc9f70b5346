"""A potential whose laws are known: quadratic, with linear noise of known variance."""

from __future__ import annotations

import numpy as np
import torch

from thermosphere.ops.minibatch import Minibatch
from thermosphere.sampling.langevin import Langevin

Q = 24.0  # |w|² of the runs on the sphere
SEED = 11


class NoisyQuadratic:
    """U_s(w) = Σ a (w - b)² / 2 + ξ_s·w for example s.

    Σ_s ξ_s = 0: the mean over the set is the quadratic alone. The gradient noise of a
    mini-batch does not depend on w. Every chain's result depends on its own row and draw alone, bit
    for bit, so that runs of different chain counts can be compared exactly.
    """

    def __init__(
        self, parameters: int = 12, examples: int = 32, *, noise: float = 1.0, seed: int = 0
    ) -> None:
        random = np.random.default_rng(seed)
        self.parameters = parameters
        self.examples = examples
        self.curvature = torch.linspace(0.5, 3.0, parameters, dtype=torch.float64)  # a, (N,)
        self.centre = torch.from_numpy(0.5 * random.standard_normal(parameters))  # b, (N,)
        noises = torch.from_numpy(noise * random.standard_normal((examples, parameters)))
        self.noises = noises - noises.mean(0)  # ξ, (S, N)
        self.calls = 0
        self._a, self._b, self._xi = (
            self.curvature.float(),
            self.centre.float(),
            self.noises.float(),
        )

    def scale_noise(self, factor: torch.Tensor) -> None:
        """Multiply the noise of each parameter by ``factor`` (N,)."""
        self.noises = self.noises * factor
        self._xi = self.noises.float()

    def __call__(
        self, weights: torch.Tensor, batch: Minibatch | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(C, N) float32 -> losses (C,) and gradient (C, N)."""
        self.calls += 1
        away = weights - self._b
        gradient = self._a * away
        losses = 0.5 * (gradient * away).sum(1)
        if batch is not None:
            force = torch.nn.functional.embedding_bag(
                batch.indices, self._xi, per_sample_weights=batch.weights, mode="sum"
            )
            gradient = gradient + force
            losses = losses + (force * weights).sum(1)
        return losses, gradient

    def energy(self, weights: np.ndarray) -> np.ndarray:
        """Exact U of the whole set, (..., N) float64 -> (...)."""
        return 0.5 * (self.curvature.numpy() * (weights - self.centre.numpy()) ** 2).sum(-1)

    def noise_variance(self, batch: int) -> torch.Tensor:
        """Exact variance (N,) float64 of the gradient of ``batch`` merged draws with replacement.

        Given d distinct examples they are any d of the S, so the variance is that of a sample mean
        without replacement, s² (1/d - 1/S); P(d) follows from adding one draw at a time.
        """
        sizes = np.arange(self.examples + 1)
        chance = np.zeros(self.examples + 1)  # P(d distinct)
        chance[0] = 1.0
        for _ in range(batch):
            repeated = chance * sizes / self.examples
            fresh = chance * (1.0 - sizes / self.examples)
            chance = repeated + np.concatenate([[0.0], fresh[:-1]])
        mean_inverse = float((chance[1:] / sizes[1:]).sum())
        return self.noises.var(0, correction=1) * (mean_inverse - 1.0 / self.examples)


def start_weights(chains: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(chains, 12, generator=torch.Generator().manual_seed(seed))


def make_sampler(temperature: object = (0.5, 1.0, 2.0), **options: object) -> Langevin:
    defaults: dict[str, object] = {
        "batch": 8,
        "seed": SEED,
        "noise_draws": 20,
        "noise_draws_max": 40,
    }
    if options.get("batch", 8) is not None:
        defaults["t_ratio"] = 0.02
    return Langevin(NoisyQuadratic(), list(temperature), **{**defaults, **options})  # type: ignore[arg-type]
