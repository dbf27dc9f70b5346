"""Every wrong argument of the step's ops is named, in one line."""

from __future__ import annotations

import pytest
import torch
from step_problem import Problem, make_problem

from thermosphere.ops.langevin_step import (
    StepWorkspace,
    langevin_momenta,
    langevin_step,
    metric_sums,
)


def swapped(name: str, tensor: torch.Tensor) -> dict[str, object]:
    return {name: tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped("weights", torch.zeros(8)), r"weights must be (C, N) float32, got (8,)"),
        (
            swapped("weights", torch.zeros(2, 8, dtype=torch.float64)),
            "weights must be (2, 8) float32, got (2, 8) float64",
        ),
        (
            swapped("momenta", torch.zeros(2, 7)),
            "momenta must be (2, 8) float32, got (2, 7) float32",
        ),
        (
            swapped("gradient", torch.zeros(2, 8, dtype=torch.float64)),
            "gradient must be (2, 8) float32, got (2, 8) float64",
        ),
        (
            swapped("inverse_masses", torch.zeros(1, 8)),
            "inverse_masses must be (2, 8) float32, got (1, 8) float32",
        ),
        (
            swapped("noise_scales", torch.zeros(8, 2).t()),
            "noise_scales must be contiguous on cpu, got strides (1, 2) on cpu",
        ),
        (
            swapped("momenta", torch.zeros(2, 8, device="meta")),
            "momenta must be contiguous on cpu, got strides (8, 1) on meta",
        ),
        (
            {"workspace": StepWorkspace(2, 9)},
            "workspace must be (2, 8) float32, got (2, 9) float32",
        ),
        (
            swapped("coefficients", torch.zeros(2, 4, dtype=torch.float64)),
            "coefficients must be (2, 5) contiguous float64, got (2, 4) float64",
        ),
        (
            swapped("metric", torch.zeros(2)),
            "metric must be (2,) contiguous float64, got (2,) float32",
        ),
        (
            swapped("chain_ids", torch.zeros(2, dtype=torch.int32)),
            "chain_ids must be (2,) contiguous int64, got (2,) int32",
        ),
        (
            swapped("coefficients", torch.zeros(2, 5, dtype=torch.float64, device="meta")),
            "coefficients must be on cpu, got meta",
        ),
        ({"seed": -1}, "seed must be in [0, 2**64), got -1"),
        ({"step": 2**56}, "step must be in [0, 2**56), got 72057594037927936"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
    ],
)
@pytest.mark.parametrize("op", [langevin_step, langevin_momenta])
def test_wrong_arguments_are_named(op, change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        **{name: torch.ones(2, 8) for name in Problem._fields[:5]},
        "coefficients": torch.ones(2, 5, dtype=torch.float64),
        "metric": torch.ones(2, dtype=torch.float64),
        "chain_ids": torch.arange(2),
        "workspace": StepWorkspace(2, 8),
        "seed": 0,
        "step": 0,
        "threads": 1,
    }
    if op is langevin_momenta:
        arguments["out"] = torch.ones(2, 8)
    arguments.update(change)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
        op(**arguments)
    assert str(error.value) == f"{op.__name__}: {message}"


def test_wrong_output_and_workspace_are_named() -> None:
    p = make_problem(2, 8)
    with pytest.raises(
        ValueError, match=r"^langevin_momenta: out must be \(2, 8\) float32, got \(2, 9\) float32$"
    ):
        langevin_momenta(
            *p[:5],
            coefficients=p.coefficients,
            metric=p.metric,
            chain_ids=p.chain_ids,
            workspace=StepWorkspace(2, 8),
            seed=0,
            step=0,
            out=torch.zeros(2, 9),
        )
    with pytest.raises(
        ValueError, match=r"^StepWorkspace: expected chains and parameters >= 1, got \(0, 8\)$"
    ):
        StepWorkspace(0, 8)
    with pytest.raises(
        ValueError,
        match=r"^metric_sums: inverse_masses must be \(2, 8\) float32, got \(2, 7\) float32$",
    ):
        metric_sums(p.weights, torch.ones(2, 7), workspace=StepWorkspace(2, 8))
