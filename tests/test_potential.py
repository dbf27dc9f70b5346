"""Masked-language and module potentials: values, gradients, mini-batch weights, regularisers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from naive_models import masked_loss, slope
from numerics import assert_close, assert_same_bits, error_bound

from thermosphere.models.feedforward import FeedForward
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.module import as_module
from thermosphere.models.module_potential import ModulePotential
from thermosphere.models.named import NAMES, Model, named_model
from thermosphere.models.potential import MaskedLanguagePotential, evaluate
from thermosphere.models.regularised import Regularised
from thermosphere.models.transformer import Transformer
from thermosphere.ops.minibatch import Minibatch
from thermosphere.proteins.dataset import MaskedSequences, make_data_set

TOYS: list[Model] = [
    Transformer("one block", blocks=1, embedding=5, hidden=6, length=8),
    Transformer("two blocks", blocks=2, embedding=4, hidden=5, length=8),
    FeedForward("no attention", embedding=4, hidden=6, length=8),
]
OPERATIONS = 20_000  # 100 for the norms, ~200 terms a logit


def sequences(count: int = 6, length: int = 8, seed: int = 7) -> MaskedSequences:
    """Random residues; 1 to `length` - 1 masked sites, so that sequences differ in their number."""
    random = np.random.default_rng(seed)
    masked = np.zeros((count, length), dtype=np.bool_)
    for row in masked:
        row[random.permutation(length)[: random.integers(1, length)]] = True
    return MaskedSequences(random.integers(0, 20, (count, length)).astype(np.uint8), masked)


def weights_of(model: Model, chains: int = 3, seed: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(chains, model.layout.size, generator=generator, dtype=torch.float64)


def naive(model: Model, row: np.ndarray, data: MaskedSequences, shares: np.ndarray) -> np.ndarray:
    """(loss, error) of weighted sequences, one after another."""
    pairs = [
        masked_loss(model, row, tokens.tolist(), masked.tolist())
        for tokens, masked in zip(data.tokens, data.masked, strict=True)
    ]
    return np.asarray(shares) @ np.array(pairs)


@pytest.mark.parametrize("model", TOYS, ids=lambda model: model.name)
@pytest.mark.parametrize("chunk", [512, 4, 1])
def test_full_set_equals_the_formulas(model: Model, chunk: int) -> None:
    data, weights = sequences(), weights_of(model)
    potential = MaskedLanguagePotential(model, data, chunk=chunk)
    assert (potential.parameters, potential.examples) == (model.layout.size, 6)
    losses, gradient = potential(weights)
    assert gradient.shape == weights.shape
    evaluated, errors = potential.evaluate(weights)
    for c in range(3):
        loss, error = naive(model, weights[c].numpy(), data, np.full(6, 1 / 6))
        bound = error_bound(loss, operations=OPERATIONS, dtype=np.float64)
        assert_close(losses[c], loss, bound)
        assert_close(evaluated[c], loss, bound)
        # errors are counts: they agree but for the rounding of six shares
        assert_close(errors[c] + 1, error + 1, 1e-14)


@pytest.mark.parametrize("model", TOYS, ids=lambda model: model.name)
def test_gradient_equals_finite_differences_of_the_formulas(model: Model) -> None:
    data, weights = sequences(3), weights_of(model, chains=1)
    _, gradient = MaskedLanguagePotential(model, data)(weights)

    def loss(row: np.ndarray) -> float:
        return float(naive(model, row, data, np.full(3, 1 / 3))[0])

    random = np.random.default_rng(9)
    for entry in model.layout.entries:
        for k in random.permutation(entry.size)[:6]:
            expected, bound = slope(loss, weights[0].numpy(), entry.offset + int(k))
            assert bound < 1e-3, "the difference quotient is too coarse to test anything"
            assert_close(gradient[0, entry.offset + int(k)], expected, bound, entry.name)


@pytest.mark.parametrize("model", TOYS, ids=lambda model: model.name)
def test_minibatch_weights(model: Model) -> None:
    data, weights = sequences(), weights_of(model)
    potential = MaskedLanguagePotential(model, data)
    indices = torch.tensor([[0, 3, 3, 5], [1, 1, 1, 1], [2, 4, 0, 2]])
    shares = torch.tensor([[0.2, 0.3, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0], [0.1, 0.4, 0.25, 0.25]])
    losses, gradient = potential(weights, Minibatch(indices, shares))
    for c in range(3):
        picked = data.subset(indices[c].numpy())
        loss, _ = naive(model, weights[c].numpy(), picked, shares[c].numpy())
        assert_close(losses[c], loss, error_bound(loss, operations=OPERATIONS, dtype=np.float64))
    # linear in the shares: the sum over one-sequence batches
    total = torch.zeros_like(gradient)
    for b in range(4):
        _, part = potential(weights, Minibatch(indices[:, b : b + 1], torch.ones(3, 1)))
        total += shares[:, b : b + 1] * part
    bound = error_bound(total, operations=OPERATIONS, dtype=np.float64)
    assert_close(gradient, total, bound)
    # a chain alone, and in pieces of two sequences
    for c in range(3):
        one = Minibatch(indices[c : c + 1], shares[c : c + 1])
        assert_close(potential(weights[c : c + 1], one)[1][0], gradient[c], bound)
    pieces = MaskedLanguagePotential(model, data, chunk=2)
    assert_close(pieces(weights, Minibatch(indices, shares))[1], gradient, bound)


@pytest.mark.parametrize("name", NAMES)
def test_float32_gradient_of_the_published_sizes(name: str) -> None:
    model = named_model(name)
    data = sequences(5, 86)
    weights = model.initial(2, torch.Generator().manual_seed(10))
    losses, gradient = MaskedLanguagePotential(model, data)(weights)
    assert (gradient.dtype, losses.dtype) == (torch.float32, torch.float64)
    exact_losses, exact = MaskedLanguagePotential(model, data)(weights.double())
    assert_close(losses, exact_losses, error_bound(exact_losses, operations=20, dtype=np.float32))
    for c in range(2):
        # over the whole vector: rounding errors of many rows add up incoherently
        error = float((gradient[c].double() - exact[c]).norm() / exact[c].norm())
        assert error < 50 * 2.0**-24, error


def test_gradient_does_not_touch_the_weights() -> None:
    model, data = TOYS[0], sequences()
    weights = weights_of(model)
    before = weights.clone()
    potential = MaskedLanguagePotential(model, data)
    first = potential(weights)[1]
    assert_same_bits(weights, before)
    assert not weights.requires_grad
    assert not first.requires_grad
    assert_same_bits(potential(weights)[1], first)


@pytest.mark.parametrize("model", TOYS, ids=lambda model: model.name)
@pytest.mark.parametrize("vectorise", [False, True])
def test_module_potential_equals_the_masked_one(model: Model, vectorise: bool) -> None:
    data, weights = sequences(), weights_of(model)
    sites = MaskedSites(data)
    inputs, truth = sites.inputs, torch.from_numpy(data.tokens.astype(np.int64))
    masked = torch.from_numpy(data.masked)

    def loss(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, m: torch.Tensor):
        log_p = torch.log_softmax(network(x), dim=-1)
        picked = -log_p.gather(2, y[..., None]).squeeze(2) * m
        return picked.sum(1) / m.sum(1)

    module = as_module(model, weights[0].clone())
    general = ModulePotential(module, loss, inputs, truth, masked, chunk=4, vectorise=vectorise)
    special = MaskedLanguagePotential(model, data)
    assert general.layout == model.layout
    assert_same_bits(general.initial(), weights[:1].clone())
    batch = Minibatch(torch.tensor([[0, 1, 5]] * 3), torch.tensor([[0.5, 0.0, 0.5]] * 3))
    for given in (None, batch):
        expected_losses, expected = special(weights, given)
        losses, gradient = general(weights, given)
        bound = error_bound(expected, operations=OPERATIONS, dtype=np.float64)
        assert_close(losses, expected_losses, bound)
        assert_close(gradient, expected, bound)
    general.load(weights[2])
    assert_same_bits(module.flat, weights[2].clone())


def test_regularised() -> None:
    model, data = TOYS[0], sequences()
    weights = weights_of(model)
    reference = weights_of(model, 1, seed=12)[0]
    bare = MaskedLanguagePotential(model, data)
    potential = Regularised(bare, ridge=0.3, tether=0.7, reference=reference)
    assert (potential.parameters, potential.examples) == (bare.parameters, bare.examples)
    assert potential.layout == bare.layout
    batch = Minibatch(torch.tensor([[0, 1]] * 3), torch.tensor([[0.5, 0.5]] * 3))
    for given in (None, batch):
        losses, gradient = potential(weights, given)
        base_losses, base = bare(weights, given)
        for c in range(3):
            w, r = weights[c].numpy(), reference.numpy()
            expected = float(base_losses[c]) + 0.15 * (w @ w) + 0.35 * ((w - r) @ (w - r))
            bound = error_bound(expected, operations=len(w), dtype=np.float64)
            assert_close(losses[c], expected, bound)
            slope_ = base[c].numpy() + 0.3 * w + 0.7 * (w - r)
            assert_close(gradient[c], slope_, error_bound(slope_, operations=8, dtype=np.float64))
    rows = Regularised(bare, tether=0.7, reference=weights.clone())
    assert_same_bits(rows(weights)[1], bare(weights)[1])
    plain = Regularised(bare)
    assert_same_bits(plain(weights)[1], bare(weights)[1])


def test_the_reference_is_a_copy() -> None:
    """Of a state's weights, say, which the next run changes in place."""
    model = TOYS[0]
    weights = weights_of(model)
    bare = MaskedLanguagePotential(model, sequences())
    given = weights_of(model, seed=12)
    for reference in (given, given[0], given[:1]):
        potential = Regularised(bare, tether=0.7, reference=reference)
        before = potential(weights)[1]
        given += 1.0
        assert_same_bits(potential(weights)[1], before)


