"""Stiff modes with masses of their own: the step against dense masses in float64, the modes against
the Hessian's own, the law they leave alone, and what a checkpoint gives back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_full_batch import Nonlinear, OneStiffDirection, curvature
from toy import NoisyQuadratic, Q, make_sampler, start_weights

from thermosphere.ops.langevin_step import (
    UNCONSTRAINED,
    StepWorkspace,
    langevin_step,
    metric_sums,
    step_coefficients,
)
from thermosphere.ops.langevin_step_modes import langevin_momenta_modes, langevin_step_modes
from thermosphere.ops.langevin_step_ref import langevin_step_dense_ref
from thermosphere.ops.philox import Stream, normals
from thermosphere.ops.stiff_modes import StiffModes
from thermosphere.sampling.full_batch import STEP_BIAS
from thermosphere.sampling.held_modes import HeldModes
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.stiffness import Curvature
from thermosphere.sampling.unreachable import UnreachableSphereError

CHAINS, PARAMETERS, MODES = 3, 40, 4
IDS = torch.tensor([5, 0, 2])


class Problem:
    """Random weights, momenta, gradients, masses and modes of three chains."""

    def __init__(self, shrink: float = 0.7, norm2: float | None = None) -> None:
        generator = torch.Generator().manual_seed(4)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.weights, self.momenta = draw(CHAINS, PARAMETERS), draw(CHAINS, PARAMETERS)
        self.gradient = draw(CHAINS, PARAMETERS)
        self.inverse_masses = 0.2 + torch.rand(CHAINS, PARAMETERS, generator=generator)
        self.scales = 0.3 * self.inverse_masses.rsqrt()
        vectors = torch.linalg.qr(draw(CHAINS, PARAMETERS, MODES).double())[0].transpose(1, 2)
        ratio = torch.linspace(0.0, shrink, MODES).expand(CHAINS, -1).contiguous()
        self.modes = StiffModes(vectors.float().contiguous(), ratio)
        sphere = self.weights.double().square().sum(1)
        self.coefficients = step_coefficients(
            dt=torch.full((CHAINS,), 0.05),
            momentum_factor=torch.full((CHAINS,), 0.9),
            gradient_factor=torch.full((CHAINS,), 0.04),
            metric_temperature=torch.tensor([0.0, 0.5, 2.0]),
            norm2=sphere if norm2 is None else torch.full((CHAINS,), norm2),
        )

    def half(self) -> torch.Tensor:
        """D^-1/2 (1 - V' R V), (C, N, N) float64."""
        v, r = self.modes.vectors.double(), self.modes.shrink.double()
        inner = torch.eye(PARAMETERS) - v.transpose(1, 2) @ (r[:, :, None] * v)
        return self.inverse_masses.double().sqrt()[:, :, None] * inner

    def noise(self, stream: Stream) -> torch.Tensor:
        drawn = [
            normals(seed=9, stream=stream, chain=chain, step=7, count=PARAMETERS)
            for chain in IDS.tolist()
        ]
        return torch.stack(drawn).double()

    def arguments(self) -> tuple[tuple[object, ...], dict[str, object]]:
        return (
            self.gradient,
            self.inverse_masses,
            self.scales,
            self.modes,
        ), {"coefficients": self.coefficients, "chain_ids": IDS, "seed": 9, "step": 7}


@pytest.mark.parametrize("norm2", [None, UNCONSTRAINED])
def test_the_step_is_that_of_dense_masses(norm2: float | None) -> None:
    problem = Problem(norm2=norm2)
    root = problem.inverse_masses.double().sqrt()
    wanted = langevin_step_dense_ref(
        problem.weights.double(),
        root * problem.momenta.double(),
        problem.gradient.double(),
        problem.half(),
        noise=root * problem.scales.double() * problem.noise(Stream.NOISE),
        coefficients=problem.coefficients,
    )
    weights, momenta = problem.weights.clone(), problem.momenta.clone()
    arguments, named = problem.arguments()
    multiplier, reachable, energy = langevin_step_modes(weights, momenta, *arguments, **named)  # type: ignore[arg-type]
    assert bool(reachable.all())
    torch.testing.assert_close(weights.double(), wanted.weights, rtol=0, atol=3e-6)
    torch.testing.assert_close(momenta.double(), wanted.momenta / root, rtol=0, atol=2e-5)
    torch.testing.assert_close(multiplier, wanted.multiplier, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(energy, 0.5 * wanted.momenta.square().sum(1), rtol=1e-5, atol=0)
    if norm2 is None:
        torch.testing.assert_close(
            weights.double().square().sum(1), problem.coefficients[:, 4], rtol=1e-6, atol=0
        )


def test_without_shrinking_it_is_the_step_of_the_extension() -> None:
    problem = Problem(shrink=0.0)
    ours = problem.weights.clone(), problem.momenta.clone()
    theirs = problem.weights.clone(), problem.momenta.clone()
    arguments, named = problem.arguments()
    langevin_step_modes(*ours, *arguments, **named)  # type: ignore[arg-type]
    workspace = StepWorkspace(CHAINS, PARAMETERS)
    metric = metric_sums(problem.weights, problem.inverse_masses, workspace=workspace)
    langevin_step(
        *theirs,
        problem.gradient,
        problem.inverse_masses,
        problem.scales,
        metric=metric,
        workspace=workspace,
        **named,  # type: ignore[arg-type]
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-6)


@pytest.mark.parametrize("norm2", [None, UNCONSTRAINED])
def test_full_momenta_are_tangent_and_thermal_noise_is_added(norm2: float | None) -> None:
    problem = Problem(norm2=norm2)
    arguments, named = problem.arguments()
    momenta, energy = langevin_momenta_modes(
        problem.weights,
        problem.momenta,
        *arguments,
        **named,  # type: ignore[arg-type]
    )
    half, root = problem.half(), problem.inverse_masses.double().sqrt()
    w = problem.weights.double()[:, :, None]
    normal = half.transpose(1, 2) @ w
    pull = half @ normal
    metric = (w * pull).sum(1, keepdim=True)
    slope = problem.gradient.double()[:, :, None]
    slope = slope + problem.coefficients[:, 3, None, None] * pull / metric
    pi = (root * problem.momenta.double())[:, :, None]
    full = 0.9 * (pi - 0.04 * half.transpose(1, 2) @ slope)
    full += (root * problem.scales.double() * problem.noise(Stream.MOMENTUM_NOISE))[:, :, None]
    if norm2 is None:
        full -= normal * (normal * full).sum(1, keepdim=True) / metric
        assert float((normal * (root * momenta.double())[:, :, None]).sum(1).abs().max()) < 1e-4
    torch.testing.assert_close(root * momenta.double(), full[:, :, 0], rtol=0, atol=2e-5)
    torch.testing.assert_close(energy, 0.5 * full.square().sum((1, 2)), rtol=1e-5, atol=0)


def test_a_chain_that_leaves_the_sphere_keeps_weights_and_momenta() -> None:
    problem = Problem()
    problem.gradient[1] = float("nan")
    problem.momenta[2] *= 1e4
    weights, momenta = problem.weights.clone(), problem.momenta.clone()
    arguments, named = problem.arguments()
    _, reachable, _ = langevin_step_modes(weights, momenta, *arguments, **named)  # type: ignore[arg-type]
    assert reachable.tolist() == [True, False, False]
    assert torch.equal(weights[1:], problem.weights[1:])
    assert torch.equal(momenta[1:], problem.momenta[1:])
    assert not torch.equal(weights[0], problem.weights[0])


def scaled_hessian(
    potential: Nonlinear, weights: torch.Tensor, masses: torch.Tensor
) -> torch.Tensor:
    root = masses.double().rsqrt()
    return root[:, None] * potential.hessian(weights) * root


def test_the_stiffest_modes_are_those_of_the_hessian_and_are_brought_down_to_the_next() -> None:
    potential = Nonlinear()
    weights = torch.randn(2, potential.parameters, generator=torch.Generator().manual_seed(0)) * 0.3
    masses = torch.linspace(0.5, 4.0, potential.parameters).expand(2, -1)
    at = curvature(potential, weights)
    modes = at.leading(masses, 5)
    levels = []
    for w, m, v, r in zip(weights, masses, modes.vectors, modes.shrink, strict=True):
        hessian = scaled_hessian(potential, w, m)
        values, vectors = torch.linalg.eigh(hessian)
        overlap = (v.double() @ vectors[:, -5:]).square().sum(1)
        assert bool((overlap[:4] > 0.99).all()), overlap
        inner = torch.eye(len(w)) - v.double().T @ (r.double()[:, None] * v.double())
        flattened = torch.linalg.eigvalsh(inner @ hessian @ inner)
        # Of ten products the fifth mode has nearly settled.
        assert 0.97 * float(values[-6]) < float(flattened[-1]) < 1.4 * float(values[-6])
        assert float(values[-1]) > 3 * float(flattened[-1])  # it was worth it
        level = v[0].double() @ inner @ hessian @ inner @ v[0].double()
        # What the products know of the next mode, from below; with R squared it would be a third.
        assert 0.6 < float(level) / float(values[-6]) < 1.1
        levels.append(flattened[-1])
    found = at.largest(masses, modes=modes)
    torch.testing.assert_close(found, torch.stack(levels), rtol=0.02, atol=0)


def test_modes_stay_orthogonal_where_a_few_are_much_stiffer_than_the_rest() -> None:
    """Eight decades of curvature: vectors that had settled would come again were they not taken
    out of each product."""
    levels = torch.cat([torch.logspace(0, 2, 40), torch.logspace(-6, -1, 960)])
    weights = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    at = Curvature(
        lambda w, _: (w.new_zeros(len(w)), w * levels),
        weights,
        seed=1,
        step=1,
        chain_ids=torch.arange(2),
    )
    modes = at.leading(torch.ones(2, 1000, dtype=torch.float64), 32)
    gram = modes.vectors.double() @ modes.vectors.double().transpose(1, 2)
    torch.testing.assert_close(gram, torch.eye(32).double().expand(2, 32, 32), rtol=0, atol=1e-6)
    held = (modes.vectors.double().square() * levels).sum(2)
    torch.testing.assert_close(held[:, :12], levels[:40].flip(0)[:12].expand(2, 12).double(),
                               rtol=0.01, atol=0)  # fmt: skip


def modes_sampler(toy: Nonlinear, ids: int = 3, **options: object) -> Langevin:
    named = {"seed": 2, "batch": None, "modes": 5, "adapt_every": 40, **options}
    return Langevin(toy, [0.01 * (1 + chain) for chain in range(ids)], **named)  # type: ignore[arg-type]


def test_a_run_that_goes_on_from_its_tensors_has_the_bits_of_an_unbroken_one() -> None:
    """The modes are in no checkpoint: they follow from where the last look was."""
    toy = Nonlinear(examples=300)  # more than a look takes
    start = torch.randn(3, toy.parameters, generator=torch.Generator().manual_seed(0))
    sampler = modes_sampler(toy)
    state = sampler.init(start)
    # A row that is looked at by itself, so that looks lie at different steps.
    sampler.run(state, 7)
    sampler.adaptation.adapt(state, torch.tensor([1]))
    sampler.run(state, 20)
    assert len(set(state.look_step.tolist())) > 1
    again = LangevinState.from_tensors(state.tensors())
    sampler.run(state, 60)
    modes_sampler(toy).run(again, 60)
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_a_chain_does_not_depend_on_its_neighbours() -> None:
    """But for rounding: the toy's own products differ in their last bits."""
    toy = Nonlinear(examples=300)
    start = torch.randn(3, toy.parameters, generator=torch.Generator().manual_seed(0))
    together, alone = modes_sampler(toy), modes_sampler(toy, ids=1)
    state, one = together.init(start), alone.init(start[:1])
    together.run(state, 5)
    alone.run(one, 5)
    torch.testing.assert_close(one.weights, state.weights[:1], rtol=1e-4, atol=1e-4)


def test_modes_are_found_again_only_where_a_look_has_moved_them() -> None:
    toy = Nonlinear(examples=300)
    sampler = modes_sampler(toy)
    state = sampler.init(torch.randn(3, toy.parameters, generator=torch.Generator().manual_seed(0)))
    held = sampler.moves.modes
    assert isinstance(held, HeldModes)
    calls: list[object] = []
    original = held.at

    def noted(*given: torch.Tensor, **named: object) -> StiffModes:
        calls.append((named["chain_ids"].tolist(), named["step"]))  # type: ignore[attr-defined]
        return original(*given, **named)  # type: ignore[arg-type]

    held.at = noted  # type: ignore[method-assign]
    sampler.run(state, 5)
    assert calls == []
    sampler.adaptation.adapt(state, torch.tensor([2]))
    sampler.run(state, 3)
    assert calls == [([2], 5)]


def test_the_step_is_longer_where_few_modes_are_stiff() -> None:
    """Up to where the many soft ones together would be too hot, stiff ones counted."""
    potential = OneStiffDirection(1000.0)
    start = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    lightness = []
    for modes in (0, 2):
        state = Langevin(potential, [1e-6], seed=1, batch=None, modes=modes).init(start, norm2=Q)
        lightness.append(float(state.masses.double().reciprocal().sum()))
        root = state.masses[0].double().rsqrt()
        u = potential.a.sqrt() / 20.0
        trace = float((root**2 * (potential.a + 1000.0 * u**2)).sum())
    assert lightness[1] > 3 * lightness[0]
    assert trace / 400 / 4 == pytest.approx(STEP_BIAS, rel=0.2)


def settled(adapt_every: int) -> tuple[NoisyQuadratic, Langevin, LangevinState]:
    """A chain that has been looked at some times, and a U four hundred times as curved since."""
    toy = NoisyQuadratic(parameters=400)
    sampler = Langevin(toy, [0.005], seed=1, batch=None, modes=2, adapt_every=adapt_every)
    thermal = torch.randn(1, 400, generator=torch.Generator().manual_seed(1))
    state = sampler.init(toy.centre.float() + thermal * (0.005 / toy.curvature.float()).sqrt())
    sampler.run(state, 200)
    toy._a = toy._a * 400.0
    return toy, sampler, state


def test_a_chain_that_becomes_unstable_is_looked_at_before_it_leaves() -> None:
    _, sampler, state = settled(adapt_every=1000)
    assert int(state.next_adaptation[0]) > 250
    before = state.masses.double().mean()
    sampler.run(state, 40)
    assert 200 < int(state.look_step[0]) < 240
    assert float(state.masses.double().mean() / before) == pytest.approx(400.0, rel=0.2)
    sampler.run(state, 200)
    kinetic = float(sampler.kinetic_temperature(state)[0]) / 0.005
    assert kinetic == pytest.approx(1.0, abs=0.5)  # U still gives its heat away
    _, sampler, state = settled(adapt_every=0)
    with pytest.raises(UnreachableSphereError, match=r"^sampler: chain 0"):
        sampler.run(state, 240)


def test_a_chain_that_stands_still_for_a_move_is_counted() -> None:
    """It left the sphere's reach, and was looked at: no error, but no secret either."""
    toy = NoisyQuadratic(parameters=400)
    sampler = Langevin(toy, [0.005] * 2, seed=1, batch=None, modes=2)
    thermal = torch.randn(2, 400, generator=torch.Generator().manual_seed(1))
    state = sampler.init(toy.centre.float() + thermal * (0.005 / toy.curvature.float()).sqrt())
    sampler.run(state, 25)
    assert state.missed.tolist() == [0, 0]
    state.momenta[1] *= 1e4
    weights = state.weights[1].clone()
    sampler.run(state, 1)
    assert torch.equal(state.weights[1], weights)
    assert state.missed.tolist() == [0, 1]
    sampler.run(state, 5)
    assert not torch.equal(state.weights[1], weights)
    again = LangevinState.from_tensors(state.tensors())
    assert again.missed.tolist() == state.missed.tolist() == [0, 1]
    older = {n: t for n, t in state.tensors().items() if n not in ("missed", "by_hand")}
    assert LangevinState.from_tensors(older).missed.tolist() == [0, 0]


@pytest.mark.parametrize("modes", [0, 3])
def test_momenta_go_along_at_a_look(modes: int) -> None:
    """In units of unit masses they are what they were, tangent to what is the sphere now; what they
    lacked, along the old normal, is drawn."""
    toy = NoisyQuadratic(parameters=12)
    sampler = Langevin(toy, [0.05] * 2, seed=1, batch=None, modes=modes)
    state = sampler.init(start_weights(2), norm2=Q)
    sampler.run(state, 5)
    toy._a = toy._a.flip(0) * torch.linspace(0.1, 10.0, 12)  # another normal

    def scaled() -> tuple[torch.Tensor, torch.Tensor]:
        """Momenta of the full step, and the normal, both of unit masses."""
        held = sampler.moves.modes(state) if sampler.moves.modes is not None else None
        root = state.masses.double().rsqrt()
        kick, normal = 0.5 * root * slope, root * state.weights.double()
        if held is not None:
            kick, normal = held.shrunk(kick), held.shrunk(normal)
        return root * state.momenta.double() - kick, normal / normal.norm(dim=1, keepdim=True)

    slope = sampler.potential(state.weights, None)[1].double()
    was, old = scaled()
    state.momenta *= 0.5 / (was.square().mean(1, keepdim=True) / 0.05).sqrt().float()  # not hot
    was, old = scaled()
    sampler.adaptation.adapt(state, torch.arange(2))
    now, new = scaled()
    assert float((old * new).sum(1).abs().max()) < 0.98
    drawn = [
        float(normals(seed=1, stream=Stream.REDRAW, chain=chain, step=5, count=1))
        for chain in (0, 1)
    ]
    free = was + old * torch.tensor(drawn, dtype=torch.float64)[:, None] * 0.05**0.5
    wanted = free - new * (new * free).sum(1, keepdim=True)
    torch.testing.assert_close(now, wanted, rtol=0, atol=1e-5)


def test_momenta_far_too_hot_are_drawn_again_at_a_look() -> None:
    toy = NoisyQuadratic(parameters=400)
    sampler = Langevin(toy, [0.005] * 2, seed=1, batch=None, modes=2)
    thermal = torch.randn(2, 400, generator=torch.Generator().manual_seed(1))
    state = sampler.init(toy.centre.float() + thermal * (0.005 / toy.curvature.float()).sqrt())
    sampler.run(state, 5)
    before = state.momenta.clone()
    state.momenta[1] *= 3.0
    sampler.adaptation.adapt(state, torch.tensor([0, 1]))
    kinetic = sampler.kinetic_temperature(state) / 0.005
    assert bool(((kinetic - 1).abs() < 5 * (2 / 400) ** 0.5).all())
    assert float(np.corrcoef(before[0], state.momenta[0])[0, 1]) > 0.9
    assert abs(float(np.corrcoef(before[1], state.momenta[1])[0, 1])) < 0.3


def test_fewer_parameters_than_modes() -> None:
    toy = NoisyQuadratic(parameters=5)
    sampler = Langevin(toy, [0.1], seed=1, batch=None, modes=32, stiffness=0.3)
    state = sampler.init(start_weights(1)[:, :5].contiguous(), norm2=Q)
    assert bool(torch.isfinite(sampler.run(state, 30)).all())


def test_modes_by_themselves_keep_the_gaussian_and_equipartition() -> None:
    """No sphere, and looks every twenty moves: Var w = T/a, ⟨Σ Π²/2D⟩ = N T/2."""
    chains, temperature = 512, 0.7
    toy = NoisyQuadratic(12, noise=1.0)
    sampler = Langevin(
        toy,
        [temperature] * chains,
        seed=3,
        batch=None,
        modes=3,
        stiffness=0.4,
        m1=0.3,
        constrained=False,
        adapt_every=20,
    )
    a, b = toy.curvature.numpy(), toy.centre.numpy()
    random = np.random.default_rng(8)
    start = b + np.sqrt(temperature / a) * random.standard_normal((chains, 12))
    state = sampler.init(torch.from_numpy(start).float())
    squares, kinetic = np.zeros((chains, 12)), np.zeros(chains)
    for _ in range(40):
        sampler.run(state, 10)
        squares += (state.weights.double().numpy() - b) ** 2 / 40
        kinetic += sampler.kinetic_temperature(state).numpy() / 40

    def z(rows: np.ndarray, exact: np.ndarray | float) -> np.ndarray:
        return (rows.mean(0) - exact) / (rows.std(0, ddof=1) / chains**0.5)

    # The step heats a mode by ω² dt²/4 <= 4 %, most of them by STEP_BIAS.
    assert np.abs(z(squares, temperature / a)).max() < 4.5
    assert np.abs(z(squares, 1.25 * temperature / a)).max() > 8
    assert abs(z(kinetic, temperature)) < 4.5


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^sampler: modes must be >= 0, got -1"):
        make_sampler(batch=None, modes=-1)
    for other in ({"batch": 8}, {"batch": None, "scheme": "paper"}):
        with pytest.raises(ValueError, match=r"^sampler: modes need batch None"):
            LangevinOptions(modes=3, **other)  # type: ignore[arg-type]
