"""Loss and gradient of a masked-language network on a GPU, all chains together: a fixed sequence of
kernel launches over static buffers (arXiv 2603.29529, Eq. 3-14, 24-30; encoder_gradient_ref.py).

After a first call, which compiles, a call allocates nothing on the device, waits for nothing and
reads weights, indices and shares from the memory it is given: it can be captured in a CUDA graph.
No atomics: the same bits in every run with as many chains and sequences.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from thermosphere.ops.arguments import check_precision, check_tensor
from thermosphere.ops.encoder_gradient import EncoderData, EncoderShape, check_data, parameters
from thermosphere.ops.feedforward_triton import FeedforwardTriton
from thermosphere.ops.masked_rows_triton import MaskedRows, list_masked_rows
from thermosphere.ops.partial_sums_triton import sum_partials
from thermosphere.ops.transformer_triton import TransformerTriton


class EncoderTritonResult(NamedTuple):
    """Static buffers: the next call writes them again."""

    losses: torch.Tensor  # (C,) float64
    errors: torch.Tensor  # (C,) float64, weighted share of masked sites predicted wrong
    gradient: torch.Tensor | None  # (C, N) float32


class EncoderGradientTriton:
    """`encoder_gradient` for a fixed number of chains C and of sequences B, on one device.

    Raises ValueError where the shape is not covered, the precision is unknown, or the data do not
    fit.
    """

    def __init__(
        self,
        shape: EncoderShape,
        data: EncoderData,  # on the CPU, copied to `device`
        *,
        chains: int,
        batch: int,
        device: torch.device | str,
        precision: str = "tf32x3",
        with_gradient: bool = True,
    ) -> None:
        op = "encoder_gradient_triton"
        obstacle = shape.obstacle()
        if obstacle is not None:
            raise ValueError(f"{op}: {obstacle}")
        check_data(op, shape, data)
        check_precision(op, precision)
        for name, size in (("chains", chains), ("batch", batch)):
            if size < 1:
                raise ValueError(f"{op}: {name} must be >= 1, got {size}")
        self._most = int(data.first.diff().max())
        self._data = data = data_on(data, device)
        self._shape = shape
        capacity = batch * self._most
        first = torch.empty(chains, batch + 1, dtype=torch.int32, device=device)
        source, target = (
            torch.empty(chains, capacity, dtype=torch.int32, device=device) for _ in range(2)
        )
        weight = torch.empty(chains, capacity, dtype=torch.float32, device=device)
        self._masked = MaskedRows(first, source, target, weight)
        network = FeedforwardTriton if shape.network == "feedforward" else TransformerTriton
        self._network: FeedforwardTriton | TransformerTriton = network(
            shape,
            data,
            self._masked,
            self._most,
            chains,
            batch,
            precision=precision,
            with_gradient=with_gradient,
        )
        self._sums = torch.empty(
            chains, self._network.groups, 2, dtype=torch.float64, device=device
        )
        self._totals = torch.empty(chains, 2, dtype=torch.float64, device=device)
        self._gradient = None
        if with_gradient:
            self._gradient = torch.empty(
                chains, parameters(shape), dtype=torch.float32, device=device
            )

    def __call__(
        self, weights: torch.Tensor, indices: torch.Tensor, shares: torch.Tensor
    ) -> EncoderTritonResult:
        """U_c = Σ_b shares[c, b] · loss(sequence indices[c, b]) and dU/dw for every chain.

        weights: (C, N) float32; indices: (C, B) int64 in [0, S), not checked; shares: (C, B)
        float32, sequences of share 0 do not count. Raises ValueError for another shape, dtype or
        device.
        """
        chains, batch = self._masked.first.shape[0], self._masked.first.shape[1] - 1
        device = self._masked.first.device.type
        size = parameters(self._shape)
        for name, tensor, expected, dtype in (
            ("weights", weights, (chains, size), torch.float32),
            ("indices", indices, (chains, batch), torch.int64),
            ("shares", shares, (chains, batch), torch.float32),
        ):
            check_tensor("encoder_gradient_triton", name, tensor, expected, dtype, device)
        list_masked_rows(
            indices,
            shares,
            self._data.first,
            self._data.site,
            self._data.target,
            self._masked,
            self._shape.length,
            self._most,
        )
        self._network.launch(weights, indices, self._sums, self._gradient)
        sum_partials(self._sums, self._totals)
        return EncoderTritonResult(self._totals[:, 0], self._totals[:, 1], self._gradient)


def data_on(data: EncoderData, device: torch.device | str) -> EncoderData:
    """The set on a device."""
    tensors = {name: getattr(data, name).to(device) for name in data._fields if name != "mask"}
    return data._replace(**tensors)
