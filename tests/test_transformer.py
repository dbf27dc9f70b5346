"""The transformer against the formulas, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive_models import code, transformer, unpack
from numerics import assert_close, assert_same_bits, error_bound

from thermosphere.models.named import NAMES, named_model
from thermosphere.models.positional import sinusoidal_code
from thermosphere.models.rows import Rows
from thermosphere.models.transformer import Transformer

SIZES = [(1, 6, 10, 9), (2, 5, 8, 7), (4, 3, 4, 5)]  # (L, d, m, n), an odd d among them


def problem(
    blocks: int, d: int, m: int, n: int, chains: int = 3, batch: int = 4
) -> tuple[Transformer, torch.Tensor, torch.Tensor]:
    model = Transformer("toy", blocks=blocks, embedding=d, hidden=m, length=n)
    generator = torch.Generator().manual_seed(n)
    flat = torch.randn(chains, model.layout.size, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, 21, (chains, batch, n), generator=generator)
    return model, flat, tokens


def operations(model: Transformer) -> int:
    """Roundings on the way to a logit, in float64: a few sums over n, d and m a block."""
    return 4 * model.blocks * (model.length + model.embedding + model.hidden)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("tf1", 44_245),
        ("tf4", 168_853),
        ("tf1-small", 8_107),
        ("tf4-small", 8_953),
        ("ff", 173_653),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    model = named_model(name)
    assert model.layout.size == parameters
    assert model.initial(2, torch.Generator().manual_seed(0)).shape == (2, parameters)
    assert model.length == 86
    assert named_model(name, length=12).layout.size == parameters


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of tf1, tf4, tf1-small, tf4-small, ff, got"):
        named_model("tf2")
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        named_model("tf1", length=0)


@pytest.mark.parametrize("features", [1, 2, 7, 14, 64])
def test_sinusoidal_code(features: int) -> None:
    table = sinusoidal_code(86, features, torch.float64)
    expected = np.array([code(i, features) for i in range(86)])
    # the angle, up to 85, is rounded twice before sin: absolute error 2 · 85 · eps
    assert_close(table, expected, 4 * 85 * 2.0**-53)
    assert_close(sinusoidal_code(86, features), expected, 2.0**-24 + 4 * 85 * 2.0**-53)


@pytest.mark.parametrize("sizes", SIZES)
def test_logits_and_attention_equal_the_formulas(sizes: tuple[int, int, int, int]) -> None:
    model, flat, tokens = problem(*sizes)
    logits = model.logits(flat, tokens)
    attention = model.attention(flat, tokens)
    for c in range(flat.shape[0]):
        w = unpack(flat[c].numpy(), model.layout)
        for b in range(tokens.shape[1]):
            expected, matrices = transformer(w, model.blocks, tokens[c, b].tolist())
            # layer norms of few features amplify what came before: a factor 100 covers 4 blocks
            bound = 100 * error_bound(expected, operations=operations(model), dtype=np.float64)
            assert_close(logits[c, b], expected, bound)
            assert_close(attention[c, :, b], np.array(matrices), bound)


@pytest.mark.parametrize("sizes", SIZES)
def test_rows_at_positions_equal_all_rows(sizes: tuple[int, int, int, int]) -> None:
    model, flat, tokens = problem(*sizes)
    n = model.length
    positions = torch.stack([torch.randperm(n)[:3] for _ in range(12)]).view(3, 4, 3)
    flat.requires_grad_()
    everywhere = model.logits(flat, tokens)
    picked = everywhere.gather(2, positions[..., None].expand(-1, -1, -1, 21))
    only = model.logits(flat, tokens, positions)
    bound = 100 * error_bound(everywhere, operations=operations(model), dtype=np.float64)
    assert_close(only, picked, bound)
    weight = torch.randn(picked.shape, dtype=torch.float64)
    (slow,) = torch.autograd.grad((picked * weight).sum(), flat)
    (fast,) = torch.autograd.grad((only * weight).sum(), flat)
    assert_close(
        fast, slow, 100 * error_bound(slow, operations=operations(model), dtype=np.float64)
    )


def test_masked_rows_from_tables_equal_the_general_block() -> None:
    model, flat, tokens = problem(1, 6, 10, 9)
    positions = torch.tensor([1, 4, 8]).expand(3, 4, 3)
    tokens = tokens.scatter(2, positions, 20)
    rows = Rows.of_positions(positions)
    views = model.layout.views(flat.requires_grad_())
    general = model.row_logits(views, tokens, rows)
    tables = model.masked_logits(views, tokens, rows)
    bound = 100 * error_bound(general, operations=operations(model), dtype=np.float64)
    assert_close(tables, general, bound)
    weight = torch.randn(general.shape, dtype=torch.float64)
    (slow,) = torch.autograd.grad((general * weight).sum(), flat)
    (fast,) = torch.autograd.grad((tables * weight).sum(), flat)
    assert_close(
        fast, slow, 100 * error_bound(slow, operations=operations(model), dtype=np.float64)
    )


@pytest.mark.parametrize("name", NAMES)
def test_chains_are_independent(name: str) -> None:
    model = named_model(name, length=11)
    generator = torch.Generator().manual_seed(1)
    flat = model.initial(3, generator).double()
    tokens = torch.randint(0, 21, (3, 2, 11), generator=generator)
    positions = torch.randint(0, 11, (3, 2, 4), generator=generator)
    together = model.logits(flat, tokens, positions)
    for c in range(3):
        alone = model.logits(flat[c : c + 1], tokens[c : c + 1], positions[c : c + 1])
        bound = 100 * error_bound(alone, operations=4000, dtype=np.float64)
        assert_close(together[c], alone[0], bound)


def test_float32_follows_the_weights() -> None:
    model, flat, tokens = problem(2, 6, 10, 9)
    exact = model.logits(flat, tokens)
    single = model.logits(flat.float(), tokens)
    assert single.dtype == torch.float32
    assert_close(single, exact, 100 * error_bound(exact, operations=100, dtype=np.float32))


def test_attention_rows_sum_to_one() -> None:
    model, flat, tokens = problem(2, 6, 10, 9)
    attention = model.attention(flat, tokens)
    assert attention.shape == (3, 2, 4, 9, 9)
    assert_close(attention.sum(-1), torch.ones(3, 2, 4, 9), 9 * 4 * 2.0**-53)


def test_dropout_is_unbiased_and_seeded() -> None:
    model, flat, tokens = problem(1, 6, 10, 9)
    flat = flat * 0.1

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.logits(flat, tokens, dropout=0.3, generator=generator)

    assert_same_bits(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(draw(0), model.logits(flat, tokens))
    from thermosphere.models.layers import dropout

    generator = torch.Generator().manual_seed(2)
    kept = dropout(torch.ones(100_000, dtype=torch.float64), 0.3, generator)
    values = kept.unique()
    assert len(values) == 2
    assert values[0] == 0.0
    # share kept: binomial, standard deviation sqrt(0.3 · 0.7 / 1e5)
    z = ((kept > 0).double().mean() - 0.7) / (0.3 * 0.7 / 1e5) ** 0.5
    assert abs(float(z)) < 4
    assert_close(values[1:], np.array([1 / 0.7]), 1e-15)


def test_initial_weights_have_the_stated_law() -> None:
    model = named_model("tf1")
    flat = model.initial(2, torch.Generator().manual_seed(3))
    assert_same_bits(model.initial(1, torch.Generator().manual_seed(3))[0].clone(), flat[0].clone())
    assert not torch.equal(flat[0], flat[1])
    views = model.layout.views(flat)
    assert bool((views["blocks.0.norm1.gain"] == 1).all())
    assert bool((views["blocks.0.norm2.bias"] == 0).all())
    embedding = views["embedding"].double()
    assert abs(float(embedding.mean())) * embedding.numel() ** 0.5 < 4
    assert abs(float(embedding.var()) - 1) / (2 / embedding.numel()) ** 0.5 < 4
    for name, fan_in in [
        ("blocks.0.query_key", 64),
        ("blocks.0.feedforward1.bias", 64),
        ("blocks.0.feedforward2.weight", 256),
        ("output.bias", 64),
    ]:
        view = views[name].double()
        bound = fan_in**-0.5
        assert float(view.abs().max()) <= bound
        # variance of U(-b, b): b²/3, of its square's mean: (4/45) b⁴ / count
        z = (float(view.square().mean()) - bound**2 / 3) / (
            bound**2 * (4 / 45 / view.numel()) ** 0.5
        )
        assert abs(z) < 4, name


def test_bad_inputs_are_one_line() -> None:
    model, flat, tokens = problem(1, 6, 10, 9)
    cases: list[tuple[dict[str, object], str]] = [
        ({"flat": flat[0]}, r"flat must be \(C, "),
        ({"flat": flat[:, :-1]}, r"flat must be \(C, "),
        ({"tokens": tokens[..., :-1]}, r"tokens must be \(3, B, 9\) int64"),
        ({"tokens": tokens.to(torch.uint8)}, "tokens must be"),
        ({"tokens": tokens[:2]}, "tokens must be"),
        ({"positions": tokens[:, :2]}, "positions must be"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            model.logits(**{"flat": flat, "tokens": tokens, **change})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        Transformer("toy", blocks=1, embedding=2, hidden=0, length=3)
    with pytest.raises(ValueError, match="runs must be at least 1, got 0"):
        model.initial(0, torch.Generator())
