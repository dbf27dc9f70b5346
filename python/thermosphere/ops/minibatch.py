"""Mini-batches of training examples, drawn by the counter-based generator."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch

from thermosphere import _core
from thermosphere.ops.arguments import check_tensor
from thermosphere.ops.backends import on_device
from thermosphere.ops.philox import Stream, check_counter

BATCH_MAX = 1024  # examples of a draw on a GPU, at most


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
    batch_of = empty_minibatch(len(chain_ids), batch)
    _fill(batch_of, seed=seed, step=step, stream=stream, chain_ids=chain_ids, examples=examples)
    return batch_of


def empty_minibatch(chains: int, batch: int, device: torch.device | str = "cpu") -> Minibatch:
    """Room for the draws of C chains. ValueError for a batch below 1."""
    if batch < 1:
        raise ValueError(f"draw_minibatch: batch must be >= 1, got {batch}")
    indices = torch.empty((chains, batch), dtype=torch.int64, device=device)
    return Minibatch(indices, torch.empty((chains, batch), dtype=torch.float32, device=device))


def redraw_minibatch(
    minibatch: Minibatch,
    *,
    seed: int,
    step: torch.Tensor,
    chain_ids: torch.Tensor,
    examples: int,
    stream: Stream = Stream.MINIBATCH,
    backend: str = "auto",
) -> None:
    """Into `minibatch`, what :func:`draw_minibatch` draws at the step that `step` (1,) int64 holds
    when this is run: on a GPU by Triton, to the same bits, so that every replay of a captured call
    draws anew (without Triton, where nothing is captured, on the CPU).

    chain_ids: (C,) int64, on the device of the mini-batch. backend: "triton", or "auto": that on a
    GPU, else the extension. Raises ValueError on sizes that make no batch.
    """
    device = minibatch.indices.device
    on_gpu = device.type == "cuda"
    if on_gpu and importlib.util.find_spec("triton") is None:  # nothing is captured then
        drawn = draw_minibatch(
            seed=seed,
            step=int(step),
            chain_ids=chain_ids.cpu(),
            batch=minibatch.indices.shape[1],
            examples=examples,
            stream=stream,
        )
        for own, new in zip(minibatch, drawn, strict=True):
            own.copy_(new)
        return
    if backend == "triton" or on_gpu:
        from thermosphere.ops import minibatch_triton

        with on_device(device):
            minibatch_triton.launch(
                minibatch,
                seed=seed,
                step=step,
                chain_ids=chain_ids,
                examples=examples,
                stream=stream,
            )
        return
    _fill(
        minibatch,
        seed=seed,
        step=int(step),
        stream=stream,
        chain_ids=chain_ids,
        examples=examples,
    )


def _fill(
    minibatch: Minibatch,
    *,
    seed: int,
    step: int,
    stream: Stream,
    chain_ids: torch.Tensor,
    examples: int,
) -> None:
    check_counter("draw_minibatch", seed, step)
    if not 1 <= examples < 2**32:
        raise ValueError(f"draw_minibatch: examples must be in [1, 2**32), got {examples}")
    check_tensor("draw_minibatch", "indices", minibatch.indices, ("C", "B"), torch.int64)
    chains, batch = minibatch.indices.shape
    check_tensor("draw_minibatch", "weights", minibatch.weights, (chains, batch), torch.float32)
    check_tensor("draw_minibatch", "chain_ids", chain_ids, (chains,), torch.int64)
    _core.draw_minibatch(
        seed=seed,
        stream=int(stream),
        step=step,
        chains=chains,
        batch=batch,
        examples=examples,
        chain_ids=chain_ids.data_ptr(),
        indices=minibatch.indices.data_ptr(),
        weights=minibatch.weights.data_ptr(),
    )
