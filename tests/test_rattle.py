"""The constrained leapfrog step: the formula, the way back, volume, the order of its error, and
steps that must be refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numerics import assert_close
from toy import NoisyQuadratic, Q, start_weights

from thermosphere.ops.minibatch import Minibatch
from thermosphere.sampling import rattle
from thermosphere.sampling.rattle import Point, Stepped, Surface

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TEMPERATURE = 1.0


def make_surface(chains: int, parameters: int = 12, *, unequal: bool = True) -> Surface:
    masses = torch.logspace(0.0, 1.5, parameters).double().flip(0)
    if not unequal:
        masses = torch.full_like(masses, 3.0)
    temperature = torch.full((chains,), TEMPERATURE, dtype=torch.float64)
    norm2 = torch.full((chains,), Q, dtype=torch.float64)
    return Surface(norm2, masses.reciprocal().expand(chains, -1), temperature)


def make_start(toy: NoisyQuadratic, surface: Surface, seed: int = 0) -> tuple[Point, torch.Tensor]:
    """A point on the sphere and thermal momenta there."""
    chains = len(surface.norm2)
    w = start_weights(chains, seed).double()
    w *= (surface.norm2 / w.square().sum(1)).sqrt()[:, None]
    generator = torch.Generator().manual_seed(seed + 1)
    noise = torch.randn(w.shape, generator=generator, dtype=torch.float64)
    p = noise * (TEMPERATURE / surface.inverse_masses).sqrt()
    return rattle.evaluate(toy, w, torch.float64), rattle.tangent(w, p, surface)


def integrate(
    toy: NoisyQuadratic, point: Point, p: torch.Tensor, surface: Surface, h: float, steps: int
) -> Stepped:
    good = torch.ones(len(p), dtype=torch.bool)
    size = torch.full((len(p),), h, dtype=torch.float64)
    for _ in range(steps):
        step = rattle.rattle_step(toy, point, p, surface, size, torch.float64)
        point, p = step.point, step.momenta
        good &= step.good
    return Stepped(point, p, good)


def energy(point: Point, p: torch.Tensor, surface: Surface) -> torch.Tensor:
    return rattle.effective_potential(point, surface) + rattle.kinetic_energy(p, surface)


@pytest.mark.parametrize("unequal", [False, True])
def test_a_step_satisfies_its_equations(unequal: bool) -> None:
    """Not how it is computed but what it must fulfil: w' - w is (h/M) times a momentum that differs
    from p - (h/2) ∇V(w) by a multiple of w, and the same backwards at the end."""
    toy, surface = NoisyQuadratic(), make_surface(5, unequal=unequal)
    point, p = make_start(toy, surface)
    h = 0.3
    end = integrate(toy, point, p, surface, h, 1)
    assert bool(end.good.all())

    def slope(w: torch.Tensor) -> torch.Tensor:  # of V, by autograd
        w = w.clone().requires_grad_()
        away = w - toy.centre.float().double()
        u = 0.5 * (toy.curvature.float().double() * away * away).sum(1)
        v = u + 0.5 * TEMPERATURE * (w * w * surface.inverse_masses).sum(1).log()
        return torch.autograd.grad(v.sum(), w)[0]

    w, w_end = point.weights, end.point.weights
    half = (w_end - w) / (h * surface.inverse_masses)
    for at, difference in (
        (w, half - (p - h / 2 * slope(w))),
        (w_end, half - (end.momenta + h / 2 * slope(w_end))),
    ):
        along = (difference * at).sum(1, keepdim=True) / (at * at).sum(1, keepdim=True)
        assert_close(difference, along * at, 1e-11)
    assert_close((w_end * w_end).sum(1), surface.norm2, 1e-12 * Q)
    assert_close((end.momenta * w_end * surface.inverse_masses).sum(1), torch.zeros(5), 1e-12)


def test_reversed_momenta_lead_back_to_the_start() -> None:
    toy, surface = NoisyQuadratic(), make_surface(64)
    point, p = make_start(toy, surface)
    there = integrate(toy, point, p, surface, 0.4, 50)
    assert bool(there.good.all())
    assert float((there.point.weights - point.weights).abs().mean()) > 0.5
    back = integrate(toy, there.point, -there.momenta, surface, 0.4, 50)
    # Rounding grows along 100 steps; a wrong force or sign is of order 1.
    assert_close(back.point.weights, point.weights, 1e-9)
    assert_close(-back.momenta, p, 1e-9)


def test_the_phase_space_volume_is_kept() -> None:
    """δw·δp' - δp·δw' of any two tangent directions is the same before and after, hence its power,
    the volume."""
    n = 4
    toy, surface = NoisyQuadratic(n), make_surface(1, n)
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(1, n, generator=generator, dtype=torch.float64)
    w *= (Q / w.square().sum()).sqrt()
    p = torch.randn(1, n, generator=generator, dtype=torch.float64) * 3
    p = rattle.tangent(w, p, surface)

    def phase_step(z: torch.Tensor) -> torch.Tensor:  # (2 N,) -> (2 N,)
        """From the phase point nearest to z: for small tangent shifts z itself, to second order."""
        near = z[None, :n] * (Q / z[:n].square().sum()).sqrt()
        start = rattle.tangent(near, z[None, n:], surface)
        at = rattle.evaluate(toy, near, torch.float64)
        end = integrate(toy, at, start, surface, 0.25, 3)
        assert bool(end.good.all())
        return torch.cat([end.point.weights[0], end.momenta[0]])

    inverse = surface.inverse_masses[0].numpy()
    # Tangent directions: w·δw = 0 and δw·p/M + w·δp/M = 0.
    constraints = np.zeros((2, 2 * n))
    constraints[0, :n] = w[0].numpy()
    constraints[1, :n], constraints[1, n:] = p[0].numpy() * inverse, w[0].numpy() * inverse
    before = np.linalg.svd(constraints)[2][2:].T  # (2 N, 2 N - 2)
    z, spacing = torch.cat([w[0], p[0]]), 1e-5
    after = np.stack(
        [
            (phase_step(z + spacing * e) - phase_step(z - spacing * e)).numpy() / (2 * spacing)
            for e in torch.from_numpy(before.T.copy())
        ],
        1,
    )
    form = np.block([[np.zeros((n, n)), np.eye(n)], [-np.eye(n), np.zeros((n, n))]])
    assert np.abs(after - before).max() > 0.3  # a step that does something
    assert_close(after.T @ form @ after, before.T @ form @ before, 1e-7)


def test_the_energy_error_is_of_second_order() -> None:
    toy, surface = NoisyQuadratic(), make_surface(256)
    point, p = make_start(toy, surface)
    errors = []
    for halving in range(3):
        end = integrate(toy, point, p, surface, 0.4 / 2**halving, 5 * 2**halving)
        errors.append(
            float(
                (energy(end.point, end.momenta, surface) - energy(point, p, surface)).abs().mean()
            )
        )
    assert 3.7 < errors[0] / errors[1] < 4.3
    assert 3.9 < errors[1] / errors[2] < 4.1


def test_a_step_without_a_root_or_a_way_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the chain then keeps its place; the others go on as if alone."""
    toy, surface = NoisyQuadratic(), make_surface(512)
    point, p = make_start(toy, surface)
    step = integrate(toy, point, p, surface, 1.3, 1)
    refused = int((~step.good).sum())
    assert torch.equal(step.point.weights[~step.good], point.weights[~step.good])
    assert torch.equal(step.momenta[~step.good], p[~step.good])
    assert torch.equal(step.point.losses[~step.good], point.losses[~step.good])
    moved = (step.point.weights != point.weights).any(1)
    assert torch.equal(moved, step.good)
    # Those that pass do return; taken alone each has the same numbers.
    back = integrate(toy, step.point, -step.momenta, surface, 1.3, 1)
    assert bool(back.good[step.good].all())
    assert_close(back.point.weights[step.good], point.weights[step.good], 1e-9)
    first = int(step.good.nonzero()[0])
    one = slice(first, first + 1)
    alone = integrate(
        toy,
        Point(*(x[one] for x in point)),
        p[one],
        Surface(*(x[one] for x in surface)),
        1.3,
        1,
    )
    assert_close(alone.point.weights, step.point.weights[one], 1e-13)
    # Some had no root at all; others had one, which the step back does not find.
    monkeypatch.setattr(rattle, "RETURN_TOLERANCE", 1e9)
    unreachable = int((~integrate(toy, point, p, surface, 1.3, 1).good).sum())
    assert 20 < unreachable < refused - 20 < 256


def test_a_step_to_a_loss_that_is_not_finite_is_refused() -> None:
    class Wall(NoisyQuadratic):
        def __call__(
            self, weights: torch.Tensor, batch: Minibatch | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            losses, gradient = super().__call__(weights, batch)
            beyond = weights[:, 0] > 1.0
            return torch.where(beyond, torch.nan, losses), gradient

    toy, surface = Wall(), make_surface(64)
    point, p = make_start(toy, surface)
    inside = point.losses.isfinite()
    assert 10 < int(inside.sum()) < 64
    end = integrate(toy, point, p, surface, 0.4, 10)
    assert 0 < int(end.good[inside].sum()) < int(inside.sum())
    assert bool((end.point.weights[inside, 0] <= 1.0).all())
