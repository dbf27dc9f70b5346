"""The step in Triton, for a GPU on which the extension's CUDA kernels cannot run: the launches of
langevin_step_kernels.py.

Arguments are those of langevin_step_call.py, which checks them.
"""

from __future__ import annotations

import torch
import triton

from thermosphere import _core
from thermosphere.ops.langevin_step_kernels import (
    finish_kernel,
    metric_kernel,
    momenta_kernel,
    normals_kernel,
    project_kernel,
    propose_kernel,
    root_kernel,
    tangent_kernel,
)

CHUNK = 1024  # elements at a time: eight a thread of four warps, which spills nothing
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def _sizes(weights: torch.Tensor) -> tuple[int, int, int, int]:
    """C, N, segments of a chain, and these padded to a power of two."""
    chains, parameters = weights.shape
    segments = -(-parameters // _core.segment_elements)
    return chains, parameters, segments, triton.next_power_of_2(segments)


def metric_sums(
    *,
    weights: torch.Tensor,
    inverse_masses: torch.Tensor,
    partial_sums: torch.Tensor,
    metric: torch.Tensor,
) -> None:
    chains, n, segments, padded = _sizes(weights)
    size = {"SEGMENT": _core.segment_elements, "CHUNK": CHUNK, **OPTIONS}
    metric_kernel[(chains * segments,)](weights, inverse_masses, partial_sums, n, segments, **size)
    finish_kernel[(chains,)](
        partial_sums, metric, None, None, None, segments, 0, 1.0, False, padded, **OPTIONS
    )


def langevin_step(
    *,
    weights: torch.Tensor,
    momenta: torch.Tensor,
    gradient: torch.Tensor,
    inverse_masses: torch.Tensor,
    noise_scales: torch.Tensor,
    proposal: torch.Tensor,
    partial_sums: torch.Tensor,
    coefficients: torch.Tensor,
    metric: torch.Tensor,
    multiplier: torch.Tensor,
    reachable: torch.Tensor,
    chain_ids: torch.Tensor,
    moves: torch.Tensor | None,
    failed_move: torch.Tensor | None,
    seed: int,
    step: int,
    advance: bool,
) -> None:
    chains, n, segments, padded = _sizes(weights)
    size = {"SEGMENT": _core.segment_elements, "CHUNK": CHUNK, **OPTIONS}
    propose_kernel[(chains * segments,)](
        weights,
        momenta,
        gradient,
        inverse_masses,
        noise_scales,
        proposal,
        partial_sums,
        coefficients,
        metric,
        chain_ids,
        moves,
        seed,
        step,
        n,
        segments,
        **size,
    )
    root_kernel[(chains,)](
        partial_sums,
        coefficients,
        multiplier,
        reachable,
        moves,
        failed_move,
        step,
        segments,
        padded,
        **OPTIONS,
    )
    project_kernel[(chains * segments,)](
        weights,
        momenta,
        proposal,
        inverse_masses,
        partial_sums,
        coefficients,
        multiplier,
        reachable,
        n,
        segments,
        **size,
    )
    finish_kernel[(chains,)](
        partial_sums, metric, reachable, None, moves, segments, 0, 1.0, advance, padded, **OPTIONS
    )


def langevin_momenta(
    *,
    weights: torch.Tensor,
    momenta: torch.Tensor,
    gradient: torch.Tensor,
    inverse_masses: torch.Tensor,
    noise_scales: torch.Tensor,
    full_momenta: torch.Tensor,
    partial_sums: torch.Tensor,
    coefficients: torch.Tensor,
    metric: torch.Tensor,
    kinetic_energy: torch.Tensor,
    chain_ids: torch.Tensor,
    moves: torch.Tensor | None,
    failed_move: torch.Tensor | None,
    seed: int,
    step: int,
    advance: bool,
) -> None:
    chains, n, segments, padded = _sizes(weights)
    size = {"SEGMENT": _core.segment_elements, "CHUNK": CHUNK, **OPTIONS}
    momenta_kernel[(chains * segments,)](
        weights,
        momenta,
        gradient,
        inverse_masses,
        noise_scales,
        full_momenta,
        partial_sums,
        coefficients,
        metric,
        chain_ids,
        moves,
        failed_move,
        seed,
        step,
        n,
        segments,
        **size,
    )
    tangent_kernel[(chains * segments,)](
        weights,
        inverse_masses,
        full_momenta,
        partial_sums,
        coefficients,
        metric,
        failed_move,
        n,
        segments,
        PADDED=padded,
        **size,
    )
    finish_kernel[(chains,)](
        partial_sums,
        kinetic_energy,
        None,
        failed_move,
        moves,
        segments,
        1,
        0.5,
        advance,
        padded,
        **OPTIONS,
    )


def normals(*, seed: int, stream: int, chain: int, step: int, out: torch.Tensor) -> None:
    count = out.numel()
    normals_kernel[(-(-count // CHUNK),)](out, seed, chain, step, count, stream, CHUNK, **OPTIONS)
