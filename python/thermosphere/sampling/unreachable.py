"""A move that cannot be made: one clear line with the numbers that matter."""

from __future__ import annotations

import torch

from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.state import LangevinState


class UnreachableSphereError(RuntimeError):
    """A proposal left the sphere's reach, or is not finite. The chain keeps its last good weights
    and momenta; in scheme paper, where the second half of a move may be what is not finite, the
    weights alone."""


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
    finite = all(bool(torch.isfinite(number).all()) for number in numbers)
    return _error(state, options, row, step, finite=finite)


def check_gradient(
    state: LangevinState,
    options: LangevinOptions,
    rows: torch.Tensor,  # (R,) int64, of the state
    gradient: torch.Tensor,  # (R, N), at their weights
) -> None:
    """Raises where a gradient is not finite: ValueError at the start, UnreachableSphereError
    later."""
    finite = gradient.isfinite().all(1).cpu()
    if bool(finite.all()):
        return
    row = int(rows[~finite][0])
    if state.step:
        raise _error(state, options, row, state.step, finite=False)
    raise ValueError(
        "init: the loss gradient must be finite at the start, got NaN or infinity in chain "
        f"{int(state.chain_ids[row])}"
    )


def check_momenta(state: LangevinState, options: LangevinOptions) -> None:
    """Raises UnreachableSphereError where the second half of the last move left momenta that are
    not finite; those of a move before stop the next one."""
    if options.scheme != "paper":
        return
    finite = state.momenta.isfinite().all(1).cpu()
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise _error(state, options, row, state.step - 1, finite=False)


def _error(
    state: LangevinState, options: LangevinOptions, row: int, step: int, *, finite: bool
) -> UnreachableSphereError:
    what, where = "left the sphere's reach", ""
    if not finite:
        what = "has a loss, gradient or momentum that is not finite"
        where = ", unless the loss itself is not finite there"
    # Masses that follow the curvature or the noise go as dt², so that dt does not change a move.
    remedy = "stiffness" if options.batch is None else "t_ratio (or displacement, its default's)"
    return UnreachableSphereError(
        f"sampler: chain {int(state.chain_ids[row])} {what} at step {step}: "
        f"dt = {options.dt:g}, T_ratio = {float(state.t_ratio[row]):.3g}, "
        f"T = {float(state.temperature[row]):.3g}; lower {remedy}, or with masses by hand dt{where}"
    )
