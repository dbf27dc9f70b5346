"""Gradients of the whole set: the stiffest curvature, the masses that fit the step to it, the law
then sampled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import NoisyQuadratic, Q, make_sampler, start_weights

from thermosphere.models.named import named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.models.regularised import Regularised
from thermosphere.proteins.dataset import make_data_set
from thermosphere.sampling.full_batch import LARGEST_TURN, STEP_BIAS, balanced
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.stiffness import Curvature


class Nonlinear:
    """U = Σ_k ln cosh(X w)_k / K: a curvature that depends on w, and is known."""

    def __init__(self, parameters: int = 30, examples: int = 64) -> None:
        random = np.random.default_rng(5)
        self.parameters, self.examples = parameters, examples
        scale = np.geomspace(0.03, 3.0, parameters)
        self.x = torch.from_numpy(random.standard_normal((examples, parameters)) * scale)

    def __call__(self, weights, batch=None):  # type: ignore[no-untyped-def]
        s = weights.double() @ self.x.T  # (C, K)
        share = torch.full_like(s, 1 / self.examples)
        if batch is not None:
            share = torch.zeros_like(s).scatter_add_(1, batch.indices, batch.weights.double())
        value = (share * torch.log(torch.cosh(s))).sum(1)
        return value.to(weights.dtype), ((share * torch.tanh(s)) @ self.x).to(weights.dtype)

    def hessian(self, weights: torch.Tensor) -> torch.Tensor:
        """(N,) -> (N, N) float64."""
        bend = 1 - torch.tanh(self.x @ weights.double()) ** 2
        return (self.x.T * bend) @ self.x / self.examples


def curvature(potential, weights, *, step=0, chain_ids=None):  # type: ignore[no-untyped-def]
    chain_ids = torch.arange(len(weights)) if chain_ids is None else chain_ids
    return Curvature(potential, weights, seed=3, step=step, chain_ids=chain_ids)


def test_the_largest_curvature_is_that_of_the_hessian() -> None:
    potential = Nonlinear()
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, potential.parameters, generator=generator) * 0.3
    masses = torch.rand(3, potential.parameters, generator=generator) * 4 + 0.5
    exact = []
    for w, m in zip(weights, masses, strict=True):
        root = m.double().rsqrt()
        exact.append(torch.linalg.eigvalsh(root[:, None] * potential.hessian(w) * root)[-1])
    found = curvature(potential, weights).largest(masses)
    torch.testing.assert_close(found, torch.stack(exact), rtol=0.01, atol=0)
    alone = curvature(potential, weights[1:2], chain_ids=torch.tensor([1])).largest(masses[1:2])
    torch.testing.assert_close(alone, found[1:2], rtol=1e-4, atol=0)
    one = curvature(potential, weights).largest(
        masses, iterations=1
    )  # a Rayleigh quotient: from below
    assert bool((one < 0.9 * found).all())


def test_rows_of_the_hessian_have_these_lengths_and_this_diagonal() -> None:
    potential = Nonlinear()
    weights = torch.randn(2, potential.parameters, generator=torch.Generator().manual_seed(0)) * 0.3
    masses = torch.linspace(0.5, 4.0, potential.parameters).expand(2, -1)
    probes = 400
    lengths, diagonals = curvature(potential, weights).rows(masses, probes=probes)
    for w, m, length, diagonal in zip(weights, masses, lengths, diagonals, strict=True):
        root = m.double().rsqrt()
        hessian = root[:, None] * potential.hessian(w) * root
        exact = hessian.square().sum(1).sqrt()
        # (A x)_i is Gaussian: its square's mean spreads by sqrt(2/probes), its root by half of it.
        assert bool(((length / exact - 1).abs() < 5 * 0.5 * (2 / probes) ** 0.5).all())
        spread = float((2 * hessian.square().sum() / probes).sqrt()) / len(w)
        assert abs(float(diagonal.mean() - hessian.trace() / len(w))) < 5 * spread


def test_more_iterations_than_directions_are_not_made() -> None:
    toy = NoisyQuadratic(parameters=5)
    found = curvature(toy, start_weights(2)[:, :5].contiguous()).largest(torch.ones(2, 5))
    torch.testing.assert_close(found, torch.full((2,), 3.0, dtype=torch.float64), rtol=1e-3, atol=0)


def test_curvature_of_a_network_is_that_of_autograd() -> None:
    """The fused float32 gradient's differences against the exact Hessian's product, iterated."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 20, (60, 12)).astype(np.uint8)
    data = make_data_set(tokens, train=40, validation=10, test=10, rate=0.15, seed=0)
    model = named_model("tf1-small", length=12)
    potential = MaskedLanguagePotential(model, data.train, backend="fused")
    exact = MaskedLanguagePotential(model, data.train, backend="autograd")
    weights = model.initial(1, torch.Generator().manual_seed(2))
    found = curvature(potential, weights).largest(torch.ones_like(weights))
    wanted = curvature(exact, weights.double()).largest(torch.ones_like(weights), iterations=40)
    # One-sided differences: the curvature changes by some per cent over their length.
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0)


