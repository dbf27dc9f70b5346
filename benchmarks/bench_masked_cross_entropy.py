"""Output and loss, forward and backward, against the same formula in eager PyTorch.

pytest benchmarks/bench_masked_cross_entropy.py --benchmark-only

One chain, 800 rows: the masked sites of 62 sequences of 86 sites. Both are first held to the
float64 formula; then they alternate and medians are compared. Operations: 2 R d V forward, three
times that with the gradient; the exponentials are not counted.
"""

from __future__ import annotations

import pytest
import torch
from against_eager import compare
from torch.nn import functional

from thermosphere.ops.masked_cross_entropy import masked_cross_entropy
from thermosphere.ops.masked_cross_entropy_ref import masked_cross_entropy_ref

ROWS, TOKENS = 800, 21


def eager(x, output, output_bias, targets, weights) -> tuple[torch.Tensor, torch.Tensor]:
    """One chain, with PyTorch's own linear layer and cross-entropy."""
    logits = functional.linear(x[0], output[0], output_bias[0])
    losses = functional.cross_entropy(logits, targets[0], reduction="none")
    errors = ((logits.argmax(dim=1) != targets[0]) * weights[0]).sum()
    return (losses * weights[0]).sum()[None], errors


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("d", [64, 26, 14])
def test_masked_cross_entropy(benchmark, capsys, d: int, threads: int) -> None:
    g = torch.Generator().manual_seed(0)
    shapes, scales = ((1, ROWS, d), (1, TOKENS, d), (1, TOKENS)), (1.0, d**-0.5, 0.3)
    inputs = [s * torch.randn(*size, generator=g) for s, size in zip(scales, shapes, strict=True)]
    targets = torch.randint(0, TOKENS, (1, ROWS), generator=g)
    weights = torch.rand(1, ROWS, generator=g) / ROWS

    def losses(layer):
        return lambda *leaves: layer(*leaves, targets, weights)[0]

    compare(
        benchmark,
        capsys,
        f"masked_cross_entropy d {d}, {ROWS} rows",
        (losses(masked_cross_entropy), losses(eager), losses(masked_cross_entropy_ref)),
        inputs,
        torch.ones(1),
        2.0 * ROWS * d * TOKENS,
        threads,
    )
