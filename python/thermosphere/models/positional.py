"""The sinusoidal code of positions (Vaswani et al. 2017)."""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache(maxsize=64)
def sinusoidal_code(
    length: int,
    features: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """PE (length, features): sin on even and cos on odd features, any number of features.

    PE[i, 2k] = sin(i / 10000^(2k/features)), PE[i, 2k+1] = cos(i / 10000^(2k/features)).
    Computed in float64, then rounded to `dtype`. The result is cached and shared: do not write to
    it.
    """
    position = torch.arange(length, dtype=torch.float64)[:, None]  # (length, 1)
    feature = torch.arange(features, dtype=torch.float64)  # (features,)
    even = feature - feature % 2
    angle = position * 10000.0 ** (-even / features)  # (length, features)
    code = torch.where(feature % 2 == 0, angle.sin(), angle.cos())
    return code.to(dtype=dtype, device=device)
