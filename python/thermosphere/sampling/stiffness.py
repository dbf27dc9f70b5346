"""The stiffest direction of U, how stiff the others are, and how long the rows of its Hessian: what
masses need that make the time step fit it.

In x = sqrt(M) w the leapfrog step is stable while ω dt < 2, ω² the largest eigenvalue of the
Hessian M^-1/2 (∂²U/∂w²) M^-1/2, and a harmonic mode of frequency ω is then sampled at the
temperature T / (1 - ω² dt²/4). Few modes of a network are stiff: the mean of the diagonal beside
the largest eigenvalue says by how much the mean mode, and with it ⟨U⟩, is hotter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from thermosphere.models.potential import Gradient
from thermosphere.ops.philox import Stream, chain_normals
from thermosphere.ops.stiff_modes import StiffModes

# The difference of two gradients over this share of |w|: float32 gradients are exact to about 1e-6
# of themselves, which leaves the difference three digits, and the curvature of sampled networks
# changes by one or two per cent on the way.
DIFFERENCE = 1e-3

SMALLEST = 1e-150  # its square is a number

# Products with the Hessian. The largest eigenvalue of a network stands out: exact to 1e-3 then.
ITERATIONS = 10

# For lengths of rows: with ten, masses of tf1-small and tf1 are as good as with forty.
PROBES = 10

# Of the stiffest: no mode is brought down further, whatever the next one is.
LOWEST_LEVEL = 1e-4


class Curvature:
    """The Hessian A = M^-1/2 (∂²U/∂w²) M^-1/2 at ``weights`` (C, N) float32, all chains at once, by
    differences of full-set gradients: one a product, and one to begin with.

    Random directions are functions of (seed, chain id, step). The sphere is not looked at: one
    direction of N changes little.
    """

    def __init__(
        self,
        potential: Gradient,
        weights: torch.Tensor,
        *,
        seed: int,
        step: int,
        chain_ids: torch.Tensor,  # (C,) int64
    ) -> None:
        self.potential, self.weights = potential, weights
        self.seed, self.step, self.chain_ids = seed, step, chain_ids
        # A copy: a potential may give the same buffer again.
        self.gradient = potential(weights, None)[1].clone()  # dU/dw here, (C, N)

    def largest(
        self, masses: torch.Tensor, iterations: int = ITERATIONS, modes: StiffModes | None = None
    ) -> torch.Tensor:
        """Largest eigenvalue of A, (C,) float64, from below, with masses (C, N), and these modes
        where there are any (ops/stiff_modes.py). NaN where A is not finite, as with masses of 0."""
        tridiagonal, _ = self._lanczos(masses, iterations, modes)
        finite = tridiagonal.isfinite().all(2).all(1)
        largest = torch.linalg.eigvalsh(tridiagonal.nan_to_num(0.0, 0.0, 0.0))[:, -1]
        return torch.where(finite, largest, torch.nan)

    def leading(self, masses: torch.Tensor, count: int) -> StiffModes:
        """The ``count`` stiffest modes of A, with masses (C, N), brought down to the next one.

        From twice as many products: the stiffer half of what they find has settled. A mode that has
        not is a direction like another, whose mass of its own does no harm.
        """
        tridiagonal, basis = self._lanczos(masses, 2 * count, None)
        values, vectors = torch.linalg.eigh(tridiagonal.nan_to_num(0.0, 0.0, 0.0))
        values, vectors = values.flip(1), vectors.flip(2)
        count = min(count, values.shape[1] - 1)
        stiff = values[:, :count]
        level = torch.maximum(values[:, count], stiff[:, 0] * LOWEST_LEVEL)[:, None]
        shrink = torch.where(stiff > level, 1 - (level / stiff).clamp(min=0).sqrt(), 0.0)
        shrink = shrink.nan_to_num(0.0)
        found = torch.stack(
            [mix.T[:count] @ rows for mix, rows in zip(vectors, basis, strict=True)]
        )
        return StiffModes(found.float(), shrink.float())

    def _lanczos(
        self, masses: torch.Tensor, iterations: int, modes: StiffModes | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A in the space of its first products, (C, k, k), and that space's basis, (k, N) a chain,
        all float64. Full reorthogonalisation, chain by chain."""
        iterations = min(iterations, self.weights.shape[1])
        product = self._product(masses, modes)
        x = _unit(self._vector(Stream.CURVATURE, self.step))
        basis = [x.new_zeros((iterations, x.shape[1])) for _ in x]
        tridiagonal = x.new_zeros((len(x), iterations, iterations))
        for k in range(iterations):
            for rows, row in zip(basis, x, strict=True):
                rows[k] = row
            y = product(x)
            tridiagonal[:, k, k] = row_sums(y * x)
            if k + 1 == iterations:
                break
            # Once: vectors stay orthogonal to 1e-9, and products are exact to 1e-3.
            # Of a copy each: products' last bits depend on where in memory a row begins.
            for rows, row in zip(basis, y, strict=True):
                found, own = rows[: k + 1], row.clone()
                row -= (found @ own) @ found
            # Where the Krylov space is exhausted nothing is left: a zero vector adds a zero
            # eigenvalue.
            left = row_norms(y)
            y *= (left > 1e-12 * tridiagonal[:, 0, 0].abs().clamp(min=SMALLEST))[:, None]
            tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = row_norms(y)
            x = _unit(y)
        return tridiagonal, basis

    def rows(
        self, masses: torch.Tensor, *, probes: int = PROBES, first: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Length of each row of A, and its diagonal, both (C, N) float64, from probes number
        ``first`` and on.

        From Gaussian vectors x: E (A x)² is the squared length, E x (A x) the diagonal (Bekas,
        Kokiopoulou, Saad, Appl. Numer. Math. 57, 1214 (2007)). A length is off by
        1/sqrt(2 probes) of itself, the mean of the diagonal by sqrt(2 Σ λ² / probes) / N. Masses
        times these lengths condition A better, positive or not (equilibration: Dauphin, de Vries,
        Bengio, NeurIPS 28 (2015)).
        """
        product = self._product(masses)
        square = torch.zeros_like(self.weights, dtype=torch.float64)
        diagonal = torch.zeros_like(square)
        for probe in range(first, first + probes):
            x = self._vector(Stream.PROBE, self.step * 2**16 + probe)
            y = product(x)
            square += y.square() / probes
            diagonal += x * y / probes
        return square.sqrt(), diagonal

    def _product(
        self, masses: torch.Tensor, modes: StiffModes | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """x -> A x, (C, N) float64 both."""
        root = masses.double().sqrt()
        here, slope = self.weights, self.gradient.double()
        length = DIFFERENCE * row_norms(here.double())[:, None]

        def product(x: torch.Tensor) -> torch.Tensor:
            direction = (x if modes is None else modes.shrunk(x)) / root
            norm = row_norms(direction)[:, None].clamp(min=SMALLEST)
            shift = direction * (length / norm)
            _, ahead = self.potential((here + shift).to(here.dtype), None)
            turned = (ahead.double() - slope) * (norm / length) / root
            return turned if modes is None else modes.shrunk(turned)

        return product

    def _vector(self, stream: Stream, step: int) -> torch.Tensor:
        """Gaussian, (C, N) float64."""
        return chain_normals(
            seed=self.seed,
            stream=stream,
            chain_ids=self.chain_ids,
            step=step,
            count=self.weights.shape[1],
            device=self.weights.device,
        ).double()


def row_sums(x: torch.Tensor) -> torch.Tensor:
    """Σ of each row, (C, N) -> (C,). One after the other: of a single row torch sums what each
    thread has, of several each in one piece, and a chain's bits must not depend on its
    neighbours."""
    return torch.stack([row.sum() for row in x])


def row_norms(x: torch.Tensor) -> torch.Tensor:
    """Length of each row, (C, N) -> (C,), one after the other as well."""
    return torch.stack([row.norm() for row in x])


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / row_norms(x)[:, None].clamp(min=SMALLEST)
