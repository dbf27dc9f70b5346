"""The step on a GPU: checked against the CPU, then timed against copy bandwidth. A part of
gpu.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_clock import capture, copy_rate, median_seconds

from thermosphere.ops.langevin_step import (
    MoveCounter,
    StepWorkspace,
    langevin_momenta,
    langevin_step,
)
from thermosphere.ops.philox import Stream, normals

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from numerics import assert_close, assert_same_bits  # noqa: E402
from step_problem import (  # noqa: E402
    SEED,
    Problem,
    make_problem,
    noise_of,
    step_bounds,
    take_momenta,
    take_step,
)

STEP_BYTES = 44  # an element: see bench_langevin_step.py
TIMED = [(64, 168_853), (256, 44_245), (1, 10_000_000), (1, 168_853), (1, 44_245), (1, 8_107)]
MOVES = 20  # of a captured graph


def check_noise(device: torch.device, backend: str, count: int = 1_000_003) -> str:
    """Normals have the CPU's bits."""
    for stream, seed, chain, step in ((0, 1, 2, 3), (2, 2**64 - 1, 2**32 - 1, 2**56 - 1)):
        draw = {"seed": seed, "stream": Stream(stream), "chain": chain, "step": step}
        got = normals(**draw, count=count, device=device, backend=backend)
        assert_same_bits(got.cpu(), normals(**draw, count=count))
    return f"{count:,} normals of two draws: the CPU's bits"


def check_step(device: torch.device, backend: str, shapes: list[tuple[int, int]]) -> str:
    """Step, full-step momenta and metric at odd sizes: the CPU's bits, or within the bounds of
    float32 arithmetic where the backend sums in another order."""
    same_bits = backend == "cuda"
    for chains, parameters in shapes:
        problem = make_problem(chains, parameters, seed=parameters)
        there = Problem(*(tensor.to(device) for tensor in problem))
        got, expected = take_step(there, backend=backend), take_step(problem)
        bounds = step_bounds(problem, noise_of(problem, Stream.NOISE))
        for name in ("weights", "momenta", "metric", "multiplier"):
            here, cpu = getattr(got, name).cpu(), getattr(expected, name)
            if same_bits:
                assert_same_bits(here, cpu, name)
            else:
                assert_close(here, cpu, 2 * getattr(bounds, name).clamp(min=1e-300), name)
        if same_bits:
            pairs = zip(take_momenta(there, backend=backend), take_momenta(problem), strict=True)
            for here, cpu in pairs:
                assert_same_bits(here.cpu(), cpu)
    agree = "the CPU's bits" if same_bits else "within float32 rounding of the CPU"
    return f"{len(shapes)} shapes of step and momenta: {agree}"


def moves(problem: Problem, counter: MoveCounter, workspace: StepWorkspace, count: int) -> None:
    """The paper's moves, numbered by the counter."""
    shared = {
        "coefficients": problem.coefficients,
        "metric": problem.metric,
        "chain_ids": problem.chain_ids,
        "workspace": workspace,
        "seed": SEED,
        "step": 0,
        "counter": counter,
    }
    for _ in range(count):
        langevin_step(*problem[:5], **shared)
        langevin_momenta(*problem[:5], **shared, out=problem.momenta, advance=True)


def check_graph(device: torch.device, backend: str) -> str:
    """Replays of a graph of moves, one chain failing, against the same moves on the CPU."""
    shape, replays = (4, 8_107), 5
    problem = make_problem(*shape)
    problem.momenta[2] *= 1e4
    there = Problem(*(tensor.to(device) for tensor in problem))
    kept = Problem(*(tensor.clone() for tensor in there))
    counter = MoveCounter.start(4, device=device)
    workspace = StepWorkspace(*shape, device=device, backend=backend)
    graph = capture(lambda: moves(there, counter, workspace, MOVES))
    for tensor, start in zip(there, kept, strict=True):
        tensor.copy_(start)
    counter.moves.fill_(0)
    counter.failed_move.fill_(-1)
    for _ in range(replays):
        graph.replay()
    torch.cuda.synchronize()
    cpu_counter = MoveCounter.start(4)
    moves(problem, cpu_counter, StepWorkspace(*shape), replays * MOVES)
    assert counter.moves.tolist() == cpu_counter.moves.tolist() == [replays * MOVES]
    assert counter.failed_move.tolist() == cpu_counter.failed_move.tolist() == [-1, -1, 0, -1]
    if backend == "cuda":
        for name in ("weights", "momenta", "metric"):
            assert_same_bits(getattr(there, name).cpu(), getattr(problem, name), name)
    return f"{replays} replays of {MOVES} moves, a failed chain among them: as on the CPU"


def step_seconds(device: torch.device, backend: str, chains: int, parameters: int) -> float:
    """One step, from a captured graph of MOVES steps."""
    problem = Problem(*(tensor.to(device) for tensor in make_problem(chains, parameters)))
    for kick in (problem.gradient, problem.noise_scales):
        kick.mul_(0.1)  # the same gradient at every move: no chain may leave its sphere's reach
    counter = MoveCounter.start(chains, device=device)
    workspace = StepWorkspace(chains, parameters, device=device, backend=backend)

    def run() -> None:
        for _ in range(MOVES):
            langevin_step(
                *problem[:5],
                coefficients=problem.coefficients,
                metric=problem.metric,
                chain_ids=problem.chain_ids,
                workspace=workspace,
                seed=SEED,
                step=0,
                counter=counter,
                advance=True,
            )

    seconds = median_seconds(capture(run).replay) / MOVES
    failed = (counter.failed_move >= 0).sum().item()
    if failed:
        raise SystemExit(f"gpu_step: {failed} of {chains} chains failed while they were timed")
    return seconds


def timings(device: torch.device, backends: list[str]) -> Iterator[str]:
    rate = copy_rate(device)
    yield f"copy: {rate / 1e9:.0f} GB/s read and written"
    for chains, parameters in TIMED:
        for backend in backends:
            seconds = step_seconds(device, backend, chains, parameters)
            share = STEP_BYTES * chains * parameters / seconds / rate
            yield (
                f"langevin_step {backend:6} C = {chains:3}, N = {parameters:10,}: "
                f"{1e6 * seconds:8.1f} µs, {100 * share:3.0f} % of the copy's bandwidth"
                + (" (target ≥ 80)" if chains * parameters >= 10**7 else "")
            )
