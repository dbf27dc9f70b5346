"""Mini-batches of training examples, drawn by the counter-based generator."""

from __future__ import annotations

from typing import NamedTuple

import torch

from thermosphere import _core
from thermosphere.ops.philox import Stream, check_counter


class Minibatch(NamedTuple):
    """One mini-batch a chain: U_c = Σ_b weights[c, b] · loss(example indices[c, b])."""

    indices: torch.Tensor  # (C, B) int64
    weights: torch.Tensor  # (C, B) float32, rows sum to 1


def draw_minibatch(
    *,
    seed: int,
    step: int,
    chain_ids: torch.Tensor,
    batch: int,
    examples: int,
    stream: Stream = Stream.MINIBATCH,
) -> Minibatch:
    """Draw ``batch`` examples with replacement for each chain, duplicates merged (the rule
    of the published code of arXiv 2603.29529).

    The first occurrence of each distinct example carries 1 / (number of distinct examples), repeats
    carry 0: the mean over
    the distinct ones, an unbiased estimate of the mean over all.

    Parameters: ``chain_ids`` (C,) int64, the chains' identities. Raises ValueError on sizes that
    make no batch.
    """
    check_counter("draw_minibatch", seed, step)
    if batch < 1:
        raise ValueError(f"draw_minibatch: batch must be >= 1, got {batch}")
    if not 1 <= examples < 2**32:
        raise ValueError(f"draw_minibatch: examples must be in [1, 2**32), got {examples}")
    if chain_ids.dtype != torch.int64 or chain_ids.ndim != 1 or not chain_ids.is_contiguous():
        raise ValueError(
            f"draw_minibatch: chain_ids must be (C,) int64, got {tuple(chain_ids.shape)} "
            f"{chain_ids.dtype}"
        )
    chains = chain_ids.shape[0]
    indices = torch.empty((chains, batch), dtype=torch.int64)
    weights = torch.empty((chains, batch), dtype=torch.float32)
    _core.draw_minibatch(
        seed=seed,
        stream=int(stream),
        step=step,
        chains=chains,
        batch=batch,
        examples=examples,
        chain_ids=chain_ids.data_ptr(),
        indices=indices.data_ptr(),
        weights=weights.data_ptr(),
    )
    return Minibatch(indices, weights)
