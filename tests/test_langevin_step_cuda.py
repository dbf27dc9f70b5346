"""The CUDA step without a GPU: its source run on the CPU (cuda_host) makes the bits of the CPU
step, and keeps its counters and flags."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gpu_step
import pytest
import torch
from cuda_host import build_cuda_on_host, compile_on_host
from numerics import assert_close, assert_same_bits
from step_problem import (
    SEED,
    SHAPES,
    STEP,
    Problem,
    exact,
    make_problem,
    noise_of,
    step_bounds,
    take_momenta,
    take_step,
)
from toy import Q, make_sampler, start_weights

from thermosphere import _core
from thermosphere.ops import backends, langevin_step_call, philox
from thermosphere.ops.langevin_step import (
    MoveCounter,
    StepWorkspace,
    langevin_momenta,
    langevin_step,
    metric_sums,
)
from thermosphere.ops.langevin_step_ref import langevin_step_ref
from thermosphere.ops.philox import Stream, normals
from thermosphere.sampling.recorder import CallRecorder

CALLS = ("normals_cuda", "metric_sums_cuda", "langevin_step_cuda", "langevin_momenta_cuda")
STREAM = 77  # a handle that nothing follows


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return build_cuda_on_host(tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture
def on_host(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The backend "cuda" runs on tensors of the CPU."""
    for name in CALLS:
        monkeypatch.setattr(_core, name, getattr(module, name))
    monkeypatch.setitem(backends.DEVICE_TYPES, "cuda", "cpu")
    for user in (langevin_step_call, philox):
        monkeypatch.setattr(user, "stream_handle", lambda device: STREAM)
    yield module
    module.set_descending(False)
    module.set_no_device(False)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("chains", "parameters"), SHAPES)
def test_same_bits_as_on_the_cpu(
    on_host: ModuleType, chains: int, parameters: int, descending: bool
) -> None:
    """Whatever the order in which blocks come: the last one of a chain is another."""
    on_host.set_descending(descending)
    problem = make_problem(chains, parameters, seed=parameters)
    expected, got = take_step(problem), take_step(problem, backend="cuda")
    for name in expected._fields:
        assert_same_bits(getattr(got, name), getattr(expected, name), name)
    for a, b in zip(take_momenta(problem, backend="cuda"), take_momenta(problem), strict=True):
        assert_same_bits(a, b)
    workspace = StepWorkspace(chains, parameters, backend="cuda")
    assert_same_bits(
        metric_sums(problem.weights, problem.inverse_masses, workspace=workspace), problem.metric
    )


def test_the_step_equals_the_reference(on_host: ModuleType) -> None:
    problem = make_problem(2, 8107)
    noise = noise_of(problem, Stream.NOISE)
    expected = langevin_step_ref(*exact(problem), noise=noise, coefficients=problem.coefficients)
    bounds = step_bounds(problem, noise)
    got = take_step(problem, backend="cuda")
    for name in ("weights", "momenta", "metric", "multiplier"):
        assert_close(getattr(got, name), getattr(expected, name), getattr(bounds, name), name)


@pytest.mark.parametrize("count", [1, 6, 4096, 9001])
def test_normals_are_those_of_the_cpu(on_host: ModuleType, count: int) -> None:
    draw = {"seed": SEED, "stream": Stream.REDRAW, "chain": 2**32 - 1, "step": STEP}
    assert_same_bits(normals(**draw, count=count, backend="cuda"), normals(**draw, count=count))
    assert on_host.last_stream() == STREAM


