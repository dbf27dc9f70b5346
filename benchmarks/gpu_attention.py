"""attention_norm on a GPU against compiled SDPA and FlexAttention with a layer norm, forward and
backward, every contender in a CUDA graph of its own. A part of gpu.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from gpu_clock import capture, device_times
from gpu_peers import attention_norm_flex, attention_norm_sdpa

from thermosphere.ops.attention_norm import attention_norm
from thermosphere.ops.attention_norm_ref import attention_norm_ref

SEQUENCES, SITES = 62, 86  # 64 draws of 1,000, duplicates merged
Layer = Callable[..., torch.Tensor]


def inputs_of(chains: int, batch: int, n: int, d: int, device: torch.device) -> list[torch.Tensor]:
    """x, Wqk, Wvo, gain and bias."""
    g = torch.Generator().manual_seed(0)
    shapes = ((chains, batch, n, d), (chains, d, d), (chains, d, d), (chains, d), (chains, d))
    scales = (1.0, d**-0.5, d**-0.5, 1.0, 1.0)
    return [
        (s * torch.randn(*shape, generator=g)).to(device)
        for s, shape in zip(scales, shapes, strict=True)
    ]


def gradient(layer: Layer, inputs: list[torch.Tensor], slope: torch.Tensor) -> list[torch.Tensor]:
    """The layer's result and its slopes by every input."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = layer(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(out.dtype))]


def check(layer: Layer, inputs: list[torch.Tensor], bound: float) -> None:
    """The result and every slope against float64, by their norms."""
    slope = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    slope = slope.to(inputs[0].device)
    exact = gradient(attention_norm_ref, [tensor.double() for tensor in inputs], slope)
    for got, expected in zip(gradient(layer, inputs, slope), exact, strict=True):
        error = float((got - expected).norm() / expected.norm())
        assert error < bound, f"{error:.1e} from float64"


def contenders(precision: str) -> dict[str, Layer]:
    return {
        "ours": lambda *inputs: attention_norm(*inputs, precision=precision),
        "sdpa": torch.compile(attention_norm_sdpa, dynamic=False),
        "flex": torch.compile(attention_norm_flex, dynamic=False),
    }


def timings(device: torch.device, d: int = 64) -> Iterator[str]:
    """Medians of each contender for 1 and 64 chains, at both precisions."""
    for precision in ("tf32x3", "tf32"):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        for chains in (1, 64):
            torch._dynamo.reset()
            inputs = inputs_of(chains, SEQUENCES, SITES, d, device)
            slope = torch.randn_like(inputs[0])
            forward: dict[str, Callable[[], object]] = {}
            both: dict[str, Callable[[], object]] = {}
            for name, layer in contenders(precision).items():
                try:
                    check(layer, inputs, 5e-3 if precision == "tf32" else 2e-5)
                    forward[name] = captured_forward(layer, inputs)
                    both[name] = captured_gradient(layer, inputs, slope)
                except Exception as error:  # a peer that does not take these shapes
                    if name == "ours":
                        raise
                    yield f"attention_norm {precision}, C = {chains}: no {name}: {first(error)}"
                    forward.pop(name, None)
            for kind, calls in (("forward", forward), ("forward and backward", both)):
                yield f"attention_norm {precision}, C = {chains}, d = {d}, {kind}: " + told(calls)
    torch.set_float32_matmul_precision("highest")


def captured_forward(layer: Layer, inputs: list[torch.Tensor]) -> Callable[[], object]:
    with torch.no_grad():
        layer(*inputs)
        return capture(lambda: layer(*inputs), 2).replay


def captured_gradient(
    layer: Layer, inputs: list[torch.Tensor], slope: torch.Tensor
) -> Callable[[], object]:
    gradient(layer, inputs, slope)
    return capture(lambda: gradient(layer, inputs, slope), 2).replay


def told(calls: dict[str, Callable[[], object]]) -> str:
    medians = {name: statistics.median(times) for name, times in device_times(calls).items()}
    ours = medians.pop("ours")
    text = f"{1e6 * ours:.1f} µs"
    for name, median in medians.items():
        text += f"; {name} and layer norm, compiled: {1e6 * median:.1f} µs, {median / ours:.1f}×"
    return text + " (target ≥ 2×)"


def first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
