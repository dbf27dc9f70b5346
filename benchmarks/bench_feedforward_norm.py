"""The feed-forward layer, forward and backward, against the same formula in eager PyTorch.

pytest benchmarks/bench_feedforward_norm.py --benchmark-only

One chain, 62 sequences (64 draws of 1,000, duplicates merged) of 86 sites, at all rows and at 13 of
each. Both are first held to the float64 formula; then they alternate and medians are compared.
Operations: 4 r d m a sequence forward, three times that with the gradient.
"""

from __future__ import annotations

import pytest
import torch
from against_eager import compare
from torch.nn import functional

from thermosphere.models.positional import sinusoidal_code
from thermosphere.ops.feedforward_norm import feedforward_norm
from thermosphere.ops.feedforward_norm_ref import feedforward_norm_ref

SEQUENCES, N = 62, 86


def eager(y, weight1, hidden_bias, weight2, out_bias, gain, bias, code, rows) -> torch.Tensor:
    """One chain, with PyTorch's own linear layers and layer norm."""
    hidden = torch.relu_(functional.linear(y[0], weight1[0], hidden_bias[0]))
    hidden = hidden + (code if rows is None else code[rows[0]])
    z = y[0] + functional.linear(hidden, weight2[0], out_bias[0])
    return functional.layer_norm(z, z.shape[2:], gain[0], bias[0], 1e-5)[None]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [N, 13])
@pytest.mark.parametrize(("d", "m"), [(64, 256), (26, 104), (14, 56)])
def test_feedforward_norm(benchmark, capsys, d: int, m: int, rows: int, threads: int) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = ((1, SEQUENCES, rows, d), (1, m, d), (1, m), (1, d, m), (1, d), (1, d), (1, d))
    scales = (1.0, d**-0.5, 0.3, m**-0.5, 0.3, 1.0, 0.3)
    inputs = [s * torch.randn(*size, generator=g) for s, size in zip(scales, shapes, strict=True)]
    code = sinusoidal_code(N, m, torch.float32, torch.device("cpu"))
    where = None
    if rows < N:
        where = torch.rand(1, SEQUENCES, N, generator=g).argsort(dim=2)[..., :rows].contiguous()

    def at_rows(layer):
        return lambda *leaves: layer(*leaves, code, where)

    compare(
        benchmark,
        capsys,
        f"feedforward_norm d {d}, m {m}, {rows} rows",
        (at_rows(feedforward_norm), at_rows(eager), at_rows(feedforward_norm_ref)),
        inputs,
        torch.randn(1, SEQUENCES, rows, d, generator=g),
        4.0 * SEQUENCES * rows * d * m,
        threads,
    )
