"""One gradient as the benchmarks pose it: a network at random weights, 64 draws of 1,000 sequences
of 86 sites with masks of 15 %, and the float64 answer that every contender is held to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model, named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.minibatch import Minibatch, draw_minibatch
from thermosphere.ops.philox import Stream
from thermosphere.proteins.dataset import MaskedSequences, mask_sequences

SEQUENCES, SITES, DRAWN = 1_000, 86, 64


@dataclass(frozen=True)
class GradientProblem:
    """Loss and gradient of one chain on one mini-batch, and the exact result."""

    model: Model
    sites: MaskedSites  # the training set, S = 1,000
    weights: torch.Tensor  # (1, N) float32
    batch: Minibatch  # (1, 64), 62 distinct
    loss: float  # from float64, as all below
    gradient: torch.Tensor  # (1, N) float64

    def hold(self, contender: str, loss: float, gradient: torch.Tensor) -> None:
        """AssertionError unless the loss and every tensor of `gradient` (N,) agree with float64."""
        assert abs(loss - self.loss) < 1e-5 * self.loss, f"{contender}: loss {loss}"
        got = self.model.layout.views(gradient.detach().double().view(1, -1))
        for name, exact in self.model.layout.views(self.gradient).items():
            error = float((got[name] - exact).norm() / exact.norm())
            assert error < 1e-4, f"{contender}: gradient of {name} is {error:.1e} off"


def make_sequences() -> MaskedSequences:
    tokens = np.random.default_rng(0).integers(0, 20, (SEQUENCES, SITES), dtype=np.uint8)
    return mask_sequences(tokens, 0.15, seed=0)


def draw(step: int, stream: Stream = Stream.MINIBATCH) -> Minibatch:
    """The mini-batch of chain 0 at this step of a sampler with seed 0."""
    chain = torch.zeros(1, dtype=torch.int64)
    return draw_minibatch(
        seed=0, step=step, stream=stream, chain_ids=chain, batch=DRAWN, examples=SEQUENCES
    )


def gradient_problem(name: str) -> GradientProblem:
    """The problem of one of the five networks; the same every time."""
    model = named_model(name)
    sites = MaskedSites(make_sequences())
    weights = model.initial(1, torch.Generator().manual_seed(0))
    batch = draw(step=0)
    potential = MaskedLanguagePotential(model, sites, backend="autograd")
    loss, gradient = potential(weights.double(), batch)
    return GradientProblem(model, sites, weights, batch, float(loss), gradient)
