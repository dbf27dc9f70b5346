"""How T_ratio and m1 bias ⟨U⟩: pseudo-Langevin against full-batch hybrid Monte Carlo, on a run's
own data and weights.

python benchmarks/bias_table.py runs/demo --minutes 20

Chains start from ES weights and settle by Langevin with T_ratio = 1e-2; then every case goes on
from there, in turns of some seconds. What it has is kept in RUN/MODEL/bias, so that another call
adds to it, and --minutes 0 prints the table of what is there. The first quarter of each case's
draws is left out. Where two temperatures are close enough, physical_validation judges the ensemble
too (pip install 'thermosphere[test]').
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import commit, machine

from thermosphere.analysis import convergence
from thermosphere.analysis.bias import Average, at_zero_share, average, bias
from thermosphere.analysis.ensemble import (
    JUDGED,
    ensemble_distance,
    independent,
    kinetic_distances,
)
from thermosphere.analysis.noise_directions import noise_directions
from thermosphere.archive import read_archive, write_archive
from thermosphere.models.named import NAMES, named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.proteins.dataset import DataSet
from thermosphere.sampling.hmc import HybridMonteCarlo
from thermosphere.sampling.hmc_state import HybridMonteCarloState
from thermosphere.sampling.langevin import Langevin, UnreachableSphereError
from thermosphere.sampling.masses import floored_variance, realised_t_ratio
from thermosphere.sampling.state import LangevinState
from thermosphere.training import References

KIND = "thermosphere bias case"
TURN_SECONDS = 10.0
EVERY = 50  # Langevin moves a draw
STEPS = 20  # leapfrog steps a trajectory
WARM_UP = 25  # trajectories
BURN_IN = 0.25
SMALL = 3e-2  # T_ratios up to which the bias is taken as linear


@dataclasses.dataclass(frozen=True)
class Case:
    """One sampler at all temperatures; t_ratio None is hybrid Monte Carlo."""

    t_ratio: float | None
    m1: float = 0.1

    @property
    def name(self) -> str:
        return "hmc" if self.t_ratio is None else f"r{self.t_ratio:g}_m{self.m1:g}"

    def __str__(self) -> str:
        return "HMC" if self.t_ratio is None else f"r = {self.t_ratio:g}, m1 = {self.m1:g}"


SETTLING = Case(1e-2)
# The last two have the displacements of (1e-2, 0.1) and (1e-1, 0.1) at a tenth of their noise.
CASES = (
    Case(None),
    Case(1e-3),
    Case(1e-2),
    Case(3e-2),
    Case(1e-1),
    Case(1e-3, math.sqrt(0.1)),
    Case(1e-2, math.sqrt(0.1)),
)


@dataclasses.dataclass
class Problem:
    """What all cases share. Row = temperature · chains + chain."""

    potential: MaskedLanguagePotential
    references: References
    temperatures: list[float]
    chains: int
    seed: int
    directory: Path

    @property
    def rows(self) -> torch.Tensor:
        return torch.tensor(self.temperatures, dtype=torch.float64).repeat_interleave(self.chains)

    def langevin(self, case: Case) -> Langevin:
        return Langevin(
            self.potential,
            self.rows,
            seed=self.seed,
            t_ratio=case.t_ratio,
            m1=case.m1,
            noise_draws_max=200,
        )

    def hmc(self) -> HybridMonteCarlo:
        return HybridMonteCarlo(self.potential, self.rows, seed=self.seed, steps=STEPS)


class Progress:
    """One case's state and draws, loaded or begun, and saved."""

    def __init__(self, problem: Problem, case: Case, name: str) -> None:
        self.problem, self.case = problem, case
        self.path = problem.directory / f"{name}.safetensors"
        self.losses = np.zeros((0, len(problem.rows)))
        self.kinetic = np.zeros_like(self.losses)
        self.seconds, self.failure = 0.0, ""
        self.state: Any = None
        self.sampler: Any = problem.hmc() if case.t_ratio is None else problem.langevin(case)
        if self.path.exists():
            tensors, header = read_archive(self.path, KIND)
            if header["temperatures"] != problem.temperatures or header["seed"] != problem.seed:
                raise ValueError(
                    f"{self.path}: holds temperatures {header['temperatures']} and seed "
                    f"{header['seed']}, got {problem.temperatures} and {problem.seed}"
                )
            self.losses = tensors.pop("draws.losses").numpy()
            self.kinetic = tensors.pop("draws.kinetic").numpy()
            self.seconds, self.failure = header["seconds"], header["failure"]
            kind = HybridMonteCarloState if case.t_ratio is None else LangevinState
            self.state = kind.from_tensors(tensors)

    def begin(self, settled: LangevinState | None) -> None:
        """From ES weights, or where the settling chains are: HMC takes their noise as masses."""
        references, norm2 = self.problem.references, float(self.problem.references.norm2)
        if settled is None:
            start = torch.arange(len(self.problem.rows)) % self.problem.chains
            weights = references.early_stopped[start % len(references.early_stopped)]
            self.state = self.sampler.init(weights, norm2=norm2)
        elif self.case.t_ratio is None:
            masses = floored_variance(settled.noise_variance, "median")
            masses /= masses.mean(1, keepdim=True)
            self.state = self.sampler.init(settled.weights, masses=masses, norm2=norm2)
        else:
            self.state = self.sampler.init(settled.weights, norm2=norm2)

    def advance(self, seconds: float) -> None:
        """Draw for this long, then save."""
        losses, kinetic = [], []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and not self.failure:
            if isinstance(self.state, HybridMonteCarloState) and self.state.tuned < WARM_UP:
                self.sampler.warm_up(self.state, 1)
                continue
            begun = time.perf_counter()
            try:
                losses.append(self._draw())
            except UnreachableSphereError as error:
                self.failure = str(error)
                continue
            kinetic.append(self.sampler.kinetic_temperature(self.state).numpy())
            self.seconds += time.perf_counter() - begun
        if losses:
            self.losses = np.concatenate([self.losses, np.stack(losses)])
            self.kinetic = np.concatenate([self.kinetic, np.stack(kinetic)])
        tensors = {
            "draws.losses": torch.from_numpy(self.losses),
            "draws.kinetic": torch.from_numpy(self.kinetic),
            **self.state.tensors(),
        }
        header = {
            "kind": KIND,
            "temperatures": self.problem.temperatures,
            "seed": self.problem.seed,
            "seconds": self.seconds,
            "failure": self.failure,
        }
        write_archive(self.path, tensors, header)

    def _draw(self) -> np.ndarray:
        """U of every chain on the whole training set, after one trajectory or EVERY moves."""
        if isinstance(self.state, HybridMonteCarloState):
            self.sampler.run(self.state, 1)
            return self.state.losses.numpy().copy()
        self.sampler.run(self.state, EVERY)
        return self.problem.potential.evaluate(self.state.weights)[0].numpy()

    def at(self, values: np.ndarray, temperature: int) -> np.ndarray:
        """(chains, draws) of one temperature."""
        first = temperature * self.problem.chains
        return values[:, first : first + self.problem.chains].T

    def average(self, temperature: int) -> Average | None:
        """⟨U⟩; None where there are too few draws."""
        values = self.at(self.losses, temperature)
        if values.shape[1] < 2 * convergence.MINIMUM_DRAWS:
            return None
        return average(values, burn_in=BURN_IN)

    def harmonic_bias(self, temperature: int) -> float:
        """The harmonic N T r̄/2 with the masses and the noise of now
        (analysis/noise_directions.py)."""
        state, first = self.state, temperature * self.problem.chains
        rows = slice(first, first + self.problem.chains)
        shares = realised_t_ratio(
            state.noise_variance[rows],
            state.masses[rows],
            temperature=state.temperature[rows],
            dt=1.0,
            m1=self.case.m1,
        )
        parameters = state.weights.shape[1]
        return parameters * self.problem.temperatures[temperature] * float(shares.mean()) / 2


