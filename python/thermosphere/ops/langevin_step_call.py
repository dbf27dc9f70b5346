"""The step's calls on plain tensors: checked, sent to the backend, and registered with
torch.library (``torch.ops.thermosphere.langevin_step`` and ``langevin_momenta``), so that
torch.compile takes them.

Arguments and formulas are those of langevin_step.py; scratch and outputs are those of its
StepWorkspace. Seeds from 2**63 on come as the negative number of the same 64 bits, since a schema
knows no larger integer.
"""

from __future__ import annotations

import torch

from thermosphere import _core
from thermosphere.ops.arguments import thread_count
from thermosphere.ops.backends import check_backend_device, on_device, stream_handle


def step_call(
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
    blocks_done: torch.Tensor,
    backend: str,
    seed: int,
    step: int,
    advance: bool,
    threads: int | None,
) -> None:
    """One step of every chain, in place. ValueError naming the argument that does not fit."""
    op = "langevin_step"
    chains, _ = check_arrays(
        op,
        weights=weights,
        momenta=momenta,
        gradient=gradient,
        inverse_masses=inverse_masses,
        noise_scales=noise_scales,
        workspace=proposal,
    )
    check_chain_arrays(op, chains, coefficients, metric, chain_ids, weights.device)
    _check_scratch(op, weights, partial_sums, blocks_done, multiplier=multiplier)
    _check(op, "workspace.reachable", reachable, (chains,), torch.uint8, weights.device)
    _check_counter(op, weights, moves, failed_move, advance)
    arrays = {
        "weights": weights,
        "momenta": momenta,
        "gradient": gradient,
        "inverse_masses": inverse_masses,
        "noise_scales": noise_scales,
        "proposal": proposal,
        "partial_sums": partial_sums,
        "coefficients": coefficients,
        "metric": metric,
        "multiplier": multiplier,
        "reachable": reachable,
        "chain_ids": chain_ids,
        "moves": moves,
        "failed_move": failed_move,
    }
    numbers = {"seed": seed % 2**64, "step": step, "advance": advance}
    _run(op, backend, arrays, numbers, blocks_done, threads)


def momenta_call(
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
    blocks_done: torch.Tensor,
    backend: str,
    seed: int,
    step: int,
    advance: bool,
    threads: int | None,
) -> None:
    """Full-step momenta and kinetic energy. ValueError naming the argument that does not fit."""
    op = "langevin_momenta"
    chains, _ = check_arrays(
        op,
        weights=weights,
        momenta=momenta,
        gradient=gradient,
        inverse_masses=inverse_masses,
        noise_scales=noise_scales,
        out=full_momenta,
    )
    check_chain_arrays(op, chains, coefficients, metric, chain_ids, weights.device)
    _check_scratch(op, weights, partial_sums, blocks_done, kinetic_energy=kinetic_energy)
    _check_counter(op, weights, moves, failed_move, advance)
    arrays = {
        "weights": weights,
        "momenta": momenta,
        "gradient": gradient,
        "inverse_masses": inverse_masses,
        "noise_scales": noise_scales,
        "full_momenta": full_momenta,
        "partial_sums": partial_sums,
        "coefficients": coefficients,
        "metric": metric,
        "kinetic_energy": kinetic_energy,
        "chain_ids": chain_ids,
        "moves": moves,
        "failed_move": failed_move,
    }
    numbers = {"seed": seed % 2**64, "step": step, "advance": advance}
    _run(op, backend, arrays, numbers, blocks_done, threads)


def metric_call(
    weights: torch.Tensor,
    inverse_masses: torch.Tensor,
    partial_sums: torch.Tensor,
    metric: torch.Tensor,
    blocks_done: torch.Tensor,
    backend: str,
    threads: int | None,
) -> None:
    """Σ w²/M of each chain into ``metric``. ValueError naming the argument that does not fit."""
    op = "metric_sums"
    check_arrays(op, weights=weights, inverse_masses=inverse_masses)
    _check_scratch(op, weights, partial_sums, blocks_done, metric=metric)
    arrays: dict[str, torch.Tensor | None] = {
        "weights": weights,
        "inverse_masses": inverse_masses,
        "partial_sums": partial_sums,
        "metric": metric,
    }
    _run(op, backend, arrays, {}, blocks_done, threads)


