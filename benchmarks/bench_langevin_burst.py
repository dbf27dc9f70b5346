"""Moves in bursts against the same moves one by one through Python, and what Python costs a burst.

pytest benchmarks/bench_langevin_burst.py --benchmark-only

The same chains in three ways that alternate: `Langevin.run`, the extension's burst alone with all
arguments at hand, and `Langevin.run` of a potential that hides its bursts. All three must end at
the same weights, bit for bit. One chain on one thread, and 16 chains on one and two.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from gradient_problem import GradientProblem, gradient_problem
from measure import alternating, median_ratio, torch_threads

from thermosphere import _core
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.langevin_burst import BurstWorkspace, HalfMoves, langevin_burst
from thermosphere.ops.minibatch import Minibatch
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.state import LangevinState

TEMPERATURE, BATCH = 1e-4, 64
MOVES = {"tf1-small": 64, "tf4-small": 8, "tf1": 24}  # a call, one chain; about 60 ms


class OneByOne:
    """The potential without its bursts."""

    def __init__(self, potential: MaskedLanguagePotential) -> None:
        self.potential = potential
        self.parameters, self.examples = potential.parameters, potential.examples

    def __call__(
        self, weights: torch.Tensor, batch: Minibatch | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.potential(weights, batch)


def start(
    problem: GradientProblem, potential: MaskedLanguagePotential | OneByOne, chains: int
) -> tuple[Langevin, LangevinState]:
    sampler = Langevin(
        potential,
        [TEMPERATURE] * chains,
        batch=BATCH,
        noise_draws=16,
        noise_draws_max=16,
        adapt_every=0,
    )
    return sampler, sampler.init(problem.weights[0])


class Bare:
    """Bursts with every argument prepared: nothing between two of them but the call."""

    def __init__(self, sampler: Langevin, state: LangevinState) -> None:
        self.sampler, self.state = sampler, state
        self.fused, self.derived = sampler.moves.fused, sampler.moves.derive(state)
        assert self.fused is not None
        chains, parameters = state.weights.shape
        self.workspace = BurstWorkspace(self.fused.shape, chains, parameters, BATCH)
        self.sums = torch.zeros(chains, dtype=torch.float64)
        d = self.derived
        self.halves = HalfMoves(d.inverse_masses, d.step_scales, d.step_coefficients, None, None)

    def run(self, moves: int) -> None:
        assert self.fused is not None
        langevin_burst(
            self.fused,
            self.state.weights,
            self.state.momenta,
            self.halves,
            metric=self.derived.metric,
            chain_ids=self.state.chain_ids,
            workspace=self.workspace,
            loss_sums=self.sums,
            seed=self.sampler.seed,
            step=self.state.step,
            moves=moves,
            batch=BATCH,
        )
        self.state.step += moves


@pytest.mark.parametrize(("chains", "threads"), [(1, 1), (16, 1), (16, 2)])
@pytest.mark.parametrize("name", list(MOVES))
def test_langevin_burst(benchmark, capsys, name: str, chains: int, threads: int) -> None:
    problem = gradient_problem(name)
    potential = MaskedLanguagePotential(problem.model, problem.sites, backend="fused")
    moves = max(1, MOVES[name] * (1 if chains == 1 else 4 * threads) // chains)
    rounds = 20
    with torch_threads(threads):
        sampler, state = start(problem, potential, chains)
        bare = Bare(*start(problem, potential, chains))
        plain, plain_state = start(problem, OneByOne(potential), chains)
        calls = {
            "run": lambda: sampler.run(state, moves),
            "burst": lambda: bare.run(moves),
            "one by one": lambda: plain.run(plain_state, moves),
        }
        times = alternating(calls, rounds)
        assert torch.equal(state.weights, bare.state.weights)
        assert torch.equal(state.weights, plain_state.weights)
        benchmark.pedantic(calls["run"], rounds=5)
    median = statistics.median(times["run"]) / (moves * chains)
    overhead = 1 - 1 / median_ratio(times["run"], times["burst"])
    ratio = median_ratio(times["one by one"], times["run"])
    benchmark.extra_info.update(
        us_per_move=1e6 * median,
        python_share=overhead,
        one_by_one_ratio=ratio,
        isa=_core.isa_chosen(),
        backend=_core.parallel_backend(),
    )
    with capsys.disabled():
        print(
            f"\nlangevin_burst {name}, {chains} chain(s), {threads} thread(s), "
            f"{_core.isa_chosen()}, calls of {moves} moves: "
            f"{1e6 * median:.0f} µs a move and chain, "
            f"Python {100 * overhead:.1f} %; one by one through Python {ratio:.2f}×"
        )
