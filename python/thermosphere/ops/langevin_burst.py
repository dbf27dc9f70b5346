"""k moves of the pseudo-Langevin sampler in one call: mini-batch, fused gradient, fused step, and
again (Eq. 34-41 of arXiv 2603.29529; csrc/langevin_burst*).

The moves are those of draw_minibatch, encoder_gradient and langevin_step one after another, to the
bit. With as many chains as threads a chain stays on one core.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from thermosphere import _core
from thermosphere.ops.arguments import check_tensor, thread_count
from thermosphere.ops.encoder_gradient import (
    EncoderData,
    EncoderShape,
    check_network,
    network_arguments,
)
from thermosphere.ops.langevin_step import StepWorkspace
from thermosphere.ops.langevin_step_call import check_arrays, check_chain_arrays
from thermosphere.ops.philox import check_counter


class FusedPotential(NamedTuple):
    """U(w) of a network on a set, + (ridge/2)|w|² + (tether/2)|w - reference|²."""

    shape: EncoderShape
    data: EncoderData
    ridge: float = 0.0
    tether: float = 0.0
    reference: torch.Tensor | None = None  # (N,) for every chain, or (C, N); float32


class HalfMoves(NamedTuple):
    """What the halves of a move need besides the state; see ops.langevin_step."""

    inverse_masses: torch.Tensor  # (C, N) float32
    step_scales: torch.Tensor  # (C, N) float32, standard deviation of the white noise of a step
    step_coefficients: torch.Tensor  # (C, 5) float64
    momenta_scales: torch.Tensor | None  # (C, N) float32; None: no second half (leapfrog)
    momenta_coefficients: torch.Tensor | None  # (C, 5) float64


class BurstWorkspace:
    """Scratch of bursts of (C, N) on batches of B, made once so that a burst allocates nothing.

    `gradient` (C, N), `losses` (C,) and `step.reachable` (C,) hold what the last move of each chain
    left.
    """

    def __init__(self, shape: EncoderShape, chains: int, parameters: int, batch: int) -> None:
        self.step = StepWorkspace(chains, parameters)
        self.gradient = torch.empty((chains, parameters), dtype=torch.float32)
        self.losses = torch.empty(chains, dtype=torch.float64)
        self.errors = torch.empty(chains, dtype=torch.float64)
        self.indices = torch.empty((chains, batch), dtype=torch.int64)
        self.example_weights = torch.empty((chains, batch), dtype=torch.float32)
        self.work = torch.empty(_work_floats(shape, chains), dtype=torch.float32)


def _work_floats(shape: EncoderShape, chains: int) -> int:
    return _core.langevin_burst_work_floats(
        network=shape.number(), sizes=shape.sizes(), chains=chains
    )


def langevin_burst(
    potential: FusedPotential,
    weights: torch.Tensor,
    momenta: torch.Tensor,
    halves: HalfMoves,
    *,
    metric: torch.Tensor,
    chain_ids: torch.Tensor,
    workspace: BurstWorkspace,
    loss_sums: torch.Tensor,
    seed: int,
    step: int,
    moves: int,
    batch: int | None,
    threads: int | None = None,
) -> torch.Tensor:
    """`moves` moves of every chain, in place on ``weights``, ``momenta``, ``metric`` and
    ``loss_sums``.

    Parameters
    ----------
    weights, momenta: (C, N) float32, updated.
    metric: (C,) float64, Σ w²/M of the weights as they come in (ops.langevin_step.metric_sums).
    chain_ids: (C,) int64, the identity that noise and mini-batches depend on.
    loss_sums: (C,) float64; the mini-batch loss of every move is added.
    step: number of the first move. batch: examples drawn a mini-batch; None: the whole set.
    threads: default torch.get_num_threads(); the bits do not depend on it.

    Returns
    -------
    completed (C,) int64: moves made. Fewer than ``moves`` where a proposal left the sphere's reach
    or was not finite: that chain stopped at its last good weights and momenta.

    Raises ValueError naming the argument that does not fit.
    """
    op = "langevin_burst"
    check_network(op, potential.shape, potential.data, weights)
    device = weights.device
    chains, parameters = check_arrays(
        op,
        weights=weights,
        momenta=momenta,
        inverse_masses=halves.inverse_masses,
        noise_scales=halves.step_scales,
        workspace=workspace.step.proposal,
        **({} if halves.momenta_scales is None else {"momenta_scales": halves.momenta_scales}),
    )
    check_chain_arrays(op, chains, halves.step_coefficients, metric, chain_ids, device)
    if halves.momenta_coefficients is not None:
        check_chain_arrays(op, chains, halves.momenta_coefficients, metric, chain_ids, device)
    if (halves.momenta_scales is None) != (halves.momenta_coefficients is None):
        raise ValueError(f"{op}: momenta_scales and momenta_coefficients go together")
    check_tensor(op, "loss_sums", loss_sums, (chains,), torch.float64)
    check_counter(op, seed, step)
    if moves < 1:
        raise ValueError(f"{op}: moves must be >= 1, got {moves}")
    reference = _checked_reference(op, potential, chains, parameters)
    sequences = len(potential.data.tokens)
    if batch is not None and batch < 1:
        raise ValueError(f"{op}: batch must be >= 1 or None, got {batch}")
    needed = _work_floats(potential.shape, chains)
    if workspace.work.numel() < needed:
        raise ValueError(
            f"{op}: workspace must be of a potential of these sizes, {needed} floats, "
            f"got {workspace.work.numel()}"
        )
    if batch is not None and workspace.indices.shape != (chains, batch):
        raise ValueError(
            f"{op}: workspace must be for batches {(chains, batch)}, "
            f"got {tuple(workspace.indices.shape)}"
        )
    completed = torch.empty(chains, dtype=torch.int64)
    scratch = workspace.step
    _core.langevin_burst(
        **network_arguments(potential.shape, potential.data),
        chains=chains,
        parameters=parameters,
        batch=sequences if batch is None else batch,
        weights=weights.data_ptr(),
        momenta=momenta.data_ptr(),
        inverse_masses=halves.inverse_masses.data_ptr(),
        step_scales=halves.step_scales.data_ptr(),
        momenta_scales=_address(halves.momenta_scales),
        step_coefficients=halves.step_coefficients.data_ptr(),
        momenta_coefficients=_address(halves.momenta_coefficients),
        metric=metric.data_ptr(),
        chain_ids=chain_ids.data_ptr(),
        ridge=potential.ridge,
        tether=potential.tether,
        reference=_address(reference),
        one_reference=reference is not None and reference.ndim == 1,
        indices=0 if batch is None else workspace.indices.data_ptr(),
        example_weights=0 if batch is None else workspace.example_weights.data_ptr(),
        gradient=workspace.gradient.data_ptr(),
        losses=workspace.losses.data_ptr(),
        errors=workspace.errors.data_ptr(),
        work=workspace.work.data_ptr(),
        proposal=scratch.proposal.data_ptr(),
        partial_sums=scratch.partial_sums.data_ptr(),
        multiplier=scratch.multiplier.data_ptr(),
        reachable=scratch.reachable.data_ptr(),
        kinetic_energy=scratch.kinetic_energy.data_ptr(),
        loss_sums=loss_sums.data_ptr(),
        completed=completed.data_ptr(),
        seed=seed,
        step=step,
        moves=moves,
        threads=thread_count(op, threads),
    )
    return completed


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _checked_reference(
    op: str, potential: FusedPotential, chains: int, parameters: int
) -> torch.Tensor | None:
    if potential.tether == 0.0:
        return None
    reference = potential.reference
    if reference is None or reference.shape not in ((parameters,), (chains, parameters)):
        got = None if reference is None else tuple(reference.shape)
        raise ValueError(
            f"{op}: reference must be ({parameters},) or ({chains}, {parameters}), got {got}"
        )
    check_tensor(op, "reference", reference, tuple(reference.shape), torch.float32)
    return reference
