"""The loss of the transformer and of the feed-forward baseline as arXiv 2603.29529 writes it
(Eq. 3-14, 24-30 and appendix A.3), sequence by sequence, every row; gradient by autograd.

Works in the dtype of the weights; nothing compiled, nothing shared with models/ or with the kernel.
"""

from __future__ import annotations

import math

import torch

from thermosphere.ops.dropout import Dropout
from thermosphere.ops.dropout_ref import DropoutFactors, blocks_of
from thermosphere.ops.encoder_gradient import EncoderData, EncoderResult, EncoderShape
from thermosphere.ops.minibatch import Minibatch


def encoder_gradient_ref(
    shape: EncoderShape,
    data: EncoderData,
    weights: torch.Tensor,
    batch: Minibatch | None = None,
    dropout: Dropout | None = None,
) -> EncoderResult:
    """Arguments and result of encoder_gradient, the gradient in the dtype of ``weights`` (C, N)."""
    sequences = len(data.tokens)
    losses, errors, gradients = [], [], []
    for chain, row in enumerate(weights):
        w = row.detach().clone().requires_grad_()
        if batch is None:
            chosen = [(s, 1.0 / sequences) for s in range(sequences)]
        else:
            indices, shares = batch.indices[chain].tolist(), batch.weights[chain].tolist()
            chosen = list(zip(indices, shares, strict=True))
        loss, error = w.new_zeros(()), 0.0
        for position, (s, share) in enumerate(chosen):
            if share == 0.0:
                continue
            first, last = int(data.first[s]), int(data.first[s + 1])
            site = data.site[first:last].long()
            target = data.target[first:last].long()
            network = _feedforward if shape.network == "feedforward" else _transformer
            factors = DropoutFactors(
                dropout or Dropout(0.0, 0), chain, position * _blocks_a_sequence(shape)
            )
            logits = network(shape, data, w, data.tokens[s].long(), site, factors)
            loss = loss + share * torch.nn.functional.cross_entropy(logits, target)
            error += share * float((logits.argmax(1) != target).double().mean())
        (gradient,) = torch.autograd.grad(loss, w)
        losses.append(loss.detach().double())
        errors.append(error)
        gradients.append(gradient)
    return EncoderResult(
        torch.stack(losses), torch.tensor(errors, dtype=torch.float64), torch.stack(gradients)
    )


def _blocks_a_sequence(shape: EncoderShape) -> int:
    """Blocks of dropout's counters that a sequence of the batch takes, with all sites masked."""
    sites = blocks_of(shape.length, shape.embedding)
    if shape.network == "feedforward":
        return sites + blocks_of(shape.length, shape.hidden)
    return (1 + 2 * shape.blocks) * sites


def _transformer(
    shape: EncoderShape,
    data: EncoderData,
    w: torch.Tensor,
    tokens: torch.Tensor,
    site: torch.Tensor,
    factors: DropoutFactors,
) -> torch.Tensor:
    """Logits (R, V) of one sequence (n,) at its R masked sites."""
    d, m = shape.embedding, shape.hidden
    take = _Take(w)
    code_d = data.code_embedding[:, :d].to(w.dtype)
    code_m = data.code_hidden[:, :m].to(w.dtype)
    x = take(shape.tokens, d)[tokens] + code_d  # X⁰ = E[x] + PE
    x = x * factors.next(shape.length, d).to(w.dtype)
    for block in range(shape.blocks):
        query_key, value_output = take(d, d), take(d, d)
        gain1, bias1 = take(d), take(d)
        weight1, hidden_bias = take(m, d), take(m)
        weight2, out_bias = take(d, m), take(d)
        gain2, bias2 = take(d), take(d)
        a = torch.softmax((x @ query_key.T) @ x.T / math.sqrt(d), dim=1)
        rows = torch.arange(shape.length) if block < shape.blocks - 1 else site  # that are read
        value_kept, out_kept = (
            w.new_ones(shape.length, d).index_copy(0, rows, factors.next(len(rows), d).to(w.dtype))
            for _ in range(2)
        )
        y = _layer_norm(x + value_kept * ((a @ x) @ value_output.T), gain1, bias1)
        h = torch.relu(y @ weight1.T + hidden_bias) + code_m
        x = _layer_norm(y + out_kept * (h @ weight2.T + out_bias), gain2, bias2)
    return (x @ take(shape.tokens, d).T + take(shape.tokens))[site]


def _feedforward(
    shape: EncoderShape,
    data: EncoderData,
    w: torch.Tensor,
    tokens: torch.Tensor,
    site: torch.Tensor,
    factors: DropoutFactors,
) -> torch.Tensor:
    """Logits (R, V) of one sequence (n,) at its R masked sites; g = 0 where every site holds the
    mask."""
    d, m = shape.embedding, shape.hidden
    take = _Take(w)
    code_d = data.code_embedding[:, :d].to(w.dtype)
    code_m = data.code_hidden[:, :m].to(w.dtype)
    x = take(shape.tokens, d)[tokens] + code_d  # X⁰ = E[x] + PE
    u = _layer_norm(x * factors.next(shape.length, d).to(w.dtype), take(d), take(d))
    visible = u[tokens != data.mask]
    g = visible.mean(0) if len(visible) > 0 else u.new_zeros(d)
    z = torch.cat([u, g.expand_as(u)], dim=1)  # Z = [U, g]
    h = torch.relu(z @ take(m, 2 * d).T + take(m)) + code_m
    f = torch.relu(h @ take(m, m).T + take(m))
    f = f[site] * factors.next(len(site), m).to(w.dtype)
    f = _layer_norm(f + u[site] @ take(m, d).T + take(m), take(m), take(m))
    return f @ take(shape.tokens, m).T + take(shape.tokens)


class _Take:
    """The next tensor of the flat vector."""

    def __init__(self, w: torch.Tensor) -> None:
        self.w, self.offset = w, 0

    def __call__(self, *shape: int) -> torch.Tensor:
        size = math.prod(shape)
        part = self.w[self.offset : self.offset + size].view(*shape)
        self.offset += size
        return part


def _layer_norm(x: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * gain + bias
