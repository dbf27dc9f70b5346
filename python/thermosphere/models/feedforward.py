"""The feed-forward baseline over one flat weight vector (arXiv 2603.29529, appendix A.3)."""

from __future__ import annotations

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


@dataclass(frozen=True)
class FeedForward:
    """A network without attention: every site sees itself and the mean of the visible sites.

        X⁰ = E[x] + PE(n, d),  U = LN1(X⁰),  g = mean of U over the visible sites,  Z = [U, g]
        H = relu(Z W1ᵀ + b1) + PE(n, m),  F = relu(H W2ᵀ + b2)
        logits = LN2(F + U Wrᵀ + br) Woutᵀ + bout

    Visible sites are the unmasked ones unless given; g = 0 where a sequence has none. Dropout,
    where asked for, acts on X⁰ and on F. The arithmetic is done in the dtype of the weights.
    """

    name: str
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
        return Layout.from_shapes(
            {
                "embedding": (tokens, d),
                "norm1.gain": (d,),
                "norm1.bias": (d,),
                "feedforward1.weight": (m, 2 * d),
                "feedforward1.bias": (m,),
                "feedforward2.weight": (m, m),
                "feedforward2.bias": (m,),
                "residual.weight": (m, d),
                "residual.bias": (m,),
                "norm2.gain": (m,),
                "norm2.bias": (m,),
                "output.weight": (tokens, m),
                "output.bias": (tokens,),
            }
        )

    def initial(self, runs: int, generator: torch.Generator) -> torch.Tensor:
        """Random weights (runs, N) float32; see `initial_weights`."""
        return initial_weights(self.layout, runs, generator)

    def logits(
        self,
        flat: torch.Tensor,  # (C, N)
        tokens: torch.Tensor,  # (C, B, n) int64
        positions: torch.Tensor | None = None,  # (C, B, K) int64
        visible: torch.Tensor | None = None,  # (C, B, n) bool; None: tokens ≠ mask
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:  # (C, B, n or K, V)
        """Logits at every site, or at `positions`: then all after the pooling is done there only.

        ValueError for shapes that do not fit the model.
        """
        check_inputs(self, flat, tokens, positions, dropout, visible)
        rows = None if positions is None else Rows.of_positions(positions)
        out = self.row_logits(self.layout.views(flat), tokens, rows, visible, dropout, generator)
        return out.view(*tokens.shape[:2], -1, self.tokens)

    def row_logits(
        self,
        parameters: Mapping[str, torch.Tensor],  # name → (C, *shape)
        tokens: torch.Tensor,  # (C, B, n) int64
        rows: Rows | None = None,
        visible: torch.Tensor | None = None,  # (C, B, n) bool
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:  # (C, R, V); R = B·n without `rows`
        """Logits of the listed rows; nothing is checked."""
        chains, batch, n = tokens.shape
        d = self.embedding
        table = parameters["embedding"]
        code = sinusoidal_code(n, d, table.dtype, table.device)
        x = drop(take_rows(table, tokens) + code, dropout, generator).flatten(1, 2)
        u = layer_norm(x, parameters["norm1.gain"], parameters["norm1.bias"])  # (C, B·n, d)
        seen = (tokens != self.tokens - 1 if visible is None else visible).to(u.dtype)
        share = seen / seen.sum(dim=-1, keepdim=True).clamp(min=1.0)  # (C, B, n)
        pooled = torch.bmm(share.view(chains * batch, 1, n), u.view(chains * batch, n, d))
        if rows is None:
            rows = Rows.of_positions(torch.arange(n, device=tokens.device).expand(chains, batch, n))
        else:
            u = take_rows(u, rows.sequence * n + rows.position)  # (C, R, d)
        # Z W1ᵀ = U W1[:, :d]ᵀ + g W1[:, d:]ᵀ, the second product once a sequence, not once a row
        weight = parameters["feedforward1.weight"]
        context = linear(
            pooled.view(chains, batch, d), weight[..., d:], parameters["feedforward1.bias"]
        )
        hidden = torch.relu_(
            torch.baddbmm(take_rows(context, rows.sequence), u, weight[..., :d].transpose(1, 2))
        )
        # H W2ᵀ + b2 = relu(…) W2ᵀ + (PE W2ᵀ + b2), the bracket a table of n rows
        weight = parameters["feedforward2.weight"].transpose(1, 2)
        code = sinusoidal_code(n, self.hidden, table.dtype, table.device)
        offset = torch.matmul(code, weight) + parameters["feedforward2.bias"].unsqueeze(1)
        f = torch.relu_(torch.baddbmm(take_rows(offset, rows.position), hidden, weight))
        f = drop(f, dropout, generator)
        f = f + linear(u, parameters["residual.weight"], parameters["residual.bias"])
        f = layer_norm(f, parameters["norm2.gain"], parameters["norm2.bias"])
        return linear(f, parameters["output.weight"], parameters["output.bias"])

    masked_logits = row_logits  # no shorter way exists for masked rows
