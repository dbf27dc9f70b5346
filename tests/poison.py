"""Memory around what a kernel may touch is NaN, so that padding that leaks shows."""

from __future__ import annotations

import torch


def poisoned(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The same values with NaN, or a huge number of an integer, before and behind them; aligned to
    16 bytes no more than its size makes it."""
    margin, size = 4096 + 1, tensor.numel()
    fill = float("nan") if tensor.is_floating_point() else 2**30
    memory = torch.full((size + 2 * margin,), fill, dtype=tensor.dtype, device=device)
    memory[margin : margin + size] = tensor.flatten().to(device)
    return memory[margin : margin + size].view(tensor.shape)


def untouched(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """An output that nothing has written: NaN."""
    return torch.full(shape, float("nan"), dtype=dtype, device=device)
