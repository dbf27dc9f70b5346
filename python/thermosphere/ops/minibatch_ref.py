"""Mini-batch draw, by its definition."""

from __future__ import annotations

import torch

from thermosphere.ops.minibatch import Minibatch
from thermosphere.ops.philox import Stream
from thermosphere.ops.philox_ref import draw_words_ref


def draw_minibatch_ref(
    *,
    seed: int,
    step: int,
    chain_ids: torch.Tensor,
    batch: int,
    examples: int,
    stream: Stream = Stream.MINIBATCH,
) -> Minibatch:
    """index = ⌊word · examples / 2³²⌋; weight 1/distinct at the first occurrence, 0 at repeats."""
    indices = torch.empty((len(chain_ids), batch), dtype=torch.int64)
    weights = torch.zeros((len(chain_ids), batch), dtype=torch.float32)
    for row, chain in enumerate(chain_ids.tolist()):
        words = draw_words_ref(seed=seed, stream=stream, chain=chain, step=step, count=batch)
        drawn = [int(word) * examples >> 32 for word in words]
        distinct = len(set(drawn))
        for position, index in enumerate(drawn):
            indices[row, position] = index
            weights[row, position] = 0.0 if index in drawn[:position] else 1.0 / distinct
    return Minibatch(indices, weights)
