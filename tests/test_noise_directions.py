"""Curvature along mini-batch noise and the rank of its covariance, where both are known."""

from __future__ import annotations

import pytest
import torch
from toy import NoisyQuadratic, start_weights

from thermosphere.analysis.noise_directions import noise_directions

SIZES = torch.linspace(0, 1, 32, dtype=torch.float64) ** 3  # of the noise of 32 examples
SIZES -= SIZES.mean()
MASSES = torch.logspace(0.0, 2.0, 12).double()


def test_noise_along_one_direction_is_found() -> None:
    """All examples along d: rank 1, curvature that of d; uncorrelated noise of the same variances
    sees the mean curvature instead."""
    toy = NoisyQuadratic(examples=32)
    d = torch.zeros(12, dtype=torch.float64)
    d[:4] = torch.tensor([1.0, -2.0, 3.0, 0.5])
    toy.noises = SIZES[:, None] * d
    toy.scale_noise(torch.ones(12))
    found = noise_directions(toy, start_weights(1), MASSES[None], 1.0, batch=8, seed=1)
    x = d / MASSES.sqrt()
    stiffness = toy.curvature / MASSES
    exact = float((x * stiffness * x).sum() / (x * x).sum())
    # Float32 gradients at the ends of a step of 0.05: rounding of about 1e-5 of the difference.
    assert found.along_noise == pytest.approx(exact, rel=1e-3)
    assert found.effective_rank == pytest.approx(1.0, abs=1e-6)
    assert found.along_uncorrelated == pytest.approx(
        exact, abs=4.5 * found.along_uncorrelated_error
    )


def test_correlated_noise_in_a_stiff_direction_shows() -> None:
    """A potential stiff along e = (1, …, 1): noise along e, evenly over the coordinates."""

    class Ridge(NoisyQuadratic):
        def __call__(self, weights, batch=None):  # type: ignore[no-untyped-def]
            losses, gradient = super().__call__(weights, batch)
            along = weights.sum(1, keepdim=True)
            return losses + 5 * along[:, 0] ** 2, gradient + 10 * along

    toy = Ridge(examples=32)
    toy.noises = SIZES[:, None].expand(-1, 12)
    toy.scale_noise(torch.ones(12))
    masses = torch.ones(1, 12)
    found = noise_directions(toy, start_weights(1), masses, 1.0, batch=8, seed=1)
    mean = float(toy.curvature.mean())
    assert found.along_noise == pytest.approx(120 + mean, rel=1e-3)
    # Uncorrelated: ⟨(Σ z)²/|z|²⟩ = 1, a twelfth of the stiffness on average.
    assert found.along_uncorrelated == pytest.approx(
        10 + mean, abs=4.5 * found.along_uncorrelated_error
    )
    assert found.along_noise > 5 * found.along_uncorrelated


def test_independent_noises_have_their_full_rank() -> None:
    toy = NoisyQuadratic(examples=400)
    found = noise_directions(
        toy, start_weights(1), torch.ones(1, 12), 1.0, batch=1, draws=200, seed=2
    )
    # (Σ λ)² / Σ λ² of 200 draws of 12 equal ones: 12 / (1 + 12/200)
    assert 10.0 < found.effective_rank < 12.0


def test_several_chains_and_no_noise_are_refused() -> None:
    silent = NoisyQuadratic()
    silent.scale_noise(torch.zeros(12))
    with pytest.raises(ValueError, match="expected gradient noise, got none in mini-batch 0"):
        noise_directions(silent, start_weights(1), torch.ones(1, 12), 1.0)
    with pytest.raises(ValueError, match=r"must be \(1, N\), got \(2, 12\) and \(2, 12\)"):
        noise_directions(NoisyQuadratic(), start_weights(2), torch.ones(2, 12), 1.0)
