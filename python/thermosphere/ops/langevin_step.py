"""The fused constrained pseudo-Langevin step on flat weight vectors (Eq. 34-41 of arXiv
2603.29529).

    Π̃ = a Π - b g + s η          g = gradient + τ (w/M) / Σ(w²/M)
    w̃ = w + (dt/M) Π̃
    w' = w̃ + l w/M               l of smaller magnitude with |w'|² = Q
    Π  = Π̃ + (l/dt) w

The columns of ``coefficients`` choose the scheme (sampling/langevin.py does): leapfrog, or the
first half of the paper's. τ is the
temperature where the metric correction is on and 0 where it is off. The noise η is made inside from
(seed, chain, step, index).
The formula itself is in langevin_step_ref.py.
"""

from __future__ import annotations

import torch

from thermosphere import _core
from thermosphere.ops.arguments import thread_count
from thermosphere.ops.philox import check_counter

UNCONSTRAINED = -1.0  # the value of norm2 that leaves the multiplier out


def step_coefficients(
    *,
    dt: torch.Tensor,
    momentum_factor: torch.Tensor,
    gradient_factor: torch.Tensor,
    metric_temperature: torch.Tensor,
    norm2: torch.Tensor,
) -> torch.Tensor:
    """One row a chain, (C, 5) float64, in the order of csrc/langevin_step.h's StepCoefficients."""
    columns = (dt, momentum_factor, gradient_factor, metric_temperature, norm2)
    return torch.stack([column.double() for column in columns], dim=1).contiguous()