def run(
    problem: Problem, moves: int, *, backend: str, counted: bool
) -> tuple[Problem, StepWorkspace, MoveCounter]:
    """Moves of the paper's scheme: a step, then full-step momenta with noise of the same move. As
    a captured graph replays them, the same arguments each time, or numbered by the host."""
    p = problem.copy()
    workspace = StepWorkspace(*p.weights.shape, backend=backend)
    counter = MoveCounter.start(len(p.weights), moves=3)
    shared = {
        "coefficients": p.coefficients,
        "metric": p.metric,
        "chain_ids": p.chain_ids,
        "workspace": workspace,
        "seed": SEED,
    }
    for move in range(moves):
        step = STEP if counted else STEP + 3 + move
        half = {"counter": counter} if counted else {}
        langevin_step(*p[:5], **shared, step=step, **half)
        langevin_momenta(*p[:5], **shared, step=step, out=p.momenta, **half, advance=counted)
    return p, workspace, counter


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_counter_numbers_the_moves(on_host: ModuleType, backend: str) -> None:
    problem = make_problem(3, 4100)
    got, workspace, counter = run(problem, 4, backend=backend, counted=True)
    expected, _, untouched = run(problem, 4, backend="cpu", counted=False)
    for name in ("weights", "momenta", "metric"):
        assert_same_bits(getattr(got, name), getattr(expected, name), name)
    assert counter.moves.tolist() == [7]
    assert counter.failed_move.tolist() == [-1, -1, -1]
    assert untouched.moves.tolist() == [3]
    assert workspace.blocks_done.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_failed_chain_is_recorded_and_stands_still(on_host: ModuleType, backend: str) -> None:
    """Also when its next proposals would be within reach again."""
    problem = make_problem(3, 4100)
    problem.momenta[1] *= 1e4
    got, workspace, counter = run(problem, 3, backend=backend, counted=True)
    assert counter.failed_move.tolist() == [-1, STEP + 3, -1]
    assert counter.moves.tolist() == [6]
    assert workspace.reachable.tolist() == [1, 0, 1]
    assert workspace.multiplier[1] == 0.0
    for name in ("weights", "momenta", "metric"):
        assert_same_bits(getattr(got, name)[1], getattr(problem, name)[1].clone(), name)
    alone, *_ = run(Problem(*(t[[0, 2]] for t in problem)), 3, backend="cpu", counted=True)
    assert_same_bits(got.weights[[0, 2]], alone.weights)
    assert_same_bits(got.momenta[[0, 2]], alone.momenta)

    got.momenta[1] *= 1e-4
    before = got.weights.clone()
    arguments = {
        "coefficients": got.coefficients,
        "metric": got.metric,
        "chain_ids": got.chain_ids,
        "workspace": workspace,
        "seed": SEED,
        "step": STEP,
    }
    _, reachable = langevin_step(*got[:5], **arguments, counter=counter)
    assert reachable.tolist() == [1, 0, 1]
    assert_same_bits(got.weights[1], before[1])
    counter.failed_move.fill_(-1)  # set free again
    _, reachable = langevin_step(*got[:5], **arguments, counter=counter)
    assert reachable.tolist() == [1, 1, 1]
    assert not torch.equal(got.weights[1], before[1])


def test_a_step_is_two_launches_on_the_stream_it_is_given(on_host: ModuleType) -> None:
    problem = make_problem(2, 5000)
    before = on_host.launches()
    take_step(problem, backend="cuda")
    assert on_host.launches() - before == 2
    assert on_host.last_stream() == STREAM


def test_the_checks_of_the_gpu_benchmark_pass_here(on_host: ModuleType) -> None:
    """benchmarks/gpu_step.py, as far as it runs without a GPU."""
    cpu = torch.device("cpu")
    assert "the CPU's bits" in gpu_step.check_noise(cpu, "cuda", 10_001)
    assert "the CPU's bits" in gpu_step.check_step(cpu, "cuda", SHAPES[:3])


def test_captured_moves_with_the_cuda_step(on_host: ModuleType) -> None:
    """The sampler's recorded moves, adaptations among them: the bits of those on the CPU."""
    options = {"adapt_every": 9, "reset_probability": 0.5}
    ends = []
    for recorder in (CallRecorder(backend="cuda"), None):
        sampler = make_sampler(recorder=recorder, **options)
        state = sampler.init(start_weights(3), norm2=Q)
        before = on_host.launches()
        ends.append((state, sampler.run(state, 30)))
        if recorder is not None:
            assert on_host.launches() - before > 2 * 30
    for name, tensor in ends[0][0].tensors().items():
        assert_same_bits(tensor, ends[1][0].tensors()[name], name)
    assert_same_bits(ends[0][1], ends[1][1])


def test_a_refused_launch_is_an_error(on_host: ModuleType) -> None:
    problem = make_problem(1, 10)
    on_host.set_no_device(True)
    message = r"^langevin_step: CUDA: no CUDA-capable device is detected$"
    with pytest.raises(RuntimeError, match=message):
        take_step(problem, backend="cuda")


def test_too_many_blocks_are_refused(module: ModuleType) -> None:
    arguments = dict.fromkeys(
        ("weights", "inverse_masses", "partial_sums", "metric", "blocks_done", "stream"), 0
    )
    with pytest.raises(ValueError, match=r"must be in \[1, 2\*\*31\), got 2147483648$"):
        module.metric_sums_cuda(chains=2**31, parameters=1, **arguments)


def test_threads_of_a_block_do_not_race(tmp_path: Path) -> None:
    """ThreadSanitizer on every kernel; without their barriers it must complain."""
    program = tmp_path / "races"
    compile_on_host("races.cpp", program, "-g", "-fsanitize=thread")
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    for arguments, races in (([], False), (["without barriers"], True)):
        run = subprocess.run(
            [str(program), *arguments], env=environment, capture_output=True, text=True, timeout=120
        )
        if "FATAL: ThreadSanitizer" in run.stderr:
            pytest.skip(f"ThreadSanitizer does not run here: {run.stderr.splitlines()[0]}")
        assert ("data race" in run.stderr) == races, run.stderr[:2000]
        assert (run.returncode == 0) != races
