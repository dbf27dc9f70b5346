"""The layers both networks are made of, with a leading chain axis: C sets of weights at once."""

from __future__ import annotations

import torch
from torch.nn import functional


def linear(
    rows: torch.Tensor,  # (C, R, i)
    weight: torch.Tensor,  # (C, o, i)
    bias: torch.Tensor | None = None,  # (C, o)
) -> torch.Tensor:  # (C, R, o)
    """rows · weightᵀ + bias, chain by chain."""
    if bias is None:
        return torch.bmm(rows, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))


def layer_norm(
    rows: torch.Tensor,  # (C, R, d)
    gain: torch.Tensor,  # (C, d)
    bias: torch.Tensor,  # (C, d)
) -> torch.Tensor:  # (C, R, d)
    """Layer norm over the last axis, eps 1e-5, then gain and bias of the chain."""
    features = rows.shape[-1:]
    normal = functional.layer_norm(rows, features, eps=1e-5)
    return torch.addcmul(bias.unsqueeze(1), normal, gain.unsqueeze(1))


def take_rows(
    table: torch.Tensor,  # (C, T, d)
    index: torch.Tensor,  # (C, ...) int64, values in [0, T)
) -> torch.Tensor:  # (C, ..., d)
    """Rows `index` of each chain's table.

    One index_select over all chains: its backward adds whole rows, cheaper than that of an
    embedding look-up or of plain indexing.
    """
    chains, height, features = table.shape
    if chains > 1:
        first = torch.arange(0, chains * height, height, device=index.device)
        index = index + first.view(-1, *([1] * (index.ndim - 1)))
    rows = table.reshape(chains * height, features).index_select(0, index.reshape(-1))
    return rows.view(*index.shape, features)


def dropout(
    rows: torch.Tensor,  # (...)
    rate: float,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Zero each element with probability `rate` and scale the rest by 1/(1 - rate)."""
    if rate == 0.0:
        return rows
    kept = torch.empty_like(rows).bernoulli_(1.0 - rate, generator=generator)
    return rows * kept.div_(1.0 - rate)