class OneStiffDirection:
    """U = Σ a w²/2 + κ (Σ sqrt(a) w)²/2N: in x = sqrt(a) w, one mode of curvature 1 + κ among N - 1
    of curvature 1."""

    examples = 1

    def __init__(self, kappa: float, parameters: int = 400, unused: int = 0) -> None:
        self.kappa, self.parameters = kappa, parameters
        self.a = torch.linspace(0.5, 50.0, parameters, dtype=torch.float64)
        self.a[:unused] = 0.0

    def __call__(self, weights, batch=None):  # type: ignore[no-untyped-def]
        w, root = weights.double(), self.a.sqrt()
        along = (w * root).sum(1, keepdim=True)
        value = 0.5 * (self.a * w * w).sum(1) + 0.5 * self.kappa * along[:, 0] ** 2 / len(root)
        gradient = self.a * w + self.kappa * along * root / len(root)
        return value.to(weights.dtype), gradient.to(weights.dtype)


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
@pytest.mark.parametrize("kappa", [1000.0, 3.0])
def test_the_step_fits_the_stiffest_mode_or_the_mean_one(scheme: str, kappa: float) -> None:
    potential = OneStiffDirection(kappa)
    weights = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    sampler = Langevin(
        potential, [1e-3] * 3, seed=1, batch=None, stiffness=0.5, dt=2.0, scheme=scheme
    )
    state = sampler.init(weights, norm2=Q)
    assert bool((state.noise_variance == 0).all())  # the whole set has none
    masses = state.masses[0].double()
    root = masses.rsqrt()
    u = potential.a.sqrt() / 20.0
    hessian = torch.diag(potential.a) + kappa * u[:, None] * u
    modes = torch.linalg.eigvalsh(root[:, None] * hessian * root) * 2.0**2  # ω² dt²
    if kappa > 100:  # one mode sets the step, and the others are soft
        assert float(modes[-1]) == pytest.approx(0.25, rel=0.01)
        assert float(modes.mean()) / 4 < STEP_BIAS
    else:  # all modes are much the same: it is how hot they are together
        assert float(modes.mean()) / 4 == pytest.approx(STEP_BIAS, rel=0.2)
        assert float(modes[-1]) < 0.25
    # Masses as the curvatures: up to how well ten probes know a length.
    ratio = masses / potential.a
    assert float(ratio.std() / ratio.mean()) < 0.35
    assert float(np.corrcoef(masses.log(), potential.a.log())[0, 1]) > 0.9
    assert bool(torch.isfinite(sampler.run(state, 1)).all())