def print_table(problem: Problem, cases: list[Progress]) -> None:
    """⟨U⟩ of every case and its bias against HMC, temperature by temperature."""
    exact = [cases[0].average(k) for k in range(len(problem.temperatures))]
    lowest = float(problem.references.over_trained_losses[:, 0].min())
    slope = math.nan
    if len(exact) > 1 and exact[0] is not None and exact[-1] is not None:
        span = problem.temperatures[-1] - problem.temperatures[0]
        slope = (exact[-1].mean - exact[0].mean) / span
    print(f"U_min: {lowest:.4f}, the lowest train loss of the over-trained weights")
    print(f"d⟨U⟩/dT = {slope:.0f}, from HMC at the first and the last temperature")
    for k, temperature in enumerate(problem.temperatures):
        print(f"\nT = {temperature:g}")
        print(
            f"{'':24} {'⟨U⟩':>8} {'error':>8} {'ESS':>6} {'R̂':>6} {'ESS/s':>6} {'T_kin/T':>8}"
            f" {'bias':>9} {'error':>8} {'of U-U_min':>11} {'ΔT/T':>8}"
            f" {'NT r̄/2':>8}"
        )
        for progress in cases:
            mean = progress.average(k)
            if mean is None:
                print(f"{progress.case!s:24} {progress.failure or 'too few draws'}")
                continue
            kinetic = progress.at(progress.kinetic, k).mean() / temperature
            rate = mean.effective_draws / ((1 - BURN_IN) * progress.seconds / len(exact))
            line = (
                f"{progress.case!s:24} {mean.mean:8.4f} {mean.error:8.4f} "
                f"{mean.effective_draws:6.0f} {mean.r_hat:6.3f} {rate:6.2f} {kinetic:8.4f}"
            )
            if progress is not cases[0] and exact[k] is not None and slope > 0:
                b = bias(mean, exact[k], temperature=temperature, slope=slope, lowest=lowest)
                line += (
                    f" {b.difference:+9.4f} {b.error:8.4f} {100 * b.of_excess:+10.2f}%"
                    f" {100 * b.of_temperature:+7.1f}% {progress.harmonic_bias(k):8.4f}"
                )
            print(line, progress.failure)
        small = [p for p in cases[1:] if p.case.t_ratio is not None and p.case.t_ratio <= SMALL]
        means = [(p.case.t_ratio, p.average(k)) for p in small]
        known = [(share, mean) for share, mean in means if mean is not None]
        if len({share for share, _ in known}) > 2:
            value, error, chi2 = at_zero_share(
                np.array([share for share, _ in known]), [mean for _, mean in known]
            )
            print(
                f"{'r -> 0':24} {value:8.4f} {error:8.4f}   a line through r <= {SMALL:g}, "
                f"χ² {chi2:.1f} a degree of freedom"
            )


