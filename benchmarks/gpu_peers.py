"""What the GPU is compared with: the same work in stock PyTorch at its best, all chains batched.

    BatchedMove    draw, loss and gradient, step and sum of losses of C chains: the package's own
                   PyTorch networks (masked rows alone, look-up tables where there is one block,
                   torch.bmm over the chains) with constant shapes, torch.compile for gradient and
                   step, one CUDA graph for all of it
    attention_norm_sdpa, attention_norm_flex
                   the attention layer, its residual and its norm, with scaled_dot_product_attention
                   or FlexAttention for the attention

On the CPU everything runs uncompiled, for the test of what it computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

from thermosphere.models import feedforward, transformer
from thermosphere.models.layers import linear
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model
from thermosphere.models.positional import sinusoidal_code
from thermosphere.models.potential import cross_entropy
from thermosphere.models.rows import Rows
from thermosphere.ops.minibatch import Minibatch


class BatchedMove:
    """One move of C chains in buffers that stay where they are, so that it can be captured."""

    def __init__(
        self,
        model: Model,
        sites: MaskedSites,
        weights: torch.Tensor,  # (C, N), moved in place
        momenta: torch.Tensor,  # (C, N), moved in place
        inverse_masses: torch.Tensor,  # (C, N)
        noise_scales: torch.Tensor,  # (C, N)
        coefficients: torch.Tensor,  # (C, 5) float64, of the leapfrog scheme
        *,
        batch: int,
        mode: str | None,  # of torch.compile; None: not compiled
    ) -> None:
        self.model = model
        self.sites = sites
        self.state = weights, momenta, inverse_masses, noise_scales
        self.coefficients = coefficients
        self.losses = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
        self.batch = batch
        self.rows = room_for_rows(sites, batch)
        self._step: Callable[..., tuple[torch.Tensor, torch.Tensor]] = step
        self._loss: Callable[..., torch.Tensor] = self.loss
        if mode is not None:
            hold_codes(model, weights.device)
            self._loss = torch.compile(self.loss, dynamic=False, fullgraph=True, mode=mode)
            self._step = torch.compile(step, dynamic=False, fullgraph=True)

    def __call__(self) -> None:
        """One move."""
        weights, momenta, inverse_masses, noise_scales = self.state
        drawn = draw(len(weights), self.batch, len(self.sites), weights.device)
        losses, gradient = self.gradient(weights, drawn)
        noise = torch.randn_like(weights)
        moved = self._step(
            weights, momenta, gradient, inverse_masses, noise_scales, noise, self.coefficients
        )
        weights.copy_(moved[0])
        momenta.copy_(moved[1])
        self.losses += losses

    def gradient(
        self, weights: torch.Tensor, drawn: Minibatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses (C,) and gradient (C, N)."""
        flat = weights.detach().requires_grad_()
        losses = self._loss(flat, *drawn)
        (slopes,) = torch.autograd.grad(losses.sum(), [flat])
        return losses.detach(), slopes

    def loss(
        self, flat: torch.Tensor, indices: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:  # (C,)
        """U of every chain on its mini-batch; no shape depends on what was drawn."""
        tokens, rows, targets, row_weights = self.masked(indices, shares)
        logits = self.model.masked_logits(self.model.layout.views(flat), tokens, rows)
        return (cross_entropy(logits, targets) * row_weights).sum(dim=1)

    def masked(
        self, indices: torch.Tensor, shares: torch.Tensor
    ) -> tuple[torch.Tensor, Rows, torch.Tensor, torch.Tensor]:
        """As MaskedSites.batch, with room for a fixed number of rows."""
        s = self.sites
        own = s.count[indices]  # (C, B)
        count = torch.where(shares != 0, own, 0)
        end = count.cumsum(dim=1)
        start = end - count
        row = torch.arange(self.rows, device=indices.device).expand(len(indices), -1)
        real = row < end[:, -1:]
        sequence = torch.searchsorted(end, row.contiguous(), right=True)
        sequence = sequence.clamp(max=indices.shape[1] - 1)
        slot = torch.where(real, row - start.gather(1, sequence), 0)
        example = indices.gather(1, sequence)
        weight = torch.where(real, (shares / own).gather(1, sequence), 0.0)
        rows = Rows(sequence, s.site[example, slot], start, s.site.shape[1])
        return s.inputs[indices], rows, s.residue[example, slot], weight


def hold_codes(model: Model, device: torch.device) -> None:
    """Positional codes as constants of what is compiled from now on: Dynamo looks through the
    cache, and would form their sines at every call."""
    codes = {
        size: sinusoidal_code(model.length, size, torch.float32, device)
        for size in (model.embedding, model.hidden)
    }

    def held(length: int, features: int, dtype: torch.dtype, where: torch.device) -> torch.Tensor:
        if (length, dtype, where) == (model.length, torch.float32, device):
            return codes[features]
        return sinusoidal_code(length, features, dtype, where)

    for module in (transformer, feedforward):
        module.sinusoidal_code = held


def room_for_rows(sites: MaskedSites, batch: int) -> int:
    """Masked rows that five standard deviations of a batch stay within."""
    count = sites.count.double()
    most = batch * float(count.mean()) + 5 * math.sqrt(batch) * float(count.std())
    return min(32 * math.ceil(most / 32), batch * int(count.max()))


def draw(chains: int, batch: int, examples: int, device: torch.device) -> Minibatch:
    """As draw_minibatch, duplicates merged, with PyTorch's generator."""
    indices = torch.randint(examples, (chains, batch), device=device)
    same = indices.unsqueeze(2) == indices.unsqueeze(1)  # (C, B, B)
    earlier = torch.ones(batch, batch, dtype=torch.bool, device=device).tril(-1)
    first = ~(same & earlier).any(dim=2)
    return Minibatch(indices, first / first.sum(dim=1, keepdim=True))


def step(
    weights: torch.Tensor,
    momenta: torch.Tensor,
    gradient: torch.Tensor,
    inverse_masses: torch.Tensor,
    noise_scales: torch.Tensor,
    noise: torch.Tensor,
    coefficients: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """New weights and momenta: langevin_step_ref on float32 tensors, its sums in float64."""
    dt, a, b, tau, norm2 = coefficients.unsqueeze(2).unbind(1)  # (C, 1) float64
    pull = weights * inverse_masses
    force = gradient + (tau / total(weights, pull)).float() * pull
    kicked = a.float() * momenta - b.float() * force + noise_scales * noise
    moved = weights + dt.float() * inverse_masses * kicked
    s1, s2, s3 = total(moved, pull), total(moved, moved), total(pull, pull)
    root = (s1 * s1 + s3 * (norm2 - s2)).clamp(min=0).sqrt()
    multiplier = (norm2 - s2) / (s1 + torch.where(s1 >= 0, root, -root))
    return (
        moved + multiplier.float() * pull,
        kicked + (multiplier / dt).float() * weights,
    )


def total(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Σ a b of each chain, (C, 1) float64."""
    return (a * b).sum(dim=1, keepdim=True, dtype=torch.float64)


def attention_norm_sdpa(
    x: torch.Tensor,  # (C, B, n, d)
    query_key: torch.Tensor,  # (C, d, d)
    value_output: torch.Tensor,  # (C, d, d)
    gain: torch.Tensor,  # (C, d)
    bias: torch.Tensor,  # (C, d)
) -> torch.Tensor:  # (C, B, n, d)
    """attention_norm with scaled_dot_product_attention."""
    return _attention_norm(
        functional.scaled_dot_product_attention, x, query_key, value_output, gain, bias
    )


def attention_norm_flex(
    x: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """attention_norm with FlexAttention, which is of use only compiled."""
    return _attention_norm(flex_attention, x, query_key, value_output, gain, bias)


def _attention_norm(
    attention: Callable[..., torch.Tensor],
    x: torch.Tensor,
    query_key: torch.Tensor,
    value_output: torch.Tensor,
    gain: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    chains, batch, n, d = x.shape
    rows = x.reshape(chains, batch * n, d)
    queries = linear(rows, query_key).view(chains * batch, 1, n, d)
    keys = x.reshape(chains * batch, 1, n, d)
    mixed = attention(queries, keys, keys).reshape(chains, batch * n, d)
    y = functional.layer_norm(rows + linear(mixed, value_output), (d,), eps=1e-5)
    return (y * gain.unsqueeze(1) + bias.unsqueeze(1)).view(chains, batch, n, d)