def test_a_parameter_without_a_gradient_is_a_tenth_as_heavy_as_the_others() -> None:
    potential = OneStiffDirection(100.0, unused=30)
    sampler = Langevin(potential, [1e-3], seed=1, batch=None)
    masses = sampler.init(torch.ones(1, 400), norm2=Q).masses[0]
    assert bool((masses[:30] == masses[:30].min()).all())
    assert float(masses[:30].min() / masses[30:].median()) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_masses_follow_a_curvature_that_changes_and_momenta_stay_thermal(factor: float) -> None:
    toy = NoisyQuadratic(parameters=400)
    thermal = torch.randn(4, 400, generator=torch.Generator().manual_seed(1))
    start = toy.centre.float() + thermal * (0.005 / toy.curvature.float()).sqrt()
    sampler = Langevin(toy, [0.005] * 4, seed=1, batch=None, adapt_every=200)
    state = sampler.init(start)
    first = state.masses.double().mean(1)
    sampler.run(state, 100)
    torch.testing.assert_close(state.masses.double().mean(1), first, rtol=0.1, atol=0)
    toy._a = toy._a * factor
    sampler.run(state, 300)
    torch.testing.assert_close(state.masses.double().mean(1), first * factor, rtol=0.1, atol=0)
    kinetic = sampler.kinetic_temperature(state) / 0.005
    assert bool(((kinetic - 1).abs() < 5 * (2 / 400) ** 0.5).all())  # standard deviations


def test_a_look_shapes_the_masses_anew_and_momenta_go_along() -> None:
    """Of the rows that are due; the others keep their bits. Unscaled by the masses, momenta are
    what they were."""
    toy = NoisyQuadratic(parameters=2000)
    sampler = Langevin(toy, [0.05] * 3, seed=1, batch=None)
    thermal = torch.randn(3, 2000, generator=torch.Generator().manual_seed(1))
    state = sampler.init(toy.centre.float() + thermal * (0.05 / toy.curvature.float()).sqrt())
    sampler.run(state, 8)
    before = state.masses.clone(), state.momenta.clone()
    moved = state.weights.clone()
    toy._a = toy._a.flip(0)  # the stiff parameters are soft now
    kick = 0.5 * sampler.potential(moved, None)[1].double()
    sampler.adaptation.adapt(state, torch.tensor([0, 2]))
    assert torch.equal(state.masses[1], before[0][1])
    assert torch.equal(state.momenta[1], before[1][1])
    for row in (0, 2):
        now = float(np.corrcoef(state.masses[row].log(), toy._a.log())[0, 1])
        assert now > 0.8 > float(np.corrcoef(before[0][row].log(), toy._a.log())[0, 1])
        was = (before[1][row].double() - kick[row]) / before[0][row].double().sqrt()
        now = (state.momenta[row].double() - kick[row]) / state.masses[row].double().sqrt()
        assert float(np.corrcoef(was, now)[0, 1]) > 0.98  # but for what was not tangent
        assert float(now.square().sum() / was.square().sum()) == pytest.approx(1.0, abs=0.05)
        tangent = (state.weights[row].double() / state.masses[row].double().sqrt() * now).sum()
        assert abs(float(tangent)) < 1e-3


def test_looks_at_the_curvature_come_later_where_it_stays_and_sooner_where_it_does_not() -> None:
    toy = NoisyQuadratic(parameters=400)
    sampler = Langevin(toy, [1e-3] * 3, seed=1, batch=None, adapt_every=300)
    start = torch.randn(3, 400, generator=torch.Generator().manual_seed(1))
    state = sampler.init(start, norm2=Q)

    def next_looks(count: int) -> list[int]:
        gaps = []
        for _ in range(count):
            gaps.append(int(state.next_adaptation[0]) - state.step)
            sampler.run(state, gaps[-1])
            sampler.run(state, 1)  # the look comes before a move
            gaps[-1] = int(state.next_adaptation[0]) - state.step + 1
        return gaps

    assert int(state.next_adaptation[0]) == 10
    assert next_looks(7) == [20, 40, 80, 160, 300, 300, 300]
    toy._a = toy._a * 1.7  # ω grows by 30 %: as far as before
    assert next_looks(2) == [300, 300]
    toy._a = toy._a * 4.0
    assert next_looks(1) == [160]
    never = make_sampler(batch=None, adapt_every=0)
    assert int(never.init(start_weights(3), norm2=Q).next_adaptation[0]) == -1


