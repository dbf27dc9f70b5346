"""Hybrid Monte Carlo: the law it samples, against quadrature; what a run is a function of; tuning;
the precision of U; input that is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numerics import assert_same_bits
from sphere_law import sphere_law
from toy import SEED, NoisyQuadratic, Q, start_weights

from thermosphere import HybridMonteCarlo, HybridMonteCarloState
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.module_potential import ModulePotential
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.models.regularised import Regularised
from thermosphere.models.transformer import Transformer
from thermosphere.ops.minibatch import Minibatch
from thermosphere.proteins.dataset import MaskedSequences

pytestmark = pytest.mark.usefixtures("one_torch_thread")

N = 12
TEMPERATURE = 1.0
CHAINS = 128
Z_MAX = 4.5
MASSES = np.logspace(0.0, 1.5, N)[::-1].copy()  # stiff directions light: far from the law's shape


def chain_means(sampler: HybridMonteCarlo, state: HybridMonteCarloState, draws: int) -> np.ndarray:
    """Means of each chain over `draws` trajectories, (C, 2 N + 3): w, w², U, Σ w²/M, kinetic
    temperature."""
    inverse = torch.from_numpy(1 / MASSES)
    total = torch.zeros(len(state.losses), 2 * N + 3, dtype=torch.float64)

    def observe(_: int) -> None:
        w = state.weights
        columns = [state.losses, (w * w) @ inverse, sampler.kinetic_temperature(state)]
        total.add_(torch.cat([w, w * w, torch.stack(columns, 1)], 1))

    sampler.run(state, draws, observe)
    return (total / draws).numpy()


def z_scores(means: np.ndarray, toy: NoisyQuadratic) -> np.ndarray:
    law = sphere_law(toy, norm2=Q, temperature=TEMPERATURE)
    metric = float(law.square @ (1 / MASSES))
    exact = np.concatenate([law.mean, law.square, [law.energy, metric, TEMPERATURE]])
    return (means.mean(0) - exact) / (means.std(0, ddof=1) / len(means) ** 0.5)


@pytest.mark.parametrize(
    ("masses", "step_size", "dtype"),
    [
        (3.0, 1.5, torch.float32),
        (MASSES, 0.7, torch.float64),
        # Half of the proposals fall, most of them for want of a root or a way back.
        (MASSES, 0.9, torch.float64),
    ],
)
def test_law_on_the_sphere(
    masses: float | np.ndarray, step_size: float, dtype: torch.dtype
) -> None:
    toy = NoisyQuadratic(N)
    sampler = HybridMonteCarlo(
        toy, [TEMPERATURE] * CHAINS, seed=3, steps=4, step_size=step_size, dtype=dtype
    )
    state = sampler.init(start_weights(CHAINS), masses=torch.as_tensor(masses), norm2=Q)
    sampler.run(state, 40)
    z = z_scores(chain_means(sampler, state, 200), toy)
    assert np.abs(z).max() < Z_MAX
    norm2 = (state.weights**2).sum(1)
    assert float((norm2 / Q - 1).abs().max()) < 1e-14
    rate = float((state.accepted / state.counted).mean())
    assert rate == pytest.approx(float(sampler.acceptance(state).mean()), abs=0.01)
    broken = float((state.broken / state.counted).double().mean())
    assert (0.3 < rate < 0.6 and broken > 0.2) if step_size == 0.9 else rate > 0.6


def test_without_the_metric_term_the_law_is_another_one() -> None:
    """So the test above sees that term."""
    toy = NoisyQuadratic(N)
    sampler = HybridMonteCarlo(
        toy,
        [TEMPERATURE] * CHAINS,
        seed=3,
        steps=4,
        step_size=0.7,
        dtype=torch.float64,
        metric_correction=False,
    )
    state = sampler.init(start_weights(CHAINS), masses=torch.from_numpy(MASSES), norm2=Q)
    sampler.run(state, 40)
    assert abs(z_scores(chain_means(sampler, state, 200), toy)[-2]) > 8


def test_equal_masses_are_a_choice_of_units() -> None:
    """M and h sqrt(M) make the same trajectories; powers of two the same bits."""
    toy = NoisyQuadratic(N)
    states = []
    for masses, step_size in ((1.0, 0.25), (16.0, 1.0)):
        sampler = HybridMonteCarlo(toy, [0.5, 2.0], seed=1, step_size=step_size)
        state = sampler.init(start_weights(2), masses=masses, norm2=Q)
        sampler.run(state, 5)
        assert int(state.accepted.sum()) > 4
        states.append(state)
    assert_same_bits(*(state.weights for state in states))


def make_sampler(**changes: object) -> HybridMonteCarlo:
    defaults = {"temperature": [0.5, 1.0, 2.0], "seed": SEED, "steps": 4, "dtype": torch.float64}
    return HybridMonteCarlo(NoisyQuadratic(), **{**defaults, **changes})  # type: ignore[arg-type]


def test_a_run_cut_and_resumed_has_the_same_bits() -> None:
    sampler = make_sampler()
    whole = sampler.init(start_weights(3), norm2=Q)
    sampler.warm_up(whole, 20)
    first = sampler.run(whole, 12)

    state = make_sampler().init(start_weights(3), norm2=Q)
    make_sampler().warm_up(state, 13)
    state = HybridMonteCarloState.from_tensors(state.tensors())
    make_sampler().warm_up(state, 7)
    part = make_sampler().run(state, 5) * 5
    state = HybridMonteCarloState.from_tensors(state.tensors())
    part += make_sampler().run(state, 7) * 7
    for name, tensor in whole.tensors().items():
        assert_same_bits(state.tensors()[name], tensor, name)
    torch.testing.assert_close(part / 12, first, rtol=1e-14, atol=0)
    assert state.step == 32
    assert state.tuned == 20
    assert state.counted == 12


def test_a_chain_depends_on_its_identity_alone_and_the_seed_counts() -> None:
    together = make_sampler().init(start_weights(3), norm2=Q)
    make_sampler().warm_up(together, 10)
    alone = make_sampler(temperature=2.0)
    state = alone.init(start_weights(3)[2], norm2=Q, chain_ids=[2])
    alone.warm_up(state, 10)
    # Sums over rows may take another order where there are fewer of them.
    torch.testing.assert_close(state.weights[0], together.weights[2], rtol=1e-9, atol=1e-9)
    other = make_sampler(seed=SEED + 1)
    state = other.init(start_weights(3), norm2=Q)
    other.warm_up(state, 10)
    assert not torch.allclose(state.weights, together.weights)


def test_a_rejected_trajectory_leaves_the_chain_where_it_was() -> None:
    sampler = make_sampler(step_size=50.0)
    state = sampler.init(start_weights(3), norm2=Q)
    before = state.weights.clone()
    mean = sampler.run(state, 8)
    assert state.accepted.tolist() == [0, 0, 0]
    assert state.broken.tolist() == [8, 8, 8]
    assert torch.equal(state.weights, before)
    torch.testing.assert_close(mean, state.losses)
    assert sampler.acceptance(state).tolist() == [0.0, 0.0, 0.0]


def test_the_warm_up_reaches_the_acceptance_asked_for() -> None:
    """From a first step far too small, and from one far too large."""
    for target, first in ((0.8, 0.01), (0.8, 10.0), (0.6, 1.0)):
        sampler = make_sampler(
            temperature=[1.0] * 64, target_acceptance=target, step_size=first, steps=6
        )
        state = sampler.init(start_weights(64), norm2=Q)
        sampler.warm_up(state, 150)
        assert math.isnan(float(sampler.acceptance(state)[0]))
        frozen = state.step_size.clone()
        sampler.run(state, 60)
        assert torch.equal(state.step_size, frozen)
        # The steps of 64 chains scatter by some per cent around the one asked for.
        assert abs(float(sampler.acceptance(state).mean()) - target) < 0.06


def test_lengths_are_uniform_over_the_range_asked_for() -> None:
    sampler = make_sampler(steps=10, jitter=0.3)
    lengths = np.array([sampler._length(step) for step in range(7000)])
    counts = np.bincount(lengths, minlength=14)
    assert counts[:7].sum() == 0
    assert len(counts) == 14
    chi2 = ((counts[7:] - 1000.0) ** 2 / 1000.0).sum()
    assert chi2 < 22.5  # 6 degrees of freedom: one in a thousand
    assert {make_sampler(steps=5, jitter=0.0)._length(step) for step in range(50)} == {5}
    assert min(make_sampler(steps=1, jitter=0.9)._length(step) for step in range(50)) == 1


def small_potential(backend: str = "auto") -> MaskedLanguagePotential:
    random = np.random.default_rng(0)
    masked = random.random((200, 24)) < 0.15
    masked[:, 0] = True
    tokens = random.integers(0, 20, (200, 24)).astype(np.uint8)
    sites = MaskedSites(MaskedSequences(tokens, masked))
    model = Transformer("small", blocks=1, embedding=10, hidden=24, length=24)
    return MaskedLanguagePotential(model, sites, backend=backend)


def test_the_fused_loss_decides_as_float64_does() -> None:
    """What varies of U's error, from place to place along a chain, is 1e-4 of a temperature at
    which a study is made; a part of it that is the same everywhere changes nothing."""
    potential, temperature = small_potential(), 1e-4
    generator = torch.Generator().manual_seed(1)
    weights = 0.4 * torch.randn(1, potential.parameters, generator=generator)
    sampler = HybridMonteCarlo(potential, temperature, seed=1, steps=5)
    state = sampler.init(weights)
    places = [state.weights]
    sampler.warm_up(state, 40, lambda _: places.append(state.weights))
    at = torch.cat(places)
    fused, _ = potential(at.float())
    assert fused.dtype == torch.float64
    exact, _ = potential(at)
    assert float(exact.std()) > 10 * temperature
    assert float((fused - exact).std()) < 1e-3 * temperature
    # float64 weights take the float64 path
    double = HybridMonteCarlo(potential, temperature, seed=1, dtype=torch.float64).init(weights)
    torch.testing.assert_close(double.losses, exact[:1], rtol=1e-14, atol=0)


def test_harmonic_terms_are_float64_beside_a_fused_loss() -> None:
    inner = small_potential()
    weights = torch.randn(2, inner.parameters, generator=torch.Generator().manual_seed(2))
    outer = Regularised(inner, ridge=0.5, tether=0.25, reference=weights[0])
    losses, _ = outer(weights)
    away = (weights - weights[0]).double()
    expected = inner(weights)[0] + 0.25 * (weights.double() ** 2).sum(1)
    torch.testing.assert_close(losses, expected + 0.125 * (away**2).sum(1), rtol=1e-13, atol=0)


def test_any_module_can_be_sampled() -> None:
    """A float32 module, whose U is float32 too; its law is that of its loss."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 3, generator=generator)
    y = (x[:, 0] > 0).float()
    network = torch.nn.Linear(3, 1)

    def loss(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (network(x)[:, 0] - y).square()

    potential = ModulePotential(network, loss, x, y)
    sampler = HybridMonteCarlo(potential, [0.05] * 2, seed=4, steps=5)
    state = sampler.init(torch.ones(4))
    sampler.warm_up(state, 40)
    mean = sampler.run(state, 40)
    w = state.weights
    direct = (x.double() @ w[:, :3].T + w[:, 3] - y[:, None]).square().mean(0)
    torch.testing.assert_close(state.losses, direct, rtol=1e-5, atol=0)
    assert float(sampler.acceptance(state).min()) > 0.5
    anywhere = start_weights(100)[:, :4]
    anywhere *= 2 / anywhere.norm(dim=1, keepdim=True)
    assert bool((mean < 0.7 * potential(anywhere)[0].mean()).all())
    assert float(((state.weights**2).sum(1) / 4 - 1).abs().max()) < 1e-14


def test_bad_arguments() -> None:
    cases: dict[str, dict[str, object]] = {
        "sampler: temperature must be one positive number a chain, got [0.0]": {"temperature": 0.0},
        "sampler: seed must be in [0, 2**64), got -1": {"seed": -1},
        "hmc: steps must be >= 1, got 0": {"steps": 0},
        "hmc: jitter must be in [0, 1), got 1": {"jitter": 1},
        "hmc: jitter must be in [0, 1), got nan": {"jitter": math.nan},
        "hmc: target_acceptance must be in (0, 1), got 1.0": {"target_acceptance": 1.0},
        "hmc: step_size must be finite and > 0, got 0": {"step_size": 0},
        "hmc: step_size must be finite and > 0, got inf": {"step_size": math.inf},
        "hmc: dtype must be float32 or float64, got torch.float16": {"dtype": torch.float16},
    }
    for message, change in cases.items():
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
            make_sampler(**change)
        assert str(error.value) == message


def test_bad_starts() -> None:
    sampler = make_sampler()
    good = start_weights(3)
    cases: dict[str, Callable[[], object]] = {
        "init: weights must be (12,) or (3, 12), got (3, 11)": lambda: sampler.init(good[:, 1:]),
        "init: weights must be finite, got NaN or infinity": lambda: sampler.init(good / 0),
        "init: weights on a sphere must not all be zero, got |w|² = 0": lambda: sampler.init(
            torch.zeros(12)
        ),
        "init: norm2 must be finite and > 0, got -1.0": lambda: sampler.init(good, norm2=-1.0),
        "init: masses must be finite and > 0, got 0.0": lambda: sampler.init(good, masses=0.0),
        "init: masses must be a number, (12,) or (3, 12), got (3,)": lambda: sampler.init(
            good, masses=torch.ones(3)
        ),
        "init: chain_ids must be 3 distinct integers in [0, 2**32), got [0, 0, 1]": (
            lambda: sampler.init(good, chain_ids=[0, 0, 1])
        ),
        "run: trajectories must be >= 1, got 0": lambda: sampler.run(sampler.init(good), 0),
        "warm_up: trajectories must be >= 1, got -2": lambda: sampler.warm_up(
            sampler.init(good), -2
        ),
        "hmc state: expected tensors ['momenta'], got ['weights']": (
            lambda: HybridMonteCarloState.from_tensors({"weights": good})
        ),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
            call()
        if "hmc state" not in message:
            assert str(error.value) == message
    assert "expected tensors ['momenta'" in str(error.value)


def test_a_start_whose_energy_cannot_be_compared_is_refused() -> None:
    class Shifted(NoisyQuadratic):
        shift = 0.0

        def __call__(
            self, weights: torch.Tensor, batch: Minibatch | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            losses, gradient = super().__call__(weights, batch)
            return losses + self.shift, gradient

    toy = Shifted()
    sampler = HybridMonteCarlo(toy, 1.0)
    sampler.init(start_weights(1))
    toy.shift = 1e7
    with pytest.raises(ValueError, match=r"exact to 0.05 T, got 0.6 T; pass dtype=torch.float64"):
        sampler.init(start_weights(1))
    HybridMonteCarlo(toy, 1.0, dtype=torch.float64).init(start_weights(1))
    toy.shift = math.nan
    with pytest.raises(ValueError, match="must be finite, got a loss of nan in chain 7"):
        sampler.init(start_weights(1), chain_ids=[7])
