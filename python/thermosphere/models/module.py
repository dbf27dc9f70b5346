"""A network as a torch.nn.Module whose parameters are views of one flat weight vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from thermosphere.models.named import Model
from thermosphere.models.rows import Rows
from thermosphere.models.shapes import check_inputs


class FlatModule(torch.nn.Module):
    """See `as_module`. `flat` (N,) shares its memory with every parameter, in both directions."""

    flat: torch.Tensor

    def __init__(self, model: Model, flat: torch.Tensor, dropout: float) -> None:
        super().__init__()
        self.model = model
        self.dropout = dropout
        self.flat = flat
        for name, view in model.layout.views(flat).items():
            *path, leaf = name.split(".")
            owner: torch.nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(leaf, torch.nn.Parameter(view))

    def forward(
        self,
        tokens: torch.Tensor,  # (B, n) int64
        positions: torch.Tensor | None = None,  # (B, K) int64
    ) -> torch.Tensor:  # (B, n or K, V)
        """Logits at every site or at `positions`; dropout in training mode only."""
        one = tokens.unsqueeze(0)
        where = None if positions is None else positions.unsqueeze(0)
        check_inputs(self.model, self.flat.unsqueeze(0), one, where)
        logits = self.model.row_logits(
            {name: value.unsqueeze(0) for name, value in self.named_parameters()},
            one,
            None if where is None else Rows.of_positions(where),
            dropout=self.dropout if self.training else 0.0,
        )
        return logits.view(len(tokens), -1, self.model.tokens)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As usual, in place. ValueError for assign=True, which would cut the ties to `flat`."""
        if assign:
            raise ValueError("FlatModule.load_state_dict: assign must be False, got True")
        return super().load_state_dict(state_dict, strict=strict)

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> FlatModule:
        # .to(), .double(), .cuda() …: convert the flat vector once and point the parameters at it;
        # module by module each parameter would get memory of its own.
        with torch.no_grad():
            self.flat = fn(self.flat)
            own = dict(self.named_parameters())
            for name, view in self.model.layout.views(self.flat).items():
                gradient = own[name].grad
                own[name].grad = None
                own[name].data = view
                if gradient is not None:
                    own[name].grad = fn(gradient)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FlatModule:
        copy = FlatModule(self.model, self.flat.clone(), self.dropout)
        memo[id(self)] = copy
        return copy.train(self.training)

    def extra_repr(self) -> str:
        """Name and number of weights."""
        return f"{self.model.name}, N={self.model.layout.size}"


def as_module(
    model: Model,
    flat_row: torch.Tensor | None = None,  # (N,)
    dropout: float = 0.0,
) -> FlatModule:
    """The network as an ordinary module: `state_dict`, optimizers, `.to(dtype)`, `copy.deepcopy`.

    Its parameters are named as in `model.layout` and are views of `module.flat` (N,), which is
    `flat_row` itself if given (shared, not copied), or `model.initial` from PyTorch's default
    generator. ValueError when `flat_row` is not (N,) contiguous floating point, or dropout not in
    [0, 1).
    """
    size = model.layout.size
    if flat_row is None:
        flat_row = model.initial(1, torch.default_generator)[0]
    dense = flat_row.is_contiguous() and flat_row.is_floating_point()
    if flat_row.shape != (size,) or not dense:
        raise ValueError(
            f"as_module: flat_row must be ({size},) contiguous floating point, "
            f"got {tuple(flat_row.shape)} {flat_row.dtype}"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"as_module: dropout must be in [0, 1), got {dropout}")
    return FlatModule(model, flat_row.detach(), dropout)
