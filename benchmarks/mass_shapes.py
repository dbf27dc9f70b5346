"""How far one full-batch move goes under differently shaped masses, at the same ω dt of the
stiffest mode, where a sampled chain has settled.

python benchmarks/mass_shapes.py runs/demo --model tf1-small

Shapes: equal masses; the variance of mini-batch gradients over its median, floored at it, measured
at the ES weights or where the chain is; and rows of the Hessian made equally long
(sampling/stiffness.py), at either place. Weights and temperature are those of the last draw of the
chains that are nearest to --temperature.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from thermosphere.models.named import NAMES, named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.proteins.dataset import DataSet
from thermosphere.runs.store import open_samples, read_weights
from thermosphere.sampling.full_batch import shape_from_nothing
from thermosphere.sampling.masses import floored_variance, median_variance
from thermosphere.sampling.noise import estimate_noise
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.stiffness import Curvature
from thermosphere.training import References

SEED = 0
ONE = torch.zeros(1, dtype=torch.int64)


def of_noise(potential: MaskedLanguagePotential, weights: torch.Tensor) -> torch.Tensor:
    variance = estimate_noise(
        potential, weights, seed=SEED, step=0, chain_ids=ONE, batch=64, draws_max=200
    ).variance
    return floored_variance(variance, "median") / median_variance(variance)[:, None]


def curvature_at(potential: MaskedLanguagePotential, weights: torch.Tensor) -> Curvature:
    return Curvature(potential, weights, seed=SEED, step=0, chain_ids=ONE)


def of_curvature(potential: MaskedLanguagePotential, weights: torch.Tensor) -> torch.Tensor:
    shape, _ = shape_from_nothing(curvature_at(potential, weights))
    return shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", choices=NAMES, default="tf1-small")
    parser.add_argument("--temperature", type=float, default=1e-4)
    arguments = parser.parse_args()
    directory = arguments.run / arguments.model
    data = DataSet.load(arguments.run / "dataset.npz")
    references = References.load(directory / "references.safetensors")
    samples = open_samples(directory / "samples.zarr")
    potential = MaskedLanguagePotential(
        named_model(arguments.model, length=data.length), data.train
    )
    temperatures = samples["temperature"].values
    temperature = float(temperatures[np.abs(temperatures - arguments.temperature).argmin()])
    written = int(np.isfinite(samples["train_loss"].values).all(0).sum())
    stiffness = LangevinOptions().stiffness

    print(
        f"{arguments.model} at T = {temperature:.3g}, ω dt = {stiffness:g}: angle of a move in "
        "1e-4 rad, median displacement\nof a parameter in 1e-4 of its root mean square"
    )
    print(f"{'start':>5} {'masses':<28}{'angle':>7}{'median':>8}{'over equal':>13}")
    for row in np.flatnonzero(temperatures == temperature):
        es = references.early_stopped[int(samples["start"].values[row])][None].contiguous()
        here = torch.from_numpy(read_weights(samples, np.array([row]), [written - 1])[0])
        scale = float(here.double().square().mean().sqrt())
        first = 0.0
        for about, shape in (
            ("equal", torch.ones_like(here, dtype=torch.float64)),
            ("noise at ES", of_noise(potential, es)),
            ("noise here", of_noise(potential, here)),
            ("rows of the Hessian at ES", of_curvature(potential, es)),
            ("rows of the Hessian here", of_curvature(potential, here)),
        ):
            stiffest = curvature_at(potential, here).largest(shape)
            step = (temperature * stiffness**2 / (shape * stiffest)).sqrt()  # of each parameter
            angle = float(step.norm()) / float(here.double().norm())
            median = float(step.median()) / scale
            first = first or median
            print(
                f"{int(samples['start'].values[row]):>5} {about:<28}{angle * 1e4:>7.1f}"
                f"{median * 1e4:>8.1f}{median / first:>12.1f}x"
            )


if __name__ == "__main__":
    main()