def test_a_call_of_ones_own_is_not_left_out() -> None:
    """Bursts inside the extension would not know of it."""

    class Doubled(MaskedLanguagePotential):
        def __call__(self, weights, batch=None):  # type: ignore[no-untyped-def]
            losses, gradient = super().__call__(weights, batch)
            return 2 * losses, 2 * gradient

    class Tempered(Regularised):
        def __call__(self, weights, batch=None):  # type: ignore[no-untyped-def]
            losses, gradient = super().__call__(weights, batch)
            return 2 * losses, 2 * gradient

    model = named_model("tf1-small", length=12)
    tokens = np.random.default_rng(1).integers(0, 20, (60, 12)).astype(np.uint8)
    train = make_data_set(tokens, train=40, validation=10, test=10, rate=0.15, seed=0).train
    own = MaskedLanguagePotential(model, train)
    assert own.fused is not None
    assert Regularised(own, 0.1).fused is not None
    assert Doubled(model, train).fused is None
    assert Regularised(Doubled(model, train), 0.1).fused is None
    assert Tempered(own, 0.1).fused is None


def test_regularised_refuses() -> None:
    bare = MaskedLanguagePotential(TOYS[0], sequences())
    size = bare.parameters
    for arguments, message in [
        ({"ridge": -1.0}, "ridge must be at least 0 and finite, got -1.0"),
        ({"tether": float("nan"), "reference": torch.zeros(size)}, "tether must be"),
        ({"tether": 1.0}, "needs reference weights"),
        ({"tether": 1.0, "reference": torch.zeros(3)}, r"got \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            Regularised(bare, **arguments)  # type: ignore[arg-type]
    wrong = Regularised(bare, tether=1.0, reference=torch.zeros(2, size))
    with pytest.raises(ValueError, match=r"\(N,\) or \(3, N\)"):
        wrong(torch.zeros(3, size))


def test_evaluate_prepared_sites_and_float32() -> None:
    model, data = TOYS[0], sequences(40, seed=13)
    weights = weights_of(model).float()
    losses, errors = evaluate(model, weights, data, chunk=7)
    assert losses.dtype == errors.dtype == torch.float64
    again, _ = evaluate(model, weights, MaskedSites(data))
    assert_close(losses, again, error_bound(again, operations=200, dtype=np.float32))
    # a chance guesser is wrong 19 times in 20 on random residues, with few sites a sequence
    assert bool((errors > 0.5).all())
    assert bool((errors <= 1.0 + 1e-12).all())


def test_wrong_shapes_are_one_line() -> None:
    model, data = TOYS[0], sequences()
    potential = MaskedLanguagePotential(model, data)
    weights = weights_of(model)
    size = potential.parameters
    good = torch.zeros(3, 2, dtype=torch.int64)
    cases = [
        (lambda: potential(weights[0]), rf"weights must be \(C, {size}\) floating point"),
        (lambda: potential(weights.long()), "floating point"),
        (lambda: potential(weights, Minibatch(good[:2], torch.ones(2, 2))), r"\(3, B\) int64"),
        (lambda: potential(weights, Minibatch(good, torch.ones(3, 3))), r"must be \(3, 2\)"),
        (lambda: MaskedLanguagePotential(model, sequences(3, 9)), "must have 8 sites, got 9"),
        (lambda: MaskedLanguagePotential(model, data, chunk=0), "chunk must be at least 1"),
        (lambda: evaluate(model, weights, sequences(3, 9)), "must have 8 sites, got 9"),
        (lambda: MaskedSites(data.subset(slice(0, 0))), "must not be empty"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_rows_without_weight_cost_nothing_and_count_nothing() -> None:
    data = sequences()
    sites = MaskedSites(data)
    batch = sites.batch(
        torch.tensor([[0, 1, 0], [2, 2, 2]]), torch.tensor([[0.5, 0.5, 0], [1, 0, 0]])
    )
    count = data.masked.sum(1)
    assert batch.rows.sequence.shape[1] == max(count[0] + count[1], count[2])
    assert int((batch.weights[0] > 0).sum()) == count[0] + count[1]
    assert int((batch.weights[1] > 0).sum()) == count[2]
    assert_close(batch.weights.sum(1), torch.ones(2), 20 * 2.0**-24)


def test_deep_copied_module_keeps_working() -> None:
    module = copy.deepcopy(as_module(TOYS[0]))
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    potential = ModulePotential(module, lambda network, x: network(x).square().mean((1, 2)), tokens)
    assert bool(potential(potential.initial())[1].any())


@pytest.mark.parametrize("name", ["tf1", "tf1-small", "tf4-small", "ff"])
def test_backends_agree_and_are_named(name: str) -> None:
    model = named_model(name, length=12)
    data = sequences(count=20, length=12)
    weights = weights_of(model).float()
    auto = MaskedLanguagePotential(model, data)
    fused = MaskedLanguagePotential(model, data, backend="fused")
    plain = MaskedLanguagePotential(model, data, backend="autograd")
    assert (auto.backend, fused.backend, plain.backend) == ("fused", "fused", "autograd")
    batch = Minibatch(
        torch.arange(20).expand(len(weights), -1), torch.full((len(weights), 20), 0.05)
    )
    assert_same_bits(auto(weights, batch)[1], fused(weights, batch)[1])
    expected = plain(weights.double(), batch)[1]
    blocks = getattr(model, "blocks", 2)  # the feed-forward network has two products of m terms
    operations = blocks * (12 + model.embedding + model.hidden)
    bound = error_bound(expected, operations=operations, dtype=torch.float32)
    assert_close(fused(weights, batch)[1], expected, bound, "fused")
    assert_close(plain(weights, batch)[1], expected, bound, "autograd")
    for got, wanted in zip(fused.evaluate(weights), plain.evaluate(weights.double()), strict=True):
        assert_close(got, wanted, 1e-5)


@pytest.mark.parametrize("name", ["tf1-small", "tf4-small", "ff"])
def test_dropout_has_the_same_law_in_both_backends(name: str) -> None:
    """Mean and spread, over 400 draws, of the loss and of one direction's slope."""
    model = named_model(name, length=12)
    data = sequences(count=3, length=12)
    weights = 0.3 * weights_of(model, chains=1).float()
    direction = weights_of(model, chains=1, seed=9)[0]
    seen = []
    for backend in ("fused", "autograd"):
        potential = MaskedLanguagePotential(model, data, backend=backend)
        generator = torch.Generator().manual_seed(10)
        rows = weights.expand(400, -1).contiguous()  # every row of a call is dropped by itself
        losses, gradient = potential.gradient(rows, dropout=0.3, generator=generator)
        seen.append(torch.stack([losses.double(), gradient.double() @ direction], dim=1))
        again = potential.gradient(rows, dropout=0.3, generator=generator)[0]
        generator.manual_seed(10)
        same = potential.gradient(rows, dropout=0.3, generator=generator)[0]
        assert_same_bits(losses, same)
        assert not torch.equal(losses, again)
    fused, plain = seen
    spread, mean = zip(*(torch.std_mean(one, dim=0) for one in seen), strict=True)
    error = (fused.var(0) + plain.var(0)).div(400).sqrt()
    assert bool(((mean[0] - mean[1]).abs() < 4.0 * error).all())
    assert bool(((spread[0] / spread[1]).log().abs() < 0.25).all())


def test_a_required_backend_never_gives_way() -> None:
    data = sequences(length=12)
    wide = FeedForward("wide", embedding=4, hidden=513, length=12)
    with pytest.raises(
        ValueError, match=r"does not serve wide: hidden must be in \[1, 512\], got 513"
    ):
        MaskedLanguagePotential(wide, data, backend="fused")
    with pytest.raises(ValueError, match="one of auto, fused, triton, autograd, got 'gpu'"):
        MaskedLanguagePotential(named_model("tf1", length=12), data, backend="gpu")
    model = named_model("tf1-small", length=12)
    fused = MaskedLanguagePotential(model, data, backend="fused")
    with pytest.raises(
        ValueError, match=r"'fused' needs float32 weights, got torch.float64 and dropout 0.5"
    ):
        fused.gradient(weights_of(model).double(), dropout=0.5, generator=torch.Generator())
    assert MaskedLanguagePotential(wide, data).backend == "autograd"
