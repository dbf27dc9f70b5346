"""The mean attention of a test set against the model's own attention in eager PyTorch.

pytest benchmarks/bench_mean_attention.py --benchmark-only

One draw of weights, 1,000 sequences of 86 sites. Both are first held to the float64 mean; then they
alternate and medians are compared. Operations a sequence: 2(2 n d² + 2 n² d + 2 n d m) a block, and
2(n d² + n² d) in the last, of which only A is needed.
"""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from measure import alternating, median_ratio, peak_rate, torch_threads

from thermosphere import _core
from thermosphere.analysis.contacts import mean_attention
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import named_model
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import mask_sequences

SEQUENCES, ROUNDS = 1_000, 5


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["tf1", "tf1-small", "tf4-small", "tf4"])
def test_mean_attention(benchmark, capsys, name: str, threads: int) -> None:
    model = named_model(name)
    assert isinstance(model, Transformer)
    tokens = np.random.default_rng(0).integers(0, 20, (SEQUENCES, 86), dtype=np.uint8)
    sequences = mask_sequences(tokens, 0.15, seed=0)
    sites = MaskedSites(sequences)
    weights = model.initial(1, torch.Generator().manual_seed(0))

    def fused(part=sites):
        return mean_attention(model, weights, part, backend="fused")

    def eager(part=sites):
        return mean_attention(model, weights, part, backend="autograd")

    # Right before fast, on some of the sequences.
    some = sequences.subset(slice(50))
    exact = mean_attention(model, weights.double(), some)
    for mean in (fused, eager):
        assert np.abs(mean(some) - exact).max() < 1e-5 * exact.max()

    with torch_threads(threads):
        times = alternating({"fused": fused, "eager": eager}, ROUNDS)
        peak = peak_rate()
        benchmark.pedantic(fused, rounds=3, warmup_rounds=1)
    median = statistics.median(times["fused"])
    ratio = median_ratio(times["eager"], times["fused"])
    n, d, m = model.length, model.embedding, model.hidden
    block = 2 * (2 * n * d * d + 2 * n * n * d + 2 * n * d * m)
    needed = SEQUENCES * ((model.blocks - 1) * block + 2 * (n * d * d + n * n * d))
    rate = needed / median
    benchmark.extra_info.update(
        ms=1e3 * median,
        gflops=rate / 1e9,
        peak_share=rate / (threads * peak),
        eager_ratio=ratio,
    )
    with capsys.disabled():
        print(
            f"\nmean_attention {name}, {threads} thread(s), {_core.isa_chosen()}: "
            f"{1e3 * median:.1f} ms, {rate / 1e9:.0f} GFLOP/s, "
            f"{100 * rate / (threads * peak):.0f} % of {threads} × {peak / 1e9:.0f}; "
            f"eager PyTorch {ratio:.1f}×"
        )