step_op = torch.library.custom_op(
    "thermosphere::langevin_step",
    step_call,
    mutates_args=(
        "weights",
        "momenta",
        "proposal",
        "partial_sums",
        "metric",
        "multiplier",
        "reachable",
        "moves",
        "failed_move",
        "blocks_done",
    ),
)
momenta_op = torch.library.custom_op(
    "thermosphere::langevin_momenta",
    momenta_call,
    mutates_args=("full_momenta", "partial_sums", "kinetic_energy", "moves", "blocks_done"),
)


@step_op.register_fake
@momenta_op.register_fake
def _changes_its_arguments_alone(*arguments: object) -> None:
    """Nothing is returned."""


def _run(
    op: str,
    backend: str,
    arrays: dict[str, torch.Tensor | None],
    numbers: dict[str, int],
    blocks_done: torch.Tensor,
    threads: int | None,
) -> None:
    weights = arrays["weights"]
    assert weights is not None
    device = weights.device
    check_backend_device(op, backend, device)
    if backend == "triton":
        from thermosphere.ops import langevin_step_triton

        with on_device(device):
            getattr(langevin_step_triton, op)(**arrays, **numbers)
        return
    chains, parameters = weights.shape
    call = {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in arrays.items()}
    call |= numbers | {"chains": chains, "parameters": parameters}
    if backend == "cpu":
        getattr(_core, op)(**call, threads=thread_count(op, threads))
        return
    call |= {"blocks_done": blocks_done.data_ptr(), "stream": stream_handle(device)}
    with on_device(device):
        getattr(_core, f"{op}_cuda")(**call)


def check_arrays(op: str, *, weights: torch.Tensor, **others: torch.Tensor) -> tuple[int, int]:
    """Check every (C, N) argument against ``weights``; returns (C, N)."""
    shape, device = weights.shape, weights.device  # read once: each read makes an object
    if len(shape) != 2:
        raise ValueError(f"{op}: weights must be (C, N) float32, got {tuple(shape)}")
    for name, tensor in {"weights": weights, **others}.items():
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise ValueError(
                f"{op}: {name} must be {tuple(shape)} float32, "
                f"got {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            )
        if tensor.device != device or not tensor.is_contiguous():
            raise ValueError(
                f"{op}: {name} must be contiguous on {device}, "
                f"got strides {tensor.stride()} on {tensor.device}"
            )
    return shape[0], shape[1]


def check_chain_arrays(
    op: str,
    chains: int,
    coefficients: torch.Tensor,
    metric: torch.Tensor,
    chain_ids: torch.Tensor,
    device: torch.device,
) -> None:
    """ValueError unless the small arrays are (C, 5), (C,) and (C,)."""
    _check(op, "coefficients", coefficients, (chains, 5), torch.float64, device)
    _check(op, "metric", metric, (chains,), torch.float64, device)
    _check(op, "chain_ids", chain_ids, (chains,), torch.int64, device)


def _check_scratch(
    op: str,
    weights: torch.Tensor,
    partial_sums: torch.Tensor,
    blocks_done: torch.Tensor,
    **outputs: torch.Tensor,
) -> None:
    chains, parameters = weights.shape
    segments = -(-parameters // _core.segment_elements)
    shape, device = (chains, segments, 3), weights.device
    _check(op, "workspace.partial_sums", partial_sums, shape, torch.float64, device)
    _check(op, "workspace.blocks_done", blocks_done, (chains + 1,), torch.int32, device)
    for name, tensor in outputs.items():
        _check(op, f"workspace.{name}", tensor, (chains,), torch.float64, device)


def _check_counter(
    op: str,
    weights: torch.Tensor,
    moves: torch.Tensor | None,
    failed_move: torch.Tensor | None,
    advance: bool,
) -> None:
    if moves is not None:
        _check(op, "counter.moves", moves, (1,), torch.int64, weights.device)
    elif advance:
        raise ValueError(f"{op}: advance needs a counter")
    if failed_move is not None:
        shape = (weights.shape[0],)
        _check(op, "counter.failed_move", failed_move, shape, torch.int64, weights.device)


def _check(
    op: str,
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{op}: {name} must be {shape} contiguous {str(dtype).removeprefix('torch.')}, "
            f"got {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        )
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, got {tensor.device}")
