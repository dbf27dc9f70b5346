"""Checks of what goes into a model, done once at the public boundary."""

from __future__ import annotations

from dataclasses import fields
from typing import Protocol

import torch

from thermosphere.models.layout import Layout


class Sized(Protocol):
    """What the checks read of a model."""

    @property
    def length(self) -> int: ...
    @property
    def layout(self) -> Layout: ...


def check_sizes(model: Sized) -> None:
    """ValueError when any size of a model dataclass is below one."""
    for field in fields(model):  # type: ignore[arg-type]
        value = getattr(model, field.name)
        if field.name != "name" and value < 1:
            raise ValueError(
                f"{type(model).__name__}: {field.name} must be at least 1, got {value}"
            )


def check_inputs(
    model: Sized,
    flat: torch.Tensor,  # (C, N)
    tokens: torch.Tensor,  # (C, B, n) int64
    positions: torch.Tensor | None = None,  # (C, B, K) int64
    dropout: float = 0.0,
    visible: torch.Tensor | None = None,  # (C, B, n) bool
) -> None:
    """ValueError when shapes or dtypes do not fit the model or one another."""
    where = type(model).__name__
    if flat.ndim != 2 or flat.shape[1] != model.layout.size or not flat.is_floating_point():
        raise ValueError(
            f"{where}: flat must be (C, {model.layout.size}) floating point, "
            f"got {tuple(flat.shape)} {flat.dtype}"
        )
    chains = flat.shape[0]
    if (
        tokens.ndim != 3
        or tokens.shape[0] != chains
        or tokens.shape[2] != model.length
        or tokens.dtype != torch.int64
    ):
        raise ValueError(
            f"{where}: tokens must be ({chains}, B, {model.length}) int64, "
            f"got {tuple(tokens.shape)} {tokens.dtype}"
        )
    if positions is not None and (
        positions.ndim != 3
        or positions.shape[:2] != tokens.shape[:2]
        or positions.dtype != torch.int64
    ):
        raise ValueError(
            f"{where}: positions must be {tuple(tokens.shape[:2])} + (K,) int64, "
            f"got {tuple(positions.shape)} {positions.dtype}"
        )
    if visible is not None and (visible.shape != tokens.shape or visible.dtype != torch.bool):
        raise ValueError(
            f"{where}: visible must be {tuple(tokens.shape)} bool, "
            f"got {tuple(visible.shape)} {visible.dtype}"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{where}: dropout must be in [0, 1), got {dropout}")