def print_ensemble(problem: Problem, cases: list[Progress]) -> None:
    """What physical_validation says of kinetic energies and of neighbouring temperatures, in
    standard errors."""
    parameters = problem.potential.parameters

    def draws(progress: Progress, values: np.ndarray, k: int) -> np.ndarray:
        own = progress.at(values, k)
        return independent(own[:, int(BURN_IN * own.shape[1]) :])

    print("\nphysical_validation, distances in standard errors")
    for progress in cases:
        means = [progress.average(k) for k in range(len(problem.temperatures))]
        if any(mean is None or mean.effective_draws < JUDGED for mean in means):
            print(f"{progress.case!s:24} fewer than {JUDGED} independent draws")
            continue
        words = []
        try:
            for k, temperature in enumerate(problem.temperatures):
                found = kinetic_distances(
                    draws(progress, progress.kinetic, k), temperature, parameters
                )
                words.append(
                    f"T = {temperature:g}: kinetic mean {found.mean:.1f}, width {found.width:.1f}"
                )
            for k in range(len(problem.temperatures) - 1):
                cold, hot = (draws(progress, progress.losses, j) for j in (k, k + 1))
                pair = (problem.temperatures[k], problem.temperatures[k + 1])
                distance = ensemble_distance(cold, hot, pair, parameters)
                words.append(
                    "no overlap of U at neighbouring temperatures"
                    if math.isnan(distance)
                    else f"slope of ln P(U|T2)/P(U|T1): {distance:.1f}"
                )
        except ImportError as missing:
            print(missing)
            return
        print(f"{progress.case!s:24} {'; '.join(words)}")


