"""The mean attention of a set against its formula in float64: every block, every instruction set,
the same bits for any threads."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close, assert_same_bits, error_bound
from test_encoder_gradient import FF, SHAPES, TF1, make_data, make_weights

from thermosphere.models.transformer import Transformer
from thermosphere.ops.encoder_gradient import EncoderData, EncoderShape
from thermosphere.ops.mean_attention import mean_attention
from thermosphere.ops.mean_attention_ref import mean_attention_ref


def part_of(data: EncoderData, sequences: int) -> EncoderData:
    """The first sequences; the masked sites are not read."""
    return data._replace(tokens=data.tokens[:sequences].contiguous())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s.sizes())))
def test_mean_is_that_of_the_formula(shape: EncoderShape, isa: str) -> None:
    """A score's error is that of sums of d terms and, after a block, of n, d and m terms; A lies in
    (0, 1] and moves by the error of its scores, which are of size up to 10 here."""
    data, weights = part_of(make_data(shape), 2), make_weights(shape, 2)
    mean = mean_attention(shape, data, weights)
    assert mean.shape == (2, shape.blocks, shape.length, shape.length)
    exact = mean_attention_ref(shape, data, weights.double())
    operations = shape.blocks * (shape.length + shape.embedding + shape.hidden)
    for block in range(shape.blocks):
        bound = error_bound(exact[:, block], operations=operations, dtype=torch.float32)
        assert_close(mean[:, block], exact[:, block], bound, f"block {block}")
    rows = mean.sum(dim=3)
    bound = error_bound(torch.ones(1), operations=shape.length, dtype=torch.float32)
    assert_close(rows, torch.ones_like(rows), bound, "row sums")


@pytest.mark.parametrize("sequences", [1, 16, 33, 300])
def test_any_number_of_sequences_with_the_same_bits_for_any_threads(
    sequences: int, isa: str
) -> None:
    shape = SHAPES[5]
    data = make_data(shape)
    data = data._replace(tokens=data.tokens.repeat(13, 1)[:sequences].contiguous())
    weights = make_weights(shape, 2)
    one = mean_attention(shape, data, weights, threads=1)
    exact = mean_attention_ref(shape, data, weights.double())
    operations = shape.blocks * (shape.length + shape.embedding + shape.hidden)
    assert_close(one, exact, error_bound(exact, operations=operations, dtype=torch.float32))
    for threads in (2, 3, 7):
        many = mean_attention(shape, data, weights, threads=threads)
        assert_same_bits(many, one, f"{threads} threads")


def test_sums_are_float64(isa: str) -> None:
    """Of one sequence a thousand times: the mean is that sequence's matrix, whose elements float32
    sums would miss by 1e-5 of their size."""
    data, weights = part_of(make_data(TF1), 1), make_weights(TF1, 1)
    once = mean_attention(TF1, data, weights)
    often = data._replace(tokens=data.tokens.repeat(1000, 1))
    bound = error_bound(once, operations=1000, dtype=torch.float64)
    assert_close(mean_attention(TF1, often, weights), once, bound)


def test_it_is_what_the_model_says(isa: str) -> None:
    """The order of blocks, queries and keys is that of Transformer.attention."""
    shape = SHAPES[7]
    data, weights = make_data(shape), make_weights(shape, 3)
    tokens = data.tokens.long().expand(3, -1, -1)
    exact = Transformer("test", *shape.sizes()).attention(weights.double(), tokens).mean(dim=2)
    operations = shape.blocks * (shape.length + shape.embedding + shape.hidden)
    bound = error_bound(exact, operations=operations, dtype=torch.float32)
    assert_close(mean_attention(shape, data, weights), exact, bound)


def test_a_chain_does_not_see_its_neighbours_or_the_last_call(isa: str) -> None:
    shape = SHAPES[5]
    data, weights = make_data(shape), make_weights(shape, 3)
    together = mean_attention(shape, data, weights)
    weights[0].fill_(float("nan"))
    beside = mean_attention(shape, data, weights)
    for chain in (1, 2):
        alone = mean_attention(shape, data, weights[chain : chain + 1].contiguous())
        assert_same_bits(alone[0], together[chain])
        assert_same_bits(alone[0], beside[chain])


DATA, WEIGHTS = make_data(TF1), make_weights(TF1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": WEIGHTS.double()}, r"weights must be \(C, N\) torch.float32 .*float64"),
        ({"weights": WEIGHTS[0]}, r"weights must be \(C, N\) .*, got \(44245,\)"),
        ({"weights": WEIGHTS[:, 1:].contiguous()}, r"weights must be \(C, 44245\), got \(2, 44244"),
        ({"weights": WEIGHTS[:, ::2]}, "weights must be contiguous, got strides"),
        ({"weights": WEIGHTS.to("meta")}, "weights must be .* on meta"),
        ({"shape": EncoderShape(1, 129, 256, 86, 21)}, r"embedding must be in \[1, 128\], got 129"),
        ({"shape": FF}, "shape must be of a transformer, got feedforward"),
        ({"shape": EncoderShape(1, 26, 256, 86, 21)}, r"data.code_embedding must be \(86, 32\)"),
        ({"shape": EncoderShape(1, 64, 256, 85, 21)}, r"data.tokens must be \(S, 85\)"),
        ({"shape": EncoderShape(1, 64, 256, 86, 22)}, r"have the last token, 21, at masked sites"),
        ({"data": part_of(DATA, 0)}, "data must hold at least one sequence, got none"),
        ({"data": DATA._replace(tokens=DATA.tokens.int())}, r"data.tokens must be .* torch.uint8"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
    ],
)
def test_bad_arguments_are_one_line(change: dict[str, object], message: str) -> None:
    arguments = {"shape": TF1, "data": DATA, "weights": WEIGHTS} | change
    with pytest.raises(ValueError, match=f"^mean_attention: .*{message}") as error:
        mean_attention(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
