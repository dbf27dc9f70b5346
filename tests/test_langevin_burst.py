"""Bursts of moves inside the extension: the moves of the ops one after another, to the bit, however
they are cut and on any number of threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_encoder_gradient import make_data, model_of

from thermosphere import _core
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.models.regularised import Regularised
from thermosphere.ops.encoder_gradient import EncoderShape
from thermosphere.ops.langevin_burst import (
    BurstWorkspace,
    HalfMoves,
    langevin_burst,
)
from thermosphere.ops.langevin_step import step_coefficients
from thermosphere.ops.minibatch import Minibatch
from thermosphere.proteins.dataset import MaskedSequences
from thermosphere.sampling.langevin import Langevin, UnreachableSphereError
from thermosphere.sampling.state import LangevinState

SHAPE = EncoderShape(1, 10, 18, 21, 21)
TWO_BLOCKS = EncoderShape(2, 10, 18, 21, 21)
TEMPERATURES = [1e-3, 3e-3, 1e-2]


class Plain:
    """The same potential without its bursts: one move at a time, through Python."""

    def __init__(self, potential: MaskedLanguagePotential | Regularised) -> None:
        self.inside = potential
        self.parameters, self.examples = potential.parameters, potential.examples
        if isinstance(potential, Regularised):
            self.noisy, self.harmonic_gradient = potential.noisy, potential.harmonic_gradient

    def __call__(
        self, weights: torch.Tensor, batch: Minibatch | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inside(weights, batch)


def make_potential(shape: EncoderShape = SHAPE) -> MaskedLanguagePotential:
    data = make_data(shape)
    masked = data.tokens == data.mask
    tokens = data.tokens.clone()
    tokens[masked] = data.target.to(torch.uint8)
    sequences = MaskedSequences(tokens.numpy(), masked.numpy())
    return MaskedLanguagePotential(model_of(shape), sequences, backend="fused")


def make_sampler(potential: object, threads: int = 1, **options: object) -> Langevin:
    defaults = {
        "batch": 8,
        "noise_draws": 10,
        "noise_draws_max": 20,
        "t_ratio": 0.01,
        "variance_floor": "median",
    }
    return Langevin(potential, TEMPERATURES, seed=3, threads=threads, **{**defaults, **options})  # type: ignore[arg-type]


def start(sampler: Langevin, shape: EncoderShape = SHAPE) -> LangevinState:
    weights = model_of(shape).initial(3, torch.Generator().manual_seed(1))
    return sampler.init(weights)


def assert_same_state(one: LangevinState, other: LangevinState) -> None:
    a, b = one.tensors(), other.tensors()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("isa", _core.isa_available())
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheme": "paper"},
        {"constrained": False},
        {"metric_correction": False},
        {"adapt_every": 7},
    ],
    ids=str,
)
def test_a_burst_is_its_moves(options: dict[str, object], isa: str) -> None:
    chosen = _core.isa_chosen()
    _core.isa_choose(isa)
    try:
        potential = make_potential()
        burst, plain = make_sampler(potential, **options), make_sampler(Plain(potential), **options)
        assert burst.moves.fused is not None
        assert plain.moves.fused is None
        states = start(burst), start(plain)
        before = states[0].weights.clone()
        means = burst.run(states[0], 20), plain.run(states[1], 20)
    finally:
        _core.isa_choose(chosen)
    assert_same_state(*states)
    assert not torch.equal(states[0].weights, before)
    # the burst sums float64 losses, the plain path float32 ones
    assert torch.allclose(*means, rtol=1e-6)


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
@pytest.mark.parametrize("one", [True, False], ids=["one reference", "one a chain"])
def test_harmonic_terms(scheme: str, one: bool) -> None:
    inside = make_potential()
    reference = 0.1 * torch.randn(3, inside.parameters, generator=torch.Generator().manual_seed(2))
    potential = Regularised(inside, 1e-2, 2e-2, reference[0] if one else reference)
    burst, plain = (
        make_sampler(p, scheme=scheme, constrained=False) for p in (potential, Plain(potential))
    )
    states = start(burst), start(plain)
    means = burst.run(states[0], 12), plain.run(states[1], 12)
    assert_same_state(*states)
    assert torch.allclose(*means, rtol=1e-5)
    bare = start(sampler := make_sampler(inside, scheme=scheme, constrained=False))
    assert bool((sampler.run(bare, 12) < means[0] - 1e-3).all())  # the terms are there


def test_one_harmonic_term_only() -> None:
    """A second one around it is not lost: such a potential moves one by one."""
    twice = Regularised(Regularised(make_potential(), 1e-2), 1e-2)
    assert twice.fused is None
    assert Regularised(make_potential(), 1e-2).fused is not None
    autograd = MaskedLanguagePotential(model_of(SHAPE), make_potential().sites, backend="autograd")
    assert autograd.fused is None
    assert Regularised(autograd, 1e-2).fused is None


@pytest.mark.parametrize("batch", [8, None])
@pytest.mark.parametrize("shape", [SHAPE, TWO_BLOCKS], ids=["one block", "two blocks"])
def test_same_bits_for_any_cut_and_any_threads(shape: EncoderShape, batch: int | None) -> None:
    potential = make_potential(shape)
    fused = potential.fused
    assert fused is not None
    results = []
    for threads, cuts in ((1, [12]), (1, [1] * 12), (2, [5, 7]), (3, [12]), (5, [2, 9, 1])):
        sampler = make_sampler(potential, threads)
        state = start(sampler, shape)
        derived = sampler.moves.derive(state)
        sums = torch.zeros(3, dtype=torch.float64)
        workspace = BurstWorkspace(fused.shape, 3, potential.parameters, batch or 0)
        for moves in cuts:
            completed = langevin_burst(
                fused,
                state.weights,
                state.momenta,
                HalfMoves(
                    derived.inverse_masses,
                    derived.step_scales,
                    derived.step_coefficients,
                    None,
                    None,
                ),
                metric=derived.metric,
                chain_ids=state.chain_ids,
                workspace=workspace,
                loss_sums=sums,
                seed=4,
                step=state.step,
                moves=moves,
                batch=batch,
                threads=threads,
            )
            assert completed.tolist() == [moves] * 3
            state.step += moves
        results.append((state.weights, state.momenta, sums))
    for result in results[1:]:
        for got, expected in zip(result, results[0], strict=True):
            assert torch.equal(got, expected)


def test_a_chain_that_fails_stops_where_it_was() -> None:
    potential = make_potential()
    for kind in (potential, Plain(potential)):
        sampler = make_sampler(kind, adapt_every=0)
        state = start(sampler)
        sampler.run(state, 3)
        # light masses: chain 1 overshoots the sphere within a few moves
        state.masses[1] *= 1e-7
        state.noise_variance[1] *= 1e-7
        state.next_adaptation.fill_(-1)
        with pytest.raises(
            UnreachableSphereError, match=r"chain 1 left the sphere's reach at step"
        ):
            sampler.run(state, 40)
        assert bool(torch.isfinite(state.weights).all())
        if kind is potential:
            failed = state.weights[1].clone()
        else:
            assert torch.equal(failed, state.weights[1])


def test_not_a_number_is_named() -> None:
    sampler = make_sampler(make_potential(), adapt_every=0)
    state = start(sampler)
    state.momenta[2, 5] = float("nan")
    with pytest.raises(UnreachableSphereError, match=r"chain 2 has a loss.*not finite.* step 0:"):
        sampler.run(state, 4)


def test_progress_is_called_between_bursts_with_the_moves_made() -> None:
    sampler = make_sampler(make_potential())
    state = start(sampler)
    done: list[int] = []
    sampler.run(state, 400, on_moves=done.append)
    assert done[-1] == 400
    assert done == sorted(set(done))
    assert len(done) < 400  # bursts, not moves
    assert state.step == 400


def test_an_error_in_the_callback_stops_between_bursts() -> None:
    """As Ctrl-C does: the state is that of whole moves, and goes on."""
    sampler = make_sampler(make_potential())
    state, unbroken = start(sampler), start(sampler)

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.run(state, 50, on_moves=interrupt)
    assert 0 < state.step < 50
    sampler.run(state, 50 - state.step)
    sampler.run(unbroken, 50)
    assert_same_state(state, unbroken)


def test_arguments_are_checked() -> None:
    potential = make_potential()
    fused = potential.fused
    assert fused is not None
    n = potential.parameters
    one = torch.ones(2, dtype=torch.float64)
    coefficients = step_coefficients(
        dt=one, momentum_factor=one, gradient_factor=one, metric_temperature=one, norm2=one
    )

    def call(**changes: object) -> None:
        arguments: dict[str, object] = {
            "potential": fused,
            "weights": torch.zeros(2, n),
            "momenta": torch.zeros(2, n),
            "halves": HalfMoves(torch.ones(2, n), torch.ones(2, n), coefficients, None, None),
            "metric": one.clone(),
            "chain_ids": torch.arange(2),
            "workspace": BurstWorkspace(fused.shape, 2, n, 8),
            "loss_sums": torch.zeros(2, dtype=torch.float64),
            "seed": 0,
            "step": 0,
            "moves": 1,
            "batch": 8,
        }
        langevin_burst(**{**arguments, **changes})  # type: ignore[arg-type]

    call()
    halves = HalfMoves(torch.ones(2, n), torch.ones(2, n), coefficients, None, None)
    # As many parameters, of shorter sequences: what a gradient needs beside them is less.
    smaller = BurstWorkspace(replace(fused.shape, length=1), 2, n, 8)
    bad: list[tuple[dict[str, object], str]] = [
        ({"weights": torch.zeros(2, n + 1)}, r"weights must be \(C, "),
        ({"momenta": torch.zeros(2, n, dtype=torch.float64)}, "momenta must be"),
        ({"moves": 0}, "moves must be >= 1, got 0"),
        ({"step": -1}, "step must be"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
        ({"batch": 0}, "batch must be >= 1 or None, got 0"),
        ({"workspace": smaller}, "workspace must be of a potential of these sizes"),
        ({"batch": 9}, r"workspace must be for batches \(2, 9\), got \(2, 8\)"),
        ({"loss_sums": torch.zeros(2)}, r"loss_sums must be \(2,\) torch.float64"),
        ({"loss_sums": torch.zeros(1, dtype=torch.float64)}, r"loss_sums must be \(2,\)"),
        ({"halves": halves._replace(momenta_scales=torch.ones(2, n))}, "go together"),
        ({"potential": fused._replace(tether=1.0)}, "reference must be .* got None"),
        (
            {"potential": fused._replace(tether=1.0, reference=torch.zeros(3, n))},
            "reference must be",
        ),
    ]
    for changes, message in bad:
        with pytest.raises(ValueError, match=rf"^langevin_burst: .*{message}"):
            call(**changes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch": None, "t_ratio": None, "variance_floor": None, "modes": 2}],
    ids=["bursts", "modes"],
)
def test_the_default_dtype_changes_nothing(dtype: torch.dtype, options: dict[str, object]) -> None:
    potential = make_potential()
    weights = potential.model.initial(1, torch.Generator().manual_seed(3))[0]

    def run() -> torch.Tensor:
        sampler = make_sampler(potential, **options)
        state = sampler.init(weights)
        sampler.run(state, 12)
        return state.weights

    expected = run()
    torch.set_default_dtype(dtype)
    try:
        found = run()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
