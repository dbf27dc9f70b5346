"""Draw and gradient on a GPU, captured in a CUDA graph, at the published sizes for 1 and 64 chains:
time a replay, and the share of a third of the card's tf32 matrix rate (three products of tf32 make
one of float32).

pytest benchmarks/bench_encoder_gradient_triton.py --benchmark-only

Skipped without a GPU. The gradient of the first chain is held to float64 before anything is timed.
Operations are those of bench_encoder_gradient.py.
"""

from __future__ import annotations

import pytest
import torch
from bench_encoder_gradient import needed_operations
from gpu_clock import capture, matrix_rate, median_seconds
from gradient_problem import DRAWN, SEQUENCES, gradient_problem

from thermosphere.models.fused import encoder_shape, fused_data
from thermosphere.models.named import NAMES
from thermosphere.ops.minibatch import Minibatch


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
@pytest.mark.parametrize("chains", [1, 64])
@pytest.mark.parametrize("name", NAMES)
def test_gradient(name: str, chains: int, precision: str, benchmark: object) -> None:
    from thermosphere.ops.encoder_gradient_triton import EncoderGradientTriton
    from thermosphere.ops.minibatch_triton import launch as draw_minibatch

    problem = gradient_problem(name)
    model = problem.model
    op = EncoderGradientTriton(
        encoder_shape(model),
        fused_data(model, problem.sites),
        chains=chains,
        batch=DRAWN,
        device="cuda",
        precision=precision,
    )
    weights = problem.weights.cuda().repeat(chains, 1)
    batch = Minibatch(
        torch.zeros(chains, DRAWN, dtype=torch.int64, device="cuda"),
        torch.zeros(chains, DRAWN, device="cuda"),
    )
    step = torch.zeros(1, dtype=torch.int64, device="cuda")
    chain_ids = torch.arange(chains, device="cuda")

    def move() -> None:
        draw_minibatch(batch, seed=0, step=step, chain_ids=chain_ids, examples=SEQUENCES)
        op(weights, *batch)

    graph = capture(move)
    graph.replay()
    losses, _, gradient = op(weights, *batch)
    assert gradient is not None
    assert torch.equal(batch.indices[0].cpu(), problem.batch.indices[0])
    if precision == "tf32x3":  # benchmarks/tf32_effect.py says how far tf32 is off
        problem.hold("triton", float(losses[0]), gradient[0].cpu())

    benchmark.pedantic(graph.replay, rounds=1)  # type: ignore[attr-defined]
    took = median_seconds(graph.replay)
    drawn = batch.indices[batch.weights > 0].cpu()  # of all chains, the distinct ones
    masked = float(problem.sites.count[drawn].sum())
    rate = 3 * needed_operations(model, masked, len(drawn)) / took
    share = rate / (matrix_rate(torch.device("cuda")) / 3)
    print(
        f"\nencoder_gradient_triton {name} C={chains} {precision}: {took * 1e6:.1f} us a replay, "
        f"{took * 1e6 / chains:.2f} a chain, {rate * 1e-12:.1f} Tflop/s, {share:.0%} of a third of "
        f"the tf32 rate, {torch.cuda.get_device_name()}"
    )
