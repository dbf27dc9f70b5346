"""The fused gradient against the formula in float64: every shape of tile, every instruction set,
the same bits anywhere."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound

from thermosphere import _core
from thermosphere.models.positional import sinusoidal_code
from thermosphere.models.transformer import Transformer
from thermosphere.ops.encoder_gradient import (
    EncoderData,
    EncoderResult,
    EncoderShape,
    EncoderWorkspace,
    encoder_data,
    encoder_gradient,
)
from thermosphere.ops.encoder_gradient_ref import encoder_gradient_ref
from thermosphere.ops.minibatch import Minibatch, draw_minibatch

SEQUENCES, MASK = 24, 20
TF1 = EncoderShape(1, 64, 256, 86, 21)
# Blocks, d, m, n: the published sizes; sizes below, at and above a vector, a panel and a tile; the
# limits.
SHAPES = [
    TF1,
    EncoderShape(1, 26, 104, 86, 21),
    EncoderShape(4, 14, 56, 86, 21),
    EncoderShape(2, 64, 256, 86, 21),
    EncoderShape(1, 1, 1, 2, 21),
    EncoderShape(3, 7, 5, 9, 21),
    EncoderShape(2, 16, 32, 16, 21),
    EncoderShape(2, 17, 33, 31, 21),
    EncoderShape(1, 33, 65, 129, 21),
    EncoderShape(2, 128, 512, 40, 21),
    EncoderShape(1, 48, 96, 256, 21),
    EncoderShape(2, 20, 40, 70, 33),
]


def make_data(shape: EncoderShape, rate: float = 0.15, seed: int = 0) -> EncoderData:
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, shape.tokens - 1, (SEQUENCES, shape.length), generator=g)
    masked = torch.rand(truth.shape, generator=g) < rate
    masked[:, 0] = True  # at least one site a sequence
    inputs = truth.masked_fill(masked, shape.tokens - 1)
    cpu = torch.device("cpu")
    codes = [
        sinusoidal_code(shape.length, size, torch.float32, cpu)
        for size in (shape.embedding, shape.hidden)
    ]
    return encoder_data(inputs, masked, truth, *codes)


def model_of(shape: EncoderShape) -> Transformer:
    return Transformer("test", *shape.sizes())


def make_weights(shape: EncoderShape, chains: int, seed: int = 0) -> torch.Tensor:
    """Weights of trained size: the initial ones, all of them moved a little."""
    g = torch.Generator().manual_seed(seed)
    weights = model_of(shape).initial(chains, g)
    return (weights + 0.1 * torch.randn(weights.shape, generator=g)).contiguous()


def make_batch(chains: int, batch: int) -> Minibatch:
    return draw_minibatch(
        seed=1, step=2, chain_ids=torch.arange(chains), batch=batch, examples=SEQUENCES
    )


def assert_agrees(shape: EncoderShape, result: EncoderResult, reference: EncoderResult) -> None:
    """Loss and every tensor's gradient; an element is a sum over rows of chains of n, d and m terms
    a block."""
    operations = shape.blocks * (shape.length + shape.embedding + shape.hidden)
    loss_bound = error_bound(reference.losses, operations=operations, dtype=torch.float32)
    assert_close(result.losses, reference.losses, loss_bound, "losses")
    if result.gradient is None:
        return
    assert reference.gradient is not None
    layout = model_of(shape).layout
    expected = layout.views(reference.gradient)
    for name, got in layout.views(result.gradient).items():
        bound = error_bound(expected[name], operations=operations, dtype=torch.float32)
        assert_close(got, expected[name], max(bound, 1e-12), name)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s.sizes())))
def test_gradient_is_that_of_the_formula(shape: EncoderShape, isa: str) -> None:
    data, weights, batch = make_data(shape), make_weights(shape, 2), make_batch(2, 6)
    result = encoder_gradient(shape, data, weights, batch)
    assert_agrees(shape, result, encoder_gradient_ref(shape, data, weights.double(), batch))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[7]], ids=["one block", "two blocks"])
def test_few_and_all_sites_masked(shape: EncoderShape, rate: float, isa: str) -> None:
    data, weights, batch = make_data(shape, rate), make_weights(shape, 1), make_batch(1, 9)
    result = encoder_gradient(shape, data, weights, batch)
    assert_agrees(shape, result, encoder_gradient_ref(shape, data, weights.double(), batch))


def test_the_whole_set_and_errors(isa: str) -> None:
    shape = SHAPES[1]
    data, weights = make_data(shape), make_weights(shape, 3)
    reference = encoder_gradient_ref(shape, data, weights.double())
    result = encoder_gradient(shape, data, weights)
    assert_agrees(shape, result, reference)
    assert_close(result.errors, reference.errors, 1e-6, "errors")  # no logits within rounding here
    assert float(reference.errors.min()) > 0.5
    forward = encoder_gradient(shape, data, weights, with_gradient=False)
    assert forward.gradient is None
    assert_same_bits(forward.losses, result.losses, "losses")
    assert_same_bits(forward.errors, result.errors, "errors")


def test_weights_of_sequences_count(isa: str) -> None:
    data, weights = make_data(TF1), make_weights(TF1, 1)
    indices = torch.arange(20)[None]
    shares = torch.rand(1, 20, generator=torch.Generator().manual_seed(4))
    shares[0, ::3] = 0.0
    batch = Minibatch(indices, shares)
    result = encoder_gradient(TF1, data, weights, batch)
    assert_agrees(TF1, result, encoder_gradient_ref(TF1, data, weights.double(), batch))


@pytest.mark.parametrize("shape", [TF1, SHAPES[2]], ids=["tf1", "tf4-small"])
@pytest.mark.parametrize("size", [1, 5, 24, 64, 200])
def test_same_bits_for_any_threads(shape: EncoderShape, size: int, isa: str) -> None:
    data, weights, batch = make_data(shape), make_weights(shape, 3), make_batch(3, size)
    one = encoder_gradient(shape, data, weights, batch, threads=1)
    for threads in (2, 3, 7):
        many = encoder_gradient(shape, data, weights, batch, threads=threads)
        assert_same_bits(many.gradient, one.gradient, f"{threads} threads")
        assert_same_bits(many.losses, one.losses, f"{threads} threads")


def test_a_chain_does_not_see_its_neighbours_or_the_last_call(isa: str) -> None:
    data, weights, batch = make_data(TF1), make_weights(TF1, 3), make_batch(3, 24)
    workspace = EncoderWorkspace()
    together = encoder_gradient(TF1, data, weights, batch, workspace=workspace)
    assert together.gradient is not None
    workspace.at_least(1).fill_(float("nan"))  # whatever the last call left must not matter
    for c in range(3):
        rows = slice(c, c + 1)
        own = Minibatch(batch.indices[rows].contiguous(), batch.weights[rows].contiguous())
        alone = encoder_gradient(TF1, data, weights[rows].contiguous(), own, workspace=workspace)
        assert_same_bits(alone.gradient, together.gradient[rows], f"chain {c}")


def test_a_nan_weight_spoils_its_own_chain_only(isa: str) -> None:
    data, weights, batch = make_data(TF1), make_weights(TF1, 2), make_batch(2, 8)
    clean = encoder_gradient(TF1, data, weights, batch)
    weights[0, 100] = float("nan")
    spoiled = encoder_gradient(TF1, data, weights, batch)
    assert clean.gradient is not None
    assert spoiled.gradient is not None
    assert not torch.isfinite(spoiled.losses[0])
    assert_same_bits(spoiled.gradient[1], clean.gradient[1], "the other chain")


def test_large_scores_do_not_overflow(isa: str) -> None:
    data, weights, batch = make_data(TF1), make_weights(TF1, 1), make_batch(1, 8)
    views = model_of(TF1).layout.views(weights)
    views["blocks.0.query_key"].mul_(30.0)
    views["output.weight"].mul_(30.0)
    result = encoder_gradient(TF1, data, weights, batch)
    reference = encoder_gradient_ref(TF1, data, weights.double(), batch)
    assert torch.isfinite(result.gradient).all()  # type: ignore[arg-type]
    assert_close(result.losses, reference.losses, 1e-3 * float(reference.losses.max()), "losses")


BATCH = make_batch(2, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights": torch.zeros(2, 44245, dtype=torch.float64)},
            "weights must be contiguous torch.float32 on cpu",
        ),
        ({"weights": torch.zeros(44245)}, r"got \(44245,\) torch.float32"),
        ({"weights": torch.zeros(2, 44244)}, r"weights must be \(C, 44245\), got \(2, 44244\)"),
        ({"weights": torch.zeros(3, 44245)}, r"batch.indices must be \(3, B\), got \(2, 6\)"),
        ({"batch": Minibatch(BATCH.indices + 24, BATCH.weights)}, r"must be in \[0, 24\), got"),
        (
            {"batch": Minibatch(BATCH.indices.int(), BATCH.weights)},
            "batch.indices must be contiguous torch.int64",
        ),
        (
            {"batch": Minibatch(BATCH.indices, BATCH.weights.double())},
            "got contiguous torch.float64",
        ),
        (
            {"batch": Minibatch(BATCH.indices, BATCH.weights[:, 1:])},
            r"weights must be \(2, 6\), got",
        ),
        ({"weights": torch.zeros(2, 44245, device="meta")}, "weights must be .* on cpu, .* meta"),
        (
            {"batch": Minibatch(BATCH.indices[:, ::2], BATCH.weights[:, ::2])},
            "got strided torch.int64",
        ),
        ({"shape": EncoderShape(1, 129, 256, 86, 21)}, r"embedding must be in \[1, 128\], got 129"),
        ({"shape": EncoderShape(1, 26, 104, 86, 21)}, "data must be for length 86 with codes"),
        ({"shape": EncoderShape(1, 64, 256, 86, 22)}, r"have the last token, 21, at masked sites"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_one_line(change: dict[str, object], message: str) -> None:
    arguments = {"shape": TF1, "weights": make_weights(TF1, 2), "batch": BATCH} | change
    with pytest.raises(ValueError, match=message) as error:
        encoder_gradient(data=make_data(TF1), **arguments)  # type: ignore[arg-type]
    assert str(error.value).startswith("encoder_gradient: ")
    assert "\n" not in str(error.value)


def test_masked_sites_must_hold_the_mask() -> None:
    """The tables of a single block know queries by their site alone."""
    truth = torch.zeros(2, 4, dtype=torch.int64)
    masked = torch.tensor([[True, False, False, True], [False, True, False, False]])
    inputs = truth.masked_fill(masked, 20)
    code = torch.zeros(4, 8)
    assert encoder_data(inputs, masked, truth, code, code).mask == 20
    inputs[0, 3] = 7
    with pytest.raises(ValueError, match="one and the same token at masked sites"):
        encoder_data(inputs, masked, truth, code, code)


def test_data_must_be_what_the_kernel_reads() -> None:
    data, weights = make_data(TF1), make_weights(TF1, 1)
    changes = [
        ({"tokens": data.tokens.int()}, r"data.tokens must be contiguous torch.uint8 on cpu"),
        ({"first": data.first.int()}, "data.first must be contiguous torch.int64"),
        ({"site": data.site.to("meta")}, "data.site must be .* on cpu, got .* on meta"),
        ({"target": data.target.repeat(2)[::2]}, "data.target must be .*, got strided"),
        ({"target": data.target[1:]}, r"site \(M,\) and target \(M,\)"),
        ({"code_hidden": data.code_hidden.double()}, "data.code_hidden must be .* torch.float32"),
        ({"first": data.first[1:]}, "data must be for length 86"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=f"^encoder_gradient: .*{message}"):
            encoder_gradient(TF1, data._replace(**change), weights)


def test_prepared_values_must_be_in_range() -> None:
    truth = torch.zeros(2, 4, dtype=torch.int64)
    masked = torch.tensor([[True, False, False, True], [False, True, False, False]])
    inputs = truth.masked_fill(masked, 20)
    code = torch.zeros(4, 8)

    def refused(message: str, **change: torch.Tensor) -> None:
        arguments = {"inputs": inputs, "masked": masked, "truth": truth} | change
        codes = {"code_embedding": code, "code_hidden": code}
        with pytest.raises(ValueError, match=f"^encoder_data: {message}"):
            encoder_data(**(codes | arguments))

    none = masked.clone()
    none[1] = False
    refused("expected at least one masked site in every sequence, .* sequence 1$", masked=none)
    visible = inputs.clone()
    visible[0, 1] = 21
    refused(r"inputs must be in \[0, 20\], .*, got 0..21$", inputs=visible)
    refused(r"truth must be in \[0, 20\], .*, got -1..-1$", truth=truth - 1)
    refused("tokens must be < 256, got 300$", inputs=truth.masked_fill(masked, 300))
    refused("masked must be bool, got torch.int64$", masked=masked.long())
    refused(r"code_hidden must be \(4, ·\), got \(5, 8\)$", code_hidden=torch.zeros(5, 8))
    empty = {"inputs": inputs[:0], "masked": masked[:0], "truth": truth[:0]}
    refused("expected at least one sequence, got none$", **empty)


def test_limits_are_the_kernels() -> None:
    assert _core.encoder_size_limits == (16, 128, 512, 256, 64)
    assert EncoderShape(16, 128, 512, 256, 64).obstacle() is None
    assert EncoderShape(17, 1, 1, 1, 2).obstacle() == "blocks must be in [1, 16], got 17"
    assert EncoderShape(1, 1, 1, 1, 65).obstacle() == "tokens must be in [1, 64], got 65"
