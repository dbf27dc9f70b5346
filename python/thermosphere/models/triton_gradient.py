"""Triton's kernels as a backend of a model: what they cover, and calls for any number of sequences,
a slice of them at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
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

PAIRS = 16_384  # (chain, sequence) pairs at once, at most
SLICE = 2_048  # sequences of a chain at once, at most
ROOM = 2 << 30  # bytes of buffers at once, where one sequence a chain does not need more
KEPT = 6 << 30  # bytes of buffers kept for later calls, besides those that graphs hold


class TritonGradient:
    """Loss, error and gradient of a model on a sequence set, on the device of the set.

    Buffers are made at the first call with a number of chains and sequences. Those of a capturable
    call are kept, as graphs hold their addresses; of the others those last used, up to `KEPT`
    bytes: masses are adapted a few chains at a time, in any number. Results are copies.
    """

    def __init__(self, model: Model, sites: MaskedSites, precision: str = "tf32x3") -> None:
        self._shape, self._data = encoder_shape(model), fused_data(model, sites)
        self._device, self._precision = sites.inputs.device, precision
        self._captured: dict[tuple[int, int], EncoderGradientTriton] = {}
        self._used: OrderedDict[tuple[int, int, bool], EncoderGradientTriton] = OrderedDict()
        self._widths: dict[tuple[int, bool], int] = {}
        self._sizes: dict[tuple[int, int, bool], int] = {}

    def __call__(
        self,
        weights: torch.Tensor,  # (C, N) float32
        batch: Minibatch | None = None,  # None: all S sequences, weight 1/S each
        *,
        with_gradient: bool = True,
    ) -> EncoderResult:
        """Losses and errors (C,) float64 and the gradient (C, N). ValueError for bad shapes."""
        weights = weights.detach().contiguous()
        with on_device(self._device):
            return self._sliced(weights, batch or self._every(weights), with_gradient)

    def capturable(
        self, weights: torch.Tensor, batch: Minibatch | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (C,) float64 and gradient (C, N) in memory that the next call writes again.
        Nothing waits: a CUDA graph can capture it, after a first call."""
        chains = len(weights)
        with on_device(self._device):
            if batch is None or batch.indices.shape[1] > self._width(chains, with_gradient=True):
                result = self._sliced(weights, batch or self._every(weights), True, captured=True)
            else:
                op = self._op(chains, batch.indices.shape[1], True, captured=True)
                result = EncoderResult(*op(weights, *batch))
        assert result.gradient is not None
        return result.losses, result.gradient

    def _every(self, weights: torch.Tensor) -> Minibatch:
        chains, sequences = len(weights), len(self._data.tokens)
        every = torch.arange(sequences, device=self._device).repeat(chains, 1)
        return Minibatch(every, weights.new_full((chains, sequences), 1.0 / sequences))

    def _sliced(
        self,
        weights: torch.Tensor,
        batch: Minibatch,
        with_gradient: bool,
        *,
        captured: bool = False,
    ) -> EncoderResult:
        total: EncoderResult | None = None
        chains = len(weights)
        width = min(self._width(chains, with_gradient), batch.indices.shape[1])
        for first in range(0, batch.indices.shape[1], width):
            indices = batch.indices[:, first : first + width]
            shares = batch.weights[:, first : first + width].float()
            missing = width - indices.shape[1]  # of the last slice; a share of 0 does not count
            indices = torch.nn.functional.pad(indices, (0, missing)).contiguous()
            shares = torch.nn.functional.pad(shares, (0, missing)).contiguous()
            op = self._op(chains, width, with_gradient, captured=captured)
            part = op(weights, indices, shares)
            if total is None:
                total = EncoderResult(*(None if p is None else p.clone() for p in part))  # type: ignore[arg-type]
                continue
            for whole, piece in zip(total, part, strict=True):
                if whole is not None and piece is not None:
                    whole += piece
        assert total is not None
        return total

    def _op(
        self, chains: int, width: int, with_gradient: bool, *, captured: bool = False
    ) -> EncoderGradientTriton:
        key = (chains, width, with_gradient)
        if with_gradient and key[:2] in self._captured:
            return self._captured[key[:2]]
        op = self._used.pop(key, None)
        if op is None:
            self._make_room(0 if captured else KEPT - self._bytes(*key))
            op = self._new_op(*key, self._device)
        if captured:
            self._captured[key[:2]] = op
        else:
            self._used[key] = op
        return op

    def _make_room(self, most: int) -> None:
        """Drop what was used longest ago until the others have `most` bytes, or none is left."""
        while self._used and sum(self._bytes(*key) for key in self._used) > most:
            self._used.popitem(last=False)

    def _width(self, chains: int, with_gradient: bool) -> int:
        """Sequences that a chain does at once."""
        key = (chains, with_gradient)
        if key not in self._widths:
            width = max(1, min(SLICE, PAIRS // chains))
            while width > 1 and self._bytes(chains, width, with_gradient) > ROOM:
                width = -(-width // 2)
            self._widths[key] = width
        return self._widths[key]

    def _bytes(self, chains: int, width: int, with_gradient: bool) -> int:
        """Of such buffers."""
        key = (chains, width, with_gradient)
        if key not in self._sizes:
            self._sizes[key] = held_bytes(self._new_op(*key, torch.device("meta")))
        return self._sizes[key]

    def _new_op(
        self, chains: int, width: int, with_gradient: bool, device: torch.device
    ) -> EncoderGradientTriton:
        from thermosphere.ops.encoder_gradient_triton import EncoderGradientTriton

        return EncoderGradientTriton(
            self._shape,
            self._data,
            chains=chains,
            batch=width,
            device=device,
            precision=self._precision,
            with_gradient=with_gradient,
        )


def held_bytes(thing: object) -> int:
    """Of all tensors that an object holds, in attributes and containers of any depth, each memory
    once."""
    sizes = {tensor.untyped_storage()._cdata: tensor for tensor in _tensors(thing, set())}
    return sum(tensor.untyped_storage().nbytes() for tensor in sizes.values())


def _tensors(thing: object, seen: set[int]) -> Iterator[torch.Tensor]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
        return
    inside: object = getattr(thing, "__dict__", None) or thing
    if isinstance(inside, dict):
        inside = inside.values()
    elif not isinstance(inside, list | tuple):
        return
    for one in inside:
        yield from _tensors(one, seen)
