"""The fused gradient and the forward pass at the published sizes: share of the processor's measured
FMA peak, and what a second thread gives.

pytest benchmarks/bench_encoder_gradient.py --benchmark-only

64 draws of 1,000 sequences of 86 sites, masks 15 %; the forward pass over 13,000 sequences. The
gradient is first held to float64; then calls on one and on two threads take turns, each followed by
a run of multiply-adds, which measures the peak at the clock of that moment: the share is the median
of one over the other. The highest peak, of multiply-adds alone, is printed beside it.
bench_gradient_peers.py has the comparison with others.

Operations are those needed with the masked-row saving, and three times as many with the gradient. A
transformer block on r query rows takes 2(2 r d² + 2 r n d + 2 r d m). The feed-forward network
takes 2(2 d m + m² + V m) a masked row and 2 d m a sequence. Where the kernel does fewer (it
looks up the scores of a single block, and two of the feed-forward network's products, from tables
of sites), that counts in its favour.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from gradient_problem import SEQUENCES, SITES, gradient_problem
from measure import median_ratio, peak_beside, peak_rate, seconds, torch_threads

from thermosphere import _core
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import NAMES, Model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import mask_sequences

SECONDS, FORWARD_SEQUENCES = 4.0, 13_000


def needed_operations(model: Model, masked: float, sequences: int) -> float:
    """Forward, `masked` masked rows in `sequences` sequences."""
    n, d, m = model.length, model.embedding, model.hidden
    if not isinstance(model, Transformer):
        return 2 * masked * (2 * d * m + m * m + model.tokens * m) + 2 * sequences * d * m

    def block(rows: float) -> float:
        return 2 * (2 * rows * d * d + 2 * rows * n * d + 2 * rows * d * m)

    return (model.blocks - 1) * block(float(sequences * n)) + block(masked)


def on_threads(threads: int, call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with torch_threads(threads):
            call()

    return run


@dataclass(frozen=True)
class Measured:
    """Of calls on one and on two threads."""

    seconds: dict[int, float]  # median
    peak: dict[int, float]  # operations a second and core, median right after those calls
    share: dict[int, float]  # of that peak
    scaling: float  # two threads over one
    highest: float  # peak of multiply-adds alone


def measured(operations: float, call: Callable[[], object]) -> Measured:
    """Calls of `operations` floating-point operations, on one and two threads in turn."""
    calls = {threads: on_threads(threads, call) for threads in (1, 2)}
    once = sum(seconds(run) for run in calls.values())
    times: dict[int, list[float]] = {1: [], 2: []}
    peaks: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(max(7, min(200, int(SECONDS / once)))):
        for threads, run in calls.items():
            times[threads].append(seconds(run))
            peaks[threads].append(peak_beside())
    return Measured(
        seconds={threads: statistics.median(t) for threads, t in times.items()},
        peak={threads: statistics.median(p) for threads, p in peaks.items()},
        share={
            threads: statistics.median(
                operations / t / (threads * p)
                for t, p in zip(times[threads], peaks[threads], strict=True)
            )
            for threads in calls
        },
        scaling=median_ratio(times[1], times[2]),
        highest=peak_rate(),
    )


def report(
    benchmark: object,
    capsys: pytest.CaptureFixture[str],
    what: str,
    operations: float,
    call: Callable[[], object],
) -> None:
    m = measured(operations, call)
    rate = {threads: operations / t for threads, t in m.seconds.items()}
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        ms={threads: 1e3 * t for threads, t in m.seconds.items()},
        gflops={threads: r / 1e9 for threads, r in rate.items()},
        peak_gflops={threads: p / 1e9 for threads, p in m.peak.items()},
        peak_share=m.share,
        highest_peak_gflops=m.highest / 1e9,
        thread_scaling=m.scaling,
        isa=_core.isa_chosen(),
        backend=_core.parallel_backend(),
    )
    with capsys.disabled():
        print(
            f"\n{what}, {_core.isa_chosen()}: "
            + "; ".join(
                f"{threads} thread(s) {1e3 * m.seconds[threads]:.2f} ms, "
                f"{rate[threads] / 1e9:.0f} GFLOP/s, {100 * m.share[threads]:.0f} % of the peak "
                f"beside it, {m.peak[threads] / 1e9:.0f} a core"
                for threads in (1, 2)
            )
            + f" (alone {m.highest / 1e9:.0f}: {100 * rate[1] / m.highest:.0f} %)"
            + f"; two over one {m.scaling:.2f}×"
        )


@pytest.mark.parametrize("name", NAMES)
def test_encoder_gradient(benchmark, capsys, name: str) -> None:
    problem = gradient_problem(name)
    model, batch = problem.model, problem.batch
    potential = MaskedLanguagePotential(model, problem.sites, backend="fused")
    loss, gradient = potential(problem.weights, batch)
    problem.hold("fused", float(loss), gradient[0])

    used = batch.indices[batch.weights > 0]
    masked = float(problem.sites.count[used].sum())
    operations = 3 * needed_operations(model, masked, len(used))
    report(
        benchmark,
        capsys,
        f"encoder_gradient {name}",
        operations,
        lambda: potential(problem.weights, batch),
    )
    benchmark.pedantic(lambda: potential(problem.weights, batch), rounds=10)


@pytest.mark.parametrize("name", NAMES)
def test_encoder_forward(benchmark, capsys, name: str) -> None:
    problem = gradient_problem(name)
    model = problem.model
    tokens = np.random.default_rng(1).integers(0, 20, (FORWARD_SEQUENCES, SITES), dtype=np.uint8)
    sites = MaskedSites(mask_sequences(tokens, 0.15, seed=1))
    potential = MaskedLanguagePotential(model, sites, backend="fused")
    exact = MaskedLanguagePotential(model, sites, backend="autograd")
    part = MaskedSites(mask_sequences(tokens, 0.15, seed=1).subset(slice(SEQUENCES)))
    got = potential.evaluate(problem.weights, part)
    expected = exact.evaluate(problem.weights.double(), part)
    assert abs(float(got[0] / expected[0]) - 1) < 1e-5
    assert abs(float(got[1] - expected[1])) < 1e-3  # a near tie may fall either way

    operations = needed_operations(model, float(sites.count.sum()), FORWARD_SEQUENCES)
    report(
        benchmark,
        capsys,
        f"encoder_forward {name}, {FORWARD_SEQUENCES:,} sequences",
        operations,
        lambda: potential.evaluate(problem.weights),
    )
    benchmark.pedantic(lambda: potential.evaluate(problem.weights), rounds=2)
