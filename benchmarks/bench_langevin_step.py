"""The fused step against the same update in eager PyTorch, at the sizes of tf4 and tf1-small.

pytest benchmarks --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from measure import seconds, torch_threads

from thermosphere import _core
from thermosphere.ops.langevin_step import (
    StepWorkspace,
    langevin_step,
    metric_sums,
    step_coefficients,
)
from thermosphere.ops.langevin_step_ref import langevin_step_ref
from thermosphere.ops.philox import Stream, normals

DT, FRICTION, KICK, TEMPERATURE = 1.0, 0.99, 0.995, 1e-4
BYTES = 44  # an element: w, Π, g, 1/M, s, Π̃ in the first pass, w, 1/M, Π̃ and w, Π in the second


class Arrays(NamedTuple):
    weights: torch.Tensor  # (1, N) float32, as all below
    momenta: torch.Tensor
    gradient: torch.Tensor
    inverse_masses: torch.Tensor
    noise_scales: torch.Tensor


def make_arrays(parameters: int) -> Arrays:
    """A tf1-small-like chain: σ_w = 0.4, moves of half a per cent of it."""
    g = torch.Generator().manual_seed(0)
    weights = 0.4 * torch.randn(1, parameters, generator=g)
    inverse_masses = (2e-3 * (0.3 + torch.rand(1, parameters, generator=g))) ** 2 / TEMPERATURE
    thermal = (TEMPERATURE / inverse_masses).sqrt()
    return Arrays(
        weights,
        thermal * torch.randn(1, parameters, generator=g),
        0.1 * thermal * torch.randn(1, parameters, generator=g),
        inverse_masses,
        0.1 * thermal,
    )


def eager_step(arrays: Arrays, noise: torch.Tensor, norm2: float) -> None:
    """The update as one writes it in PyTorch, float32, in place."""
    w, momenta, gradient, inverse_masses, noise_scales = arrays
    pull = w * inverse_masses
    force = gradient + TEMPERATURE * pull / (w * pull).sum()
    kicked = FRICTION * momenta - KICK * force + noise_scales * noise
    moved = w + DT * inverse_masses * kicked
    s1, s2, s3 = (moved * pull).sum(), (moved * moved).sum(), (pull * pull).sum()
    multiplier = (norm2 - s2) / (s1 + (s1 * s1 + s3 * (norm2 - s2)).sqrt())
    momenta.copy_(kicked + multiplier / DT * w)
    w.copy_(moved + multiplier * pull)


def best_seconds(run: Callable[[], object], repeats: int, rounds: int = 15) -> float:
    """Of the fastest round: a neighbour on the machine can only add time."""
    run()

    def several() -> None:
        for _ in range(repeats):
            run()

    return min(seconds(several) for _ in range(rounds)) / repeats


def noise_into(room: torch.Tensor) -> None:
    """The normals of one step on one thread."""
    _core.normals(
        seed=1, stream=Stream.NOISE, chain=0, step=0, count=len(room), out=room.data_ptr()
    )


def error_in_units(got: Arrays, expected: object, arrays: Arrays, noise: torch.Tensor) -> float:
    """Largest error of w' and Π in units of 16 · 2^-24 times the terms each is the sum of."""
    w, momenta, gradient, inverse_masses, noise_scales = (tensor.double() for tensor in arrays)
    unit = 16 * 2.0**-24
    kicked = momenta.abs() + gradient.abs() + (noise_scales * noise).abs() + expected.momenta.abs()
    moved = w.abs() + expected.weights.abs() + DT * inverse_masses * kicked
    ratios = (
        (got.weights - expected.weights).abs() / (unit * moved),
        (got.momenta - expected.momenta).abs() / (unit * (kicked + moved)),
    )
    return max(float(ratio.nan_to_num(nan=torch.inf).max()) for ratio in ratios)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with torch_threads(request.param):
        yield request.param


@pytest.mark.parametrize("parameters", [168_853, 8_107])
def test_langevin_step(benchmark, capsys, parameters: int, threads: int) -> None:
    start = make_arrays(parameters)
    norm2 = float((start.weights.double() ** 2).sum())
    workspace = StepWorkspace(1, parameters)
    one = torch.ones(1, dtype=torch.float64)
    coefficients = step_coefficients(
        dt=DT * one,
        momentum_factor=FRICTION * one,
        gradient_factor=KICK * one,
        metric_temperature=TEMPERATURE * one,
        norm2=norm2 * one,
    )
    noise = normals(seed=1, stream=Stream.NOISE, chain=0, step=0, count=parameters)[None]

    def fused(arrays: Arrays, metric: torch.Tensor, chain_ids: torch.Tensor) -> None:
        langevin_step(
            *arrays,
            coefficients=coefficients,
            metric=metric,
            chain_ids=chain_ids,
            workspace=workspace,
            seed=1,
            step=0,
            threads=threads,
        )

    # Right before fast: both against the float64 reference.
    expected = langevin_step_ref(
        *(tensor.double() for tensor in start), noise=noise.double(), coefficients=coefficients
    )
    chain_ids = torch.zeros(1, dtype=torch.int64)
    ours, theirs = (Arrays(*(tensor.clone() for tensor in start)) for _ in range(2))
    metric = metric_sums(start.weights, start.inverse_masses, workspace=workspace, threads=threads)
    fused(ours, metric, chain_ids)
    eager_step(theirs, noise, norm2)
    assert error_in_units(ours, expected, start, noise) <= 1
    # float32 sums: the multiplier is a few N^½ u off, which moves w' and Π along w by that share of
    # it
    assert float((theirs.weights - expected.weights).norm() / expected.weights.norm()) < 1e-5

    repeats = max(1, 2_000_000 // parameters)
    eager = best_seconds(
        lambda: eager_step(theirs, torch.randn(1, parameters), norm2), max(1, repeats // 4)
    )
    source, target = torch.zeros(2, parameters)
    copy = best_seconds(lambda: target.copy_(source), 4 * repeats)  # 8 bytes an element
    room = torch.empty(parameters)
    noise_alone = best_seconds(lambda: noise_into(room), repeats) / threads
    benchmark.pedantic(
        lambda: [fused(ours, metric, chain_ids) for _ in range(repeats)], rounds=15, warmup_rounds=2
    )
    ours_seconds = benchmark.stats.stats.min / repeats
    limit = copy * BYTES / 8
    benchmark.extra_info.update(
        ns_per_element=1e9 * ours_seconds / parameters,
        eager_ratio=eager / ours_seconds,
        bandwidth_share=limit / ours_seconds,
        noise_ns=1e9 * noise_alone / parameters,
        over_limit=ours_seconds / max(limit, noise_alone),
        isa=_core.isa_chosen(),
        backend=_core.parallel_backend(),
    )
    with capsys.disabled():
        print(
            f"\nlangevin_step N = {parameters:,}, {threads} thread(s), {_core.isa_chosen()}, "
            f"{_core.parallel_backend()}: {1e9 * ours_seconds / parameters:.2f} ns per element; "
            f"eager PyTorch {1e9 * eager / parameters:.2f} ({eager / ours_seconds:.1f}×); "
            f"its memory at a copy's bandwidth {1e9 * limit / parameters:.2f}, its noise alone "
            f"{1e9 * noise_alone / parameters:.2f}: {ours_seconds / max(limit, noise_alone):.2f}× "
            "the larger"
        )
