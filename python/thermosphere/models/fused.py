"""The fused kernels, of the extension on the CPU and of Triton on a GPU, as backends of a model:
what they cover, and their data prepared once a set."""

from __future__ import annotations

import os

import torch

from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model
from thermosphere.models.positional import sinusoidal_code
from thermosphere.models.transformer import Transformer
from thermosphere.ops import backends
from thermosphere.ops.encoder_gradient import EncoderData, EncoderShape, encoder_data
from thermosphere.ops.mean_attention import mean_attention

BACKENDS = ("auto", "fused", "triton", "autograd")
SHARED_MEMORY = 166_912  # bytes a program can have on an A100 (sm_80); later large cards have more


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


def triton_obstacle(model: Model, device: torch.device | str) -> str | None:
    """Why Triton's kernels do not serve this model, as one phrase; None where they do."""
    if (obstacle := backends.triton_obstacle()) is not None:
        return obstacle
    if torch.device(device).type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it runs on a GPU, not on {device}"
    if torch.device(device).type == "cuda" and (card := backends.card_obstacle(device)) is not None:
        return card
    shape = encoder_shape(model)
    return shape.obstacle() or _pooling_obstacle(shape, device)


def _pooling_obstacle(shape: EncoderShape, device: torch.device | str) -> str | None:
    """The feed-forward network's mean over sites keeps two tiles of all of them on the chip."""
    if shape.network != "feedforward":
        return None
    sites, features = (1 << (size - 1).bit_length() for size in (shape.length, shape.embedding))
    needed, there = 8 * sites * max(16, features), SHARED_MEMORY
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device)
        there = getattr(properties, "shared_memory_per_block_optin", there)
    if needed <= there:
        return None
    return (
        f"length {shape.length} and embedding {shape.embedding} need {needed} bytes of shared "
        f"memory, {there} are there"
    )


def chosen_backend(where: str, backend: str, model: Model, device: torch.device | str) -> str:
    """ "fused", "triton" or "autograd"; "auto" is the first of them that serves the model on that
    device, and Triton's only on a GPU. ValueError for an unknown name, or one that does not
    serve."""
    if backend not in BACKENDS:
        raise ValueError(f"{where}: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "autograd":
        return backend
    if backend == "auto":
        wanted = "triton" if torch.device(device).type == "cuda" else "fused"
    else:
        wanted = backend
    obstacle = (triton_obstacle if wanted == "triton" else fused_obstacle)(model, device)
    if obstacle is None:
        return wanted
    if backend != "auto":
        raise ValueError(f"{where}: backend {backend!r} does not serve {model.name}: {obstacle}")
    return "autograd"


def fused_data(model: Model, sites: MaskedSites) -> EncoderData:
    """The set as the kernel reads it, kept with the set."""
    key = (model.embedding, model.hidden)
    if key not in sites.encoded:
        codes = (
            sinusoidal_code(model.length, size, torch.float32, torch.device("cpu")) for size in key
        )
        tensors = (tensor.cpu() for tensor in (sites.inputs, sites.masked, sites.truth))
        sites.encoded[key] = encoder_data(*tensors, *codes)
    return sites.encoded[key]


def fused_mean_attention(
    model: Transformer, sites: MaskedSites, weights: torch.Tensor
) -> torch.Tensor:
    """A averaged over the set, (C, L, n, n) float64, of weights (C, N) float32."""
    return mean_attention(encoder_shape(model), fused_data(model, sites), weights)
