"""Standard normals and uniforms of the counter-based generator.

Philox4x32-10 with counter (index // 4, chain, step, stream | step >> 32) and key = seed: every
number is a function of
(seed, stream, chain, step, index), so any grid, thread count or device draws the same bits.
"""

from __future__ import annotations

from enum import IntEnum

import torch

from thermosphere import _core
from thermosphere.ops.backends import on_device, step_backend, stream_handle


class Stream(IntEnum):
    """What a draw is for; draws of different streams are independent. Values as in
    csrc/philox.h."""

    NOISE = 0
    MOMENTUM_NOISE = 1
    REDRAW = 2
    MINIBATCH = 3
    MINIBATCH_END = 4
    ESTIMATE = 5
    DECISION = 6
    TRAJECTORY = 7
    ACCEPTANCE = 8
    LENGTH = 9
    CURVATURE = 10
    PROBE = 11
    SUBSET = 12
    DROPOUT = 13


def check_counter(op: str, seed: int, step: int) -> None:
    """Raise ValueError where seed or step do not fit the generator's words."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"{op}: seed must be in [0, 2**64), got {seed}")
    if not 0 <= step < 2**56:
        raise ValueError(f"{op}: step must be in [0, 2**56), got {step}")


def uniform(*, seed: int, stream: Stream, chain: int, step: int) -> float:
    """One number in [0, 1) of one chain at one step: the first word of the draw in units of 2⁻³².

    Raises ValueError where an argument is out of range.
    """
    check_counter("uniform", seed, step)
    if not 0 <= chain < 2**32:
        raise ValueError(f"uniform: chain must be in [0, 2**32), got {chain}")
    counter = [0, chain, step & 0xFFFFFFFF, (step >> 32) | (int(stream) << 24)]
    return _core.philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32])[0] * 2.0**-32


def normals(
    *,
    seed: int,
    stream: Stream,
    chain: int,
    step: int,
    count: int,
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> torch.Tensor:
    """Standard normals ``(count,)`` float32 of one chain at one step, the same bits on every device
    and backend (ops/backends.py).

    Box-Muller with polynomials of our own, tails to 6.7 standard deviations. Raises ValueError
    where an argument is out of range.
    """
    check_counter("normals", seed, step)
    if not 0 <= chain < 2**32:
        raise ValueError(f"normals: chain must be in [0, 2**32), got {chain}")
    if count < 0:
        raise ValueError(f"normals: count must be >= 0, got {count}")
    out = torch.empty(count, dtype=torch.float32, device=device)
    backend = step_backend("normals", out.device, backend)
    if count == 0:
        return out
    draw = {"seed": seed, "stream": int(stream), "chain": chain, "step": step}
    with on_device(out.device):
        if backend == "cpu":
            _core.normals(**draw, count=count, out=out.data_ptr())
        elif backend == "cuda":
            _core.normals_cuda(
                **draw, count=count, out=out.data_ptr(), cuda_stream=stream_handle(out.device)
            )
        else:
            from thermosphere.ops import langevin_step_triton

            langevin_step_triton.normals(**draw, out=out)
    return out


def chain_normals(
    *,
    seed: int,
    stream: Stream,
    chain_ids: torch.Tensor,
    step: int,
    count: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """:func:`normals` of each of these chains, (C, count) float32, chain_ids (C,) int64."""
    drawn = [
        normals(seed=seed, stream=stream, chain=chain, step=step, count=count, device=device)
        for chain in chain_ids.tolist()
    ]
    return torch.stack(drawn)
