"""The fused gradient against the formula in float64: every shape of tile, every instruction set,
the same bits anywhere."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound

from thermosphere import _core
from thermosphere.models.feedforward import FeedForward
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


def feedforward(embedding: int, hidden: int, length: int, tokens: int) -> EncoderShape:
    return EncoderShape(1, embedding, hidden, length, tokens, "feedforward")


FF = feedforward(64, 320, 86, 21)
SMALL_FF = feedforward(17, 33, 31, 21)
FEEDFORWARD_SHAPES = [
    FF,
    SMALL_FF,
    feedforward(1, 1, 2, 21),
    feedforward(7, 5, 9, 21),
    feedforward(16, 32, 16, 21),
    feedforward(33, 65, 129, 21),
    feedforward(128, 512, 40, 21),
    feedforward(48, 96, 256, 21),
    feedforward(20, 70, 70, 33),
    feedforward(31, 40, 50, 64),
]


def name_of(shape: EncoderShape) -> str:
    return "-".join(map(str, (shape.network, *shape.sizes())))


def make_data(
    shape: EncoderShape, rate: float = 0.15, seed: int = 0, lowest: int = 0
) -> EncoderData:
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(lowest, shape.tokens - 1, (SEQUENCES, shape.length), generator=g)
    masked = torch.rand(truth.shape, generator=g) < rate
    masked[:, 0] = True  # at least one site a sequence
    inputs = truth.masked_fill(masked, shape.tokens - 1)
    cpu = torch.device("cpu")
    codes = [
        sinusoidal_code(shape.length, size, torch.float32, cpu)
        for size in (shape.embedding, shape.hidden)
    ]
    return encoder_data(inputs, masked, truth, *codes)


def model_of(shape: EncoderShape) -> Transformer | FeedForward:
    if shape.network == "feedforward":
        return FeedForward("test", *shape.sizes()[1:])
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


BATCH_OF_ONE = make_batch(1, 9)


def assert_agrees(shape: EncoderShape, result: EncoderResult, reference: EncoderResult) -> None:
    """Loss and every tensor's gradient; an element is a sum over rows of chains of n, d and m terms
    a block, or of n, d and twice m terms in the feed-forward network."""
    twice = shape.hidden if shape.network == "feedforward" else 0
    operations = shape.blocks * (shape.length + shape.embedding + shape.hidden) + twice
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


@pytest.mark.parametrize("shape", SHAPES + FEEDFORWARD_SHAPES, ids=name_of)
def test_gradient_is_that_of_the_formula(shape: EncoderShape, isa: str) -> None:
    data, weights, batch = make_data(shape), make_weights(shape, 2), make_batch(2, 6)
    result = encoder_gradient(shape, data, weights, batch)
    assert_agrees(shape, result, encoder_gradient_ref(shape, data, weights.double(), batch))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[8]], ids=name_of)
def test_a_residue_that_is_nowhere_does_not_matter(shape: EncoderShape, isa: str) -> None:
    """Its scores would be so large that beside them every other exponential is 0."""
    data, weights, batch = make_data(shape, lowest=1), make_weights(shape, 2), make_batch(2, 6)
    model_of(shape).layout.views(weights)["embedding"][:, 0] *= 1e4
    result = encoder_gradient(shape, data, weights, batch)
    assert_agrees(shape, result, encoder_gradient_ref(shape, data, weights.double(), batch))
    losses = encoder_gradient(shape, data, weights, batch, with_gradient=False)
    assert_agrees(shape, losses, encoder_gradient_ref(shape, data, weights.double(), batch))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[7], SHAPES[10], SMALL_FF], ids=name_of)
def test_few_and_all_sites_masked(shape: EncoderShape, rate: float, isa: str) -> None:
    data, weights, batch = make_data(shape, rate), make_weights(shape, 1), make_batch(1, 9)
    result = encoder_gradient(shape, data, weights, batch)
    assert_agrees(shape, result, encoder_gradient_ref(shape, data, weights.double(), batch))


@pytest.mark.parametrize("shape", [SHAPES[1], feedforward(26, 104, 86, 21)], ids=name_of)
def test_the_whole_set_and_errors(shape: EncoderShape, isa: str) -> None:
    data, weights = make_data(shape), make_weights(shape, 3)
    reference = encoder_gradient_ref(shape, data, weights.double())
    result = encoder_gradient(shape, data, weights)
    assert_agrees(shape, result, reference)
    assert_close(result.errors, reference.errors, 1e-6, "errors")  # no logits within rounding here
    assert float(reference.errors.min()) > 0.5
    forward = encoder_gradient(shape, data, weights, with_gradient=False)
    assert forward.gradient is None
    assert_agrees(shape, forward, reference)
    assert_close(forward.errors, reference.errors, 1e-6, "errors")


@pytest.mark.parametrize("shape", [TF1, FF], ids=name_of)
def test_weights_of_sequences_count(shape: EncoderShape, isa: str) -> None:
    data, weights = make_data(shape), make_weights(shape, 1)
    indices = torch.arange(20)[None]
    shares = torch.rand(1, 20, generator=torch.Generator().manual_seed(4))
    shares[0, ::3] = 0.0
    batch = Minibatch(indices, shares)
    result = encoder_gradient(shape, data, weights, batch)
    assert_agrees(shape, result, encoder_gradient_ref(shape, data, weights.double(), batch))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[7], SHAPES[10], SMALL_FF], ids=name_of)
@pytest.mark.parametrize("size", [32, 64])
def test_groups_of_a_batch_add_up(shape: EncoderShape, size: int, isa: str) -> None:
    """Batches of 32 and more are cut into two to four groups."""
    data, weights, batch = make_data(shape), make_weights(shape, 2), make_batch(2, size)
    result = encoder_gradient(shape, data, weights, batch)
    assert_agrees(shape, result, encoder_gradient_ref(shape, data, weights.double(), batch))


@pytest.mark.parametrize("shape", [TF1, SHAPES[2], FF], ids=["tf1", "tf4-small", "ff"])
@pytest.mark.parametrize("size", [1, 5, 24, 64, 200])
def test_same_bits_for_any_threads(shape: EncoderShape, size: int, isa: str) -> None:
    data, weights, batch = make_data(shape), make_weights(shape, 3), make_batch(3, size)
    one = encoder_gradient(shape, data, weights, batch, threads=1)
    for threads in (2, 3, 7):
        many = encoder_gradient(shape, data, weights, batch, threads=threads)
        assert_same_bits(many.gradient, one.gradient, f"{threads} threads")
        assert_same_bits(many.losses, one.losses, f"{threads} threads")


@pytest.mark.parametrize("shape", [TF1, FF], ids=name_of)
def test_a_chain_does_not_see_its_neighbours_or_the_last_call(
    shape: EncoderShape, isa: str
) -> None:
    data, weights, batch = make_data(shape), make_weights(shape, 3), make_batch(3, 24)
    workspace = EncoderWorkspace()
    together = encoder_gradient(shape, data, weights, batch, workspace=workspace)
    assert together.gradient is not None
    workspace.at_least(1).fill_(float("nan"))  # whatever the last call left must not matter
    for c in range(3):
        rows = slice(c, c + 1)
        own = Minibatch(batch.indices[rows].contiguous(), batch.weights[rows].contiguous())
        alone = encoder_gradient(shape, data, weights[rows].contiguous(), own, workspace=workspace)
        assert_same_bits(alone.gradient, together.gradient[rows], f"chain {c}")


@pytest.mark.parametrize("shape", [TF1, FF], ids=name_of)
def test_a_nan_weight_spoils_its_own_chain_only(shape: EncoderShape, isa: str) -> None:
    data, weights, batch = make_data(shape), make_weights(shape, 2), make_batch(2, 8)
    clean = encoder_gradient(shape, data, weights, batch)
    assert clean.gradient is not None
    for entry in model_of(shape).layout.entries:
        bad = weights.clone()
        bad[0, entry.offset] = float("nan")
        spoiled = encoder_gradient(shape, data, bad, batch)
        assert spoiled.gradient is not None
        assert not torch.isfinite(spoiled.losses[0]), entry.name
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


def test_the_mean_of_visible_sites_is_zero_where_there_are_none(isa: str) -> None:
    """Weights on g alone: all sites masked, they change nothing and no slope reaches them."""
    data, weights, batch = make_data(SMALL_FF, rate=1.0), make_weights(SMALL_FF, 1), BATCH_OF_ONE
    before = encoder_gradient(SMALL_FF, data, weights, batch)
    layout, d = model_of(SMALL_FF).layout, SMALL_FF.embedding
    assert before.gradient is not None
    assert not layout.views(before.gradient)["feedforward1.weight"][..., d:].any()
    layout.views(weights)["feedforward1.weight"][..., d:].mul_(7.0)
    after = encoder_gradient(SMALL_FF, data, weights, batch)
    assert_same_bits(after.losses, before.losses, "losses")


def test_a_visible_mask_counts_for_nothing(isa: str) -> None:
    """Visible sites are those without the mask token, as in models.FeedForward."""
    data, weights, batch = make_data(SMALL_FF), make_weights(SMALL_FF, 1), BATCH_OF_ONE
    data.tokens[:, 5:9] = data.mask
    result = encoder_gradient(SMALL_FF, data, weights, batch)
    assert_agrees(SMALL_FF, result, encoder_gradient_ref(SMALL_FF, data, weights.double(), batch))


@pytest.mark.parametrize("shape", FEEDFORWARD_SHAPES[:2], ids=name_of)
def test_large_embeddings_keep_their_accuracy(shape: EncoderShape, isa: str) -> None:
    """The norm of a row comes from centred parts, not from the difference of squares."""
    data, weights, batch = make_data(shape), make_weights(shape, 1), BATCH_OF_ONE
    model_of(shape).layout.views(weights)["embedding"].add_(50.0)
    result = encoder_gradient(shape, data, weights, batch)
    reference = encoder_gradient_ref(shape, data, weights.double(), batch)
    bound = error_bound(reference.losses, operations=50 * shape.embedding, dtype=torch.float32)
    assert_close(result.losses, reference.losses, bound, "losses")


BATCH = make_batch(2, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights": torch.zeros(2, 44245, dtype=torch.float64)},
            r"weights must be \(C, N\) torch.float32 on cpu, got \(2, 44245\) torch.float64",
        ),
        ({"weights": torch.zeros(44245)}, r"got \(44245,\) torch.float32"),
        ({"weights": torch.zeros(2, 44244)}, r"weights must be \(C, 44245\), got \(2, 44244\)"),
        ({"weights": torch.zeros(3, 44245)}, r"batch.indices must be \(3, B\) .*, got \(2, 6\)"),
        ({"batch": Minibatch(BATCH.indices + 24, BATCH.weights)}, r"must be in \[0, 24\), got"),
        ({"batch": Minibatch(BATCH.indices - 24, BATCH.weights)}, r"must be in \[0, 24\), got -"),
        (
            {"batch": Minibatch(BATCH.indices.int(), BATCH.weights)},
            r"batch.indices must be \(2, B\) torch.int64 on cpu, got \(2, 6\) torch.int32",
        ),
        (
            {"batch": Minibatch(BATCH.indices, BATCH.weights.double())},
            r"batch.weights must be \(2, 6\) torch.float32 on cpu, got \(2, 6\) torch.float64",
        ),
        (
            {"batch": Minibatch(BATCH.indices, BATCH.weights[:, 1:])},
            r"batch.weights must be \(2, 6\) .*, got \(2, 5\)",
        ),
        ({"weights": torch.zeros(2, 44245, device="meta")}, "weights must be .* on cpu, .* meta"),
        (
            {"batch": Minibatch(BATCH.indices[:, ::2], BATCH.weights[:, ::2])},
            "batch.indices must be contiguous, got strides",
        ),
        ({"shape": EncoderShape(1, 129, 256, 86, 21)}, r"embedding must be in \[1, 128\], got 129"),
        ({"shape": EncoderShape(1, 26, 104, 86, 21)}, r"data.code_embedding must be \(86, 32\)"),
        ({"shape": EncoderShape(1, 64, 256, 86, 22)}, r"have the last token, 21, at masked sites"),
        (
            {"shape": EncoderShape(1, 64, 256, 86, 21, "feedforward")},
            r"weights must be \(C, 122837\), got \(2, 44245\)",
        ),
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
        ({"tokens": data.tokens.int()}, r"data.tokens must be \(S, 86\) torch.uint8 on cpu"),
        (
            {"first": data.first.int()},
            r"data.first must be \(25,\) torch.int64 on cpu, got .* torch.int32",
        ),
        ({"site": data.site.to("meta")}, "data.site must be .* on cpu, got .* on meta"),
        ({"target": data.target.repeat(2)[::2]}, "data.target must be contiguous, got strides"),
        ({"target": data.target[1:]}, r"data.target must be \(\d+,\) torch.int32"),
        ({"code_hidden": data.code_hidden.double()}, "data.code_hidden must be .* torch.float32"),
        ({"first": data.first[1:]}, r"data.first must be \(25,\) .*, got \(24,\)"),
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
    assert feedforward(128, 512, 256, 64).obstacle() is None
    assert feedforward(1, 513, 1, 2).obstacle() == "hidden must be in [1, 512], got 513"
    two = EncoderShape(2, 1, 1, 1, 2, "feedforward")
    assert two.obstacle() == "blocks must be 1 for feedforward, got 2"
    assert EncoderShape(1, 1, 1, 1, 2, "recurrent").obstacle() == (
        "network must be one of transformer, feedforward, got 'recurrent'"
    )


def test_a_workspace_that_knows_a_set_still_checks_another() -> None:
    data, weights, workspace = make_data(TF1), make_weights(TF1, 2), EncoderWorkspace()
    before = encoder_gradient(TF1, data, weights, BATCH, workspace=workspace)
    smaller = EncoderShape(1, 26, 104, 86, 21)
    with pytest.raises(ValueError, match=r"data.code_embedding must be \(86, 32\)"):
        encoder_gradient(smaller, data, make_weights(smaller, 2), BATCH, workspace=workspace)
    with pytest.raises(ValueError, match=r"data.first must be \(25,\) torch.int64 on cpu, got"):
        encoder_gradient(
            TF1, data._replace(first=data.first[:-1]), weights, BATCH, workspace=workspace
        )
    other = make_data(TF1, seed=1)
    alone = encoder_gradient(TF1, other, weights, BATCH)
    assert_same_bits(
        encoder_gradient(TF1, other, weights, BATCH, workspace=workspace).gradient,
        alone.gradient,
        "another set",
    )
    assert not torch.equal(alone.losses, before.losses)
