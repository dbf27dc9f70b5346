"""What can go wrong in a run of the sampler: one clear line, and the last good weights kept."""

from __future__ import annotations

import math

import pytest
import torch
from toy import SEED, NoisyQuadratic, Q, make_sampler, start_weights

from thermosphere.ops.minibatch import Minibatch
from thermosphere.sampling.hmc import HybridMonteCarlo
from thermosphere.sampling.langevin import Langevin, UnreachableSphereError
from thermosphere.sampling.state import LangevinState


def test_a_sphere_out_of_reach_stops_with_the_numbers_that_matter() -> None:
    sampler = make_sampler([0.5, 1.0], t_ratio=0.25)
    state = sampler.init(start_weights(2), norm2=Q, chain_ids=[3, 8])
    sampler.run(state, 4)
    state.momenta[1] *= 1e4
    before = LangevinState.from_tensors(state.tensors())
    with pytest.raises(UnreachableSphereError) as error:
        sampler.run(state, 10)
    assert str(error.value) == (
        "sampler: chain 8 left the sphere's reach at step 4: dt = 1, T_ratio = 0.25, T = 1; "
        "lower t_ratio (or displacement, its default's), or with masses by hand dt"
    )
    assert torch.equal(state.weights[1], before.weights[1])
    assert torch.equal(state.momenta[1], before.momenta[1])
    assert state.step == 4


def test_a_hot_light_chain_loses_the_sphere() -> None:
    """The plain way to get there: thermal moves dt sqrt(T/M) as large as sqrt(Q/N)."""
    sampler = Langevin(NoisyQuadratic(noise=0.1), 1.0, batch=8, dt=0.5)
    state = sampler.init(start_weights(1), norm2=Q, masses=torch.full((12,), 0.5**2 / 2.0))
    share = float((state.noise_variance * 0.5**2 / (4 * 0.125 * 1.0 * 0.1**2)).max())
    assert 0.1 < share < 0.5
    assert float(state.t_ratio) == pytest.approx(
        share, rel=1e-6
    )  # with masses by hand: the largest
    with pytest.raises(UnreachableSphereError, match=rf"dt = 0\.5, T_ratio = {share:.3g}, T = 1;"):
        sampler.run(state, 1000)
    assert float((state.weights.double() ** 2).sum()) == pytest.approx(Q, rel=1e-6)


class Broken(NoisyQuadratic):
    """Returns a number that is not finite for chain row 1 once it is told to."""

    where = ""

    def __call__(
        self, weights: torch.Tensor, batch: Minibatch | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, gradient = super().__call__(weights, batch)
        if self.where:
            gradient[-1, 7] = float(self.where)
        return losses, gradient


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("where", ["nan", "inf"])
def test_a_gradient_that_is_not_finite_stops_the_run(
    scheme: str, constrained: bool, where: str
) -> None:
    toy = Broken()
    sampler = Langevin(
        toy,
        [1.0] * 2,
        batch=8,
        scheme=scheme,
        constrained=constrained,
        noise_draws=5,
        noise_draws_max=5,
        t_ratio=0.01,
    )
    state = sampler.init(start_weights(2), norm2=Q)
    sampler.run(state, 3)
    weights = state.weights[1].clone()
    toy.where = where
    with pytest.raises(
        UnreachableSphereError,
        match=r"^sampler: chain 1 has a loss, gradient or momentum that is not finite at step 3: ",
    ):
        sampler.run(state, 3)
    assert torch.equal(state.weights[1], weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": torch.ones(11)}, "weights must be (12,) or (2, 12), got (11,)"),
        ({"weights": torch.ones(3, 12)}, "weights must be (12,) or (2, 12), got (3, 12)"),
        ({"weights": torch.full((12,), torch.nan)}, "weights must be finite, got NaN or infinity"),
        ({"weights": torch.full((12,), torch.inf)}, "weights must be finite, got NaN or infinity"),
        ({"weights": torch.zeros(12)}, "weights on a sphere must not all be zero, got |w|² = 0"),
        ({"norm2": 0.0}, "norm2 must be finite and > 0, got 0.0"),
        ({"norm2": math.nan}, "norm2 must be finite and > 0, got nan"),
        ({"norm2": math.inf}, "norm2 must be finite and > 0, got inf"),
        ({"chain_ids": [1]}, "chain_ids must be 2 distinct integers in [0, 2**32), got [1]"),
        ({"chain_ids": [1, 1]}, "chain_ids must be 2 distinct integers in [0, 2**32), got [1, 1]"),
        (
            {"chain_ids": [0, -1]},
            "chain_ids must be 2 distinct integers in [0, 2**32), got [0, -1]",
        ),
        (
            {"chain_ids": [0, 2**32]},
            "chain_ids must be 2 distinct integers in [0, 2**32), got [0, 4294967296]",
        ),
        (
            {"chain_ids": [0.2, 0.7]},
            "chain_ids must be 2 distinct integers in [0, 2**32), got [0.20000000298023224, "
            "0.699999988079071]",
        ),
        ({"masses": 0.0}, "masses must be finite and > 0, got 0.0"),
        ({"masses": math.nan}, "masses must be finite and > 0, got nan"),
        ({"masses": math.inf}, "masses must be finite and > 0, got inf"),
        ({"norm2": "1"}, "norm2 must be a number, got '1'"),
        ({"chain_ids": 3}, "chain_ids must be 2 distinct integers in [0, 2**32), got 3"),
        (
            {"chain_ids": ["a", 1]},
            "chain_ids must be 2 distinct integers in [0, 2**32), got ['a', 1]",
        ),
        ({"masses": "x"}, "masses must be a number, (12,) or (2, 12), got 'x'"),
        ({"masses": torch.ones(2)}, "masses must be a number, (12,) or (2, 12), got (2,)"),
    ],
)
def test_starts_out_of_range(arguments: dict[str, object], message: str) -> None:
    sampler = make_sampler([1.0, 2.0])
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
        sampler.init(**{"weights": torch.ones(12), **arguments})  # type: ignore[arg-type]
    assert str(error.value) == f"init: {message}"
    assert sampler.potential.calls == 0  # refused before anything was computed


