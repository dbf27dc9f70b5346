"""Mini-batch draws: the reference's bits, fair, and merged as published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from thermosphere.ops.minibatch import draw_minibatch, empty_minibatch, redraw_minibatch
from thermosphere.ops.minibatch_ref import draw_minibatch_ref
from thermosphere.ops.philox import Stream


@pytest.mark.parametrize("examples", [1, 2, 7, 64, 1000, 13_000])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 63, 64, 65, 200])
def test_equals_the_reference(batch: int, examples: int) -> None:
    draw = {
        "seed": 2**63 + 5,
        "step": 2**33 + batch,
        "chain_ids": torch.tensor([0, 3, 2**32 - 1]),
        "batch": batch,
        "examples": examples,
        "stream": Stream.MINIBATCH_END,
    }
    indices, weights = draw_minibatch(**draw)
    expected = draw_minibatch_ref(**draw)
    assert indices.dtype == torch.int64
    assert weights.dtype == torch.float32
    assert torch.equal(indices, expected.indices)
    assert torch.equal(weights, expected.weights)
    # d weights of fl(1/d), each rounded once
    assert torch.allclose(
        weights.double().sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=2**-24
    )


def test_duplicates_are_merged() -> None:
    indices, weights = draw_minibatch(
        seed=0, step=0, chain_ids=torch.arange(50), batch=64, examples=40
    )
    for row, share in zip(indices.tolist(), weights.tolist(), strict=True):
        distinct = set(row)
        carriers = [index for index, weight in zip(row, share, strict=True) if weight > 0]
        assert len(carriers) == len(distinct) < 64
        assert set(carriers) == distinct
        assert set(share) == {0.0, float(np.float32(1) / np.float32(len(distinct)))}


def test_indices_are_uniform() -> None:
    examples, draws = 1000, 1_000_000
    indices, _ = draw_minibatch(
        seed=4, step=1, chain_ids=torch.arange(1000), batch=1000, examples=examples
    )
    assert int(indices.min()) == 0
    assert int(indices.max()) == examples - 1
    counts = torch.bincount(indices.flatten(), minlength=examples).double()
    expected = draws / examples
    chi2 = float(((counts - expected) ** 2).sum() / expected)
    z = (chi2 - (examples - 1)) / (2 * (examples - 1)) ** 0.5
    assert abs(z) < 4.5


def test_merged_mean_is_unbiased() -> None:
    """Every example carries weight 1/S on average, whatever the number of distinct ones."""
    examples = 10
    indices, weights = draw_minibatch(
        seed=5, step=0, chain_ids=torch.arange(200_000), batch=8, examples=examples
    )
    carried = torch.zeros(200_000, examples, dtype=torch.float64)
    carried.scatter_add_(1, indices, weights.double())
    z = (carried.mean(0) - 1 / examples) / (carried.std(0) / 200_000**0.5)
    assert float(z.abs().max()) < 4.5


def test_chains_steps_and_streams_draw_independently() -> None:
    ids = torch.arange(2000)
    first, _ = draw_minibatch(seed=1, step=5, chain_ids=ids, batch=64, examples=1000)
    others = {
        "chain": first.roll(1, 0),
        "step": draw_minibatch(seed=1, step=6, chain_ids=ids, batch=64, examples=1000).indices,
        "seed": draw_minibatch(seed=2, step=5, chain_ids=ids, batch=64, examples=1000).indices,
        "stream": draw_minibatch(
            seed=1, step=5, chain_ids=ids, batch=64, examples=1000, stream=Stream.ESTIMATE
        ).indices,
        "position": first.roll(1, 1),
    }
    draws = first.numel()
    for name, other in others.items():
        equal = int((first == other).sum())
        tail = stats.binomtest(equal, draws, 1 / 1000).pvalue
        assert tail > 1e-5, name


def test_a_row_depends_on_its_chain_alone() -> None:
    together = draw_minibatch(
        seed=9, step=2, chain_ids=torch.tensor([4, 17]), batch=64, examples=100
    )
    alone = draw_minibatch(seed=9, step=2, chain_ids=torch.tensor([17]), batch=64, examples=100)
    assert torch.equal(together.indices[1:], alone.indices)
    assert torch.equal(together.weights[1:], alone.weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, r"^draw_minibatch: batch must be >= 1, got 0$"),
        ({"examples": 0}, r"^draw_minibatch: examples must be in \[1, 2\*\*32\), got 0$"),
        (
            {"examples": 2**32},
            r"^draw_minibatch: examples must be in \[1, 2\*\*32\), got 4294967296$",
        ),
        ({"seed": -3}, r"^draw_minibatch: seed must be in \[0, 2\*\*64\), got -3$"),
        (
            {"step": 2**56},
            r"^draw_minibatch: step must be in \[0, 2\*\*56\), got 72057594037927936$",
        ),
        (
            {"chain_ids": torch.zeros(2, dtype=torch.int32)},
            r"^draw_minibatch: chain_ids must be \(2,\) torch.int64 on cpu, got \(2,\) torch.int32",
        ),
        (
            {"chain_ids": torch.zeros(2, 2, dtype=torch.int64)},
            r"^draw_minibatch: chain_ids must be \(2,\) torch.int64 .*, got \(2, 2\) torch.int64",
        ),
        ({"chain_ids": torch.arange(4)[::2]}, "^draw_minibatch: chain_ids must be contiguous"),
    ],
)
def test_arguments_out_of_range(change: dict[str, object], message: str) -> None:
    arguments = {"seed": 0, "step": 0, "chain_ids": torch.arange(2), "batch": 4, "examples": 10}
    with pytest.raises(ValueError, match=message):
        draw_minibatch(**{**arguments, **change})


def test_a_minibatch_that_is_filled_must_fit() -> None:
    whole = empty_minibatch(2, 4)
    arguments = {"seed": 0, "step": 0, "examples": 10}
    redraw_minibatch(whole, chain_ids=torch.arange(2), **arguments)
    for bad, ids, name in (
        (whole, torch.arange(1), "chain_ids"),
        (whole._replace(indices=whole.indices.int()), torch.arange(2), "indices"),
        (whole._replace(weights=whole.weights[:, :3].clone()), torch.arange(2), "weights"),
    ):
        with pytest.raises(ValueError, match=f"^draw_minibatch: {name} must be"):
            redraw_minibatch(bad, chain_ids=ids, **arguments)
