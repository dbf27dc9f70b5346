"""The mean attention as arXiv 2603.29529 writes it (A of Eq. 6), sequence by sequence, every block.

Works in the dtype of the weights; nothing compiled, nothing shared with models/ or with the kernel.
"""

from __future__ import annotations

import math

import torch

from thermosphere.ops.attention_norm_ref import attention_norm_ref
from thermosphere.ops.encoder_gradient import EncoderData, EncoderShape
from thermosphere.ops.feedforward_norm_ref import feedforward_norm_ref


def mean_attention_ref(
    shape: EncoderShape, data: EncoderData, weights: torch.Tensor
) -> torch.Tensor:
    """Arguments of mean_attention; (C, L, n, n) in the dtype of ``weights`` (C, N)."""
    d, m = shape.embedding, shape.hidden
    code_d = data.code_embedding[:, :d].to(weights.dtype)
    code_m = data.code_hidden[:, :m].to(weights.dtype)
    layer = [(d, d), (d, d), (d,), (d,), (m, d), (m,), (d, m), (d,), (d,), (d,)]
    means = []
    for row in weights.split(1):  # one chain
        sizes = [(shape.tokens, d), *layer * shape.blocks]
        lengths = [math.prod(size) for size in sizes]
        parts = row[:, : sum(lengths)].split(lengths, dim=1)
        tensors = [part.view(1, *size) for part, size in zip(parts, sizes, strict=True)]
        totals = row.new_zeros(shape.blocks, shape.length, shape.length)
        for tokens in data.tokens.long():
            x = (tensors[0][:, tokens] + code_d)[None]  # X⁰ = E[x] + PE, (1, 1, n, d)
            for block in range(shape.blocks):
                own = tensors[1 + 10 * block : 11 + 10 * block]
                scores = x @ own[0].mT @ x.mT / math.sqrt(d)
                totals[block] += torch.softmax(scores, dim=3)[0, 0]
                x = attention_norm_ref(x, *own[:4])
                weight1, hidden_bias, weight2, out_bias, gain, bias = own[4:]
                x = feedforward_norm_ref(
                    x, weight1, hidden_bias, weight2, out_bias, gain, bias, code_m
                )
        means.append(totals / len(data.tokens))
    return torch.stack(means)
