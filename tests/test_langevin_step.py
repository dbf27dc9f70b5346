"""The fused step: its float64 reference, the same bits everywhere, and what it does at the edge."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close
from step_problem import (
    SEED,
    SHAPES,
    STEP,
    UNIT,
    Problem,
    Stepped,
    exact,
    make_problem,
    noise_of,
    step_bounds,
    take_momenta,
    take_step,
)

from thermosphere import _core
from thermosphere.ops.langevin_step import (
    StepWorkspace,
    langevin_momenta,
    langevin_step,
    metric_sums,
    step_coefficients,
)
from thermosphere.ops.langevin_step_ref import langevin_momenta_ref, langevin_step_ref
from thermosphere.ops.philox import Stream

TINY = 1e-300  # a bound for numbers that must agree exactly, as the multiplier 0 off the sphere


@pytest.fixture
def every_isa() -> Iterator[list[str]]:
    """The instruction sets of this machine; the chosen one is put back afterwards."""
    chosen = _core.isa_chosen()
    yield _core.isa_available()
    _core.isa_choose(chosen)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize(("chains", "parameters"), SHAPES)
def test_step_equals_the_reference(
    chains: int, parameters: int, constrained: bool, corrected: bool
) -> None:
    problem = make_problem(
        chains, parameters, seed=parameters, constrained=constrained, corrected=corrected
    )
    noise = noise_of(problem, Stream.NOISE)
    expected = langevin_step_ref(*exact(problem), noise=noise, coefficients=problem.coefficients)
    bounds = step_bounds(problem, noise)
    got = take_step(problem)
    assert bool(expected.reachable.all())
    assert bool(got.reachable.all())
    for name in ("weights", "momenta", "metric", "multiplier"):
        bound = getattr(bounds, name).clamp(min=TINY)
        assert_close(getattr(got, name), getattr(expected, name), bound, name)
    if parameters > 3:  # the bound binds: far below the move itself
        moved = (expected.weights - problem.weights.double()).norm()
        assert float(bounds.weights.norm()) <= 1e-4 * float(moved)


@pytest.mark.parametrize("fault", ["sign", "nan", "one element", "stale", "neighbour's noise"])
def test_the_comparison_sees_planted_faults(fault: str) -> None:
    problem = make_problem(2, 8107)
    noise = noise_of(problem, Stream.NOISE)
    expected = langevin_step_ref(*exact(problem), noise=noise, coefficients=problem.coefficients)
    bounds = step_bounds(problem, noise)
    got = take_step(problem).weights
    assert_close(got, expected.weights, bounds.weights)
    if fault == "sign":
        noise = -noise
    elif fault == "neighbour's noise":
        noise = noise.roll(1, 1)
    elif fault == "nan":
        got[1, 17] = torch.nan
    elif fault == "one element":
        got[1, 8106] *= 1 + 1e-5
    else:
        got[0] = problem.weights[0]
    if fault in ("sign", "neighbour's noise"):
        expected = langevin_step_ref(
            *exact(problem), noise=noise, coefficients=problem.coefficients
        )
    with pytest.raises(AssertionError):
        assert_close(got, expected.weights, bounds.weights)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize(("chains", "parameters"), SHAPES)
def test_momenta_equal_the_reference(chains: int, parameters: int, constrained: bool) -> None:
    """p = a (Π - b g) + s η' has the step's bound, 10 u of its terms; the projection adds its own.

    p -= w σ with σ = Σ(p w/M) / Σ(w²/M): |δσ| ≤ (Σ |w/M| |δp| + 3 u Σ |p w/M|) / Σ(w²/M) + u |σ|,
    one product, one sum.
    """
    problem = make_problem(chains, parameters, seed=parameters, constrained=constrained)
    noise = noise_of(problem, Stream.MOMENTUM_NOISE)
    expected, energy = langevin_momenta_ref(
        *exact(problem), noise=noise, coefficients=problem.coefficients
    )
    got, got_energy = take_momenta(problem)

    w, momenta, g, inverse, s = exact(problem)
    _, a, b, tau, norm2 = (column[:, None] for column in problem.coefficients.unbind(1))
    pull, summation = w * inverse, parameters * 2.0**-53
    metric = (w * pull).sum(1, keepdim=True)
    force = g + tau * pull / metric
    p = a * (momenta - b * force) + s * noise
    terms = a * (momenta.abs() + b * g.abs() + b * (tau * pull / metric).abs()) + (s * noise).abs()
    p_error = 10 * UNIT * terms
    overlap = (pull.abs() * p_error + (3 * UNIT + summation) * (p * pull).abs()).sum(
        1, keepdim=True
    )
    shift = (p * pull).sum(1, keepdim=True) / metric
    shift_error = torch.where(norm2 < 0, 0.0, overlap / metric + UNIT * shift.abs())
    bound = 1.01 * (
        p_error + shift_error * w.abs() + 2 * UNIT * (shift * w).abs() + UNIT * expected.abs()
    )
    assert_close(got, expected, bound)
    energy_bound = (
        (expected * inverse).abs() * bound + (UNIT + summation) * expected**2 * inverse
    ).sum(1)
    assert_close(got_energy, energy, 1.01 * energy_bound)

    in_place = problem.copy()
    aliased = langevin_momenta(
        *in_place[:5],
        coefficients=in_place.coefficients,
        metric=in_place.metric,
        chain_ids=in_place.chain_ids,
        workspace=StepWorkspace(chains, parameters),
        seed=SEED,
        step=STEP,
        out=in_place.momenta,
        threads=1,
    )
    assert torch.equal(in_place.momenta, got)
    assert torch.equal(aliased, got_energy)

    if (
        constrained
    ):  # Σ p w/M = 0 but for the rounding of p and of σ, which Σ(w²/M) turns into a sum again
        leak = (got.double() * pull).sum(1)
        allowed = (pull.abs() * UNIT * (2 * (shift * w).abs() + expected.abs())).sum(1)
        allowed += ((3 * UNIT + summation) * (p * pull).abs()).sum(1) + 2 * UNIT * (
            shift * metric
        ).abs()[:, 0]
        assert_close(leak, torch.zeros_like(leak), 1.01 * allowed)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    parameters=st.integers(2, 300),
    seed=st.integers(0, 2**20),
    size=st.floats(-3, 1.5),
)
def test_position_and_momentum_agree(parameters: int, seed: int, size: float) -> None:
    """Any move: |w'|² = Q and w' - w = (dt/M) Π, or the chain is untouched bit for bit."""
    problem = make_problem(2, parameters, seed=seed)
    problem.momenta.mul_(10**size)
    got = take_step(problem)
    for chain in range(2):
        w, new = problem.weights[chain].double(), got.weights[chain].double()
        inverse, dt = problem.inverse_masses[chain].double(), problem.coefficients[chain, 0]
        norm2 = problem.coefficients[chain, 4]
        if got.reachable[chain]:
            push = dt * inverse * got.momenta[chain].double()
            pull = (got.multiplier[chain] * w * inverse).abs()
            # Π and w' each carry the rounding of Π̃, of l w/M and of their own.
            scale = 8 * UNIT * (w.abs() + new.abs() + push.abs() + 2 * pull)
            assert_close(new - w, push, scale)
            slack = 2 * (new.abs() * UNIT * (w.abs() + new.abs() + 4 * push.abs() + 6 * pull)).sum()
            assert abs((new * new).sum() - norm2) <= slack
        else:
            assert torch.equal(got.weights[chain], problem.weights[chain])
            assert torch.equal(got.momenta[chain], problem.momenta[chain])
            assert got.metric[chain] == problem.metric[chain]


def digest(problem: Problem, threads: int) -> str:
    """Every bit that a step and full-step momenta give."""
    parts = (*take_step(problem, threads=threads), *take_momenta(problem, threads=threads))
    metric = metric_sums(
        problem.weights,
        problem.inverse_masses,
        workspace=StepWorkspace(*problem.weights.shape),
        threads=threads,
    )
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in (*parts, metric))).hexdigest()


@pytest.mark.parametrize(("chains", "parameters"), SHAPES)
def test_same_bits_on_every_instruction_set_and_thread_count(
    every_isa: list[str], chains: int, parameters: int
) -> None:
    problem = make_problem(chains, parameters, seed=1)
    digests = set()
    for isa in every_isa:
        _core.isa_choose(isa)
        digests |= {digest(problem, threads) for threads in (1, 2, 3, 16)}
    assert len(digests) == 1


@pytest.mark.parametrize("backend", ["std", "openmp"])
def test_same_bits_on_every_threading_backend(backend: str) -> None:
    program = (
        "import torch\n"
        "from test_langevin_step import _core, digest, make_problem\n"
        "print(_core.parallel_backend(), digest(make_problem(3, 12_289), 3), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    environment["THERMOSPHERE_THREADING"] = backend
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    name, bits = run.stdout.splitlines()
    if backend == "std":
        assert name == "std::thread"
    elif sys.platform == "linux":  # where torch brings its OpenMP runtime along
        assert name.startswith("openmp (")
    assert bits == digest(make_problem(3, 12_289), 1)


def test_unaligned_rows_give_the_same_bits() -> None:
    """Arrays that start off a vector boundary: N odd, and a view one element in."""
    problem = make_problem(2, 4097)
    expected = take_step(problem)
    shifted = []
    for tensor in problem[:5]:
        buffer = torch.empty(tensor.numel() + 1)
        buffer[1:] = tensor.flatten()
        shifted.append(buffer[1:].view(2, 4097))
    metric = problem.metric.clone()
    langevin_step(
        *shifted,
        coefficients=problem.coefficients,
        metric=metric,
        chain_ids=problem.chain_ids,
        workspace=StepWorkspace(2, 4097),
        seed=SEED,
        step=STEP,
        threads=1,
    )
    assert torch.equal(shifted[0], expected.weights)
    assert torch.equal(shifted[1], expected.momenta)


def test_noise_depends_on_the_chain_and_not_on_its_row() -> None:
    problem = make_problem(3, 500)
    expected = take_step(problem)
    order = [2, 0, 1]
    permuted = take_step(Problem(*(tensor[order].contiguous() for tensor in problem)))
    assert torch.equal(permuted.weights, expected.weights[order])
    alone = take_step(Problem(*(tensor[1:2].contiguous() for tensor in problem)))
    assert torch.equal(alone.weights[0], expected.weights[1])
    other = take_step(problem, step=STEP + 1)
    assert not torch.equal(other.weights, expected.weights)


@pytest.mark.parametrize(("parameters", "steps"), [(1000, 100_000), (20_000, 2_000)])
def test_norm_after_many_steps(parameters: int, steps: int) -> None:
    """|w|² = Q to 1e-6: each step returns to Q itself, so rounding does not add up."""
    p = make_problem(1, parameters)
    norm2 = 2.0 * (p.weights.double() ** 2).sum(1)
    p.coefficients[:, 4] = norm2
    p.weights.mul_(2**0.5)
    p.coefficients[:, 1] = 0.99
    workspace = StepWorkspace(1, parameters)
    metric = metric_sums(p.weights, p.inverse_masses, workspace=workspace, threads=1)
    start = p.weights.clone()
    gradient = p.gradient.clone()
    for step in range(steps):
        if step % 10 == 0:
            torch.mul(p.weights, 1e-3, out=gradient)
        _, reachable = langevin_step(
            p.weights,
            p.momenta,
            gradient,
            p.inverse_masses,
            p.noise_scales,
            coefficients=p.coefficients,
            metric=metric,
            chain_ids=p.chain_ids,
            workspace=workspace,
            seed=SEED,
            step=step,
            threads=1,
        )
    assert bool(reachable.all())
    assert abs(float((p.weights.double() ** 2).sum() / norm2) - 1) < 1e-6
    assert torch.equal(
        metric, metric_sums(p.weights, p.inverse_masses, workspace=workspace, threads=1)
    )
    assert float((p.weights - start).norm()) > 0.1 * float(norm2) ** 0.5  # it went somewhere


def test_a_chain_out_of_reach_is_left_alone() -> None:
    problem = make_problem(4, 5000)
    problem.momenta[2] *= 1e4
    assert not bool(
        langevin_step_ref(
            *exact(problem),
            noise=noise_of(problem, Stream.NOISE),
            coefficients=problem.coefficients,
        ).reachable[2]
    )
    got = take_step(problem, threads=2)
    assert got.reachable.tolist() == [1, 1, 0, 1]
    assert torch.equal(got.weights[2], problem.weights[2])
    assert torch.equal(got.momenta[2], problem.momenta[2])
    assert got.metric[2] == problem.metric[2]
    for row in (0, 1, 3):
        assert not torch.equal(got.weights[row], problem.weights[row])


def test_sums_run_in_float64() -> None:
    """w = (4096, 1, …, 1), unit masses, no force: sums of 2²⁴ and ones, which float32 cannot hold.

    S1 = S2 = S3 = |w|² =: S. On the sphere Q = S the multiplier is 0 and for Q = 4 S it is 1, both
    exactly.
    """
    parameters = 9001
    weights = torch.ones(2, parameters)
    weights[:, 5000] = 4096
    total = 2.0**24 + parameters - 1
    nothing = torch.zeros_like(weights)
    one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    coefficients = step_coefficients(
        dt=one,
        momentum_factor=one,
        gradient_factor=one,
        metric_temperature=zero,
        norm2=torch.tensor([total, 4 * total], dtype=torch.float64),
    )
    metric = metric_sums(weights, torch.ones_like(weights), workspace=StepWorkspace(2, parameters))
    assert metric.tolist() == [total, total]
    arrays = (weights, nothing, nothing, torch.ones_like(weights), nothing)
    got = take_step(Problem(*arrays, coefficients, metric, torch.arange(2)))
    assert got.multiplier.tolist() == [0.0, 1.0]
    assert torch.equal(got.weights, weights * torch.tensor([[1.0], [2.0]]))
    assert got.metric.tolist() == [total, 4 * total]


def plane(w: list[float], momentum: list[float]) -> Stepped:
    """One step in the plane with unit masses, no force, noise or friction; every number exact."""
    weights, momenta = torch.tensor([w]), torch.tensor([momentum])
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    nothing = torch.zeros(1, 2)
    return take_step(
        Problem(
            weights,
            momenta,
            nothing,
            torch.ones(1, 2),
            nothing.clone(),
            step_coefficients(
                dt=one,
                momentum_factor=one,
                gradient_factor=one,
                metric_temperature=zero,
                norm2=(weights.double() ** 2).sum(1),
            ),
            (weights.double() ** 2).sum(1),
            torch.zeros(1, dtype=torch.int64),
        )
    )


def test_a_tangent_proposal_is_reached() -> None:
    """w = (1, 0), w̃ = (1, 1): the line along w touches the unit circle at (0, 1) alone."""
    got = plane([1.0, 0.0], [0.0, 1.0])
    assert got.reachable.tolist() == [1]
    assert got.multiplier.tolist() == [-1.0]
    assert got.weights.tolist() == [[0.0, 1.0]]
    assert got.momenta.tolist() == [[-1.0, 1.0]]
    beyond = plane([1.0, 0.0], [0.0, 1.0 + 2.0**-23])
    assert beyond.reachable.tolist() == [0]
    assert beyond.weights.tolist() == [[1.0, 0.0]]


def test_the_nearer_root_is_taken() -> None:
    """On w = (5, 0), w̃ = (5 + x, 3) reaches (±4, 3): the one on the side of w̃."""
    ahead = plane([5.0, 0.0], [1.0, 3.0])  # w̃ = (6, 3)
    assert ahead.weights.tolist() == [[4.0, 3.0]]
    behind = plane([5.0, 0.0], [-11.0, 3.0])  # w̃ = (-6, 3): S1 < 0
    assert behind.weights.tolist() == [[-4.0, 3.0]]
    still = plane([5.0, 0.0], [0.0, 0.0])
    assert still.multiplier.tolist() == [0.0]
    assert still.weights.tolist() == [[5.0, 0.0]]


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("array", ["momenta", "gradient", "noise_scales"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stop_their_chain(
    constrained: bool, array: str, value: float
) -> None:
    problem = make_problem(3, 4500, constrained=constrained)
    getattr(problem, array)[1, 4321] = value
    got = take_step(problem)
    assert got.reachable.tolist() == [1, 0, 1]
    assert torch.equal(got.weights[1], problem.weights[1])
    assert torch.isfinite(got.weights).all()


def test_unconstrained_steps_have_no_multiplier() -> None:
    problem = make_problem(2, 100, constrained=False)
    got = take_step(problem)
    assert got.multiplier.tolist() == [0.0, 0.0]
    norm2 = (got.weights.double() ** 2).sum(1)
    assert bool(((norm2 / (problem.weights.double() ** 2).sum(1) - 1).abs() > 1e-6).all())
