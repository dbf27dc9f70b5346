"""Loss and gradient in JAX, jit-compiled: the strongest stock peer beside PyTorch.

The same constant shapes as peers.py and the same choice of the form that does least. The batch is
looked up inside the compiled function, and the weights lie in a JAX array beforehand. Of the forms
tried for each network (one-hot products or gathers, padded or ragged rows) the fastest is here.

XLA's thread pool has NPROC threads: set the environment variable before this is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from gradient_problem import GradientProblem
from peers import Call, RaggedSites

from thermosphere.models.feedforward import FeedForward
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model
from thermosphere.models.positional import sinusoidal_code

jax.config.update("jax_cpu_enable_async_dispatch", False)  # the caller waits anyway

Tensors = dict[str, jax.Array]
Loss = Callable[[Tensors, jax.Array, jax.Array], jax.Array]  # tensors, indices (B,), weights (B,)


class Sites:
    """The training set as JAX arrays, and the rows of a batch, R in all or K a sequence."""

    def __init__(self, sites: MaskedSites) -> None:
        def array(tensor: torch.Tensor) -> jax.Array:
            return jnp.asarray(tensor.numpy().astype(np.int32))

        self.tokens, self.site, self.target = map(array, (sites.inputs, sites.site, sites.residue))
        self.count = array(sites.count)
        self.rows = RaggedSites(sites).rows

    def padded(self, indices: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
        """Site, target and share, (B, K) each."""
        count = self.count[indices][:, None]
        real = jnp.arange(self.site.shape[1]) < count
        share = jnp.where(real, weights[:, None] / count, 0.0)
        return self.site[indices], self.target[indices], share

    def ragged(self, indices: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
        """Sequence, site, target and share, (R,) each."""
        count = jnp.where(weights > 0, self.count[indices], 0)
        end = jnp.cumsum(count)
        row = jnp.arange(self.rows)
        sequence = jnp.minimum(jnp.searchsorted(end, row, side="right"), len(indices) - 1)
        slot = jnp.minimum(row - (end - count)[sequence], self.site.shape[1] - 1)
        example = indices[sequence]
        share = jnp.where(row < end[-1], weights[sequence] / self.count[example], 0.0)
        return sequence, self.site[example, slot], self.target[example, slot], share


def code(length: int, features: int) -> jax.Array:
    return jnp.asarray(sinusoidal_code(length, features).numpy())


def linear(w: Tensors, layer: str, x: jax.Array) -> jax.Array:
    return x @ w[layer + ".weight"].T + w[layer + ".bias"]


def layer_norm(w: Tensors, layer: str, x: jax.Array) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * w[layer + ".gain"] + w[layer + ".bias"]


def row_stage(w: Tensors, own: str, x: jax.Array, code_m: jax.Array) -> jax.Array:
    y = layer_norm(w, own + "norm1", x)
    h = jax.nn.relu(linear(w, own + "feedforward1", y)) + code_m
    return layer_norm(w, own + "norm2", y + linear(w, own + "feedforward2", h))


def weighted_cross_entropy(
    w: Tensors, x: jax.Array, target: jax.Array, share: jax.Array
) -> jax.Array:
    logarithms = jax.nn.log_softmax(linear(w, "output", x))
    chosen = (logarithms * jax.nn.one_hot(target, logarithms.shape[-1])).sum(axis=-1)
    return -(chosen * share).sum()


def several_blocks(model: Model, sites: Sites) -> Loss:
    d = model.embedding
    code_d, code_m = code(model.length, d), code(model.length, model.hidden)

    def loss(w: Tensors, indices: jax.Array, weights: jax.Array) -> jax.Array:
        site, target, share = sites.padded(indices, weights)
        x = jax.nn.one_hot(sites.tokens[indices], model.tokens) @ w["embedding"] + code_d
        for block in range(model.blocks):
            own = f"blocks.{block}."
            keys, code_here = x, code_m
            if block == model.blocks - 1:
                x = jnp.take_along_axis(x, site[..., None], axis=1)
                code_here = code_m[site]
            queries = x @ w[own + "query_key"].T / math.sqrt(d)
            attention = jax.nn.softmax(jnp.einsum("bkd,bnd->bkn", queries, keys))
            mixed = jnp.einsum("bkn,bnd->bkd", attention, keys)
            x = row_stage(w, own, x + mixed @ w[own + "value_output"].T, code_here)
        return weighted_cross_entropy(w, x, target, share)

    return loss


def single_block(model: Model, sites: Sites) -> Loss:
    d = model.embedding
    code_d, code_m = code(model.length, d), code(model.length, model.hidden)

    def loss(w: Tensors, indices: jax.Array, weights: jax.Array) -> jax.Array:
        sequence, site, target, share = sites.ragged(indices, weights)
        keys = sites.tokens[indices][sequence]  # (R, n)
        at_site = jax.nn.one_hot(site, model.length)  # (R, n)
        masked = w["embedding"][-1] + code_d  # (n, d)
        queries = masked @ w["blocks.0.query_key"].T / math.sqrt(d)
        by_token = at_site @ (queries @ w["embedding"].T)  # (R, V)
        scores = at_site @ (queries @ code_d.T) + jnp.take_along_axis(by_token, keys, axis=1)
        attention = jax.nn.softmax(scores)
        row = jnp.arange(len(keys))[:, None]
        on_token = jnp.zeros((len(keys), model.tokens)).at[row, keys].add(attention)
        value_output = w["blocks.0.value_output"].T
        x = at_site @ masked + attention @ (code_d @ value_output)
        x = x + on_token @ (w["embedding"] @ value_output)
        return weighted_cross_entropy(w, row_stage(w, "blocks.0.", x, code_m[site]), target, share)

    return loss


def feed_forward(model: Model, sites: Sites) -> Loss:
    d = model.embedding
    code_d, code_m = code(model.length, d), code(model.length, model.hidden)

    def loss(w: Tensors, indices: jax.Array, weights: jax.Array) -> jax.Array:
        sequence, site, target, share = sites.ragged(indices, weights)
        tokens = sites.tokens[indices]
        x = jax.nn.one_hot(tokens, model.tokens) @ w["embedding"] + code_d
        u = layer_norm(w, "norm1", x)
        visible = (tokens != model.tokens - 1).astype(u.dtype)
        pooled = jnp.einsum("bn,bnd->bd", visible, u) / visible.sum(axis=1, keepdims=True)
        u = layer_norm(w, "norm1", w["embedding"][-1] + code_d)  # (n, d), of masked sites
        at_site = jax.nn.one_hot(site, model.length)  # (R, n)
        first = w["feedforward1.weight"]
        context = pooled @ first[:, d:].T + w["feedforward1.bias"]
        own = at_site @ (u @ first[:, :d].T)
        h = jax.nn.relu(own + jax.nn.one_hot(sequence, len(indices)) @ context) + code_m[site]
        f = jax.nn.relu(linear(w, "feedforward2", h)) + at_site @ linear(w, "residual", u)
        return weighted_cross_entropy(w, layer_norm(w, "norm2", f), target, share)

    return loss


def jitted(problem: GradientProblem) -> Call:
    """Value and flat gradient, jit-compiled as one function of the flat weights and the batch."""
    model, sites = problem.model, Sites(problem.sites)
    if isinstance(model, FeedForward):
        loss = feed_forward(model, sites)
    else:
        loss = (single_block if model.blocks == 1 else several_blocks)(model, sites)

    @jax.jit
    def value_and_gradient(
        flat: jax.Array, indices: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        entries = model.layout.entries
        w = {e.name: flat[e.offset : e.offset + e.size].reshape(e.shape) for e in entries}
        value, slopes = jax.value_and_grad(loss)(w, indices, weights)
        return value, jnp.concatenate([slopes[e.name].ravel() for e in entries])

    flat = jnp.asarray(problem.weights[0].numpy())
    indices = problem.batch.indices[0].numpy().astype(np.int32)
    weights = problem.batch.weights[0].numpy()

    def call() -> tuple[float, torch.Tensor]:
        value, gradient = value_and_gradient(flat, indices, weights)
        return float(value), torch.from_dlpack(gradient)

    return call
