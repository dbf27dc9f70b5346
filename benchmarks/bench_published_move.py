"""One sampling move against the algorithm as published (published.py), at the paper's sizes.

pytest benchmarks/bench_published_move.py --benchmark-only

The published gradient is first held to float64, and one published move in float64, with the noise
and mini-batches of the package's own scheme `paper`, to a move of that. Then published moves (two
gradients each), moves of the default scheme (one) and of `paper` (two) alternate; all keep
|w|² = Q.
The re-estimate of the gradient noise, one in a thousand moves or rarer, is left out on all sides.
"""

from __future__ import annotations

import statistics

import published
import pytest
import torch
from gradient_problem import GradientProblem, draw, gradient_problem
from measure import alternating, median_ratio, seconds, torch_threads

from thermosphere import _core
from thermosphere.models.named import NAMES
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.philox import Stream, normals
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.state import LangevinState

TEMPERATURE = 1e-4
SECONDS = 3.0  # of timing, where five rounds do not take longer


def sampler(problem: GradientProblem, scheme: str) -> tuple[Langevin, LangevinState]:
    """A sampler at the problem's weights; masses from 16 mini-batches, then never adapted."""
    potential = MaskedLanguagePotential(problem.model, problem.sites)
    sampler = Langevin(
        potential,
        TEMPERATURE,
        scheme=scheme,
        variance_floor="median",
        noise_draws=16,
        noise_draws_max=16,
        adapt_every=0,
    )
    return sampler, sampler.init(problem.weights[0])


def published_chain(problem: GradientProblem, state: LangevinState) -> published.Chain:
    """The same chain as dicts of tensors, in the dtype of the state."""

    def split(flat: torch.Tensor) -> published.Tensors:
        return {name: t.clone() for name, t in problem.model.layout.views(flat[0]).items()}

    return published.Chain(
        split(state.weights),
        split(state.momenta),
        split(state.masses),
        split(state.noise_variance),
        TEMPERATURE,
        float(state.norm2[0]),
    )


def joined(tensors: published.Tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).double()


def norm_error(weights: torch.Tensor, norm2: float) -> float:
    return abs(float((weights.double() ** 2).sum()) / norm2 - 1)


def hold_to_published(problem: GradientProblem) -> None:
    """One move of scheme `paper` in float32 against the published one in float64."""
    layout, size = problem.model.layout, problem.model.layout.size
    paper, state = sampler(problem, "paper")
    double = LangevinState.from_tensors(state.tensors())
    for name in ("weights", "momenta", "masses", "noise_variance"):
        setattr(double, name, getattr(double, name).double())
    chain = published_chain(problem, double)
    drawn = [draw(0, stream).indices[0] for stream in (Stream.MINIBATCH, Stream.MINIBATCH_END)]
    noise = [
        layout.views(normals(seed=0, stream=stream, chain=0, step=0, count=size).double())
        for stream in (Stream.NOISE, Stream.MOMENTUM_NOISE)
    ]
    published.move(chain, problem.model, problem.sites, tuple(drawn), tuple(noise))
    before = state.weights[0].double()
    paper.run(state, moves=1)
    # Rounding to float32 makes 7e-8 of the momenta and, a move being some thousandths of w, 9e-6
    # of the move. Every slip tried in a term of Eq. 34-40 exceeds one of the bounds four times.
    moved, momenta = joined(chain.weights), joined(chain.momenta)
    assert float((state.weights[0] - moved).norm() / (moved - before).norm()) < 3e-5
    assert float((state.momenta[0] - momenta).norm() / momenta.norm()) < 1e-6
    assert norm_error(joined(chain.weights), chain.norm2) < 1e-12


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_published_move(benchmark, capsys, name: str, threads: int) -> None:
    problem = gradient_problem(name)
    model, sites = problem.model, problem.sites
    # Right before fast.
    views = {name: view[0] for name, view in model.layout.views(problem.weights).items()}
    loss, slopes = published.gradient(model, views, sites, problem.batch.indices[0])
    problem.hold("published", loss, joined(slopes))
    hold_to_published(problem)

    with torch_threads(threads):
        ours, state = sampler(problem, "leapfrog")
        paper, paper_state = sampler(problem, "paper")
        chain = published_chain(problem, paper_state)
        one_move = seconds(lambda: ours.run(state, moves=1))
        moves = max(2, min(20, int(0.05 / one_move)))
        calls = {
            "published": lambda: published.move(chain, model, sites),
            "leapfrog": lambda: ours.run(state, moves=moves),
            "paper": lambda: paper.run(paper_state, moves=moves),
        }
        rounds = max(5, min(30, int(SECONDS / sum(seconds(call) for call in calls.values()))))
        times = alternating(calls, rounds)
        benchmark.pedantic(calls["leapfrog"], rounds=5)
    for scheme in ("leapfrog", "paper"):
        times[scheme] = [t / moves for t in times[scheme]]
    assert norm_error(joined(chain.weights), chain.norm2) < 1e-5  # float32 sums, as published
    for own in (state, paper_state):
        assert norm_error(own.weights[0], float(own.norm2[0])) < 1e-6

    ms = {scheme: 1e3 * statistics.median(t) for scheme, t in times.items()}
    ratio = {scheme: median_ratio(times["published"], t) for scheme, t in times.items()}
    benchmark.extra_info.update(ms=ms, ratio=ratio, moves=moves, isa=_core.isa_chosen())
    with capsys.disabled():
        print(
            f"\npublished_move {name}, {threads} thread(s), {_core.isa_chosen()}: as published "
            f"{ms['published']:.1f} ms; ours {ms['leapfrog']:.2f} ({ratio['leapfrog']:.1f}× "
            f"faster), scheme paper {ms['paper']:.2f} ({ratio['paper']:.1f}×)"
        )
