"""A move that cannot be made: one clear line with the numbers that matter."""

from __future__ import annotations

import torch

from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.state import LangevinState


class UnreachableSphereError(RuntimeError):
    """A proposal left the sphere's reach, or is not finite. The chain keeps its last good weights
    and momenta."""


def unreachable(
    state: LangevinState,
    options: LangevinOptions,
    *,
    row: int,
    step: int,
    losses: torch.Tensor,  # (C,), of the failed move
    gradient: torch.Tensor,  # (C, N), of the failed move
) -> UnreachableSphereError:
    """The error of the chain in this row, which failed at this step."""
    numbers = (losses[row], gradient[row], state.momenta[row])
    if all(bool(torch.isfinite(number).all()) for number in numbers):
        what = "left the sphere's reach"
    else:
        what = "has a loss, gradient or momentum that is not finite"
    return UnreachableSphereError(
        f"sampler: chain {int(state.chain_ids[row])} {what} at step {step}: "
        f"dt = {options.dt:g}, T_ratio = {float(state.t_ratio[row]):.3g}, "
        f"T = {float(state.temperature[row]):.3g}; lower dt or T_ratio"
    )
