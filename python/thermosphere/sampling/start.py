"""What a sampler is started from, checked once: weights, masses by hand, identities of the
chains."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch

from thermosphere.models.potential import Potential, device_of
from thermosphere.ops.arguments import checked_real, checked_whole


def checked_temperature(temperature: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
    """One T a chain, (C,) float64. Raises ValueError where one is not positive and finite."""
    try:
        values = torch.as_tensor(temperature, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"sampler: temperature must be one positive number a chain, got {temperature!r}"
        ) from None
    values = torch.atleast_1d(values)
    if values.ndim != 1 or not len(values) or not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(
            f"sampler: temperature must be one positive number a chain, got {values.tolist()}"
        )
    return values


def checked_seed(seed: int) -> int:
    """The seed. Raises ValueError unless it is a whole number in [0, 2**64)."""
    if not 0 <= checked_whole("sampler: seed", seed) < 2**64:
        raise ValueError(f"sampler: seed must be in [0, 2**64), got {seed}")
    return operator.index(seed)


def checked_threads(threads: int | None) -> int | None:
    """The number. Raises ValueError unless it is None or a whole number of at least 1."""
    if threads is None:
        return None
    if checked_whole("sampler: threads", threads) < 1:
        raise ValueError(f"sampler: threads must be >= 1, got {threads}")
    return operator.index(threads)


def checked_potential(potential: Potential) -> Potential:
    """The potential. Raises ValueError where it is none."""
    for name in ("parameters", "examples"):
        if not isinstance(getattr(potential, name, None), int):
            raise ValueError(
                f"sampler: potential must be a Potential (ModulePotential for a torch.nn.Module), "
                f"got {type(potential).__name__}"
            )
    return potential


def check_temperatures(method: str, own: torch.Tensor, wanted: torch.Tensor) -> None:
    """Raises ValueError where a state's temperatures (C,) are not the sampler's."""
    if not torch.equal(own.cpu(), wanted.cpu()):
        raise ValueError(
            f"{method}: the state must have the sampler's temperatures {wanted.tolist()}, got "
            f"{own.tolist()}; init(state.weights) of a sampler with another seed goes on at others "
            "(the same seed repeats the noise)"
        )


def check_device(method: str, weights: torch.Tensor, potential: Potential) -> None:
    """Raises ValueError where a state's weights are not where the potential works."""
    own, wanted = weights.device, device_of(potential)
    if own.type != wanted.type or wanted.index not in (None, own.index):
        raise ValueError(
            f"{method}: the state must be on the potential's device {wanted}, got {own}; "
            "LangevinState.from_tensors(state.tensors(), device) moves it"
        )


def checked_freedom(parameters: int, *, constrained: bool) -> None:
    """Raises ValueError where nothing can move: one weight on a sphere."""
    if constrained and parameters < 2:
        raise ValueError(
            f"init: a sphere must have at least 2 weights, got {parameters}; it cannot move"
        )


def checked_weights(
    weights: torch.Tensor,  # (N,), (1, N) or (C, N)
    chains: int,
    parameters: int,
    *,
    norm2: float | None,
    on_sphere: bool,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of the weights, (C, N) of this dtype, and their Q, (C,) float64; a `norm2` given
    rescales them to it. Raises ValueError for a wrong shape, numbers that are not finite, or |w|² =
    0 where it must not be."""
    try:
        weights = torch.as_tensor(weights)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"init: weights must be a tensor ({parameters},) or ({chains}, {parameters}), such as "
            f"potential.initial(), got {type(weights).__name__}"
        ) from None
    if weights.shape not in ((parameters,), (1, parameters), (chains, parameters)):
        raise ValueError(
            f"init: weights must be ({parameters},) or ({chains}, {parameters}), got "
            f"{tuple(weights.shape)}"
        )
    if not bool(torch.isfinite(weights).all()):
        raise ValueError("init: weights must be finite, got NaN or infinity")
    weights = weights.detach().to(dtype).expand(chains, parameters).clone()
    squared = (weights.double() ** 2).sum(1)
    if on_sphere and not bool((squared > 0).all()):
        raise ValueError("init: weights on a sphere must not all be zero, got |w|² = 0")
    if norm2 is not None:
        if isinstance(norm2, torch.Tensor) and norm2.numel() == 1:
            norm2 = norm2.item()
        if not 0 < checked_real("init: norm2", norm2) < math.inf:
            raise ValueError(f"init: norm2 must be finite and > 0, got {norm2}")
        weights *= (norm2 / squared).sqrt().to(dtype)[:, None]
        squared = torch.full_like(squared, norm2)
    return weights, squared


def checked_identities(chain_ids: Sequence[int] | None, chains: int) -> torch.Tensor:
    """Identities of the chains, (C,) int64, default 0 … C - 1. Raises ValueError where they are not
    distinct integers in [0, 2**32)."""
    try:
        ids = torch.arange(chains) if chain_ids is None else torch.as_tensor(list(chain_ids)).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"init: chain_ids must be {chains} distinct integers in [0, 2**32), got {chain_ids!r}"
        ) from None
    if (
        ids.is_floating_point()
        or ids.is_complex()
        or ids.shape != (chains,)
        or ids.unique().numel() != chains
        or not bool(((ids >= 0) & (ids < 2**32)).all())
    ):
        raise ValueError(
            f"init: chain_ids must be {chains} distinct integers in [0, 2**32), got {ids.tolist()}"
        )
    return ids.to(torch.int64)


def checked_masses(
    masses: torch.Tensor | float, chains: int, parameters: int, dtype: torch.dtype
) -> torch.Tensor:
    """Masses given by hand, (C, N) of this dtype. Raises ValueError for a wrong shape or where one
    is not positive and finite."""
    try:
        masses = torch.as_tensor(masses, dtype=dtype).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"init: masses must be a number, ({parameters},) or ({chains}, {parameters}), "
            f"got {masses!r}"
        ) from None
    if masses.shape not in ((), (parameters,), (1, parameters), (chains, parameters)):
        raise ValueError(
            f"init: masses must be a number, ({parameters},) or ({chains}, {parameters}), "
            f"got {tuple(masses.shape)}"
        )
    masses = masses.expand(chains, parameters).clone()
    right = (masses > 0) & masses.isfinite()
    if not bool(right.all()):
        raise ValueError(f"init: masses must be finite and > 0, got {float(masses[~right][0])}")
    return masses
