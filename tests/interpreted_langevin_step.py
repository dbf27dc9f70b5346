"""The Triton step in Triton's interpreter on the CPU: its float64 reference, the extension's noise
to the bit, counters and flags.

Run by test_langevin_step_triton.py, in a process of its own: the interpreter has to be chosen
before Triton is imported.
"""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close, assert_same_bits
from step_problem import (
    SEED,
    STEP,
    Problem,
    exact,
    make_problem,
    noise_of,
    step_bounds,
    take_momenta,
    take_step,
)

from thermosphere.ops.langevin_step import (
    MoveCounter,
    StepWorkspace,
    langevin_momenta,
    langevin_step,
    metric_sums,
)
from thermosphere.ops.langevin_step_ref import langevin_step_ref
from thermosphere.ops.philox import Stream, normals

SHAPES = [(1, 1), (2, 3), (1, 1023), (2, 4097), (1, 12_289)]
SUM_ROUNDING = 2.0**-50  # of float64 sums of positive terms in another order
TINY = 1e-300  # a bound for numbers that must agree exactly


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize(("chains", "parameters"), SHAPES[1:4])
def test_step_equals_the_reference(chains: int, parameters: int, constrained: bool) -> None:
    problem = make_problem(chains, parameters, seed=parameters, constrained=constrained)
    noise = noise_of(problem, Stream.NOISE)
    expected = langevin_step_ref(*exact(problem), noise=noise, coefficients=problem.coefficients)
    bounds = step_bounds(problem, noise)
    got = take_step(problem, backend="triton")
    assert bool(got.reachable.all())
    for name in ("weights", "momenta", "metric", "multiplier"):
        bound = getattr(bounds, name).clamp(min=TINY)
        assert_close(getattr(got, name), getattr(expected, name), bound, name)


@pytest.mark.parametrize(("chains", "parameters"), SHAPES)
def test_elements_are_those_of_the_extension(chains: int, parameters: int) -> None:
    """Everything but the order of the float64 sums is the same, so what is float32 has the same
    bits, unless a sum falls beside the middle of two floats: not in these cases."""
    problem = make_problem(chains, parameters, seed=parameters)
    got, expected = take_step(problem, backend="triton"), take_step(problem)
    assert_same_bits(got.weights, expected.weights)
    assert_same_bits(got.momenta, expected.momenta)
    assert_close(got.metric, expected.metric, SUM_ROUNDING * expected.metric)
    (full, energy), (cpu_full, cpu_energy) = (
        take_momenta(problem, backend="triton"),
        take_momenta(problem),
    )
    assert_same_bits(full, cpu_full)
    assert_close(energy, cpu_energy, (SUM_ROUNDING * cpu_energy).clamp(min=TINY))
    workspace = StepWorkspace(chains, parameters, backend="triton")
    metric = metric_sums(problem.weights, problem.inverse_masses, workspace=workspace)
    assert_close(metric, problem.metric, SUM_ROUNDING * problem.metric)


@pytest.mark.parametrize(
    ("seed", "chain", "step"),
    [(1, 0, 0), (2**31, 2**31, 2**31), (2**64 - 3, 2**32 - 1, 2**56 - 1), (SEED, 7, STEP)],
)
def test_normals_are_those_of_the_extension(seed: int, chain: int, step: int) -> None:
    for stream in Stream:
        draw = {"seed": seed, "stream": stream, "chain": chain, "step": step, "count": 3001}
        assert_same_bits(normals(**draw, backend="triton"), normals(**draw))


def test_normals_of_many_words() -> None:
    """Every branch of the transform, in 100,000 draws."""
    draw = {"seed": 3, "stream": Stream.REDRAW, "chain": 1, "step": 4, "count": 100_000}
    assert_same_bits(normals(**draw, backend="triton"), normals(**draw))


def test_counters_and_failures_are_kept() -> None:
    """Two moves of the paper's scheme: chain 1 fails in the first and stands still."""
    problem = make_problem(3, 4100)
    problem.momenta[1] *= 1e4

    def run(p: Problem, backend: str) -> tuple[Problem, StepWorkspace, MoveCounter]:
        workspace = StepWorkspace(3, 4100, backend=backend)
        workspace.kinetic_energy.fill_(-7.0)
        counter = MoveCounter.start(3, moves=2)
        shared = {
            "coefficients": p.coefficients,
            "metric": p.metric,
            "chain_ids": p.chain_ids,
            "workspace": workspace,
            "seed": SEED,
            "step": STEP,
            "counter": counter,
        }
        for _ in range(2):
            langevin_step(*p[:5], **shared)
            langevin_momenta(*p[:5], **shared, out=p.momenta, advance=True)
        return p, workspace, counter

    got, workspace, counter = run(problem.copy(), "triton")
    expected, cpu_workspace, cpu_counter = run(problem.copy(), "cpu")
    assert counter.failed_move.tolist() == [-1, STEP + 2, -1] == cpu_counter.failed_move.tolist()
    assert counter.moves.tolist() == [4] == cpu_counter.moves.tolist()
    assert workspace.reachable.tolist() == [1, 0, 1]
    assert workspace.kinetic_energy[1] == -7.0 == cpu_workspace.kinetic_energy[1]
    assert_same_bits(got.weights[1], problem.weights[1])
    assert_same_bits(got.momenta[1], problem.momenta[1])
    assert_same_bits(got.weights, expected.weights)
    assert_same_bits(got.momenta, expected.momenta)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, on inf - inf in the interpreter
@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stop_their_chain(constrained: bool, value: float) -> None:
    problem = make_problem(3, 1500, constrained=constrained)
    problem.gradient[1, 1321] = value
    got = take_step(problem, backend="triton")
    assert got.reachable.tolist() == [1, 0, 1]
    assert_same_bits(got.weights[1], problem.weights[1])
    assert got.metric[1] == problem.metric[1]
    assert bool(torch.isfinite(got.weights).all())
