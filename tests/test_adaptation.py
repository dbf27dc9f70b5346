"""What a start sets and what an adaptation may and may not change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toy import NoisyQuadratic

from thermosphere.models.layout import Layout
from thermosphere.models.regularised import Regularised
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.masses import (
    default_t_ratio,
    floored_variance,
    masses_from_variance,
    realised_t_ratio,
    white_noise_scales,
)
from thermosphere.sampling.noise import NoiseEstimate, estimate_noise
from thermosphere.sampling.recorder import CallRecorder
from thermosphere.sampling.state import LangevinState

UNIT = 2.0**-24
Q = 24.0


def start_weights(chains: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(chains, 12, generator=torch.Generator().manual_seed(seed))


def noise_now(
    sampler: Langevin, toy: NoisyQuadratic, weights: torch.Tensor, step: int, ids: torch.Tensor
) -> NoiseEstimate:
    """The estimate that an adaptation at this step makes: the same draws."""
    o = sampler.options
    return estimate_noise(
        toy,
        weights,
        seed=sampler.seed,
        step=step,
        chain_ids=ids,
        batch=8,
        draws=o.noise_draws,
        draws_max=o.noise_draws_max,
        tolerance=o.noise_tolerance,
    )


def overlap(
    p: torch.Tensor, w: torch.Tensor, masses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ p w/M and the sum of its absolute terms, (C,)."""
    terms = p.double() * w.double() / masses.double()
    return terms.sum(1), terms.abs().sum(1)


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_start_sets_masses_and_thermal_tangent_momenta(scheme: str) -> None:
    toy, chains = NoisyQuadratic(), 4000
    sampler = Langevin(
        toy, [0.5] * chains, seed=2, scheme=scheme, batch=8, t_ratio=0.01, variance_floor=1e-8
    )
    weights = start_weights(1)[0]
    state = sampler.init(weights, norm2=Q)
    estimate = noise_now(sampler, toy, state.weights[:1], 0, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(state.noise_variance, estimate.variance.expand(chains, 12))
    expected = masses_from_variance(
        estimate.variance,
        temperature=state.temperature[:1],
        t_ratio=state.t_ratio[:1],
        dt=1.0,
        m1=0.1,
    )
    assert torch.equal(state.masses, expected.expand(chains, 12))

    p = state.momenta.double()
    if scheme == "leapfrog":
        p = p - 0.5 * estimate.mean_gradient.double()
    terms = p.abs() + 0.5 * estimate.mean_gradient.double().abs()
    leak, _ = overlap(p, state.weights, state.masses)
    allowed = (UNIT * terms * state.weights.double().abs() / state.masses.double()).sum(1)
    assert bool((leak.abs() <= 1.01 * allowed).all())
    # N(0, T M) on the tangent space: covariance T (M - u uᵀ/|u|²) in p/sqrt(M), u = w/sqrt(M)
    u = state.weights[0].double() / state.masses[0].double().sqrt()
    expected_square = 0.5 * (1 - u**2 / (u**2).sum())
    square = p**2 / state.masses.double()
    z = (square.mean(0) - expected_square) / (square.std(0) / chains**0.5)
    assert float(z.abs().max()) < 4.5
    kinetic = square.sum(1) / 2
    z = (kinetic.mean() - 11 * 0.5 / 2) / (kinetic.std() / chains**0.5)
    assert abs(float(z)) < 4.5


def test_equal_starts_share_one_estimate_and_different_ones_do_not() -> None:
    toy = NoisyQuadratic()
    first, second = start_weights(2)
    sampler = Langevin(toy, [1.0] * 5, batch=8, noise_draws=10, noise_draws_max=10)
    state = sampler.init(torch.stack([first, second, first, second, first]))
    assert toy.calls == 10
    assert torch.equal(state.noise_variance[0], state.noise_variance[2])
    assert torch.equal(state.noise_variance[1], state.noise_variance[3])
    # the toy's noise does not depend on w, the float32 sums do
    assert torch.allclose(state.noise_variance[0], state.noise_variance[1], rtol=1e-4)
    assert not torch.equal(state.momenta[0], state.momenta[2])


def test_t_ratio_is_the_default_rule_or_the_set_value() -> None:
    toy = NoisyQuadratic()
    options = {"batch": 8, "noise_draws": 10, "noise_draws_max": 10}
    temperature = torch.tensor([1.0, 50.0], dtype=torch.float64)
    state = Langevin(toy, temperature, **options).init(start_weights(1)[0], norm2=Q)
    expected = default_t_ratio(
        state.noise_variance, temperature=temperature, norm2=torch.full((2,), Q), m1=0.1
    )
    assert state.t_ratio.tolist() == expected.tolist()
    assert float(expected[0]) != float(expected[1])
    state = Langevin(toy, temperature, **options, t_ratio=3e-3).init(start_weights(1)[0])
    assert state.t_ratio.tolist() == [3e-3, 3e-3]
    # a default above the maximum the user set would make every adaptation redraw every momentum
    low = float(expected.min()) / 2
    state = Langevin(toy, temperature, **options, t_ratio_max=low).init(start_weights(1)[0])
    assert state.t_ratio.tolist() == [low, low]


def test_averaged_noise_still_leaves_room_for_white_noise() -> None:
    """A parameter whose own v is far above its tensor's mean gets its own mass at once."""
    toy = NoisyQuadratic()
    toy.scale_noise(torch.tensor([10.0] + [0.1] * 11))
    toy.layout = Layout.from_shapes({"matrix": (4, 3)})
    sampler = Langevin(toy, 1.0, batch=8, t_ratio=0.3, t_ratio_max=0.4, average_axis=0)
    state = sampler.init(start_weights(1))
    realised = realised_t_ratio(
        state.noise_variance, state.masses, temperature=state.temperature, dt=1.0, m1=0.1
    )
    assert float(realised.max()) <= 0.3 * (1 + 1e-6)
    assert state.masses[0, 1:].unique().numel() == 1
    assert float(state.masses[0, 0]) > float(state.masses[0, 1])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    exponents=st.lists(st.floats(-3, 3), min_size=12, max_size=12),
    silent=st.integers(-1, 11),
    scheme=st.sampled_from(["leapfrog", "paper"]),
    t_ratio=st.floats(1e-6, 0.5),
    room=st.floats(1, 3),
    reset_probability=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_adaptation_keeps_q_and_leaves_room_for_white_noise(
    exponents: list[float],
    silent: int,
    scheme: str,
    t_ratio: float,
    room: float,
    reset_probability: float,
) -> None:
    """Whatever the noise does: w and Q untouched, and neither k² nor k² - v(c1 dt/2)² negative."""
    toy = NoisyQuadratic()
    largest = min(0.5, room * t_ratio)
    sampler = Langevin(
        toy,
        [0.3, 0.3, 2.0],
        seed=1,
        batch=8,
        scheme=scheme,
        t_ratio=t_ratio,
        t_ratio_max=largest,
        noise_draws=5,
        noise_draws_max=10,
        reset_probability=reset_probability,
        adapt_every=3,
    )
    state = sampler.init(start_weights(3), norm2=Q)
    factor = 10 ** torch.tensor(exponents)
    if silent >= 0:
        factor[silent] = 0
    for _ in range(3):
        before = {name: tensor.clone() for name, tensor in state.tensors().items()}
        toy.scale_noise(factor)
        factor = factor.flip(0)
        state.step += 3
        rows = torch.tensor([0, 2])
        sampler.adaptation.adapt(state, rows)
        for name in ("weights", "norm2", "t_ratio", "temperature", "chain_ids"):
            assert torch.equal(getattr(state, name), before[name])
        for name, tensor in before.items():  # the row that was not due
            if name != "step":
                assert torch.equal(getattr(state, name)[1], tensor[1])
        assert bool(torch.isfinite(state.momenta).all())
        assert bool((state.masses > 0).all())
        realised = realised_t_ratio(
            state.noise_variance, state.masses, temperature=state.temperature, dt=1.0, m1=0.1
        )
        assert float(realised.max()) <= largest * (1 + 2e-6)
        white_noise_scales(  # raises where the white noise has no room
            state.noise_variance,
            state.masses,
            temperature=state.temperature,
            dt=1.0,
            m1=0.1,
            scheme=scheme,
        )
        if scheme == "paper":
            leak, terms = overlap(state.momenta, state.weights, state.masses)
            redrawn = torch.tensor(
                [not torch.equal(state.momenta[row], before["momenta"][row]) for row in range(3)]
            )
            assert bool((leak.abs() <= 1.01 * UNIT * terms)[redrawn].all())


def test_a_raised_mass_takes_its_momentum_along() -> None:
    """Tenfold noise for one parameter: its mass follows, its momentum is redrawn, no other's is."""
    toy = NoisyQuadratic()
    sampler = Langevin(
        toy,
        [1.0] * 500,
        seed=3,
        batch=8,
        t_ratio=0.01,
        reset_probability=0.0,
        scheme="paper",
        noise_draws=50,
        noise_draws_max=50,
        t_ratio_max=0.05,
        variance_floor=1e-8,
    )
    state = sampler.init(start_weights(1)[0], norm2=Q)
    masses, momenta = state.masses.clone(), state.momenta.double().clone()
    toy.scale_noise(torch.tensor([1.0] * 5 + [10**0.5] + [1.0] * 6))
    state.step = 1000
    sampler.adaptation.adapt(state, torch.arange(500))
    others = [at for at in range(12) if at != 5]
    assert torch.equal(state.masses[:, others], masses[:, others])
    expected = masses_from_variance(
        state.noise_variance, temperature=state.temperature, t_ratio=state.t_ratio, dt=1.0, m1=0.1
    )
    assert torch.equal(state.masses[:, 5], expected[:, 5])
    z = state.momenta[:, 5].double() * momenta[:, 5]
    assert abs(float(z.mean() / (z.std() / 500**0.5))) < 4.5  # forgotten
    # p' = p + α w for the parameters that kept theirs: the projection, and nothing else
    along = (state.momenta.double() - momenta) / state.weights.double()
    slack = 4 * UNIT * (momenta.abs() + state.momenta.double().abs()) / state.weights.double().abs()
    spread = along[:, others] - along[:, :1]
    assert bool((spread.abs() <= slack[:, others] + slack[:, :1]).all())
    leak, terms = overlap(state.momenta, state.weights, state.masses)
    assert bool((leak.abs() <= 1.01 * UNIT * terms).all())


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_resets_are_as_frequent_as_set(probability: float) -> None:
    toy, chains = NoisyQuadratic(), 400
    sampler = Langevin(
        toy,
        [1.0] * chains,
        seed=4,
        batch=8,
        t_ratio=0.01,
        reset_probability=probability,
        scheme="paper",
        noise_draws=2,
        noise_draws_max=2,
        t_ratio_max=0.5,
    )
    state = sampler.init(start_weights(1)[0], norm2=Q)
    resets = 0
    for step in range(1, 6):
        state.masses.mul_(1e6)  # so that a reset shows, and nothing is raised
        before = state.masses.clone(), state.momenta.clone()
        state.step = step
        sampler.adaptation.adapt(state, torch.arange(chains))
        reset = (state.masses != before[0]).any(1)
        assert torch.equal(reset, (state.masses != before[0]).all(1))
        assert torch.equal(reset, (state.momenta != before[1]).any(1))
        expected = masses_from_variance(
            floored_variance(state.noise_variance, 1e-8),
            temperature=state.temperature,
            t_ratio=state.t_ratio,
            dt=1.0,
            m1=0.1,
        )
        assert torch.equal(state.masses[reset], expected[reset])
        resets += int(reset.sum())
    if probability in (0.0, 1.0):
        assert resets == probability * 5 * chains
    else:
        assert stats.binomtest(resets, 5 * chains, probability).pvalue > 1e-4


def test_intervals_grow_with_the_streak_up_to_the_cap() -> None:
    toy = NoisyQuadratic()
    sampler = Langevin(
        toy,
        1.0,
        seed=5,
        batch=8,
        t_ratio=0.01,
        noise_draws=40,
        noise_draws_max=40,
        adapt_every=10,
        adapt_every_max=35,
        unchanged_tolerance=1.0,
        reset_probability=0.0,
    )
    state = sampler.init(start_weights(1), norm2=Q)
    times, streaks = [], []

    def record(done: int) -> None:
        nonlocal calls
        if toy.calls - calls > 1:  # an estimate, before the move that has just been made
            times.append(state.step - 1)
            streaks.append(int(state.streak[0]))
        calls = toy.calls

    calls = toy.calls
    sampler.run(state, 100, on_moves=record)
    assert times == [10, 30, 60, 95]  # 10, then 2 · 10, 3 · 10, and 35 where 4 · 10 would be
    assert streaks == [2, 3, 4, 5]
    toy.scale_noise(torch.full((12,), 3.0))
    sampler.run(state, 60, on_moves=record)
    assert times[4:] == [130, 140]  # changed: from the start of the ladder again
    assert streaks[4:] == [1, 2]


@pytest.mark.parametrize("recorder", [None, CallRecorder()])
def test_a_tether_of_each_chain_is_in_the_momenta_and_not_in_the_noise(
    recorder: CallRecorder | None,
) -> None:
    """Chains that share an estimate, or are measured while others are not, keep their own
    reference: Π = p + (dt/2)(⟨g⟩ + λ w + γ (w - w_ref))."""
    ridge, tether = 0.25, 2.0
    reference = start_weights(3, seed=5)
    toy = NoisyQuadratic()
    options = {"batch": 8, "noise_draws": 10, "noise_draws_max": 10, "t_ratio": 0.02}
    options |= {"seed": 6, "recorder": recorder, "reset_probability": 1.0, "constrained": False}
    weights = start_weights(1).expand(3, 12)
    tethered = Langevin(Regularised(toy, ridge, tether, reference), [1.0] * 3, **options)
    plain = Langevin(toy, [1.0] * 3, **options)
    states = tethered.init(weights), plain.init(weights)
    for rows in (None, torch.tensor([0, 2])):
        if rows is not None:
            for sampler, state in zip((tethered, plain), states, strict=True):
                state.step = 9
                sampler.adaptation.adapt(state, rows)
        assert torch.equal(states[0].noise_variance, states[1].noise_variance)
        assert torch.equal(states[0].masses, states[1].masses)
        slope = ridge * weights.double() + tether * (weights.double() - reference.double())
        kick = states[0].momenta.double() - states[1].momenta.double()
        scale = states[0].momenta.double().abs() + states[1].momenta.double().abs() + slope.abs()
        assert bool(((kick - 0.5 * slope).abs() <= 4 * UNIT * scale).all())


def test_no_adaptation_when_switched_off() -> None:
    toy = NoisyQuadratic()
    sampler = Langevin(toy, 1.0, batch=8, adapt_every=0, t_ratio=0.01)
    state = sampler.init(start_weights(1), norm2=Q)
    masses, calls = state.masses.clone(), toy.calls
    assert state.next_adaptation.tolist() == [-1]
    sampler.run(state, 300)
    assert toy.calls - calls == 300
    assert torch.equal(state.masses, masses)


def test_masses_by_hand_stay_and_their_noise_is_measured_again() -> None:
    """White noise has to make room for the mini-batches' as it is now, also after a checkpoint."""
    toy = NoisyQuadratic()
    options = {"batch": 8, "seed": 7, "adapt_every": 10, "reset_probability": 1.0}
    sampler = Langevin(toy, [1.0, 2.0], **options)
    state = sampler.init(start_weights(2), masses=500.0, norm2=Q)
    sampler.run(state, 5)
    before = state.noise_variance.clone(), state.t_ratio.clone(), state.momenta.clone()
    toy.scale_noise(torch.full((12,), 2.0))
    again = LangevinState.from_tensors(state.tensors())
    for one in (state, again):
        Langevin(toy, [1.0, 2.0], **options).run(one, 10)
        assert bool((one.masses == 500.0).all())
        ratio = one.noise_variance / before[0]
        assert float(ratio.median()) == pytest.approx(4.0, rel=0.3)  # of a hundred draws at least
        largest = realised_t_ratio(
            one.noise_variance, one.masses, temperature=one.temperature, dt=1.0, m1=0.1
        ).amax(1)
        assert torch.equal(one.t_ratio, largest)
        assert bool((one.t_ratio > 2 * before[1]).all())
    assert torch.equal(state.weights, again.weights)
    momenta = state.momenta.clone()
    state.step = int(state.next_adaptation[0])
    sampler.adaptation.adapt(state, torch.arange(2))
    assert torch.equal(state.momenta, momenta)  # nor drawn anew, whatever the probability
    toy.scale_noise(torch.full((12,), 20.0))
    with pytest.raises(ValueError, match=r"^masses: the mini-batch's share of the thermal noise"):
        sampler.run(state, 100)


def test_masses_by_hand_may_have_no_noise_at_all() -> None:
    toy = NoisyQuadratic(noise=0.0)
    sampler = Langevin(toy, 1.0, batch=8, adapt_every=5)
    state = sampler.init(start_weights(1), masses=500.0, norm2=Q)
    state.noise_variance.zero_()  # rounding
    sampler.run(state, 20)
    assert bool((state.masses == 500.0).all())


def test_two_estimates_of_thousands_of_variances_count_as_unchanged() -> None:
    """Their largest difference is beyond a tenth, whatever the law; their mean square is not, until
    the noise changes."""
    toy = NoisyQuadratic(parameters=3000)
    sampler = Langevin(
        toy, 1.0, seed=5, batch=8, t_ratio=0.01, adapt_every=10, noise_draws_max=300,
        reset_probability=0.0,
    )  # fmt: skip
    start = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    state = sampler.init(start)
    for step, streak in ((10, 2), (20, 3)):
        before = state.noise_variance.clone()
        state.step = step
        sampler.adaptation.adapt(state, torch.arange(1))
        assert int(state.streak[0]) == streak
        assert float(((state.noise_variance / before).sqrt() - 1).abs().max()) > 0.1
    toy.scale_noise(torch.full((3000,), 1.3))
    state.step = 30
    sampler.adaptation.adapt(state, torch.arange(1))
    assert int(state.streak[0]) == 1


@pytest.mark.parametrize("t_ratio", [None, 0.01])
def test_a_chain_without_noise_is_called_by_its_identity(t_ratio: float | None) -> None:
    class Silent(NoisyQuadratic):
        def __call__(self, weights, batch=None):  # type: ignore[no-untyped-def]
            losses, gradient = super().__call__(weights, batch)
            exact = super().__call__(weights)[1]
            gradient[1] = exact[1]
            return losses, gradient

    sampler = Langevin(Silent(), [1.0] * 2, batch=8, t_ratio=t_ratio)
    with pytest.raises(ValueError, match=r"variance 0 for every parameter of chain 8: "):
        sampler.init(start_weights(2), norm2=Q, chain_ids=[3, 8])
