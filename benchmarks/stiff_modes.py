"""How far full-batch chains come in the same time with and without masses of their own for the
stiffest modes, from the same ES weights, in turns.

python benchmarks/stiff_modes.py runs/demo --model tf1-small --temperature 1e-4

Prints, for each way, moves, U of the training set (mean over the last turn, all chains),
|w - w_start|²/Q, kinetic temperature, and the seconds that it took to the last U of every way,
where it got there.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch

from thermosphere.models.named import NAMES, named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.proteins.dataset import DataSet
from thermosphere.sampling.langevin import Langevin
from thermosphere.training import References

BURST = 10  # moves between looks at the clock


class Way:
    """One number of modes and what its chains have seen."""

    def __init__(
        self,
        potential: MaskedLanguagePotential,
        start: torch.Tensor,
        norm2: float,
        t: float,
        modes: int,
    ) -> None:
        self.modes, self.norm2, self.t = modes, norm2, t
        begun = time.perf_counter()
        self.sampler = Langevin(potential, [t] * len(start), seed=1, batch=None, modes=modes)
        self.state = self.sampler.init(start, norm2=norm2)
        self.start = self.state.weights.double().clone()
        self.seconds = time.perf_counter() - begun
        self.passed: list[tuple[float, float]] = []  # seconds, mean U until then from the last

    def turn(self, seconds: float) -> None:
        begun, losses = time.perf_counter(), []
        while time.perf_counter() < begun + seconds:
            losses.append(float(self.sampler.run(self.state, BURST).mean()))
        self.seconds += time.perf_counter() - begun
        self.passed.append((self.seconds, sum(losses) / len(losses)))

    def distance(self) -> float:
        away = self.state.weights.double() - self.start
        return float(away.square().sum(1).mean()) / self.norm2

    def kinetic(self) -> float:
        return float(self.sampler.kinetic_temperature(self.state).mean()) / self.t

    def seconds_to(self, loss: float) -> float:
        return next((seconds for seconds, seen in self.passed if seen <= loss), math.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", choices=NAMES, default="tf1-small")
    parser.add_argument("--temperature", type=float, default=1e-4)
    parser.add_argument("--modes", type=int, nargs="+", default=[0, 32])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each way")
    arguments = parser.parse_args()
    data = DataSet.load(arguments.run / "dataset.npz")
    references = References.load(arguments.run / arguments.model / "references.safetensors")
    potential = MaskedLanguagePotential(
        named_model(arguments.model, length=data.length), data.train
    )
    norm2 = float(references.norm2)
    ways = [
        Way(potential, references.early_stopped, norm2, arguments.temperature, modes)
        for modes in arguments.modes
    ]
    turns = 20
    for _ in range(turns):
        for way in ways:
            way.turn(arguments.seconds / turns)
    print(
        f"{arguments.model}, T = {arguments.temperature:g}, {len(references.early_stopped)} "
        f"chains, {arguments.seconds:g} s each, {torch.get_num_threads()} threads"
    )
    print(f"{'modes':>5}{'seconds':>9}{'moves':>7}{'U':>9}{'|w-w0|²/Q':>11}{'T_kin/T':>9}", end="")
    print("".join(f"{f's to U of {way.modes}':>14}" for way in ways))
    for way in ways:
        print(
            f"{way.modes:>5}{way.seconds:>9.1f}{way.state.step:>7}{way.passed[-1][1]:>9.4f}"
            f"{way.distance():>11.3f}{way.kinetic():>9.3f}"
            + "".join(f"{way.seconds_to(other.passed[-1][1]):>14.1f}" for other in ways)
        )


if __name__ == "__main__":
    main()
