"""The feed-forward layer as arXiv 2603.29529 writes it (Eq. 9-14); gradient by autograd.

Works in the dtype of the arguments; nothing compiled.
"""

from __future__ import annotations

import torch


def feedforward_norm_ref(
    y: torch.Tensor,  # (C, B, r, d)
    weight1: torch.Tensor,  # (C, m, d)
    hidden_bias: torch.Tensor,  # (C, m)
    weight2: torch.Tensor,  # (C, d, m)
    out_bias: torch.Tensor,  # (C, d)
    gain: torch.Tensor,  # (C, d)
    bias: torch.Tensor,  # (C, d)
    code: torch.Tensor,  # (n, m)
    rows: torch.Tensor | None = None,  # (C, B, r) int64
) -> torch.Tensor:  # (C, B, r, d)
    """Z = LN(Y + (relu(Y W1ᵀ + b1) + code[rows]) W2ᵀ + b2) γ + β."""
    hidden = torch.relu(y @ weight1[:, None].mT + hidden_bias[:, None, None])
    hidden = hidden + (code if rows is None else code[rows])
    z = y + hidden @ weight2[:, None].mT + out_bias[:, None, None]
    centred = z - z.mean(3, keepdim=True)
    normal = centred / (centred.square().mean(3, keepdim=True) + 1e-5).sqrt()
    return normal * gain[:, None, None] + bias[:, None, None]
