"""Triton's kernels as a backend of a model: what they cover, and calls for any number of sequences,
a slice of them at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from thermosphere.models.fused import encoder_shape, fused_data
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model
from thermosphere.ops.backends import on_device
from thermosphere.ops.encoder_gradient import EncoderResult
from thermosphere.ops.minibatch import Minibatch

if TYPE_CHECKING:
    from thermosphere.ops.encoder_gradient_triton import EncoderGradientTriton

# (chain, sequence) pairs at once: 1.4 GB of activations for tf1, 7 for tf4
PAIRS = 16_384
SLICE = 2_048  # sequences of a chain at once, at most


class TritonGradient:
    """Loss, error and gradient of a model on a sequence set, on the device of the set.

    Buffers are made at the first call with a number of chains and sequences, and kept: nothing is
    allocated for the kernels in steady state. Results are copies.
    """

    def __init__(self, model: Model, sites: MaskedSites, precision: str = "tf32x3") -> None:
        self._shape, self._data = encoder_shape(model), fused_data(model, sites)
        self._device, self._precision = sites.inputs.device, precision
        self._kept: dict[tuple[int, int, bool], EncoderGradientTriton] = {}

    def __call__(
        self,
        weights: torch.Tensor,  # (C, N) float32
        batch: Minibatch | None = None,  # None: all S sequences, weight 1/S each
        *,
        with_gradient: bool = True,
    ) -> EncoderResult:
        """Losses and errors (C,) float64 and the gradient (C, N). ValueError for bad shapes."""
        chains, sequences = len(weights), len(self._data.tokens)
        if batch is None:
            every = torch.arange(sequences, device=self._device).repeat(chains, 1)
            batch = Minibatch(every, weights.new_full((chains, sequences), 1.0 / sequences))
        weights = weights.detach().contiguous()
        with on_device(self._device):
            return self._sliced(weights, batch, with_gradient)

    def capturable(
        self, weights: torch.Tensor, batch: Minibatch | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (C,) float64 and gradient (C, N) in memory that the next call writes again.
        Nothing waits: a CUDA graph can capture it, after a first call."""
        if batch is None or batch.indices.shape[1] > slice_of(len(weights)):
            result = self(weights, batch)
        else:
            with on_device(self._device):
                op = self._op(len(weights), batch.indices.shape[1], with_gradient=True)
                result = EncoderResult(*op(weights, *batch))
        assert result.gradient is not None
        return result.losses, result.gradient

    def _sliced(
        self, weights: torch.Tensor, batch: Minibatch, with_gradient: bool
    ) -> EncoderResult:
        total: EncoderResult | None = None
        chains = len(weights)
        width = min(slice_of(chains), batch.indices.shape[1])
        for first in range(0, batch.indices.shape[1], width):
            indices = batch.indices[:, first : first + width]
            shares = batch.weights[:, first : first + width].float()
            missing = width - indices.shape[1]  # of the last slice; a share of 0 does not count
            indices = torch.nn.functional.pad(indices, (0, missing)).contiguous()
            shares = torch.nn.functional.pad(shares, (0, missing)).contiguous()
            part = self._op(chains, width, with_gradient)(weights, indices, shares)
            if total is None:
                total = EncoderResult(*(None if p is None else p.clone() for p in part))  # type: ignore[arg-type]
                continue
            for whole, piece in zip(total, part, strict=True):
                if whole is not None and piece is not None:
                    whole += piece
        assert total is not None
        return total

    def _op(self, chains: int, batch: int, with_gradient: bool) -> EncoderGradientTriton:
        from thermosphere.ops.encoder_gradient_triton import EncoderGradientTriton

        key = (chains, batch, with_gradient)
        if key not in self._kept:
            self._kept[key] = EncoderGradientTriton(
                self._shape,
                self._data,
                chains=chains,
                batch=batch,
                device=self._device,
                precision=self._precision,
                with_gradient=with_gradient,
            )
        return self._kept[key]


def slice_of(chains: int) -> int:
    """Sequences that a chain does at once."""
    return max(1, min(SLICE, PAIRS // chains))
