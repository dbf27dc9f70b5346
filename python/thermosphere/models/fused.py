"""The fused CPU kernels as a backend of a model: what it covers, and its data prepared once a
set."""

from __future__ import annotations

import torch

from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model
from thermosphere.models.positional import sinusoidal_code
from thermosphere.models.transformer import Transformer
from thermosphere.ops.encoder_gradient import EncoderData, EncoderShape, encoder_data
from thermosphere.ops.mean_attention import mean_attention

BACKENDS = ("auto", "fused", "autograd")


def encoder_shape(model: Model) -> EncoderShape:
    """The kernel's sizes of a model."""
    blocks, network = 1, "feedforward"
    if isinstance(model, Transformer):
        blocks, network = model.blocks, "transformer"
    return EncoderShape(blocks, model.embedding, model.hidden, model.length, model.tokens, network)


def fused_obstacle(model: Model, device: torch.device | str) -> str | None:
    """Why the fused kernel does not serve this model, as one phrase; None where it does."""
    if torch.device(device).type != "cpu":
        return f"it runs on the CPU, not on {device}"
    return encoder_shape(model).obstacle()


def chosen_backend(where: str, backend: str, model: Model, device: torch.device | str) -> str:
    """ "fused" or "autograd". ValueError for an unknown name, or "fused" where it does not
    serve."""
    if backend not in BACKENDS:
        raise ValueError(f"{where}: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "autograd":
        return backend
    obstacle = fused_obstacle(model, device)
    if obstacle is not None and backend == "fused":
        raise ValueError(f"{where}: backend 'fused' does not serve {model.name}: {obstacle}")
    return "autograd" if obstacle is not None else "fused"


def fused_data(model: Model, sites: MaskedSites) -> EncoderData:
    """The set as the kernel reads it, kept with the set."""
    key = (model.embedding, model.hidden)
    if key not in sites.encoded:
        codes = (
            sinusoidal_code(model.length, size, torch.float32, torch.device("cpu")) for size in key
        )
        sites.encoded[key] = encoder_data(sites.inputs, sites.masked, sites.truth, *codes)
    return sites.encoded[key]


def fused_mean_attention(
    model: Transformer, sites: MaskedSites, weights: torch.Tensor
) -> torch.Tensor:
    """A averaged over the set, (C, L, n, n) float64, of weights (C, N) float32."""
    return mean_attention(encoder_shape(model), fused_data(model, sites), weights)
