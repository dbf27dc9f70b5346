"""Output and loss as arXiv 2603.29529 writes them (Eq. 25-30); gradient by autograd.

Works in the dtype of the arguments; nothing compiled.
"""

from __future__ import annotations

import torch


def masked_cross_entropy_ref(
    x: torch.Tensor,  # (C, R, d)
    output: torch.Tensor,  # (C, V, d)
    output_bias: torch.Tensor,  # (C, V)
    targets: torch.Tensor,  # (C, R) int64
    weights: torch.Tensor,  # (C, R)
) -> tuple[torch.Tensor, torch.Tensor]:  # (C,), (C,)
    """Σ weight · −ln softmax(X Woutᵀ + bout)[target] and Σ weight · [arg max is not the target]."""
    logits = x @ output.mT + output_bias[:, None]  # (C, R, V)
    rows = (
        torch.logsumexp(logits, dim=2) - torch.take_along_dim(logits, targets[..., None], 2)[..., 0]
    )
    wrong = logits.argmax(dim=2) != targets
    return (weights * rows).sum(dim=1), (weights * wrong).sum(dim=1)
