"""The feed-forward network of encoder_gradient_triton.py, forward and backward, as launches of its
stages over static buffers: read it beside models/feedforward.py.

Every site passes the first norm, for the mean over the visible ones; all after it is done at the
masked rows alone.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from thermosphere.ops.encoder_gradient import EncoderData, EncoderShape
from thermosphere.ops.feedforward_pooling_triton import pool_backward_kernel, pool_kernel
from thermosphere.ops.feedforward_rows_triton import (
    ff_head_kernel,
    ff_hidden_kernel,
    ff_hidden_slope_kernel,
    ff_row_slope_kernel,
    ff_second_kernel,
)
from thermosphere.ops.feedforward_weights_triton import (
    ff_input_slope_kernel,
    ff_output_slope_kernel,
    ff_weight2_slope_kernel,
)
from thermosphere.ops.flat_tensors import FlatTensors
from thermosphere.ops.layer_norm_triton import tile_width
from thermosphere.ops.masked_rows_triton import MaskedRows
from thermosphere.ops.partial_sums_triton import Segment, SegmentSums, rows_per_group

# Rows and features of a program, where both sides of its products are m wide, and where one is d:
# more spill, and fewer features leave warps without a product (benchmarks/triton_resources.py).
SQUARE = {"ROWS": 16, "TILE": 64}
NARROW = {"ROWS": 32, "TILE": 32}


class FeedforwardTriton:
    """Buffers for C chains and B sequences each, and the launches over them."""

    def __init__(
        self,
        shape: EncoderShape,
        data: EncoderData,
        masked: MaskedRows,
        most: int,
        chains: int,
        batch: int,
        *,
        precision: str,
        with_gradient: bool,
    ) -> None:
        """`masked`: the masked rows of each call, `most` of them at most in one sequence; `data` on
        the same device."""
        d, m, v = shape.embedding, shape.hidden, shape.tokens
        self._shape, self._data, self._masked, self._most = shape, data, masked, most
        self._precision = precision
        capacity = masked.source.shape[1]
        tensors = FlatTensors()
        sites = tensors.add((v, d), (d,), (d,))
        rows = tensors.add((m, 2 * d), (m,), (m, m), (m,), (m, d), (m,), (m,), (m,), (v, m), (v,))
        self._at = tensors.offsets(slice(0, rows.stop), 0)  # of each tensor in the flat vector
        self._size = tensors.size
        self._group = rows_per_group(capacity, chains)
        self.groups = triton.cdiv(capacity, self._group)
        empty = data.code_embedding.new_empty
        self._pooled = empty(chains, batch, d)
        self._active, self._second, self._summed = (empty(chains, capacity, m) for _ in range(3))
        self._sums: SegmentSums | None = None
        if not with_gradient:
            return
        segments = [
            Segment(*tensors.extent(sites), batch),
            Segment(*tensors.extent(rows), self.groups),
        ]
        self._sums = SegmentSums(segments, chains, self._pooled.device)
        self._mean, self._inverse_deviation = (empty(chains, capacity) for _ in range(2))
        self._logit_slope = empty(chains, capacity, v)
        self._summed_slope, self._hidden_slope = (empty(chains, capacity, m) for _ in range(2))
        self._u_slope, self._pooled_slope = (empty(chains, capacity, d) for _ in range(2))

    def launch(
        self,
        weights: torch.Tensor,  # (C, N)
        indices: torch.Tensor,  # (C, B) int64
        sums: torch.Tensor,  # (C, G, 2) float64 out, G = groups: losses and errors
        gradient: torch.Tensor | None,  # (C, N) out
    ) -> None:
        """Everything of a call after its masked rows are listed."""
        n, d, m, v = (
            self._shape.length,
            self._shape.embedding,
            self._shape.hidden,
            self._shape.tokens,
        )
        (
            embedding, gain1, bias1, weight1, hidden_bias, weight2, second_bias, residual,
            residual_bias, gain2, bias2, output, output_bias,
        ) = self._at  # fmt: skip
        data, first, source = self._data, self._masked.first, self._masked.source
        chains, batch = indices.shape
        capacity, size = source.shape[1], self._size
        code, hidden_code = data.code_embedding, data.code_hidden
        wide = {"WIDE": tile_width(d)}
        network: dict[str, Any] = {"n": n, "d": d, "vocabulary": v}
        options: dict[str, Any] = {"PRECISION": self._precision, "num_warps": 4, "num_stages": 1}
        options |= {"enable_fp_fusion": True}
        square, narrow = options | SQUARE, options | NARROW
        square_group = {"CHUNKS": self._group // SQUARE["ROWS"]}
        narrow_group = {"CHUNKS": self._group // NARROW["ROWS"]}
        across, down = triton.cdiv(m, SQUARE["TILE"]), triton.cdiv(capacity, SQUARE["ROWS"])
        sites = max(16, triton.next_power_of_2(n))
        first_norm = (embedding, gain1, bias1)

        norm1 = [weights[:, at:] for at in first_norm]
        pool_kernel[(batch, chains)](
            data.tokens, indices, code, *norm1, self._pooled, batch, size, code.stride(0),
            **network, SITES=sites, **wide, num_warps=8, enable_fp_fusion=True,
        )  # fmt: skip
        ff_hidden_kernel[(down, across, chains)](
            first, source, code, weights, self._pooled, self._active,
            *first_norm, weight1, hidden_bias,
            batch, capacity, size, code.stride(0), **network, m=m, **wide, **square,
        )  # fmt: skip
        ff_second_kernel[(down, across, chains)](
            first, source, code, hidden_code, weights, self._active, self._second, self._summed,
            *first_norm, weight2, second_bias, residual, residual_bias,
            batch, capacity, size, code.stride(0), hidden_code.stride(0),
            **network, m=m, **wide, **square,
        )  # fmt: skip
        partial = None if self._sums is None else self._sums.partials[1]
        none = gradient is None
        ff_head_kernel[(self.groups, chains)](
            first, self._masked.target, self._masked.weight, weights, self._summed, sums,
            None if none else self._mean, None if none else self._inverse_deviation,
            None if none else self._logit_slope, None if none else self._summed_slope,
            None if none else partial,
            gain2, bias2, output, output_bias, output_bias - weight1,
            batch, capacity, size, 0 if partial is None else partial.stride(1),
            m=m, vocabulary=v, WITH_SLOPES=not none, TOKENS=tile_width(v), **square_group, **square,
        )  # fmt: skip
        if gradient is None:
            return
        assert self._sums is not None
        assert partial is not None
        ff_hidden_slope_kernel[(down, across, chains)](
            first, weights, self._active, self._second, self._summed_slope, self._hidden_slope,
            weight2, batch, capacity, size, m=m, **square,
        )  # fmt: skip
        ff_row_slope_kernel[(triton.cdiv(capacity, NARROW["ROWS"]), chains)](
            first, weights, self._summed_slope, self._hidden_slope,
            self._u_slope, self._pooled_slope,
            weight1, residual, batch, capacity, size, d=d, m=m, **wide, **narrow,
        )  # fmt: skip
        ff_weight2_slope_kernel[(across * across, self.groups, chains)](
            first, source, hidden_code, self._active, self._second, self._summed_slope, partial,
            weight2 - weight1, second_bias - weight1,
            batch, capacity, hidden_code.stride(0), partial.stride(1),
            n=n, m=m, TILES=across, **square_group, **square,
        )  # fmt: skip
        ff_input_slope_kernel[(triton.cdiv(m, NARROW["TILE"]), self.groups, chains)](
            first, source, code, weights, self._pooled, self._summed_slope, self._hidden_slope,
            partial, *first_norm,
            0, hidden_bias - weight1, residual - weight1, residual_bias - weight1,
            batch, capacity, size, code.stride(0), partial.stride(1),
            **network, m=m, **narrow_group, **wide, **narrow,
        )  # fmt: skip
        ff_output_slope_kernel[(across, self.groups, chains)](
            first, weights, self._summed, self._mean, self._inverse_deviation, self._logit_slope,
            partial, gain2, bias2, output,
            gain2 - weight1, bias2 - weight1, output - weight1,
            batch, capacity, size, partial.stride(1),
            m=m, vocabulary=v, TOKENS=tile_width(v), **square_group, **square,
        )  # fmt: skip
        pool_backward_kernel[(batch, chains)](
            data.tokens, indices, code, *norm1[:2], first, source,
            self._u_slope, self._pooled_slope, self._sums.partials[0],
            batch, capacity, size, code.stride(0),
            **network, CHUNKS=triton.cdiv(self._most, 16), ROWS=16, SITES=sites,
            TOKENS=tile_width(v), **wide, PRECISION=self._precision,
            num_warps=8, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
        self._sums.launch(gradient)
