"""The attention layer, forward and backward, against the same formula in eager PyTorch.

pytest benchmarks/bench_attention_norm.py --benchmark-only

One chain, 62 sequences (64 draws of 1,000, duplicates merged) of 86 sites, at all rows and at 13 of
each. Both are first held to the float64 formula; then they alternate and medians are compared.
Operations: 2(2 r d² + 2 r n d) a sequence forward, three times that with the gradient.
"""

from __future__ import annotations

import pytest
import torch
from against_eager import compare
from torch.nn import functional

from thermosphere.ops.attention_norm import attention_norm
from thermosphere.ops.attention_norm_ref import attention_norm_ref

SEQUENCES, N = 62, 86


def eager(
    x: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    """One chain, with PyTorch's own layer norm and batched products."""
    x, d = x[0], x.shape[3]
    own = x if rows is None else torch.take_along_dim(x, rows[0, ..., None], dim=1)
    scores = torch.bmm(own @ query_key[0].T, x.mT) / d**0.5
    mixed = torch.bmm(torch.softmax(scores, dim=2), x)
    normal = functional.layer_norm(own + mixed @ value_output[0].T, (d,), gain[0], bias[0], 1e-5)
    return normal[None]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [N, 13])
@pytest.mark.parametrize("d", [64, 26, 14])
def test_attention_norm(benchmark, capsys, d: int, rows: int, threads: int) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = ((1, SEQUENCES, N, d), (1, d, d), (1, d, d), (1, d), (1, d))
    scales = (1.0, d**-0.5, d**-0.5, 1.0, 1.0)
    inputs = [s * torch.randn(*size, generator=g) for s, size in zip(scales, shapes, strict=True)]
    where = None
    if rows < N:
        where = torch.rand(1, SEQUENCES, N, generator=g).argsort(dim=2)[..., :rows].contiguous()

    def at_rows(layer):
        return lambda *leaves: layer(*leaves, where)

    compare(
        benchmark,
        capsys,
        f"attention_norm d {d}, {rows} rows",
        (at_rows(attention_norm), at_rows(eager), at_rows(attention_norm_ref)),
        inputs,
        torch.randn(1, SEQUENCES, rows, d, generator=g),
        SEQUENCES * 2 * (2 * rows * d * d + 2 * rows * N * d),
        threads,
    )
