"""Random weights to start training from: the defaults of PyTorch's own layers (chosen)."""

from __future__ import annotations

import math

import torch

from thermosphere.models.layout import Layout


def initial_weights(layout: Layout, runs: int, generator: torch.Generator) -> torch.Tensor:
    """Independent random weights, (runs, N) float32 on the generator's device.

    The paper does not state its initialisation; these are the defaults of torch.nn (chosen):
    embedding N(0, 1); matrices U(-1/√i, 1/√i) with i their number of columns (kaiming_uniform, a =
    √5); biases of a linear layer the same with the i of its matrix; norm gains 1, norm biases 0.
    Run after run is drawn, so the first rows do not depend on how many follow. ValueError when runs
    < 1.
    """
    if runs < 1:
        raise ValueError(f"initial_weights: runs must be at least 1, got {runs}")
    flat = torch.zeros(runs, layout.size, dtype=torch.float32, device=generator.device)
    for run in flat:
        views = layout.views(run)
        for name, view in views.items():
            stem, _, kind = name.rpartition(".")
            if name == "embedding":
                view.normal_(generator=generator)
            elif kind == "gain":
                view.fill_(1.0)
            elif kind != "bias" or f"{stem}.weight" in views:
                matrix = views[f"{stem}.weight"] if kind == "bias" else view
                bound = 1.0 / math.sqrt(matrix.shape[1])
                view.uniform_(-bound, bound, generator=generator)
    return flat