def test_a_second_half_that_is_not_finite_is_a_failure_too() -> None:
    """Of the last move as of any: momenta of NaN would end a run without a word."""

    class Breaking(NoisyQuadratic):
        left = -1  # calls before the gradient is not finite

        def __call__(self, weights, batch=None):  # type: ignore[no-untyped-def]
            losses, gradient = super().__call__(weights, batch)
            self.left -= 1
            return losses, gradient * (torch.nan if self.left == 0 else 1.0)

    toy = Breaking()
    sampler = Langevin(toy, 1.0, batch=8, t_ratio=0.01, scheme="paper")
    state = sampler.init(start_weights(1), norm2=Q)
    sampler.run(state, 3)
    toy.left = 2
    with pytest.raises(UnreachableSphereError, match=r"chain 0 has a .* not finite at step 3"):
        sampler.run(state, 1)
    assert state.weights.isfinite().all()


@pytest.mark.parametrize("options", [{"batch": 8}, {"batch": None}, {"batch": None, "modes": 2}])
def test_what_masses_cannot_be_made_from_is_refused(options: dict[str, object]) -> None:
    toy = Broken()
    sampler = Langevin(toy, [1.0] * 2, constrained=False, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^init: weights must not all be zero, got \|w\|² = 0: "):
        sampler.init(torch.zeros(12))
    toy.where = "nan"
    finite = "^init: the loss gradient must be finite at the start, got NaN or infinity in chain "
    with pytest.raises(ValueError, match=finite):
        sampler.init(start_weights(2))


def test_a_gradient_that_ends_between_two_looks_is_no_reason_for_a_third() -> None:
    toy = Broken()
    sampler = Langevin(toy, [1.0] * 2, batch=None, modes=2)
    state = sampler.init(start_weights(2), norm2=Q)
    sampler.run(state, 25)  # more than ten after the last look: it might be looked at again
    toy.where = "nan"
    with pytest.raises(
        UnreachableSphereError, match=r"lower stiffness, .*, unless the loss itself"
    ):
        sampler.run(state, 3)


def test_one_weight_cannot_move_on_a_sphere() -> None:
    with pytest.raises(ValueError, match="a sphere must have at least 2 weights, got 1"):
        Langevin(NoisyQuadratic(parameters=1), 1.0).init(torch.ones(1))
    with pytest.raises(ValueError, match="a sphere must have at least 2 weights, got 1"):
        HybridMonteCarlo(NoisyQuadratic(parameters=1), 1.0).init(torch.ones(1))


def test_weights_may_start_at_zero_where_masses_need_no_scale() -> None:
    sampler = Langevin(NoisyQuadratic(), 1.0, batch=8, t_ratio=0.01, constrained=False)
    state = sampler.init(torch.zeros(12))
    sampler.run(state, 5)
    assert float(state.weights.abs().max()) > 0


def test_a_checkpoint_is_a_copy() -> None:
    sampler = make_sampler([1.0, 2.0])
    state = sampler.init(start_weights(2))
    saved = state.tensors()
    weights = state.weights.clone()
    sampler.run(state, 5)
    assert int(saved["step"]) == 0
    assert torch.equal(saved["weights"], weights)
    exact = HybridMonteCarlo(NoisyQuadratic(), [1.0, 2.0])
    tuned = exact.init(start_weights(2))
    kept = tuned.tensors()
    exact.warm_up(tuned, 3)
    assert torch.equal(kept["log_step"], kept["log_step_mean"])


def test_masses_too_light_for_the_noise_are_refused_at_the_start() -> None:
    with pytest.raises(
        ValueError,
        match=r"^masses: the mini-batch's share of the thermal noise must be <= 0\.5025 ",
    ):
        make_sampler().init(start_weights(3), masses=1e-3)


def test_a_state_on_another_device_is_refused() -> None:
    sampler = make_sampler()
    state = sampler.init(start_weights(3))
    state.weights = state.weights.to("meta")
    with pytest.raises(
        ValueError, match=r"^run: the state must be on the potential's device cpu, got meta; "
    ):
        sampler.run(state, 1)


def test_what_a_state_goes_on_with_at_another_temperature_is_another_seed() -> None:
    """The same one makes the same noise, from step 0 again."""
    state = make_sampler().init(start_weights(3))
    warmer = make_sampler((1.0, 2.0, 4.0))
    with pytest.raises(ValueError, match=r"init\(state\.weights\) of a sampler with another seed"):
        warmer.run(state, 1)
    thermal = [
        make_sampler(seed=seed, constrained=False, scheme="paper")
        .init(state.weights, masses=500.0)
        .momenta
        for seed in (SEED, SEED, SEED + 1)
    ]
    assert torch.equal(thermal[0], thermal[1])
    assert abs(float(torch.corrcoef(torch.stack(thermal)[1:].flatten(1))[0, 1])) < 0.5


def test_no_moves_is_an_error() -> None:
    sampler = make_sampler()
    state = sampler.init(start_weights(3))
    with pytest.raises(ValueError, match=r"^run: moves must be >= 1, got 0$"):
        sampler.run(state, 0)
