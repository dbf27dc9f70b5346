"""The step on a GPU: checked against the CPU, then timed against copy bandwidth.

make gpu, which builds first, or python benchmarks/gpu_step.py [--check]

--check stops after the checks, for
``compute-sanitizer --tool memcheck`` (or racecheck) ``python benchmarks/gpu_step.py --check``.
Writes results/gpu_step_<GPU>.txt. Without a GPU it says so, and exits with code 2.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from record import commit, package

from thermosphere.ops.backends import cuda_obstacle
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
    SHAPES,
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
COPIED = 2**28  # floats, 1 GiB: far past any cache


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


def capture(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """The calls as a CUDA graph, none of which may wait for the device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # loads the kernels
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return graph


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


def event_seconds(run: Callable[[], object], rounds: int = 20) -> float:
    """Median over rounds, by CUDA events."""
    run()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[rounds // 2]


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy of 1 GiB."""
    source, target = (torch.zeros(COPIED, device=device) for _ in range(2))
    return 8 * COPIED / event_seconds(lambda: target.copy_(source))


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

    seconds = event_seconds(capture(run).replay) / MOVES
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
            )


def main(arguments: list[str]) -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="no timings")
    chosen = options.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu_step: PyTorch finds no CUDA GPU here; nothing was run", file=sys.stderr)
        return 2

    device = torch.device("cuda", torch.cuda.current_device())
    name, obstacle = torch.cuda.get_device_name(device), cuda_obstacle()
    lines = [f"# python benchmarks/gpu_step.py; commit {commit()}"]
    lines.append(f"# {name}; {package('torch')}, {package('triton')}; CUDA {torch.version.cuda}")
    if obstacle is not None:
        lines.append(f"# CUDA kernels of the extension left out: {obstacle}")
    print(*lines, sep="\n")
    backends = ["triton"] if obstacle is not None else ["cuda", "triton"]

    def record(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    for backend in backends:
        record(f"{backend}: {check_noise(device, backend)}")
        record(f"{backend}: {check_step(device, backend, SHAPES)}")
        record(f"{backend}: {check_graph(device, backend)}")
    if chosen.check:
        return 0
    for line in timings(device, backends):
        record(line)
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    (ROOT / "benchmarks" / "results" / f"gpu_step_{slug}.txt").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
