"""The fused gradient at the published sizes: share of the processor's measured FMA peak, and
against PyTorch autograd.

pytest benchmarks/bench_encoder_gradient.py --benchmark-only

64 draws of 1,000 sequences of 86 sites, masks 15 %. Both paths are first held to the float64
gradient; then they alternate in one run and medians are compared. Operations are those needed with
the masked-row saving: a block on r query rows takes 2(2 r d² + 2 r n d + 2 r d m) forward, the
feed-forward network 2(r d m + r m² + r d m + r V m) and 2 d m a sequence; three times that with
the gradient. Two kernels do fewer, which counts in their favour: the single block looks scores up,
and the feed-forward network both d × m products of a masked row.
"""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from measure import alternating, median_ratio, peak_rate, torch_threads

from thermosphere import _core
from thermosphere.models.feedforward import FeedForward
from thermosphere.models.named import Model, named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.minibatch import Minibatch, draw_minibatch
from thermosphere.proteins.dataset import MaskedSequences, mask_sequences

SEQUENCES, DRAWN, ROUNDS = 1_000, 64, 30


def make_sequences() -> MaskedSequences:
    tokens = np.random.default_rng(0).integers(0, 20, (SEQUENCES, 86), dtype=np.uint8)
    return mask_sequences(tokens, 0.15, seed=0)


def needed_operations(model: Model, sequences: MaskedSequences, batch: Minibatch) -> float:
    used = batch.indices[batch.weights > 0].numpy()
    masked = float(sequences.masked[used].sum())
    n, d, m = model.length, model.embedding, model.hidden
    if isinstance(model, FeedForward):
        return 3 * 2 * (masked * (2 * d * m + m * m + model.tokens * m) + len(used) * d * m)

    def block(rows: float) -> float:
        return 2 * (2 * rows * d * d + 2 * rows * n * d + 2 * rows * d * m)

    return 3 * ((model.blocks - 1) * block(float(len(used) * n)) + block(masked))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["tf1", "tf1-small", "tf4-small", "tf4", "ff"])
def test_encoder_gradient(benchmark, capsys, name: str, threads: int) -> None:
    model = named_model(name)
    sequences = make_sequences()
    fused = MaskedLanguagePotential(model, sequences, backend="fused")
    plain = MaskedLanguagePotential(model, sequences, backend="autograd")
    weights = model.initial(1, torch.Generator().manual_seed(0))
    batch = draw_minibatch(
        seed=0, step=0, chain_ids=torch.zeros(1, dtype=torch.int64), batch=DRAWN, examples=SEQUENCES
    )

    # Right before fast: every tensor of both, against float64.
    loss, exact = plain(weights.double(), batch)
    expected = model.layout.views(exact)
    for potential in (fused, plain):
        value, gradient = potential(weights, batch)
        assert abs(float(value - loss)) < 1e-5 * float(loss)
        for tensor, got in model.layout.views(gradient).items():
            assert float((got - expected[tensor]).norm() / expected[tensor].norm()) < 1e-4, tensor

    with torch_threads(threads):
        times = alternating(
            {"fused": lambda: fused(weights, batch), "autograd": lambda: plain(weights, batch)},
            ROUNDS // 3 if name.startswith("tf4") else ROUNDS,
        )
        peak = peak_rate()
        benchmark.pedantic(lambda: fused(weights, batch), rounds=10, warmup_rounds=1)
    median = statistics.median(times["fused"])
    ratio = median_ratio(times["autograd"], times["fused"])
    rate = needed_operations(model, sequences, batch) / median
    benchmark.extra_info.update(
        ms=1e3 * median,
        gflops=rate / 1e9,
        peak_gflops=peak / 1e9,
        peak_share=rate / (threads * peak),
        autograd_ratio=ratio,
        isa=_core.isa_chosen(),
        backend=_core.parallel_backend(),
    )
    with capsys.disabled():
        print(
            f"\nencoder_gradient {name}, {threads} thread(s), {_core.isa_chosen()}: "
            f"{1e3 * median:.2f} ms, {rate / 1e9:.0f} GFLOP/s, "
            f"{100 * rate / (threads * peak):.0f} % of {threads} × {peak / 1e9:.0f}; "
            f"PyTorch autograd, masked rows too, {ratio:.1f}×"
        )
