"""The mean attention matrix of a sequence set, of every block of a transformer (the A of arXiv
2603.29529, Eq. 6, averaged for Fig. 6), on the CPU (csrc/mean_attention*).

The blocks run in float32, one sequence after another, at every site; the matrices are added up in
float64 over groups of sequences in a fixed order: the same bits for any number of threads, but not
for every instruction set. The formula is in mean_attention_ref.py.
"""

from __future__ import annotations

import torch

from thermosphere import _core
from thermosphere.ops.arguments import check_tensor, padded, thread_count
from thermosphere.ops.encoder_gradient import EncoderData, EncoderShape


def mean_attention(
    shape: EncoderShape, data: EncoderData, weights: torch.Tensor, *, threads: int | None = None
) -> torch.Tensor:
    """A averaged over all S sequences, (C, L, n, n) float64, rows = queries, each summing to one.

    Parameters
    ----------
    weights: (C, N) float32, contiguous.
    threads: default torch.get_num_threads(); the bits do not depend on it.

    Raises ValueError naming the argument that does not fit.
    """
    op, n = "mean_attention", shape.length
    obstacle = shape.obstacle()
    if obstacle is not None:
        raise ValueError(f"{op}: {obstacle}")
    if shape.network != "transformer":
        raise ValueError(f"{op}: shape must be of a transformer, got {shape.network}")
    check_tensor(op, "data.tokens", data.tokens, ("S", n), torch.uint8)
    codes = {"code_embedding": shape.embedding, "code_hidden": shape.hidden}
    for name, size in codes.items():
        code = getattr(data, name)
        check_tensor(op, f"data.{name}", code, (n, padded(size)), torch.float32)
    if data.mask != shape.tokens - 1:
        raise ValueError(
            f"{op}: data must have the last token, {shape.tokens - 1}, at masked sites, "
            f"got {data.mask}"
        )
    if len(data.tokens) == 0:
        raise ValueError(f"{op}: data must hold at least one sequence, got none")
    check_tensor(op, "weights", weights, ("C", "N"), torch.float32)
    chains, parameters = weights.shape
    mean = weights.new_empty(chains, shape.blocks, n, n, dtype=torch.float64)
    _core.mean_attention(
        shape=shape.sizes(),
        code_embedding=data.code_embedding.data_ptr(),
        code_hidden=data.code_hidden.data_ptr(),
        chains=chains,
        parameters=parameters,
        sequences=len(data.tokens),
        weights=weights.data_ptr(),
        tokens=data.tokens.data_ptr(),
        mean=mean.data_ptr(),
        threads=thread_count(op, threads),
    )
    return mean
