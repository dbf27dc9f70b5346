"""The sampler's numbers: defaults, replacements, and one line for each that is out of range."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from toy import NoisyQuadratic, start_weights

from thermosphere.sampling.hmc import HybridMonteCarlo
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.options import LangevinOptions


def test_options_out_of_range() -> None:
    cases = {
        "scheme must be one of leapfrog, paper, got 'verlet'": {"scheme": "verlet"},
        "dt must be finite and > 0, got 0": {"dt": 0},
        "dt must be finite and > 0, got nan": {"dt": math.nan},
        "dt must be finite and > 0, got inf": {"dt": math.inf},
        "displacement must be finite and > 0, got -1": {"displacement": -1},
        "noise_tolerance must be finite and > 0, got 0.0": {"noise_tolerance": 0.0},
        "unchanged_tolerance must be finite and > 0, got inf": {"unchanged_tolerance": math.inf},
        "variance_floor must be \"median\" or a finite positive number, got 'mean'": {
            "variance_floor": "mean"
        },
        'variance_floor must be "median" or a finite positive number, got 0.0': {
            "variance_floor": 0.0
        },
        'variance_floor must be "median" or a finite positive number, got nan': {
            "variance_floor": math.nan
        },
        'variance_floor must be "median" or a finite positive number, got inf': {
            "variance_floor": math.inf
        },
        "m1 must be in (0, 1), got 1": {"m1": 1},
        "m1 must be in (0, 1), got 0.0": {"m1": 0.0},
        "t_ratio must be in (0, 0.5], got 0.6": {"t_ratio": 0.6},
        "t_ratio must be in (0, 0.5], got nan": {"t_ratio": math.nan},
        "t_ratio_max must be in (0, 0.5], got 0": {"t_ratio_max": 0},
        "t_ratio_cap must be in (0, 0.5], got 2": {"t_ratio_cap": 2},
        "t_ratio_max must be >= t_ratio = 0.2, got 0.1": {"t_ratio": 0.2, "t_ratio_max": 0.1},
        "average_axis must be >= 0, got -1": {"average_axis": -1},
        "batch must be >= 1, got 0": {"batch": 0},
        "variance_floor is of mini-batches, got median and batch = None (the whole set)": {
            "batch": None,
            "variance_floor": "median",
        },
        "average_axis is of mini-batches, got 0 and batch = None (the whole set)": {
            "batch": None,
            "average_axis": 0,
        },
        "metric_correction is of the sphere, got True and constrained = False, where none is "
        "needed": {"metric_correction": True, "constrained": False},
        "batch must be a whole number, got 8.0": {"batch": 8.0},
        "adapt_every must be a whole number, got 10.0": {"adapt_every": 10.0},
        "expected 2 <= noise_draws <= noise_draws_max < 65536, got 1 and 1000": {"noise_draws": 1},
        "expected 2 <= noise_draws <= noise_draws_max < 65536, got 100 and 99": {
            "noise_draws_max": 99
        },
        "expected 2 <= noise_draws <= noise_draws_max < 65536, got 100 and 65536": {
            "noise_draws_max": 65536
        },
        "adapt_every must be >= 0, got -1": {"adapt_every": -1},
        "adapt_every_max must be >= 1, got 0": {"adapt_every_max": 0},
        "reset_probability must be in [0, 1], got 1.5": {"reset_probability": 1.5},
        "reset_probability must be in [0, 1], got nan": {"reset_probability": math.nan},
    }
    for message, change in cases.items():
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
            LangevinOptions(**change)
        assert str(error.value) == f"sampler: {message}"


def test_options_by_keyword_replace_single_ones() -> None:
    options = LangevinOptions(dt=0.5, batch=8)
    sampler = Langevin(NoisyQuadratic(), 1.0, options=options, m1=0.2)
    assert sampler.options == dataclasses.replace(options, m1=0.2)
    with pytest.raises(
        ValueError, match=r"^sampler: unknown option 'time_step', expected one of \['adapt_every', "
    ):
        Langevin(NoisyQuadratic(), 1.0, time_step=1.0)


def test_defaults_of_the_two_schemes() -> None:
    leapfrog, paper = LangevinOptions(), LangevinOptions(scheme="paper")
    assert leapfrog.scheme == "leapfrog"
    assert (leapfrog.dt, leapfrog.m1, leapfrog.batch) == (1.0, 0.1, 64)
    assert leapfrog.corrects_metric
    assert not paper.corrects_metric
    assert leapfrog.floor == "median"
    assert paper.floor == 1e-8
    assert not LangevinOptions(constrained=False).corrects_metric


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be one positive number a chain, got [0.0]"),
        (
            {"temperature": [1.0, -1.0]},
            "temperature must be one positive number a chain, got [1.0, -1.0]",
        ),
        ({"temperature": math.nan}, "temperature must be one positive number a chain, got [nan]"),
        ({"temperature": math.inf}, "temperature must be one positive number a chain, got [inf]"),
        ({"temperature": []}, "temperature must be one positive number a chain, got []"),
        ({"temperature": 1.0, "seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"temperature": 1.0, "threads": 2.0}, "threads must be a whole number, got 2.0"),
        ({"temperature": 1.0, "threads": 0}, "threads must be >= 1, got 0"),
        ({"temperature": [[1.0]]}, "temperature must be one positive number a chain, got [[1.0]]"),
        ({"temperature": 1.0, "seed": -1}, "seed must be in [0, 2**64), got -1"),
        (
            {"temperature": 1.0, "seed": 2**64},
            "seed must be in [0, 2**64), got 18446744073709551616",
        ),
    ],
)
def test_samplers_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
        Langevin(NoisyQuadratic(), **arguments)  # type: ignore[arg-type]
    assert str(error.value) == f"sampler: {message}"


def test_numbers_of_numpy_are_taken() -> None:
    """A NumPy seed has to make the bits of Python's, from the first move on."""
    ends = []
    for whole in (int, np.int64):
        sampler = Langevin(
            NoisyQuadratic(),
            [1.0, 2.0],
            seed=whole(3),
            batch=whole(8),
            threads=whole(1),
            noise_draws=whole(5),
            noise_draws_max=whole(9),
            t_ratio=0.02,
        )
        state = sampler.init(start_weights(2), norm2=np.float64(24.0), chain_ids=[whole(4), 7])
        sampler.run(state, whole(3))
        ends.append(state.weights)
    assert torch.equal(*ends)
    modes = Langevin(NoisyQuadratic(), [1.0], seed=np.uint64(3), batch=None, modes=np.int64(2))
    modes.run(modes.init(start_weights(1)), 1)
    exact = HybridMonteCarlo(NoisyQuadratic(), [1.0], seed=np.int64(3), steps=np.int64(2))
    exact.run(exact.init(start_weights(1)), np.int64(1))


def test_batches_that_a_gpu_cannot_draw_are_refused_at_once() -> None:
    toy = NoisyQuadratic(examples=2000)
    toy.device = torch.device("cuda")
    with pytest.raises(
        ValueError, match=r"^sampler: batch must be at most 1024 on a GPU, got 1025; None is"
    ):
        Langevin(toy, 1.0, batch=1025)
    Langevin(toy, 1.0, batch=1024)


@pytest.mark.parametrize("kind", [Langevin, HybridMonteCarlo])
def test_one_row_of_weights_starts_every_chain(kind: type) -> None:
    """As `potential.initial()` of one network gives it."""
    start = start_weights(1)
    states = [kind(NoisyQuadratic(), [1.0, 2.0]).init(w) for w in (start, start[0])]
    assert torch.equal(states[0].weights, states[1].weights)
    assert states[0].weights.shape == (2, 12)
