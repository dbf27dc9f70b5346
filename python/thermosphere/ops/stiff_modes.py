"""Masses of their own for the stiffest directions of U.

    M = D^1/2 (1 - V' R V)^-2 D^1/2

D is diagonal; the k rows of V are the leading eigenvectors of D^-1/2 (∂²U/∂w²) D^-1/2, and R brings
their curvatures down to that of the next one. Of a sampled transformer few modes are stiff, and
with them gone the time step is as long as the many soft ones let it be.

Momenta are kept in the units of D: Π = D^1/2 (1 - V' R V) D^-1/2 times the momentum of w, whose
thermal law is N(0, T D) and whose kinetic energy is Σ Π²/2D, as without modes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StiffModes:
    """V and R of C chains, on the device of the weights."""

    vectors: torch.Tensor  # (C, k, N) float32, V: rows orthogonal, of length 1 (or 0)
    shrink: torch.Tensor  # (C, k) float32, R in [0, 1)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """V x, (C, k, J), of x (C, J, N) float32."""
        return _each(self.vectors, x.transpose(1, 2))

    def expand(self, coefficients: torch.Tensor) -> torch.Tensor:
        """V' c, (C, J, N), of c (C, k, J) float32."""
        return _each(coefficients.transpose(1, 2), self.vectors)

    def shrunk(self, x: torch.Tensor) -> torch.Tensor:
        """(1 - V' R V) x, (C, N), of x (C, N) of any precision."""
        along = self.project(x[:, None].float())
        return x - self.expand(self.shrink[:, :, None] * along)[:, 0].to(x.dtype)

    def rows(self, rows: torch.Tensor) -> StiffModes:
        """Those of the chains in these rows, (R,) int64."""
        there = rows.to(self.vectors.device)
        return StiffModes(self.vectors[there], self.shrink[there])


def _each(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b chain by chain. On the CPU one after the other, so that the bits of a chain do not
    depend on how many there are."""
    if a.device.type != "cpu":
        return a @ b
    return torch.stack([one @ other for one, other in zip(a, b, strict=True)])