class StepWorkspace:
    """Scratch and small outputs of the step for (C, N), made once so that a step allocates
    nothing."""

    def __init__(self, chains: int, parameters: int) -> None:
        if chains < 1 or parameters < 1:
            raise ValueError(
                f"StepWorkspace: expected chains and parameters >= 1, got ({chains}, {parameters})"
            )
        segments = -(-parameters // _core.segment_elements)
        self.proposal = torch.empty((chains, parameters), dtype=torch.float32)
        self.partial_sums = torch.empty((chains, segments, 3), dtype=torch.float64)
        self.multiplier = torch.zeros(chains, dtype=torch.float64)
        self.reachable = torch.ones(chains, dtype=torch.uint8)
        self.kinetic_energy = torch.zeros(chains, dtype=torch.float64)


def metric_sums(
    weights: torch.Tensor,
    inverse_masses: torch.Tensor,
    *,
    workspace: StepWorkspace,
    threads: int | None = None,
) -> torch.Tensor:
    """Σ w²/M of each chain, (C,) float64, bit for bit what a step leaves in ``metric``."""
    chains, parameters = check_arrays(
        "metric_sums", weights=weights, inverse_masses=inverse_masses, workspace=workspace
    )
    metric = torch.empty(chains, dtype=torch.float64)
    _core.metric_sums(
        chains=chains,
        parameters=parameters,
        weights=weights.data_ptr(),
        inverse_masses=inverse_masses.data_ptr(),
        partial_sums=workspace.partial_sums.data_ptr(),
        metric=metric.data_ptr(),
        threads=thread_count("metric_sums", threads),
    )
    return metric


def langevin_step(
    weights: torch.Tensor,
    momenta: torch.Tensor,
    gradient: torch.Tensor,
    inverse_masses: torch.Tensor,
    noise_scales: torch.Tensor,
    *,
    coefficients: torch.Tensor,
    metric: torch.Tensor,
    chain_ids: torch.Tensor,
    workspace: StepWorkspace,
    seed: int,
    step: int,
    threads: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of every chain, in place on ``weights``, ``momenta`` and ``metric``.

    Parameters
    ----------
    weights, momenta: (C, N) float32, updated.
    gradient, inverse_masses, noise_scales: (C, N) float32; dU/dw, 1/M and s.
    coefficients: (C, 5) float64 from :func:`step_coefficients`; norm2 = ``UNCONSTRAINED`` leaves
    the sphere out.
    metric: (C,) float64, Σ w²/M of the weights as they come in (:func:`metric_sums`); updated.
    chain_ids: (C,) int64, the identity that the noise depends on.
    threads: default torch.get_num_threads(); the bits do not depend on it.

    Returns
    -------
    multiplier (C,) float64, l = λ dt²; reachable (C,) uint8, 0 for a chain whose proposal left the
    sphere's reach or is not finite: its weights,
    momenta and metric are untouched. Both are the workspace's own, overwritten by the next step.

    Raises ValueError naming the argument whose shape, dtype or memory layout is wrong.
    """
    chains, parameters = check_arrays(
        "langevin_step",
        weights=weights,
        momenta=momenta,
        gradient=gradient,
        inverse_masses=inverse_masses,
        noise_scales=noise_scales,
        workspace=workspace,
    )
    check_chain_arrays("langevin_step", chains, coefficients, metric, chain_ids)
    check_counter("langevin_step", seed, step)
    _core.langevin_step(
        chains=chains,
        parameters=parameters,
        weights=weights.data_ptr(),
        momenta=momenta.data_ptr(),
        gradient=gradient.data_ptr(),
        inverse_masses=inverse_masses.data_ptr(),
        noise_scales=noise_scales.data_ptr(),
        proposal=workspace.proposal.data_ptr(),
        partial_sums=workspace.partial_sums.data_ptr(),
        coefficients=coefficients.data_ptr(),
        metric=metric.data_ptr(),
        multiplier=workspace.multiplier.data_ptr(),
        reachable=workspace.reachable.data_ptr(),
        chain_ids=chain_ids.data_ptr(),
        seed=seed,
        step=step,
        threads=thread_count("langevin_step", threads),
    )
    return workspace.multiplier, workspace.reachable


def langevin_momenta(
    weights: torch.Tensor,
    momenta: torch.Tensor,
    gradient: torch.Tensor,
    inverse_masses: torch.Tensor,
    noise_scales: torch.Tensor,
    *,
    coefficients: torch.Tensor,
    metric: torch.Tensor,
    chain_ids: torch.Tensor,
    workspace: StepWorkspace,
    seed: int,
    step: int,
    out: torch.Tensor,
    threads: int | None = None,
) -> torch.Tensor:
    """Full-step momenta into ``out`` (C, N); returns the kinetic energy Σ p²/2M, (C,) float64.

        p = a (Π - b g) + s η';   on the sphere  p -= w Σ(p w/M) / Σ(w²/M)   (Eq. 38-40)

    With a = c1, b = dt/2 and s² = k² + v (dt m1/2)² this is the second half of the paper's step,
    and what the kinetic energy of the
    leapfrog scheme needs. ``out`` may be ``momenta``. Arguments as for :func:`langevin_step`;
    nothing but ``out`` changes.
    """
    chains, parameters = check_arrays(
        "langevin_momenta",
        weights=weights,
        momenta=momenta,
        gradient=gradient,
        inverse_masses=inverse_masses,
        noise_scales=noise_scales,
        out=out,
        workspace=workspace,
    )
    check_chain_arrays("langevin_momenta", chains, coefficients, metric, chain_ids)
    check_counter("langevin_momenta", seed, step)
    _core.langevin_momenta(
        chains=chains,
        parameters=parameters,
        weights=weights.data_ptr(),
        momenta=momenta.data_ptr(),
        gradient=gradient.data_ptr(),
        inverse_masses=inverse_masses.data_ptr(),
        noise_scales=noise_scales.data_ptr(),
        full_momenta=out.data_ptr(),
        partial_sums=workspace.partial_sums.data_ptr(),
        coefficients=coefficients.data_ptr(),
        metric=metric.data_ptr(),
        kinetic_energy=workspace.kinetic_energy.data_ptr(),
        chain_ids=chain_ids.data_ptr(),
        seed=seed,
        step=step,
        threads=thread_count("langevin_momenta", threads),
    )
    return workspace.kinetic_energy


def check_arrays(
    op: str, *, weights: torch.Tensor, workspace: StepWorkspace, **others: torch.Tensor
) -> tuple[int, int]:
    """Check every (C, N) argument against ``weights``; returns (C, N)."""
    if weights.ndim != 2:
        raise ValueError(f"{op}: weights must be (C, N) float32, got {tuple(weights.shape)}")
    for name, tensor in {"weights": weights, **others, "workspace": workspace.proposal}.items():
        if tensor.shape != weights.shape or tensor.dtype != torch.float32:
            raise ValueError(
                f"{op}: {name} must be {tuple(weights.shape)} float32, "
                f"got {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            )
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(
                f"{op}: {name} must be contiguous on the CPU, "
                f"got strides {tensor.stride()} on {tensor.device}"
            )
    return weights.shape[0], weights.shape[1]


def check_chain_arrays(
    op: str,
    chains: int,
    coefficients: torch.Tensor,
    metric: torch.Tensor,
    chain_ids: torch.Tensor,
) -> None:
    """ValueError unless the small arrays are (C, 5), (C,) and (C,)."""
    expected = {
        "coefficients": (coefficients, (chains, 5), torch.float64),
        "metric": (metric, (chains,), torch.float64),
        "chain_ids": (chain_ids, (chains,), torch.int64),
    }
    for name, (tensor, shape, dtype) in expected.items():
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(
                f"{op}: {name} must be {shape} contiguous {str(dtype).removeprefix('torch.')}, "
                f"got {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            )
