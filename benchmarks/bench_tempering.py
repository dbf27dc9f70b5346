"""Potts tempering of 2ABD at T = 1 beside a straightforward sampler (potts_baseline.py).

pytest benchmarks/bench_tempering.py --benchmark-only

One ladder, learned once, with its weights and visits, for all contenders; one core each, in turn.
Before a time is printed, the energies that the walkers keep are held to their sequences, and the
mean energies of the levels to the baseline's. Then 15,000 sequences in a process of their own, as
a user would: with numba's cache empty, and with it filled.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import potts_baseline
import pytest
from measure import alternating, median_ratio

from thermosphere.proteins.alphabet import encode
from thermosphere.proteins.crew import Crew, empty_harvest, new_walker
from thermosphere.proteins.fixed_point import fixed_point
from thermosphere.proteins.ladder import learn_ladder
from thermosphere.proteins.potts import PottsModel, interaction_matrix
from thermosphere.proteins.structure import native_2abd
from thermosphere.proteins.tempering import replicated
from thermosphere.proteins.walker import ACCEPTED, COUNTS, PROPOSALS, SUMS, Ladder, walk

HOT, TARGET, WALKERS = 20.0, 1.0, 8
VISITS_A_CALL = 160_000  # of all walkers: about 0.2 s; the baseline a quarter of it
LARGE, NEIGHBOURS = 2_000, 10


def protein() -> tuple[PottsModel, np.ndarray]:
    native = native_2abd()
    model = PottsModel.from_contacts(native.contacts, interaction_matrix(0), native.length)
    return model, encode(native.sequence)


def random_contacts(sites: int, degree: int) -> PottsModel:
    """A random contact map, ``degree`` contacts a site on the average."""
    generator = np.random.default_rng(0)
    pairs: set[tuple[int, int]] = set()
    while len(pairs) < sites * degree // 2:
        i, j = sorted(generator.integers(0, sites, 2).tolist())
        if j - i >= 2:
            pairs.add((i, j))
    return PottsModel.from_contacts(np.array(sorted(pairs)), interaction_matrix(0), sites)


@cache
def learned() -> tuple[Crew, Ladder]:
    """Walkers of simulated tempering on one thread, and the frozen ladder of all contenders."""
    model, tokens = protein()
    system = fixed_point(model, mutate=False, hottest=HOT, coldest=TARGET)
    walkers = [
        new_walker(model, system, tokens[None], np.array([seed], dtype=np.uint64))
        for seed in np.random.SeedSequence(0).generate_state(WALKERS, np.uint64)
    ]
    crew = Crew(model, system, walkers, ThreadPoolExecutor(max_workers=1))
    ladder = learn_ladder(crew, 1 / HOT, 1 / TARGET, 0.8, 0.1, False)
    return crew, ladder


class Baseline:
    """The same as a Crew of the straightforward sampler, one walker."""

    def __init__(self, ladder: Ladder) -> None:
        self.model, tokens = protein()
        self.lists = potts_baseline.neighbour_lists(self.model)
        self.tokens = tokens.astype(np.int64)
        self.ladder = ladder
        self.state = np.array([0.0, 0.0, 0.0, float(self.model.energy(tokens))])
        self.sums = np.zeros((2, len(ladder.betas)))
        potts_baseline.seed_generator(1)

    def run(self, visits: int) -> None:
        potts_baseline.baseline_walk(
            self.model.couplings[0],
            *self.lists,
            self.tokens,
            self.ladder.betas,
            self.ladder.weights,
            self.ladder.cycle,
            self.state,
            visits,
            self.sums,
        )

    def proposals(self) -> float:
        return float(self.sums[0] @ self.ladder.cycle)


def assert_same_energies(crew: Crew, baseline: Baseline) -> None:
    """⟨E⟩ of both at every level, errors from blocks; energies against their sequences."""
    blocks: dict[str, list[np.ndarray]] = {"ours": [], "baseline": []}
    levels = len(baseline.ladder.betas)
    for _ in range(12):
        crew.clear(levels)
        crew.run(baseline.ladder, 4 * VISITS_A_CALL // WALKERS // crew.replicas)
        blocks["ours"].append(crew.levels().mean)
        baseline.sums[:] = 0.0
        baseline.run(VISITS_A_CALL)
        blocks["baseline"].append(baseline.sums[1] / np.maximum(baseline.sums[0], 1))
    crew.check_energies()
    assert abs(baseline.state[3] - baseline.model.energy(baseline.tokens)) < 1e-8
    mean = {name: np.mean(rows, axis=0) for name, rows in blocks.items()}
    squares = sum(np.var(rows, axis=0, ddof=1) / len(rows) for rows in blocks.values())
    assert (np.abs(mean["ours"] - mean["baseline"]) < 5.0 * np.sqrt(squares)).all()


def touched_pairs(model: PottsModel) -> float:
    """Pairs with a site that a swap changes or couples to, the mean over swaps."""
    n = model.length
    near = np.eye(n, dtype=bool)
    i, j = model.pairs.T
    near[i, j] = near[j, i] = True
    touched = (near[:, None] | near[None]).sum(axis=2)  # (n, n) sites
    pairs = n * (n - 1) / 2 - (n - touched) * (n - touched - 1) / 2
    return float(pairs[~np.eye(n, dtype=bool)].mean())


def millions(proposals: float, seconds: list[float]) -> float:
    return proposals / statistics.median(seconds) / 1e6


def test_proposals(benchmark, capsys) -> None:
    crew, ladder = learned()
    baseline = Baseline(ladder)
    assert_same_energies(crew, baseline)
    levels = len(ladder.betas)

    cold = ladder._replace(**{name: value[-1:] for name, value in ladder._asdict().items()})
    cold = cold._replace(weights=np.zeros(1), cycle=np.array([1000]))
    coldest = crew.walkers[int(np.argmax([w.levels[0] for w in crew.walkers]))]._replace(
        levels=np.zeros(1, dtype=np.int64),
        counts=np.zeros((COUNTS, 1), dtype=np.int64),
        sums=np.zeros((SUMS, 1)),
    )
    frozen = coldest._replace(**{name: value.copy() for name, value in coldest._asdict().items()})
    zero = cold._replace(betas=np.array([100.0]))
    still = Baseline(cold)
    nothing = empty_harvest(1, crew.sites)
    walk(crew.system, coldest, cold, 2000, nothing)  # from wherever it was to T = 1
    still.run(500)
    walk(crew.system, frozen, zero, 2000, nothing)  # quenched: every proposal is refused
    frozen.counts[:] = 0
    calls = {
        "coldest": lambda: walk(crew.system, coldest, cold, 3000, nothing),
        "frozen": lambda: walk(crew.system, frozen, zero, 3000, nothing),
        "coldest baseline": lambda: still.run(750),
        "ladder": lambda: crew.run(ladder, VISITS_A_CALL // WALKERS),
        "ladder baseline": lambda: baseline.run(VISITS_A_CALL // 4),
    }
    crew.clear(levels)
    baseline.sums[:] = 0.0
    rounds = 15
    times = alternating(calls, rounds)
    benchmark.pedantic(calls["ladder"], rounds=3)
    evenly = {  # calls differ a little in how they fall on the levels
        "ladder": crew.levels().counts[PROPOSALS].sum() / (rounds + 4),
        "ladder baseline": baseline.proposals() / (rounds + 1),
    }
    made = {"coldest": 3e6, "frozen": 3e6, "coldest baseline": 0.75e6, **evenly}
    rate = {name: millions(made[name], times[name]) for name in calls}
    gain = {
        name: median_ratio(times[f"{name} baseline"], times[name])
        * made[name]
        / made[f"{name} baseline"]
        for name in ("coldest", "ladder")
    }
    accepted = coldest.counts[ACCEPTED, 0] / coldest.counts[PROPOSALS, 0]
    move, judged = 1e3 / rate["coldest"] / accepted, 1e3 / rate["frozen"]
    touched = touched_pairs(crew.model)
    assert frozen.counts[ACCEPTED, 0] < 0.002 * frozen.counts[PROPOSALS, 0]
    benchmark.extra_info.update(rate)
    with capsys.disabled():
        print(
            f"\ntempering rejection-free, T = 1: an accepted move costs {move:.0f} ns with its "
            f"refused proposals; judging the {touched:.0f} pairs it touches anew, "
            f"{judged * touched:.0f} ns, at {judged:.1f} ns a judged proposal"
        )
        print(
            f"\ntempering proposals, one core, T = 1 ({100 * accepted:.1f} % accepted): "
            f"{rate['coldest']:.0f} million a second, baseline {rate['coldest baseline']:.1f} "
            f"({gain['coldest']:.1f}×)"
            f"\ntempering proposals, one core, ladder of {levels} levels: {rate['ladder']:.0f} "
            f"million a second, baseline {rate['ladder baseline']:.1f} ({gain['ladder']:.1f}×)"
        )


def test_round_trips(benchmark, capsys) -> None:
    crew, ladder = learned()
    baseline = Baseline(ladder)
    parallel = replicated(crew, ladder)
    assert_same_energies(parallel, baseline)
    levels = len(ladder.betas)
    visits = 4 * VISITS_A_CALL
    calls: dict[str, Callable[[], object]] = {
        "simulated": lambda: crew.run(ladder, visits // WALKERS),
        "parallel": lambda: parallel.run(ladder, visits // WALKERS // parallel.replicas),
        "baseline": lambda: baseline.run(visits // 4),
    }
    crew.clear(levels)
    for call in calls.values():  # every replica to an end of the ladder
        call()
    for one in (crew, parallel):
        for walker in one.walkers:
            walker.round_trips[:] = 0
            walker.counts[:] = 0
    baseline.state[2] = 0.0
    baseline.sums[:] = 0.0
    rounds = 10
    times = alternating(calls, rounds)
    benchmark.pedantic(calls["simulated"], rounds=1, warmup_rounds=0)
    trips = {
        "simulated": crew.round_trips() * (rounds + 1) / (rounds + 2),
        "parallel": parallel.round_trips(),
        "baseline": baseline.state[2],
    }
    rate = {name: trips[name] / sum(times[name]) * rounds / (rounds + 1) for name in calls}
    made = {
        "simulated": crew.levels().counts[PROPOSALS].sum() * (rounds + 1) / (rounds + 2),
        "parallel": parallel.levels().counts[PROPOSALS].sum(),
        "baseline": baseline.proposals(),
    }
    per_million = {name: 1e6 * trips[name] / made[name] for name in calls}
    error = {name: rate[name] / np.sqrt(trips[name]) for name in calls}
    benchmark.extra_info.update(rate)
    with capsys.disabled():
        print(
            f"\ntempering round trips hot↔cold a second and core, T = 20 to 1, {levels} levels: "
            + "; ".join(
                f"{name} {rate[name]:.0f} ± {error[name]:.0f} "
                f"({rate[name] / rate['baseline']:.1f}×)"
                for name in calls
            )
            + f"; a million proposals {per_million['simulated']:.1f}, "
            f"{per_million['parallel']:.1f}, {per_million['baseline']:.1f}"
        )


def test_many_sites(benchmark, capsys) -> None:
    """Nanoseconds a proposal at T = 1, n = 2,000 beside 2ABD."""
    walkers, systems = {}, {}
    model, tokens = protein()
    generator = np.random.default_rng(0)
    for name, chosen in (("2ABD", model), ("large", random_contacts(LARGE, NEIGHBOURS))):
        start = np.tile(tokens, chosen.length // len(tokens) + 1)[: chosen.length]
        systems[name] = fixed_point(chosen, mutate=False, hottest=HOT, coldest=TARGET)
        rows = generator.permutation(start)[None]
        walkers[name] = new_walker(chosen, systems[name], rows, np.array([1], dtype=np.uint64))

    def run(name: str, temperature: float, proposals: int) -> None:
        ladder = Ladder(
            np.array([1 / temperature]), np.zeros(1), np.array([proposals]), np.array([True])
        )
        nothing = empty_harvest(1, walkers[name].words.shape[1])
        walk(systems[name], walkers[name], ladder, 1, nothing)

    for temperature in np.geomspace(HOT, TARGET, 30):  # cooled, 200 proposals a site and step
        for name in walkers:
            run(name, temperature, 200 * walkers[name].words.shape[1])
    for name, chosen in (("2ABD", model), ("large", random_contacts(LARGE, NEIGHBOURS))):
        Crew(chosen, systems[name], [walkers[name]], ThreadPoolExecutor(1)).check_energies()
        walkers[name].counts[:] = 0
    count = 2_000_000
    calls = {name: lambda name=name: run(name, TARGET, count) for name in walkers}
    times = alternating(calls, 15)
    benchmark.pedantic(calls["large"], rounds=3)
    nanoseconds = {name: 1e9 * statistics.median(row) / count for name, row in times.items()}
    accepted = {
        name: 100 * walker.counts[ACCEPTED, 0] / walker.counts[PROPOSALS, 0]
        for name, walker in walkers.items()
    }
    benchmark.extra_info.update(nanoseconds)
    with capsys.disabled():
        print(
            f"\ntempering n = {LARGE}, {NEIGHBOURS} contacts a residue, T = 1: "
            f"{nanoseconds['large']:.1f} ns a proposal ({accepted['large']:.1f} % accepted); "
            f"2ABD {nanoseconds['2ABD']:.1f} ns ({accepted['2ABD']:.1f} %); "
            f"ratio {median_ratio(times['large'], times['2ABD']):.2f}"
        )


SEQUENCES = """
import json, time
begun = time.perf_counter()
import numpy as np
from thermosphere.proteins.alphabet import encode
from thermosphere.proteins.potts import PottsModel, interaction_matrix
from thermosphere.proteins.structure import native_2abd
from thermosphere.proteins.tempering import sample_sequences
native = native_2abd()
model = PottsModel.from_contacts(native.contacts, interaction_matrix(0), native.length)
result = sample_sequences(model, encode(native.sequence), seed=1, threads=2)
seconds = time.perf_counter() - begun
assert result.sequences.shape == (15_000, 86) and result.warnings == []
assert (result.energies == model.energy(result.sequences)).all()
print(json.dumps({"seconds": seconds, "levels": len(result.temperatures), **result.diagnostics}))
"""


@pytest.mark.parametrize("numba_cache", ["empty", "filled"])
def test_sequences(benchmark, capsys, tmp_path_factory, numba_cache: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "numba"

    def sample() -> dict[str, float]:
        child = subprocess.run(
            [sys.executable, "-c", SEQUENCES],
            env=os.environ | {"NUMBA_CACHE_DIR": str(folder)},
            capture_output=True,
            text=True,
        )
        assert child.returncode == 0, child.stderr
        return dict(json.loads(child.stdout))

    if numba_cache == "empty":
        assert not Path(folder).exists()
    else:
        sample()
    found = benchmark.pedantic(sample, rounds=1)
    benchmark.extra_info.update(found)
    with capsys.disabled():
        print(
            f"\ntempering 15,000 sequences of 2ABD, T = 1, two threads, numba's cache "
            f"{numba_cache}: {found['seconds']:.1f} s with imports, {found['harvest_spacing']} "
            f"visits apart (τ of energy {found['energy_time']:.1f}, of overlap "
            f"{found['overlap_time']:.1f}), {found['round_trips']} round trips, overlap of "
            f"consecutive ones {found['overlap_consecutive']:.3f}, of two walkers' "
            f"{found['overlap_independent']:.3f}"
        )
