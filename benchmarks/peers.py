"""Loss and gradient with stock PyTorch at its best: what the fused kernel is compared with.

All peers take the masked-row saving (queries, feed-forward stage, norms and output of the last
block at masked rows alone), return the loss and one flat gradient, and look the mini-batch up in
tensors prepared once a set. Shapes never change (64 draws with repeats at weight zero; rows padded
to a constant), so that a compiled peer compiles once.

    autograd   the package's own autograd backend: ragged rows, eager
    sdpa       eager, K rows a sequence (K = most masked sites in the set),
               F.scaled_dot_product_attention
    tables     eager, R rows in all; look-up tables where there is one block or none
    compiled   torch.compile of what does least: tables, or sdpa where there are several blocks
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from gradient_problem import DRAWN, GradientProblem
from torch.nn import functional

from thermosphere.models.feedforward import FeedForward
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model
from thermosphere.models.positional import sinusoidal_code
from thermosphere.models.potential import MaskedLanguagePotential

Tensors = dict[str, torch.Tensor]
Call = Callable[[], tuple[float, torch.Tensor]]  # loss, gradient (N,)
Loss = Callable[[Tensors, NamedTuple], torch.Tensor]


class PaddedRows(NamedTuple):
    """K rows a sequence."""

    tokens: torch.Tensor  # (B, n) int64
    site: torch.Tensor  # (B, K) int64
    target: torch.Tensor  # (B, K) int64
    share: torch.Tensor  # (B, K), weight of the sequence / its masked sites; 0 = padding


class RaggedRows(NamedTuple):
    """R rows, one after another."""

    tokens: torch.Tensor  # (B, n) int64
    sequence: torch.Tensor  # (R,) int64
    site: torch.Tensor  # (R,) int64
    target: torch.Tensor  # (R,) int64
    share: torch.Tensor  # (R,), 0 = padding


class PaddedSites:
    """The set with every sequence's masked sites padded to K, to look batches up."""

    def __init__(self, sites: MaskedSites) -> None:
        self.sites = sites
        real = torch.arange(sites.site.shape[1]) < sites.count[:, None]
        self.share = real / sites.count[:, None].float()  # (S, K)

    def padded(self, indices: torch.Tensor, weights: torch.Tensor) -> PaddedRows:
        """Batch `indices` (B,) with `weights` (B,)."""
        s = self.sites
        share = self.share[indices] * weights[:, None]
        return PaddedRows(s.inputs[indices], s.site[indices], s.residue[indices], share)


class RaggedSites:
    """The set with its masked sites in one list; a batch is padded to a number of rows that five
    standard deviations of a batch stay within."""

    def __init__(self, sites: MaskedSites) -> None:
        self.sites = sites
        count = sites.count.double()
        most = DRAWN * count.mean() + 5 * math.sqrt(DRAWN) * count.std()
        self.rows = 32 * math.ceil(float(most) / 32)

    def ragged(self, indices: torch.Tensor, weights: torch.Tensor) -> RaggedRows:
        """Batch `indices` (B,) with `weights` (B,)."""
        batch = self.sites.batch(indices[None], weights[None])
        spare = self.rows - batch.targets.shape[1]
        assert spare >= 0, f"{batch.targets.shape[1]} masked rows, room for {self.rows}"
        flat = (batch.rows.sequence, batch.rows.position, batch.targets, batch.weights)
        return RaggedRows(batch.tokens[0], *(functional.pad(t[0], (0, spare)) for t in flat))


def weighted_cross_entropy(
    w: Tensors, x: torch.Tensor, rows: PaddedRows | RaggedRows
) -> torch.Tensor:
    logits = functional.linear(x.flatten(0, -2), w["output.weight"], w["output.bias"])
    each = functional.cross_entropy(logits, rows.target.flatten(), reduction="none")
    return (each * rows.share.flatten()).sum()


