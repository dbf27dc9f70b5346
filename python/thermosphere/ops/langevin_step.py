"""The fused constrained pseudo-Langevin step on flat weight vectors (Eq. 34-41 of arXiv
2603.29529).

    Π̃ = a Π - b g + s η          g = gradient + τ (w/M) / Σ(w²/M)
    w̃ = w + (dt/M) Π̃
    w' = w̃ + l w/M               l of smaller magnitude with |w'|² = Q
    Π  = Π̃ + (l/dt) w

The columns of ``coefficients`` choose the scheme (sampling/derived.py does): leapfrog, or the
first half of the paper's. τ is the temperature where the metric correction is on and 0 where it is
off. The noise η is made inside from (seed, chain, step, index).
The formula itself is in langevin_step_ref.py.

Tensors on the CPU go to the extension, tensors on a GPU to its CUDA kernels or, where those cannot
run, to Triton (ops/backends.py). CPU and CUDA make the same bits; Triton draws the same noise, and
its sums differ in their last bits. Nothing waits for a GPU, so that calls can be captured in a CUDA
graph; what changes from replay to replay is in a :class:`MoveCounter`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from thermosphere import _core
from thermosphere.ops.backends import step_backend
from thermosphere.ops.langevin_step_call import (
    check_arrays,
    metric_call,
    momenta_call,
    momenta_op,
    step_call,
    step_op,
)
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


class MoveCounter(NamedTuple):
    """Where moves that are replayed without the host keep their place, on the tensors' device."""

    moves: torch.Tensor  # (1,) int64, added to `step`
    failed_move: torch.Tensor  # (C,) int64, -1, or the first move that failed

    @classmethod
    def start(
        cls, chains: int, *, moves: int = 0, device: torch.device | str = "cpu"
    ) -> MoveCounter:
        """No chain has failed, and `moves` moves are behind."""
        return cls(
            torch.tensor([moves], dtype=torch.int64, device=device),
            torch.full((chains,), -1, dtype=torch.int64, device=device),
        )


class StepWorkspace:
    """Scratch and small outputs of the step for (C, N), made once so that a step allocates
    nothing. `backend` says what runs a step with this workspace (ops/backends.py)."""

    def __init__(
        self,
        chains: int,
        parameters: int,
        *,
        device: torch.device | str = "cpu",
        backend: str = "auto",
    ) -> None:
        if chains < 1 or parameters < 1:
            raise ValueError(
                f"StepWorkspace: expected chains and parameters >= 1, got ({chains}, {parameters})"
            )
        self.backend = step_backend("StepWorkspace", torch.device(device), backend)
        segments = -(-parameters // _core.segment_elements)
        self.proposal = torch.empty((chains, parameters), dtype=torch.float32, device=device)
        self.partial_sums = torch.empty((chains, segments, 3), dtype=torch.float64, device=device)
        self.multiplier = torch.zeros(chains, dtype=torch.float64, device=device)
        self.reachable = torch.ones(chains, dtype=torch.uint8, device=device)
        self.kinetic_energy = torch.zeros(chains, dtype=torch.float64, device=device)
        # Zero between calls: blocks of a chain that are through, and chains that are through.
        self.blocks_done = torch.zeros(chains + 1, dtype=torch.int32, device=device)


def metric_sums(
    weights: torch.Tensor,
    inverse_masses: torch.Tensor,
    *,
    workspace: StepWorkspace,
    threads: int | None = None,
) -> torch.Tensor:
    """Σ w²/M of each chain, (C,) float64, bit for bit what a step leaves in ``metric``."""
    metric = torch.empty(weights.shape[:1], dtype=torch.float64, device=weights.device)
    metric_call(
        weights,
        inverse_masses,
        workspace.partial_sums,
        metric,
        workspace.blocks_done,
        backend=workspace.backend,
        threads=threads,
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
    counter: MoveCounter | None = None,
    advance: bool = False,
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
    counter: the noise is that of move ``step + counter.moves``. A chain whose step fails has its
    move written to ``counter.failed_move`` and stands still in all later calls; read it between
    replays.
    advance: add 1 to ``counter.moves`` at the end.
    threads: on the CPU, default torch.get_num_threads(); the bits do not depend on it.

    All tensors on one device, that of the workspace.

    Returns
    -------
    multiplier (C,) float64, l = λ dt²; reachable (C,) uint8, 0 for a chain whose proposal left the
    sphere's reach or is not finite: its weights,
    momenta and metric are untouched. Both are the workspace's own, overwritten by the next step.

    Raises ValueError naming the argument whose shape, dtype, device or memory layout is wrong,
    RuntimeError where a GPU refuses the launch.
    """
    check_counter("langevin_step", seed, step)
    call = step_op if torch.compiler.is_compiling() else step_call
    call(
        weights,
        momenta,
        gradient,
        inverse_masses,
        noise_scales,
        workspace.proposal,
        workspace.partial_sums,
        coefficients,
        metric,
        workspace.multiplier,
        workspace.reachable,
        chain_ids,
        None if counter is None else counter.moves,
        None if counter is None else counter.failed_move,
        workspace.blocks_done,
        backend=workspace.backend,
        seed=_signed(seed),
        step=step,
        advance=advance,
        threads=threads,
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
    counter: MoveCounter | None = None,
    advance: bool = False,
    threads: int | None = None,
) -> torch.Tensor:
    """Full-step momenta into ``out`` (C, N); returns the kinetic energy Σ p²/2M, (C,) float64.

        p = a (Π - b g) + s η';   on the sphere  p -= w Σ(p w/M) / Σ(w²/M)   (Eq. 38-40)

    With a = c1, b = dt/2 and s² = k² + v (dt m1/2)² this is the second half of the paper's step,
    and what the kinetic energy of the
    leapfrog scheme needs. ``out`` may be ``momenta``. Arguments as for :func:`langevin_step`;
    nothing but ``out`` changes. A chain with a ``failed_move`` keeps its ``out`` and energy.
    """
    check_arrays("langevin_momenta", weights=weights, workspace=workspace.proposal)
    check_counter("langevin_momenta", seed, step)
    call = momenta_op if torch.compiler.is_compiling() else momenta_call
    call(
        weights,
        momenta,
        gradient,
        inverse_masses,
        noise_scales,
        out,
        workspace.partial_sums,
        coefficients,
        metric,
        workspace.kinetic_energy,
        chain_ids,
        None if counter is None else counter.moves,
        None if counter is None else counter.failed_move,
        workspace.blocks_done,
        backend=workspace.backend,
        seed=_signed(seed),
        step=step,
        advance=advance,
        threads=threads,
    )
    return workspace.kinetic_energy


def _signed(seed: int) -> int:
    """The same 64 bits as the integers of a torch.library schema."""
    return seed - 2**64 if seed >= 2**63 else seed
