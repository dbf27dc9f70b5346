"""The feed-forward baseline against the formulas, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive_models import feed_forward, unpack
from numerics import assert_close, error_bound

from thermosphere.models.feedforward import FeedForward

MODEL = FeedForward("toy", embedding=5, hidden=8, length=7)
OPERATIONS = 100 * 4 * (7 + 5 + 3 * 8)  # sums over n, d and m; 100 for the two norms


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    flat = torch.randn(3, MODEL.layout.size, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, 20, (3, 4, 7), generator=generator)
    hidden = torch.rand(3, 4, 7, generator=generator) < 0.4
    hidden[0, 0] = True  # a sequence with nothing to see: g = 0
    return flat, tokens.masked_fill(hidden, 20)


@pytest.mark.parametrize("given", [False, True])
def test_logits_equal_the_formulas(given: bool) -> None:
    flat, tokens = problem()
    visible = torch.rand(3, 4, 7, generator=torch.Generator().manual_seed(5)) < 0.5
    logits = MODEL.logits(flat, tokens, visible=visible if given else None)
    seen = visible if given else tokens != 20
    for c in range(3):
        w = unpack(flat[c].numpy(), MODEL.layout)
        for b in range(4):
            expected = feed_forward(w, tokens[c, b].tolist(), seen[c, b].tolist())
            bound = error_bound(expected, operations=OPERATIONS, dtype=np.float64)
            assert_close(logits[c, b], expected, bound)


def test_rows_at_positions_equal_all_rows() -> None:
    flat, tokens = problem()
    flat.requires_grad_()
    positions = torch.randint(0, 7, (3, 4, 3), generator=torch.Generator().manual_seed(6))
    everywhere = MODEL.logits(flat, tokens)
    picked = everywhere.gather(2, positions[..., None].expand(-1, -1, -1, 21))
    only = MODEL.logits(flat, tokens, positions)
    assert_close(only, picked, error_bound(picked, operations=OPERATIONS, dtype=np.float64))
    weight = torch.randn(picked.shape, dtype=torch.float64)
    (slow,) = torch.autograd.grad((picked * weight).sum(), flat)
    (fast,) = torch.autograd.grad((only * weight).sum(), flat)
    assert_close(fast, slow, error_bound(slow, operations=OPERATIONS, dtype=np.float64))


def test_dropout_changes_the_output_reproducibly() -> None:
    flat, tokens = problem()
    first, again, other = (
        MODEL.logits(flat, tokens, dropout=0.2, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bad_inputs_are_refused() -> None:
    flat, tokens = problem()
    with pytest.raises(ValueError, match=r"visible must be \(3, 4, 7\) bool"):
        MODEL.logits(flat, tokens, visible=tokens)
    with pytest.raises(ValueError, match="embedding must be at least 1, got -1"):
        FeedForward("toy", embedding=-1, hidden=8, length=7)