def row_stage(w: Tensors, own: str, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """LN1, feed-forward stage and LN2 of residual plus attention x (..., d)."""
    d = x.shape[-1:]
    y = functional.layer_norm(x, d, w[own + "norm1.gain"], w[own + "norm1.bias"])
    h = functional.linear(y, w[own + "feedforward1.weight"], w[own + "feedforward1.bias"])
    h = torch.relu(h) + code
    f = functional.linear(h, w[own + "feedforward2.weight"], w[own + "feedforward2.bias"])
    return functional.layer_norm(y + f, d, w[own + "norm2.gain"], w[own + "norm2.bias"])


def padded_transformer(model: Model) -> Loss:
    d = model.embedding
    code_d, code_m = (sinusoidal_code(model.length, size) for size in (d, model.hidden))

    def loss(w: Tensors, rows: PaddedRows) -> torch.Tensor:
        x = functional.embedding(rows.tokens, w["embedding"]) + code_d
        for block in range(model.blocks):
            own = f"blocks.{block}."
            keys, code = x, code_m
            if block == model.blocks - 1:
                x = x.gather(1, rows.site[..., None].expand(-1, -1, d))
                code = code_m[rows.site]
            queries = functional.linear(x, w[own + "query_key"])
            mixed = functional.scaled_dot_product_attention(
                queries.unsqueeze(1), keys.unsqueeze(1), keys.unsqueeze(1)
            ).squeeze(1)
            x = row_stage(w, own, x + functional.linear(mixed, w[own + "value_output"]), code)
        return weighted_cross_entropy(w, x, rows)

    return loss


def single_block_transformer(model: Model) -> Loss:
    """Scores of a single block by table: a masked site's query depends on the site alone."""
    code_d, code_m = (
        sinusoidal_code(model.length, size) for size in (model.embedding, model.hidden)
    )
    scale = 1 / math.sqrt(model.embedding)

    def loss(w: Tensors, rows: RaggedRows) -> torch.Tensor:
        embedding = w["embedding"]
        masked = embedding[-1] + code_d  # (n, d)
        queries = functional.linear(masked, w["blocks.0.query_key"]) * scale
        by_site = queries @ code_d.T  # (n, n)
        by_token = queries @ embedding.T  # (n, V)
        keys = rows.tokens[rows.sequence]  # (R, n)
        attention = torch.softmax(by_site[rows.site] + by_token[rows.site].gather(1, keys), dim=-1)
        on_token = attention.new_zeros(len(keys), model.tokens).scatter_add(1, keys, attention)
        value_output = w["blocks.0.value_output"].T
        x = masked[rows.site] + attention @ (code_d @ value_output)
        x = x + on_token @ (embedding @ value_output)
        return weighted_cross_entropy(w, row_stage(w, "blocks.0.", x, code_m[rows.site]), rows)

    return loss


def feed_forward(model: Model) -> Loss:
    """Every masked site holds the mask, so all that is linear in U there is a table of n rows."""
    d, m = model.embedding, model.hidden
    code_d, code_m = (sinusoidal_code(model.length, size) for size in (d, m))

    def loss(w: Tensors, rows: RaggedRows) -> torch.Tensor:
        x = functional.embedding(rows.tokens, w["embedding"]) + code_d
        u = functional.layer_norm(x, (d,), w["norm1.gain"], w["norm1.bias"])  # (B, n, d)
        visible = (rows.tokens != model.tokens - 1).to(u.dtype)
        pooled = (visible.unsqueeze(1) @ u).squeeze(1) / visible.sum(dim=1, keepdim=True)
        masked = w["embedding"][-1] + code_d
        u = functional.layer_norm(masked, (d,), w["norm1.gain"], w["norm1.bias"])  # (n, d)
        first = w["feedforward1.weight"]
        context = functional.linear(pooled, first[:, d:], w["feedforward1.bias"])  # (B, m)
        own = functional.linear(u, first[:, :d])  # (n, m)
        h = torch.relu(own[rows.site] + context[rows.sequence]) + code_m[rows.site]
        f = functional.linear(h, w["feedforward2.weight"], w["feedforward2.bias"])
        residual = functional.linear(u, w["residual.weight"], w["residual.bias"])  # (n, m)
        f = torch.relu(f) + residual[rows.site]
        f = functional.layer_norm(f, (m,), w["norm2.gain"], w["norm2.bias"])
        return weighted_cross_entropy(w, f, rows)

    return loss


def call_of(problem: GradientProblem, loss: Loss, rows: Callable[..., NamedTuple]) -> Call:
    """Value and flat gradient of `loss`; the look-up of the batch is part of the call."""
    views = problem.model.layout.views(problem.weights[0])
    indices, weights = problem.batch.indices[0], problem.batch.weights[0]

    def call() -> tuple[float, torch.Tensor]:
        w = {name: view.detach().requires_grad_() for name, view in views.items()}
        value = loss(w, rows(indices, weights))
        slopes = torch.autograd.grad(value, list(w.values()))
        return value.item(), torch.cat([slope.flatten() for slope in slopes])

    return call


def fused(problem: GradientProblem) -> Call:
    """What the package chooses: the fused kernel where it covers the model."""
    return potential_call(problem, "auto")


def autograd(problem: GradientProblem) -> Call:
    return potential_call(problem, "autograd")


def potential_call(problem: GradientProblem, backend: str) -> Call:
    potential = MaskedLanguagePotential(problem.model, problem.sites, backend=backend)

    def call() -> tuple[float, torch.Tensor]:
        loss, gradient = potential(problem.weights, problem.batch)
        return float(loss), gradient[0]

    return call


def eager(problem: GradientProblem) -> dict[str, Call]:
    """The eager peers that a model has, by name."""
    model, calls = problem.model, {"autograd": autograd(problem)}
    if not isinstance(model, FeedForward):
        rows = PaddedSites(problem.sites).padded
        calls["sdpa"] = call_of(problem, padded_transformer(model), rows)
    if isinstance(model, FeedForward) or model.blocks == 1:
        calls["tables"] = call_of(problem, *least_work(problem))
    return calls


def compiled(problem: GradientProblem, mode: str = "default") -> Call:
    loss, rows = least_work(problem)
    return call_of(problem, torch.compile(loss, mode=mode, dynamic=False), rows)


def least_work(problem: GradientProblem) -> tuple[Loss, Callable[..., NamedTuple]]:
    """The form with the fewest operations and constant shapes."""
    model = problem.model
    if isinstance(model, FeedForward):
        return feed_forward(model), RaggedSites(problem.sites).ragged
    if model.blocks == 1:
        return single_block_transformer(model), RaggedSites(problem.sites).ragged
    return padded_transformer(model), PaddedSites(problem.sites).padded