def test_hot_chains_turn_by_no_more_than_the_largest_turn() -> None:
    """However soft U is: the step must not leave the sphere's reach."""
    sampler = make_sampler([1e-3, 1e3, 1e4], batch=None, stiffness=1.5, adapt_every=50)
    state = sampler.init(start_weights(3), norm2=Q)
    sampler.run(state, 400)
    turn = (state.temperature * state.masses.double().reciprocal().sum(1) / Q).sqrt()
    assert float(turn.max()) <= LARGEST_TURN * 1.2  # the tolerance of a look
    assert float(turn[1:].min()) >= LARGEST_TURN / 1.2
    mean = (sampler.potential.curvature / state.masses[0].double()).mean()
    assert float(mean) / 4 == pytest.approx(STEP_BIAS, rel=0.5)  # the cold one is free of it


def test_masses_by_hand_stay() -> None:
    sampler = make_sampler(batch=None, adapt_every=5)
    state = sampler.init(start_weights(3), masses=200.0, norm2=Q)
    loss = sampler.run(state, 10)
    assert bool(torch.isfinite(loss).all())
    assert bool((state.masses == 200.0).all())
    exact, _ = sampler.potential(state.weights)
    assert sampler.run(state, 1).tolist() == exact.double().tolist()


def test_a_chain_has_the_bits_it_has_alone() -> None:
    """Of many parameters: torch sums a single row by thread, several rows each by one, and where in
    memory a row begins depends on the others. Chains that go on from a checkpoint find their modes
    again in other company."""
    parameters, threads = 40_001, torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    levels = torch.logspace(-3, 1, parameters)[torch.randperm(parameters, generator=generator)]
    weights = torch.randn(3, parameters, generator=generator)
    masses = 0.5 + torch.rand(3, parameters, generator=generator, dtype=torch.float64)

    def potential(w, _):  # type: ignore[no-untyped-def]
        return w.new_zeros(len(w)), levels * w + 0.1 * w * w * w

    def found(rows: list[int]) -> list[torch.Tensor]:
        at = curvature(potential, weights[rows], chain_ids=torch.tensor(rows))
        modes = at.leading(masses[rows], 4)
        return [modes.vectors, modes.shrink, at.largest(masses[rows]), *balanced(at, masses[rows])]

    torch.set_num_threads(2)
    try:
        together = found([0, 1, 2])
        for chain in range(3):
            for one, all_ in zip(found([chain]), together, strict=True):
                assert torch.equal(one[0], all_[chain])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("modes", [0, 2])
def test_chains_of_one_start_keep_their_own_tether(modes: int) -> None:
    """They share what the curvature costs; Π = p + (dt/2)(g + γ (w - w_ref)) is each one's own."""
    toy, tether, references = NoisyQuadratic(), 2.0, start_weights(3, seed=5)
    momenta = []
    for reference in (references, references[0]):
        potential = Regularised(toy, tether=tether, reference=reference)
        sampler = Langevin(potential, [1.0] * 3, batch=None, constrained=False, modes=modes)
        state = sampler.init(start_weights(1))
        held = sampler.moves.modes(state) if sampler.moves.modes is not None else None
        momenta.append(state.momenta.double())
    kick = 0.5 * tether * (references[0] - references).double()
    if held is not None:
        root = state.masses.double().sqrt()
        kick = root * held.shrunk(kick / root)
    torch.testing.assert_close(momenta[0] - momenta[1], kick, rtol=1e-3, atol=1e-3)


def test_bad_numbers_are_refused() -> None:
    for stiffness in (0.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match=r"^sampler: stiffness must be in \(0, 2\), got"):
            make_sampler(batch=None, stiffness=stiffness)
    toy = NoisyQuadratic()
    toy._a = -toy._a  # curves downwards everywhere
    sampler = Langevin(toy, [1.0], batch=None)
    with pytest.raises(ValueError, match=r"^masses: U must curve upwards in some direction"):
        sampler.init(start_weights(1), norm2=Q)
