"""The algorithm as published, in plain PyTorch (arXiv 2603.29529, appendices A, B, D).

A baseline to time against, written for its formulas and not for speed: weights are a dict of
tensors, layer by layer; the network works on every site of every sequence; the loss is a loop over
sequences; each formula of the sampler runs over the dict, tensor by tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from thermosphere.models.feedforward import FeedForward
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model
from thermosphere.models.positional import sinusoidal_code

Tensors = dict[str, torch.Tensor]


def transformer_logits(model: Model, w: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, n, V) of tokens (B, n), Eq. 3-14 and 25."""
    n, d, m = model.length, model.embedding, model.hidden
    dtype = w["embedding"].dtype
    x = functional.embedding(tokens, w["embedding"]) + sinusoidal_code(n, d, dtype)
    for block in range(model.blocks):
        own = {k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"blocks.{block}.")}
        scores = functional.linear(x, own["query_key"]) @ x.transpose(1, 2) / math.sqrt(d)
        mixed = torch.softmax(scores, dim=-1) @ x
        y = x + functional.linear(mixed, own["value_output"])
        y = functional.layer_norm(y, (d,), own["norm1.gain"], own["norm1.bias"])
        h = functional.linear(y, own["feedforward1.weight"], own["feedforward1.bias"])
        h = torch.relu(h) + sinusoidal_code(n, m, dtype)
        f = functional.linear(h, own["feedforward2.weight"], own["feedforward2.bias"])
        x = functional.layer_norm(y + f, (d,), own["norm2.gain"], own["norm2.bias"])
    return functional.linear(x, w["output.weight"], w["output.bias"])


def feed_forward_logits(
    model: Model, w: Tensors, tokens: torch.Tensor, masked: torch.Tensor
) -> torch.Tensor:
    """Logits (B, n, V) of tokens (B, n) with masks (B, n) bool, Eq. 15-23 and 25."""
    n, d, m = model.length, model.embedding, model.hidden
    dtype = w["embedding"].dtype
    x = functional.embedding(tokens, w["embedding"]) + sinusoidal_code(n, d, dtype)
    u = functional.layer_norm(x, (d,), w["norm1.gain"], w["norm1.bias"])
    visible = (~masked).to(dtype)[..., None]
    pooled = (u * visible).sum(dim=1, keepdim=True) / visible.sum(dim=1, keepdim=True)
    z = torch.cat([u, pooled.expand_as(u)], dim=-1)
    h = functional.linear(z, w["feedforward1.weight"], w["feedforward1.bias"])
    h = torch.relu(h) + sinusoidal_code(n, m, dtype)
    f = torch.relu(functional.linear(h, w["feedforward2.weight"], w["feedforward2.bias"]))
    f = f + functional.linear(u, w["residual.weight"], w["residual.bias"])
    f = functional.layer_norm(f, (m,), w["norm2.gain"], w["norm2.bias"])
    return functional.linear(f, w["output.weight"], w["output.bias"])


def loss(model: Model, w: Tensors, sites: MaskedSites, chosen: torch.Tensor) -> torch.Tensor:
    """Mean over the chosen sequences of the mean cross-entropy at their masked sites, Eq. 26-27."""
    tokens, masked, truth = sites.inputs[chosen], sites.masked[chosen], sites.truth[chosen]
    if isinstance(model, FeedForward):
        logits = feed_forward_logits(model, w, tokens, masked)
    else:
        logits = transformer_logits(model, w, tokens)
    total = logits.new_zeros(())
    for row in range(len(chosen)):
        hidden = masked[row]
        total = total + functional.cross_entropy(logits[row][hidden], truth[row][hidden])
    return total / len(chosen)


def gradient(
    model: Model, weights: Tensors, sites: MaskedSites, drawn: torch.Tensor
) -> tuple[float, Tensors]:
    """Loss and its gradient on the sequences drawn, duplicates merged."""
    w = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    value = loss(model, w, sites, torch.unique(drawn))
    value.backward()
    return value.item(), {name: tensor.grad for name, tensor in w.items()}


@dataclass
class Chain:
    """Positions and momenta of one chain, and what stays fixed between two adaptations."""

    weights: Tensors
    momenta: Tensors
    masses: Tensors
    variance: Tensors  # v of the mini-batch gradient
    temperature: float
    norm2: float  # Q
    dt: float = 1.0
    m1: float = 0.1


def move(
    chain: Chain,
    model: Model,
    sites: MaskedSites,
    drawn: tuple[torch.Tensor, torch.Tensor] | None = None,  # two mini-batches of indices
    noise: tuple[Tensors, Tensors] | None = None,  # η and η'
    batch: int = 64,
) -> None:
    """One move of the constrained pseudo-Langevin scheme, Eq. 34-40, in place; fresh mini-batches
    (drawn with replacement) and noise unless given. ArithmeticError where no root exists."""
    w, p, mass, v = chain.weights, chain.momenta, chain.masses, chain.variance
    dt, temperature = chain.dt, chain.temperature
    m1_squared = chain.m1**2
    c1 = math.sqrt(1 - m1_squared)
    if drawn is None:
        drawn = tuple(torch.randint(len(sites), (batch,)) for _ in range(2))
    if noise is None:
        noise = tuple({name: torch.randn_like(t) for name, t in w.items()} for _ in range(2))

    _, g = gradient(model, w, sites, drawn[0])
    k = {n: torch.sqrt(mass[n] * temperature * m1_squared - v[n] * dt**2 / 4) for n in w}
    eta, eta_end = noise
    free = {n: w[n] + dt / mass[n] * (c1 * p[n] - dt / 2 * g[n] + k[n] * eta[n]) for n in w}

    s1 = sum((free[n] * w[n] / mass[n]).sum().item() for n in w)
    s2 = sum((free[n] ** 2).sum().item() for n in w)
    s3 = sum(((w[n] / mass[n]) ** 2).sum().item() for n in w)
    discriminant = s1**2 - s3 * (s2 - chain.norm2)
    if discriminant < 0:
        raise ArithmeticError("the move left the sphere's reach")
    roots = [(-s1 + sign * math.sqrt(discriminant)) / (dt**2 * s3) for sign in (1, -1)]
    multiplier = min(roots, key=abs)
    new = {n: free[n] + multiplier * dt**2 / mass[n] * w[n] for n in w}

    _, g_end = gradient(model, new, sites, drawn[1])
    for n in w:
        spread = torch.sqrt(k[n] ** 2 + v[n] * (dt * chain.m1 / 2) ** 2)
        p[n] = (
            c1**2 * p[n]
            - c1 * dt / 2 * (g[n] + g_end[n])
            + c1 * k[n] * eta[n]
            + c1 * dt * multiplier * w[n]
            + spread * eta_end[n]
        )
    along = sum((p[n] * new[n] / mass[n]).sum().item() for n in w)
    length = sum((new[n] ** 2 / mass[n]).sum().item() for n in w)
    for n in w:
        p[n] = p[n] - along / length * new[n]
    chain.weights = new
