"""The transformer of encoder_gradient_triton.py, forward and backward, as launches of its stages
over static buffers: read it beside models/transformer.py.

Every block works on all rows but the last, which works on the masked rows alone (keys and values at
all rows). A block keeps its input, the states of its two norms and what lies between them, six
floats a feature and row; hidden units and attention are formed again in backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from thermosphere.ops import attention_norm_triton as attention
from thermosphere.ops import embedding_triton as embedding
from thermosphere.ops import feedforward_norm_triton as feedforward
from thermosphere.ops import masked_cross_entropy_triton as cross_entropy
from thermosphere.ops.encoder_gradient import EncoderData, EncoderShape
from thermosphere.ops.flat_tensors import FlatTensors
from thermosphere.ops.masked_rows_triton import MaskedRows, RowSlots
from thermosphere.ops.partial_sums_triton import Segment, SegmentSums, rows_per_group


class _Block(NamedTuple):
    """One block: what it works on, and what backward reads of it. R row slots a chain."""

    rows: RowSlots
    total: torch.Tensor | None  # (C,) int32, rows of each chain where they are fewer than R
    attention_tensors: slice
    feedforward_tensors: slice
    x: torch.Tensor  # (C, B, n, d), its input
    y: torch.Tensor  # (C, R, d), after the attention
    out: torch.Tensor  # (C, R, d)
    attention_state: attention.AttentionNormState | None
    feedforward_state: feedforward.FeedforwardNormState | None


class TransformerTriton:
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
        self._data, self._masked, self._precision = data, masked, precision
        n, d, m, v = shape.length, shape.embedding, shape.hidden, shape.tokens
        code = data.code_hidden[:, :m]
        self._code_embedding, self._code_hidden = data.code_embedding[:, :d], code
        self._vocabulary = v
        capacity = masked.source.shape[1]
        self._group = {rows: rows_per_group(rows, chains) for rows in (batch * n, capacity)}
        every = RowSlots(None, None, n, batch * n)
        some = RowSlots(masked.first, masked.source, most, capacity)

        self.tensors = FlatTensors()
        self._embedding = self.tensors.add((v, d))
        self._blocks: list[_Block] = []
        x = torch.empty(chains, batch, n, d, dtype=torch.float32, device=data.tokens.device)
        for number in range(shape.blocks):
            last = number == shape.blocks - 1
            rows = some if last else every
            out = x.new_empty(chains, rows.capacity, d)
            block = _Block(
                rows,
                masked.first[:, -1] if last else None,
                self.tensors.add((d, d), (d, d), (d,), (d,)),
                self.tensors.add((m, d), (m,), (d, m), (d,), (d,), (d,)),
                x,
                torch.empty_like(out),
                out,
                attention.state_like(x, rows.capacity) if with_gradient else None,
                feedforward.state_like(out) if with_gradient else None,
            )
            self._blocks.append(block)
            x = out.view(chains, batch, n, d) if not last else x
        self._output = self.tensors.add((v, d), (v,))
        self.groups = triton.cdiv(capacity, self._group[capacity])
        self._sums: SegmentSums | None = None
        if not with_gradient:
            return

        runs = [(self._embedding, batch * n), (self._output, capacity)]
        runs += [
            (slice(b.attention_tensors.start, b.feedforward_tensors.stop), b.rows.capacity)
            for b in self._blocks
        ]
        segments = [
            Segment(*self.tensors.extent(which), triton.cdiv(rows, self._group[rows]))
            for which, rows in runs
        ]
        self._sums = SegmentSums(segments, chains, x.device)
        # Slopes on their way down, each over the rows of one block at a time.
        largest = max(block.rows.capacity for block in self._blocks)
        self._out_slope = x.new_empty(chains, capacity, d)
        self._x_slope = x.new_empty(chains, batch, n, d)
        self._y_slope = x.new_empty(chains * feedforward.slope_parts(d, m) * largest * d)
        self._row_slopes = attention.slopes_like(x, largest)

    def launch(
        self,
        weights: torch.Tensor,  # (C, N)
        indices: torch.Tensor,  # (C, B) int64
        sums: torch.Tensor,  # (C, G, 2) float64 out, G = groups: losses and errors
        gradient: torch.Tensor | None,  # (C, N) out
    ) -> None:
        """Everything of a call after its masked rows are listed."""
        embedding.launch_embed(
            self._data.tokens,
            indices,
            self.tensors.views(weights, self._embedding)[0],
            self._code_embedding,
            self._blocks[0].x,
        )
        for block in self._blocks:
            self._forward(block, weights)
        last = self._blocks[-1]
        output, output_bias = self.tensors.views(weights, self._output)
        slopes = None
        if gradient is not None:
            assert self._sums is not None
            begin, _ = self.tensors.extent(self._output)
            slopes = cross_entropy.MaskedCrossEntropySlopes(
                self._out_slope,
                self._sums.partials[1],
                *self.tensors.offsets(self._output, begin),
            )
        cross_entropy.launch(
            last.out,
            last.total,
            self._masked.target,
            self._masked.weight,
            output,
            output_bias,
            sums,
            slopes,
            self._group[last.rows.capacity],
            self._precision,
        )
        if gradient is None:
            return
        assert self._sums is not None
        slope = self._out_slope
        for block, partial in zip(self._blocks[::-1], self._sums.partials[:1:-1], strict=True):
            self._backward(block, weights, slope, partial)
            slope = self._x_slope.view(len(weights), -1, self._x_slope.shape[3])
        embedding.launch_slope(
            self._data.tokens,
            indices,
            self._x_slope,
            self._vocabulary,
            self._sums.partials[0],
            0,
            self._group[slope.shape[1]],
            self._precision,
        )
        self._sums.launch(gradient)

    def _attention_weights(
        self, block: _Block, weights: torch.Tensor
    ) -> attention.AttentionNormWeights:
        views = self.tensors.views(weights, block.attention_tensors)
        return attention.AttentionNormWeights(*views)

    def _feedforward_weights(
        self, block: _Block, weights: torch.Tensor
    ) -> feedforward.FeedforwardNormWeights:
        views = self.tensors.views(weights, block.feedforward_tensors)
        return feedforward.FeedforwardNormWeights(*views)

    def _forward(self, block: _Block, weights: torch.Tensor) -> None:
        attention.launch_forward(
            block.x,
            block.rows,
            self._attention_weights(block, weights),
            block.y,
            block.attention_state,
            self._precision,
        )
        feedforward.launch_forward(
            block.y,
            block.total,
            block.rows.source,
            self._feedforward_weights(block, weights),
            self._code_hidden,
            block.out,
            block.feedforward_state,
            self._precision,
        )

    def _backward(
        self,
        block: _Block,
        weights: torch.Tensor,
        slope: torch.Tensor,  # (C, R, d), of the block's result
        partial: torch.Tensor,  # (C, G, size)
    ) -> None:
        """Leaves the slope of the block's input in _x_slope, which may be `slope`."""
        assert block.attention_state is not None
        assert block.feedforward_state is not None
        begin = self.tensors.extent(block.attention_tensors)[0]
        chains, capacity, d = block.y.shape
        parts = feedforward.slope_parts(d, self._code_hidden.shape[1])
        y_slope = self._y_slope[: chains * parts * capacity * d].view(chains, parts, capacity, d)
        group = self._group[capacity]
        feedforward.launch_backward(
            slope,
            block.y,
            block.total,
            block.rows.source,
            self._feedforward_weights(block, weights),
            self._code_hidden,
            block.feedforward_state,
            y_slope,
            partial,
            self.tensors.offsets(block.feedforward_tensors, begin),
            group,
            self._precision,
        )
        attention.launch_backward(
            y_slope,
            block.x,
            block.rows,
            self._attention_weights(block, weights),
            block.attention_state,
            self._row_slopes,
            self._x_slope,
            partial,
            self.tensors.offsets(block.attention_tensors, begin),
            group,
            self._precision,
        )