def same_bits_for_any_dt(problem: Problem, settled: LangevinState) -> bool:
    """Masses go as dt², so that dt is a unit of time: 40 moves with dt = 1 and dt = 2."""
    ends = []
    for dt in (1.0, 2.0):
        sampler = Langevin(problem.potential, problem.rows, seed=1, dt=dt, noise_draws_max=100)
        state = sampler.init(settled.weights, norm2=float(problem.references.norm2))
        sampler.run(state, 40)
        ends.append(state.weights)
    return torch.equal(*ends)


def print_noise_directions(problem: Problem, settled: LangevinState) -> None:
    """Why the bias goes with the share: mini-batch noise is in the stiff directions."""
    found = noise_directions(
        problem.potential, settled.weights[:1], settled.masses[:1], problem.temperatures[0]
    )
    print(
        f"\ncurvature along mini-batch noise {found.along_noise:.2e} ± "
        f"{found.along_noise_error:.0e}, along uncorrelated noise of the same variances "
        f"{found.along_uncorrelated:.2e} ± {found.along_uncorrelated_error:.0e}; effective rank of "
        f"40 mini-batches {found.effective_rank:.0f}, of {problem.potential.parameters} parameters"
    )


def print_precision(problem: Problem, cases: list[Progress]) -> None:
    """How far accept/reject's U is from float64, where the chains of all cases are now: what is the
    same everywhere changes no decision, what varies does."""
    places = torch.cat([progress.state.weights.double() for progress in cases])
    fused, _ = problem.potential.evaluate(places.float())
    exact, _ = problem.potential.evaluate(places)
    error = fused - exact
    coldest = min(problem.temperatures)
    print(
        f"\nU as computed minus float64 at {len(places)} places: mean {float(error.mean()):.1e}, "
        f"standard deviation {float(error.std()):.1e}, {float(error.std()) / coldest:.1e} T"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a run's directory, with dataset and references")
    parser.add_argument("--model", default="tf1-small", choices=NAMES)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[3e-4, 3.3e-4])
    parser.add_argument("--chains", type=int, default=2, help="a temperature")
    parser.add_argument("--settle", type=int, default=20_000, help="moves from the ES weights")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    end = time.perf_counter() + 60 * o.minutes
    problem = Problem(
        MaskedLanguagePotential(named_model(o.model), DataSet.load(o.run / "dataset.npz").train),
        References.load(o.run / o.model / "references.safetensors"),
        o.temperatures,
        o.chains,
        o.seed,
        o.run / o.model / "bias",
    )
    settling = Progress(problem, SETTLING, "settling")
    if settling.state is None:
        settling.begin(None)
    while EVERY * len(settling.losses) < o.settle:
        if time.perf_counter() > end or settling.failure:
            sys.exit(f"not settled after {EVERY * len(settling.losses)} moves {settling.failure}")
        settling.advance(TURN_SECONDS)
    cases = [Progress(problem, case, case.name) for case in CASES]
    for progress in cases:
        if progress.state is None:
            progress.begin(settling.state)
    while time.perf_counter() < end:
        for progress in cases:
            # HMC costs most a draw, and every bias stands on it.
            progress.advance(TURN_SECONDS * (6 if progress.case.t_ratio is None else 1))
    words = [o.run.name if word == str(o.run) else word for word in sys.argv[1:]]
    print(f"# python benchmarks/bias_table.py {shlex.join(words)}; commit {commit()}")
    print("\n".join(machine()))
    print(
        f"{o.model}, {o.run.name}: {o.chains} chains a temperature, {o.threads} thread(s), "
        f"{EVERY * len(settling.losses)} moves of settling"
    )
    print(f"dt = 1 and dt = 2 make the same bits: {same_bits_for_any_dt(problem, settling.state)}")
    print_table(problem, cases)
    print_ensemble(problem, cases)
    print_noise_directions(problem, settling.state)
    print_precision(problem, cases)


if __name__ == "__main__":
    main()
