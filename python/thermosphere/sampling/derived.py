"""What moves need that follows from the state: inverse masses, white noise, coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from thermosphere.ops.langevin_step import (
    UNCONSTRAINED,
    StepWorkspace,
    metric_sums,
    step_coefficients,
)
from thermosphere.ops.stiff_modes import StiffModes
from thermosphere.sampling.masses import friction_factor, white_noise_scales
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.state import LangevinState


@dataclass(frozen=True)
class Derived:
    """Changes only when the masses do, but for the metric, which every move keeps. All tensors on
    the device of the weights."""

    inverse_masses: torch.Tensor  # (C, N) float32
    step_scales: torch.Tensor  # (C, N) float32
    momenta_scales: torch.Tensor  # (C, N) float32
    step_coefficients: torch.Tensor  # (C, 5) float64
    momenta_coefficients: torch.Tensor  # (C, 5) float64
    metric: torch.Tensor  # (C,) float64
    chain_ids: torch.Tensor  # (C,) int64
    workspace: StepWorkspace
    modes: StiffModes | None = None  # where the options ask for them

    def tensors(self) -> list[torch.Tensor]:
        """All but the scratch."""
        return [value for value in vars(self).values() if isinstance(value, torch.Tensor)]


def derive(
    state: LangevinState, options: LangevinOptions, workspace: StepWorkspace, threads: int | None
) -> Derived:
    """ValueError where the masses leave the white noise no room."""
    o = options
    c1 = friction_factor(o.m1)
    leapfrog = o.scheme == "leapfrog"
    dt = torch.full_like(state.temperature, o.dt)
    shared = {
        "dt": dt,
        "metric_temperature": state.temperature * float(o.corrects_metric),
        "norm2": state.norm2 if o.constrained else torch.full_like(dt, UNCONSTRAINED),
    }
    step = step_coefficients(
        momentum_factor=torch.full_like(dt, c1 * c1 if leapfrog else c1),
        gradient_factor=dt / 2 * (1 + c1 * c1 if leapfrog else 1),
        **shared,
    )
    momenta = step_coefficients(
        momentum_factor=torch.full_like(dt, c1), gradient_factor=dt / 2, **shared
    )
    device = state.weights.device
    step_scales, momenta_scales = noise_scales(state, options)
    inverse_masses = state.masses.reciprocal()
    return Derived(
        inverse_masses=inverse_masses,
        step_scales=step_scales,
        momenta_scales=momenta_scales,
        step_coefficients=step.to(device),
        momenta_coefficients=momenta.to(device),
        metric=metric_sums(state.weights, inverse_masses, workspace=workspace, threads=threads),
        chain_ids=state.chain_ids.to(device, copy=True),
        workspace=workspace,
    )


def noise_scales(
    state: LangevinState, options: LangevinOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """White noise of the step and of full-step momenta, both (C, N) float32. ValueError where the
    masses leave it no room."""
    return white_noise_scales(
        state.noise_variance,
        state.masses,
        temperature=state.temperature,
        dt=options.dt,
        m1=options.m1,
        scheme=options.scheme,
    )
