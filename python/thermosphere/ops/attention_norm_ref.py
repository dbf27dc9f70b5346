"""The attention layer as arXiv 2603.29529 writes it (Eq. 6-10); gradient by autograd.

Works in the dtype of the arguments; nothing compiled.
"""

from __future__ import annotations

import math

import torch


def attention_norm_ref(
    x: torch.Tensor,  # (C, B, n, d)
    query_key: torch.Tensor,  # (C, d, d)
    value_output: torch.Tensor,  # (C, d, d)
    gain: torch.Tensor,  # (C, d)
    bias: torch.Tensor,  # (C, d)
    rows: torch.Tensor | None = None,  # (C, B, r) int64
) -> torch.Tensor:  # (C, B, r, d)
    """Y = LN(X_rows + softmax(X_rows Wqkᵀ Xᵀ / √d) X Wvoᵀ) γ + β."""
    own = x if rows is None else torch.take_along_dim(x, rows[..., None], dim=2)
    scores = own @ query_key[:, None].mT @ x.mT / math.sqrt(x.shape[3])  # (C, B, r, n)
    mixed = torch.softmax(scores, dim=3) @ x
    y = own + mixed @ value_output[:, None].mT
    centred = y - y.mean(3, keepdim=True)
    normal = centred / (centred.square().mean(3, keepdim=True) + 1e-5).sqrt()
    return normal * gain[:, None, None] + bias[:, None, None]
