"""A potential with a harmonic term on the weights: ridge and tether."""

from __future__ import annotations

import torch

from thermosphere.models.layout import Layout
from thermosphere.models.potential import Gradient, Potential, check_weights, device_of
from thermosphere.ops.langevin_burst import FusedPotential
from thermosphere.ops.minibatch import Minibatch


class Regularised:
    """U(w) + (λ/2)|w|² + (γ/2)|w - w_ref|², λ = `ridge`, γ = `tether`, w_ref = `reference`.

    `reference` is (N,) or (1, N) for all chains or (C, N), one row a chain. The harmonic terms are
    exact, also in a mini-batch, and part of U: of what a sampler returns, too. The loss without
    them is `potential(state.weights)[0]` of the potential inside.

    With a tether and `constrained=False` a sampler stays around the reference, as local learning
    coefficients need it: γ in units of T.

    Raises ValueError for a negative or not finite constant, or a tether without a finite reference
    of N weights.
    """

    def __init__(
        self,
        potential: Potential,
        ridge: float = 0.0,
        tether: float = 0.0,
        reference: torch.Tensor | None = None,
    ) -> None:
        for name, value in (("ridge", ridge), ("tether", tether)):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"Regularised: {name} must be at least 0 and finite, got {value}")
        if tether > 0.0 and reference is None:
            raise ValueError("Regularised: a tether needs reference weights, got None")
        if reference is not None:
            if not isinstance(reference, torch.Tensor):
                raise ValueError(
                    f"Regularised: reference must be a tensor, got {type(reference).__name__}"
                )
            if reference.ndim not in (1, 2) or reference.shape[-1] != potential.parameters:
                raise ValueError(
                    "Regularised: reference must be (N,) or (C, N) with N = "
                    f"{potential.parameters}, got {tuple(reference.shape)}"
                )
            if not bool(reference.isfinite().all()):
                raise ValueError("Regularised: reference must be finite, got NaN or infinity")
            reference = reference.detach().clone()
            if reference.shape[:-1] == (1,):
                reference = reference[0]
        self.potential = potential
        self.ridge = ridge
        self.tether = tether
        # on the device beforehand: a transfer would wait, and not be captured
        self.reference = None if reference is None else reference.to(device_of(potential))

    @property
    def parameters(self) -> int:
        """N, the number of weights."""
        return self.potential.parameters

    @property
    def examples(self) -> int:
        """S, the number of examples."""
        return self.potential.examples

    @property
    def layout(self) -> Layout | None:
        """The layout of the potential inside, where it has one."""
        return getattr(self.potential, "layout", None)

    @property
    def device(self) -> torch.device:
        """Where the potential inside works."""
        return device_of(self.potential)

    @property
    def capturable(self) -> Gradient | None:
        """All of it as a CUDA graph can capture it; None where the potential inside cannot be."""
        inside: Gradient | None = getattr(self.potential, "capturable", None)
        if inside is None or not self._as_written:
            return None
        return lambda weights, batch: self._with_terms(weights, *inside(weights, batch))

    @property
    def noisy(self) -> Potential:
        """What is left without harmonic terms: the part that a mini-batch makes noisy."""
        inside: Potential = getattr(self.potential, "noisy", self.potential)
        return inside

    def harmonic_gradient(self, weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Slope of the harmonic terms, (R, N), at `weights` (R, N) of the chains `rows` (R,)."""
        gradient = self.ridge * weights
        if self.tether > 0.0 and self.reference is not None:
            if self.reference.ndim == 2 and len(self.reference) <= int(rows.max()):
                raise ValueError(
                    "Regularised: reference must be (N,) or have a row for every chain, "
                    f"got {tuple(self.reference.shape)}"
                )
            reference = self.reference if self.reference.ndim == 1 else self.reference[rows]
            gradient = gradient + self.tether * (weights - reference.to(weights))
        if isinstance(self.potential, Regularised):
            gradient = gradient + self.potential.harmonic_gradient(weights, rows)
        return gradient

    @property
    def fused(self) -> FusedPotential | None:
        """All of it as the extension runs it, for bursts of moves; None where the potential inside
        is not fused."""
        inside: FusedPotential | None = getattr(self.potential, "fused", None)
        if inside is None or not self._as_written:
            return None
        if inside.ridge > 0.0 or inside.tether > 0.0:  # one harmonic term only
            return None
        reference = self.reference
        return inside._replace(
            ridge=self.ridge,
            tether=self.tether,
            reference=None if reference is None else reference.float().contiguous(),
        )

    def __call__(
        self,
        weights: torch.Tensor,  # (C, N)
        batch: Minibatch | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses (C,), gradient (C, N)) with the harmonic terms. ValueError for other shapes."""
        check_weights("Regularised", weights, self.parameters)
        if self.reference is not None and self.reference.shape[:-1] not in ((), weights.shape[:1]):
            raise ValueError(
                f"Regularised: reference must be (N,) or ({len(weights)}, N), "
                f"got {tuple(self.reference.shape)}"
            )
        return self._with_terms(weights, *self.potential(weights, batch))

    @property
    def _as_written(self) -> bool:
        """Whether a call is this class's own: what else a subclass makes of it the kernels would
        leave out."""
        return type(self).__call__ is Regularised.__call__

    def _with_terms(
        self, weights: torch.Tensor, losses: torch.Tensor, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.ridge > 0.0:
            losses = losses + 0.5 * self.ridge * weights.to(losses.dtype).square().sum(dim=1)
            gradient = gradient + self.ridge * weights
        if self.tether > 0.0 and self.reference is not None:
            away = weights - self.reference.to(weights)
            losses = losses + 0.5 * self.tether * away.to(losses.dtype).square().sum(dim=1)
            gradient = gradient + self.tether * away
        return losses, gradient
