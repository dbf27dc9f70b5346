"""Triton as a backend of a model: chosen by name, for any number of sequences, errors that say why
it does not serve. On the CPU the kernels run under Triton's interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound
from test_potential import sequences, weights_of

from thermosphere.doctor import doctor
from thermosphere.models import triton_gradient
from thermosphere.models.feedforward import FeedForward
from thermosphere.models.fused import chosen_backend, triton_obstacle
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import named_model
from thermosphere.models.potential import MaskedLanguagePotential, evaluate
from thermosphere.models.regularised import Regularised
from thermosphere.models.transformer import Transformer
from thermosphere.ops.backends import check_triton
from thermosphere.ops.minibatch import Minibatch

MODELS = [
    Transformer("small", blocks=2, embedding=5, hidden=7, length=12),
    FeedForward("small", embedding=5, hidden=7, length=12),
]


@pytest.mark.parametrize("model", MODELS, ids=["transformer", "feedforward"])
def test_agrees_with_autograd(
    model: Transformer | FeedForward, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mini-batch, and the whole set in slices of which the last is not full."""
    monkeypatch.setattr(triton_gradient, "PAIRS", 4)
    data = sequences(count=9, length=12)
    weights = weights_of(model).float()[:1]
    mine = MaskedLanguagePotential(model, data, backend="triton", device=gpu)
    plain = MaskedLanguagePotential(model, data, backend="autograd")
    assert mine.backend == "triton"
    batch = Minibatch(torch.tensor([[2, 5, 8]]), torch.tensor([[0.5, 0.25, 0.25]]))
    own = Minibatch(*(tensor.to(gpu) for tensor in batch))
    operations = 2 * (12 + model.embedding + model.hidden)
    for got, wanted in (
        (mine(weights.to(gpu), own), plain(weights.double(), batch)),
        (mine(weights.to(gpu)), plain(weights.double())),
    ):
        for one, exact in zip(got, wanted, strict=True):
            bound = error_bound(exact, operations=operations, dtype=torch.float32)
            assert_close(one, exact, bound)
    kept = mine(weights.to(gpu), own)[1]
    before = kept.clone()
    mine(2 * weights.to(gpu), own)
    assert_same_bits(kept, before, "a result after the next call")
    for got, wanted in zip(mine.evaluate(weights.to(gpu)), plain.evaluate(weights), strict=True):
        assert_close(got, wanted, 1e-5)


def test_what_is_captured_stays_where_it_is(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as a call that copies, in the same memory every time; also with ridge and
    tether, and for a batch that is done in slices."""
    model = MODELS[1]
    data = sequences(count=9, length=12)
    weights = weights_of(model).float()[:1].to(gpu)
    mine = MaskedLanguagePotential(model, data, backend="triton", device=gpu)
    batch = Minibatch(torch.tensor([[2, 5, 8]]), torch.tensor([[0.5, 0.25, 0.25]]))
    batch = Minibatch(*(tensor.to(gpu) for tensor in batch))
    expected = mine(weights, batch)
    assert mine.capturable is not None
    found = mine.capturable(weights, batch)
    places = [tensor.data_ptr() for tensor in found]
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)
    mine.capturable(2 * weights, batch)
    assert not torch.equal(found[1], expected[1])  # written again
    again = mine.capturable(weights, batch)
    assert [tensor.data_ptr() for tensor in again] == places
    regularised = Regularised(mine, 0.5, 0.25, torch.ones(1, mine.parameters))
    assert regularised.capturable is not None
    for one, other in zip(
        regularised.capturable(weights, batch), regularised(weights, batch), strict=True
    ):
        assert_same_bits(one, other)
    monkeypatch.setattr(triton_gradient, "PAIRS", 2)
    sliced = MaskedLanguagePotential(model, data, backend="triton", device=gpu)
    assert sliced.capturable is not None
    for one, other in zip(sliced.capturable(weights, batch), expected, strict=True):
        assert_close(one, other, 1e-6)


@pytest.mark.parametrize("model", MODELS, ids=["transformer", "feedforward"])
def test_buffers_are_few_however_many_numbers_of_chains_are_called(
    model: Transformer | FeedForward, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets of buffers at most, the last ones, beside those that a graph holds."""
    sites = MaskedSites(sequences(count=3, length=12), gpu)
    mine = triton_gradient.TritonGradient(model, sites)
    weights = weights_of(model, chains=6).float().to(gpu)
    batch = Minibatch(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.5]]))
    batch = Minibatch(*(tensor.to(gpu) for tensor in batch))
    two = mine._bytes(5, 3, True) + mine._bytes(6, 3, True)
    monkeypatch.setattr(triton_gradient, "KEPT", two)
    held = mine.capturable(weights[:1], batch)[1].data_ptr()
    gradients = []
    for chains in (1, 2, 3, 4, 5, 6, 5):
        gradients.append(mine(weights[:chains]).gradient)
        assert sum(mine._bytes(*key) for key in mine._used) <= two
    assert [key[0] for key in mine._used] == [6, 5]
    assert_same_bits(gradients[4], gradients[6])  # type: ignore[arg-type]
    assert mine.capturable(weights[:1], batch)[1].data_ptr() == held
    op = mine._used[(5, 3, True)]
    there = triton_gradient.held_bytes(op) - triton_gradient.held_bytes(op._data)
    meta = mine._new_op(5, 3, True, torch.device("meta"))
    assert mine._bytes(5, 3, True) >= there
    assert mine._bytes(5, 3, True) - triton_gradient.held_bytes(meta._data) == there

    monkeypatch.setattr(triton_gradient, "ROOM", mine._bytes(4, 2, True))
    small = triton_gradient.TritonGradient(model, sites)
    assert small._width(4, True) == 2
    for one, other in zip(small(weights[:4]), mine(weights[:4]), strict=True):
        assert_close(one, other, 1e-5)  # type: ignore[arg-type]


