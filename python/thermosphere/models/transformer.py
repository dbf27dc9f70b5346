"""The transformer over one flat weight vector (arXiv 2603.29529, appendix A.1-A.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from thermosphere.models.initial import initial_weights
from thermosphere.models.layers import dropout as drop
from thermosphere.models.layers import layer_norm, linear, take_rows
from thermosphere.models.layout import Layout
from thermosphere.models.positional import sinusoidal_code
from thermosphere.models.rows import Rows
from thermosphere.models.shapes import check_inputs, check_sizes

Parameters = Mapping[str, torch.Tensor]  # name → (C, *shape)


@dataclass(frozen=True)
class Transformer:
    """L blocks of one-head attention and a position-dependent feed-forward stage.

        X⁰ = E[x] + PE(n, d)
        S  = (X Wqkᵀ) Xᵀ / √d,   A = softmax over the keys
        Y  = LN1(X + (A X) Wvoᵀ)
        H  = relu(Y W1ᵀ + b1) + PE(n, m)
        X' = LN2(Y + H W2ᵀ + b2)                    L times, then logits = X^L Woutᵀ + bout

    No biases in the attention; LayerNorm eps 1e-5 with gain and bias. Dropout, where asked for,
    acts on X⁰, on (A X) Wvoᵀ and on H W2ᵀ + b2. The arithmetic is done in the dtype of the weights.
    """

    name: str
    blocks: int  # L
    embedding: int  # d
    hidden: int  # m
    length: int  # n
    tokens: int = 21  # V, the last of which is the mask

    def __post_init__(self) -> None:
        check_sizes(self)

    @cached_property
    def layout(self) -> Layout:
        """Names, shapes and offsets of the N weights."""
        d, m, tokens = self.embedding, self.hidden, self.tokens
        shapes: dict[str, tuple[int, ...]] = {"embedding": (tokens, d)}
        for block in range(self.blocks):
            shapes |= {
                f"blocks.{block}.query_key": (d, d),
                f"blocks.{block}.value_output": (d, d),
                f"blocks.{block}.norm1.gain": (d,),
                f"blocks.{block}.norm1.bias": (d,),
                f"blocks.{block}.feedforward1.weight": (m, d),
                f"blocks.{block}.feedforward1.bias": (m,),
                f"blocks.{block}.feedforward2.weight": (d, m),
                f"blocks.{block}.feedforward2.bias": (d,),
                f"blocks.{block}.norm2.gain": (d,),
                f"blocks.{block}.norm2.bias": (d,),
            }
        shapes |= {"output.weight": (tokens, d), "output.bias": (tokens,)}
        return Layout.from_shapes(shapes)

    def initial(self, runs: int, generator: torch.Generator) -> torch.Tensor:
        """Random weights (runs, N) float32; see `initial_weights`."""
        return initial_weights(self.layout, runs, generator)

    def logits(
        self,
        flat: torch.Tensor,  # (C, N)
        tokens: torch.Tensor,  # (C, B, n) int64
        positions: torch.Tensor | None = None,  # (C, B, K) int64
        visible: torch.Tensor | None = None,  # (C, B, n) bool, not used: attention sees every site
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:  # (C, B, n or K, V)
        """Logits at every site, or at `positions`: then the last block does its rows there only.

        ValueError for shapes that do not fit the model.
        """
        check_inputs(self, flat, tokens, positions, dropout)
        rows = None if positions is None else Rows.of_positions(positions)
        out = self.row_logits(self.layout.views(flat), tokens, rows, visible, dropout, generator)
        return out.view(*tokens.shape[:2], -1, self.tokens)

    def attention(
        self,
        flat: torch.Tensor,  # (C, N)
        tokens: torch.Tensor,  # (C, B, n) int64
    ) -> torch.Tensor:  # (C, L, B, n, n)
        """The attention matrices A of all blocks, rows = queries, each row summing to one."""
        check_inputs(self, flat, tokens)
        matrices: list[torch.Tensor] = []
        self.row_logits(self.layout.views(flat), tokens, matrices=matrices)
        return torch.stack(matrices, dim=1)

    def row_logits(
        self,
        parameters: Parameters,
        tokens: torch.Tensor,  # (C, B, n) int64
        rows: Rows | None = None,
        visible: torch.Tensor | None = None,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        matrices: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:  # (C, R, V); R = B·n without `rows`
        """Logits of the listed rows; nothing is checked. Appends each block's A to `matrices`."""
        chains, batch, n = tokens.shape
        table = parameters["embedding"]
        code = sinusoidal_code(n, self.embedding, table.dtype, table.device)
        x = drop(take_rows(table, tokens) + code, dropout, generator).flatten(1, 2)  # (C, B·n, d)
        for block in range(self.blocks):
            own = f"blocks.{block}."
            last = rows if block == self.blocks - 1 else None
            keys = x.view(chains * batch, n, self.embedding)
            if last is not None:
                x = take_rows(x, last.sequence * n + last.position)  # (C, R, d)
            queries = linear(x, parameters[own + "query_key"])
            if last is not None:
                queries = take_rows(queries, last.padded())
            scores = torch.bmm(
                queries.view(chains * batch, -1, self.embedding), keys.transpose(1, 2)
            )
            attention = torch.softmax(scores / math.sqrt(self.embedding), dim=-1)  # (C·B, K, n)
            if matrices is not None:
                matrices.append(attention.view(chains, batch, n, n))
            mixed = torch.bmm(attention, keys).view(chains, -1, self.embedding)
            if last is not None:
                mixed = take_rows(mixed, last.slots())
            value = drop(linear(mixed, parameters[own + "value_output"]), dropout, generator)
            x = self._row_stage(parameters, own, x + value, last, dropout, generator)
        return linear(x, parameters["output.weight"], parameters["output.bias"])

    def masked_logits(
        self,
        parameters: Parameters,
        tokens: torch.Tensor,  # (C, B, n) int64
        rows: Rows,
        visible: torch.Tensor | None = None,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:  # (C, R, V)
        """`row_logits` for rows that all hold the mask token; nothing is checked.

        With one block and no dropout the attention then comes from small tables (see below).
        """
        if self.blocks > 1 or dropout > 0.0:
            return self.row_logits(parameters, tokens, rows, visible, dropout, generator)
        x = self._table_attention(parameters, tokens, rows)
        x = self._row_stage(parameters, "blocks.0.", x, rows, dropout, generator)
        return linear(x, parameters["output.weight"], parameters["output.bias"])

    def _table_attention(
        self, parameters: Parameters, tokens: torch.Tensor, rows: Rows
    ) -> torch.Tensor:  # (C, R, d)
        """X + (A X) Wvoᵀ of the first block at masked rows, without forming X.

        Key j is E[x_j] + PE_j and every query is E[mask] + PE_i; with Q (n, d) the table of queries
            S_ij = Q_i·PE_j + Q_i·E[x_j]
            (A X) Wvoᵀ = A (PE Wvoᵀ) + (Σ_{j: x_j = a} A_ij)_a (E Wvoᵀ)
        are look-ups and products of n and V columns, and the (C, B, n, d) activations are never in
        memory.
        """
        own = "blocks.0."
        embedding = parameters["embedding"]  # (C, V, d)
        code = sinusoidal_code(self.length, self.embedding, embedding.dtype, embedding.device)
        masked = embedding[:, -1:] + code  # (C, n, d)
        queries = linear(masked, parameters[own + "query_key"]) / math.sqrt(self.embedding)
        by_site = torch.matmul(queries, code.T)  # (C, n, n)
        by_token = torch.bmm(queries, embedding.transpose(1, 2))  # (C, n, V)
        keys = take_rows(tokens, rows.sequence)  # (C, R, n)
        scores = take_rows(by_site, rows.position) + torch.gather(
            take_rows(by_token, rows.position), 2, keys
        )
        attention = torch.softmax(scores, dim=-1)  # (C, R, n)
        on_token = attention.new_zeros(*attention.shape[:2], self.tokens).scatter_add(
            2, keys, attention
        )  # (C, R, V)
        value_output = parameters[own + "value_output"].transpose(1, 2)
        x = torch.baddbmm(
            take_rows(masked, rows.position), attention, torch.matmul(code, value_output)
        )
        return torch.baddbmm(x, on_token, torch.bmm(embedding, value_output))

    def _row_stage(
        self,
        parameters: Parameters,
        own: str,
        x: torch.Tensor,  # (C, R, d), residual plus attention
        rows: Rows | None,
        dropout: float,
        generator: torch.Generator | None,
    ) -> torch.Tensor:  # (C, R, d)
        """LN1, the feed-forward stage, LN2: everything of a block that works row by row.

        H W2ᵀ + b2 is formed as relu(Y W1ᵀ + b1) W2ᵀ + (PE W2ᵀ + b2): the bracket is a table of n
        rows, which spares two passes over the (C, R, m) activations.
        """
        y = layer_norm(x, parameters[own + "norm1.gain"], parameters[own + "norm1.bias"])
        hidden = torch.relu_(
            linear(
                y, parameters[own + "feedforward1.weight"], parameters[own + "feedforward1.bias"]
            )
        )
        weight = parameters[own + "feedforward2.weight"].transpose(1, 2)  # (C, m, d)
        code = sinusoidal_code(self.length, self.hidden, x.dtype, x.device)
        offset = torch.matmul(code, weight) + parameters[own + "feedforward2.bias"].unsqueeze(1)
        if rows is None:
            offset = offset.repeat(1, x.shape[1] // self.length, 1)
        else:
            offset = take_rows(offset, rows.position)
        if dropout > 0.0:
            x = y + drop(torch.baddbmm(offset, hidden, weight), dropout, generator)
        else:
            x = torch.baddbmm(y + offset, hidden, weight)
        return layer_norm(x, parameters[own + "norm2.gain"], parameters[own + "norm2.bias"])
