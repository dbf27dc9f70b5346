"""A layer against the same formula in eager PyTorch: held to float64 first, then timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from measure import alternating, median_ratio, peak_rate, torch_threads

from thermosphere import _core

ROUNDS = 20
Layer = Callable[..., torch.Tensor]


def gradient(
    layer: Layer, inputs: list[torch.Tensor], slope: torch.Tensor, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The layer's result and its slopes by every input."""
    leaves = [tensor.to(dtype).detach().requires_grad_() for tensor in inputs]
    out = layer(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(out.dtype))]


def compare(
    benchmark,
    capsys,
    title: str,
    layers: tuple[Layer, Layer, Layer],  # fused, eager, reference; of the inputs alone
    inputs: list[torch.Tensor],
    slope: torch.Tensor,  # of the result
    operations: float,  # forward; three times that with the gradient
    threads: int,
) -> None:
    """Assert both layers' results and slopes, time them in turn, print medians and ratios."""
    fused, eager, reference = layers
    exact = gradient(reference, inputs, slope, torch.float64)
    for layer in (fused, eager):
        for got, expected in zip(gradient(layer, inputs, slope, torch.float32), exact, strict=True):
            assert float((got - expected).norm() / expected.norm()) < 1e-5
    calls: dict[str, Callable[[], object]] = {}
    for name, layer in (("fused", fused), ("eager", eager)):
        calls[f"{name} gradient"] = lambda f=layer: gradient(f, inputs, slope, torch.float32)
        calls[f"{name} forward"] = lambda f=layer: f(*inputs)
    with torch_threads(threads):
        times = alternating(calls, ROUNDS)
        peak = peak_rate()
        benchmark.pedantic(calls["fused gradient"], rounds=5, warmup_rounds=1)
    for kind, count in (("gradient", 3), ("forward", 1)):
        median = statistics.median(times[f"fused {kind}"])
        rate = count * operations / median
        ratio = median_ratio(times[f"eager {kind}"], times[f"fused {kind}"])
        benchmark.extra_info[kind] = {
            "ms": 1e3 * median,
            "gflops": rate / 1e9,
            "peak_share": rate / (threads * peak),
            "eager_ratio": ratio,
        }
        with capsys.disabled():
            print(
                f"\n{title}, {kind}, {threads} thread(s), {_core.isa_chosen()}: "
                f"{1e3 * median:.2f} ms, {rate / 1e9:.0f} GFLOP/s, "
                f"{100 * rate / (threads * peak):.0f} % of {threads} × {peak / 1e9:.0f}; "
                f"eager PyTorch {ratio:.1f}×"
            )
