"""The step as torch.library ops: opcheck, torch.compile, and the same checks of arguments."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_same_bits
from step_problem import SEED, STEP, Problem, make_problem, take_momenta, take_step

from thermosphere.ops.langevin_step import (
    MoveCounter,
    StepWorkspace,
    langevin_momenta,
    langevin_step,
)


def step_arguments(p: Problem, *, counted: bool) -> tuple[object, ...]:
    """Arguments of torch.ops.thermosphere.langevin_step."""
    workspace = StepWorkspace(*p.weights.shape)
    counter = MoveCounter.start(len(p.weights)) if counted else (None, None)
    return (
        *p[:5],
        workspace.proposal.zero_(),  # opcheck compares all that is changed
        workspace.partial_sums.zero_(),
        p.coefficients,
        p.metric,
        workspace.multiplier,
        workspace.reachable,
        p.chain_ids,
        *counter,
        workspace.blocks_done,
        "cpu",
        -1,
        STEP,
        counted,
        1,
    )


def momenta_arguments(p: Problem, *, counted: bool) -> tuple[object, ...]:
    workspace = StepWorkspace(*p.weights.shape)
    counter = MoveCounter.start(len(p.weights)) if counted else (None, None)
    return (
        *p[:5],
        torch.zeros_like(p.momenta),
        workspace.partial_sums.zero_(),
        p.coefficients,
        p.metric,
        workspace.kinetic_energy,
        p.chain_ids,
        *counter,
        workspace.blocks_done,
        "cpu",
        -1,
        STEP,
        counted,
        1,
    )


@pytest.mark.parametrize("counted", [False, True])
def test_opcheck(counted: bool) -> None:
    p = make_problem(2, 100)
    ops = torch.ops.thermosphere
    torch.library.opcheck(ops.langevin_step, step_arguments(p, counted=counted))
    torch.library.opcheck(ops.langevin_momenta, momenta_arguments(p, counted=counted))


def test_the_op_is_the_step_with_a_seed_of_64_bits() -> None:
    """-1 is the seed 2⁶⁴ - 1; here SEED, which is above 2⁶³."""
    p = make_problem(3, 5000)
    expected = take_step(p)
    arguments = list(step_arguments(p, counted=False))
    arguments[16] = SEED - 2**64
    torch.ops.thermosphere.langevin_step(*arguments)
    assert_same_bits(p.weights, expected.weights)
    assert_same_bits(p.momenta, expected.momenta)
    assert_same_bits(p.metric, expected.metric)


def test_compiled_steps_make_the_same_bits() -> None:
    """One graph without a break around the step and the momenta; their changes in place are seen
    by what follows."""
    problem = make_problem(2, 300)
    expected, (full, energy) = take_step(problem), take_momenta(problem)
    workspace = StepWorkspace(2, 300)
    out = torch.zeros_like(full)

    def move(p: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        shared = {
            "coefficients": p.coefficients,
            "metric": p.metric,
            "chain_ids": p.chain_ids,
            "workspace": workspace,
            "seed": SEED,
            "step": STEP,
        }
        kinetic = langevin_momenta(*p[:5], **shared, out=out) * 2
        langevin_step(*p[:5], **shared)
        return kinetic, p.weights.sum(1)

    p = problem.copy()
    kinetic, sums = torch.compile(move, backend="aot_eager", fullgraph=True)(p)
    assert_same_bits(p.weights, expected.weights)
    assert_same_bits(p.momenta, expected.momenta)
    assert_same_bits(out, full)
    assert_same_bits(kinetic, 2 * energy)
    assert_same_bits(sums, expected.weights.sum(1))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (6, torch.zeros(2, 2, 3, dtype=torch.float64), "workspace.partial_sums must be (2, 1, 3)"),
        (9, torch.zeros(3, dtype=torch.float64), "workspace.multiplier must be (2,)"),
        (10, torch.zeros(2), "workspace.reachable must be (2,) contiguous uint8, got (2,) float32"),
        (12, torch.zeros(2, dtype=torch.int64), "counter.moves must be (1,) contiguous int64"),
        (13, torch.zeros(2), "counter.failed_move must be (2,) contiguous int64"),
        (14, torch.zeros(2, dtype=torch.int32), "workspace.blocks_done must be (3,) contiguous"),
    ],
)
def test_wrong_scratch_and_counters_are_named(
    position: int, value: torch.Tensor, message: str
) -> None:
    arguments = list(step_arguments(make_problem(2, 100), counted=True))
    arguments[position] = value
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the beginning is compared
        torch.ops.thermosphere.langevin_step(*arguments)
    assert str(error.value).startswith(f"langevin_step: {message}")


@pytest.mark.parametrize("op", ["langevin_step", "langevin_momenta"])
def test_advance_needs_a_counter(op: str) -> None:
    make = step_arguments if op == "langevin_step" else momenta_arguments
    arguments = list(make(make_problem(1, 10), counted=False))
    arguments[-2] = True
    with pytest.raises(ValueError, match=f"^{op}: advance needs a counter$"):
        getattr(torch.ops.thermosphere, op)(*arguments)