def test_says_why_it_does_not_serve(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sequences(length=12)
    wide = FeedForward("wide", embedding=4, hidden=513, length=12)
    with pytest.raises(ValueError, match=r"backend 'triton' does not serve wide: hidden must be"):
        MaskedLanguagePotential(wide, data, backend="triton", device=gpu)
    with pytest.raises(ValueError, match="precision must be one of tf32x3"):
        MaskedLanguagePotential(MODELS[0], data, precision="ieee")
    mine = MaskedLanguagePotential(MODELS[0], data, backend="triton", device=gpu)
    with pytest.raises(ValueError, match="backend 'triton' needs float32 weights and no dropout"):
        mine(weights_of(MODELS[0]).double())
    with pytest.raises(ValueError, match=r"encoder_gradient_triton: weights must be .*float64"):
        evaluate(MODELS[0], weights_of(MODELS[0]).double().to(gpu), mine.sites, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="does not serve small: it runs on a GPU, not on cpu"):
        MaskedLanguagePotential(MODELS[0], data, backend="triton")
    monkeypatch.setattr(triton_gradient.torch.cuda, "is_available", lambda: False)
    findings = dict(doctor())
    assert findings["Triton"] == "importable; no GPU to use it on"
    assert findings["gradient on a GPU"] == "triton: tf1, tf4, tf1-small, tf4-small, ff"


def test_without_triton_a_gpu_has_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tf1 = named_model("tf1")
    assert triton_obstacle(tf1, "cuda") == "Triton is not installed (extra: gpu)"
    assert chosen_backend("here", "auto", tf1, "cuda") == "autograd"
    with pytest.raises(ValueError, match="backend 'triton' does not serve tf1: Triton is not"):
        chosen_backend("here", "triton", tf1, "cuda")
    findings = dict(doctor())
    assert findings["Triton"] == "not installed (extra: gpu)"


def test_what_does_not_fit_on_the_chip_is_not_served() -> None:
    long = FeedForward("long", embedding=65, hidden=8, length=129)
    assert triton_obstacle(long, "cuda") == (
        "length 129 and embedding 65 need 262144 bytes of shared memory, 166912 are there"
    )
    assert chosen_backend("here", "auto", long, "cuda") == "autograd"
    for size in ((64, 129), (128, 128)):
        served = FeedForward("served", embedding=size[0], hidden=8, length=size[1])
        assert triton_obstacle(served, "cuda") is None
    assert triton_obstacle(named_model("ff"), "cuda") is None


def test_kernels_are_not_for_another_makers_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "built for ROCm" in str(triton_obstacle(named_model("tf1"), "cuda"))
    with pytest.raises(RuntimeError, match="attention_norm: no kernels for this device: its"):
        check_triton("attention_norm")


def test_an_old_triton_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thermosphere.ops.backends.version", lambda name: "3.4.1")
    tf1 = named_model("tf1")
    assert triton_obstacle(tf1, "cuda") == "Triton must be at least 3.5, got 3.4.1"
    assert chosen_backend("here", "auto", tf1, "cuda") == "autograd"


def test_triton_is_imported_only_when_needed() -> None:
    script = (
        "import sys, torch; before = set(sys.modules)\n"
        "import thermosphere.doctor, thermosphere.models.potential\n"
        "import thermosphere.ops.attention_norm, thermosphere.ops.feedforward_norm\n"
        "import thermosphere.ops.masked_cross_entropy\n"
        "sys.exit('triton' in set(sys.modules) - before)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
