"""The fused kernels, of the extension on the CPU and of Triton on a GPU, as backends of a model:
what they cover, and their data prepared once a set."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version

import torch

from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model
from thermosphere.models.positional import sinusoidal_code
from thermosphere.models.transformer import Transformer
from thermosphere.ops.encoder_gradient import EncoderData, EncoderShape, encoder_data
from thermosphere.ops.mean_attention import mean_attention

BACKENDS = ("auto", "fused", "triton", "autograd")
TRITON = "3.5"  # the oldest whose loops can be told to keep operands where they are


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
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (extra: gpu)"
    try:
        found = version("triton")
    except PackageNotFoundError:  # it came with a torch under another name
        found = TRITON
    if tuple(map(int, found.split(".")[:2])) < tuple(map(int, TRITON.split("."))):
        return f"Triton must be at least {TRITON}, got {found}"
    if torch.device(device).type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it runs on a GPU, not on {device}"
    return encoder_shape(model).obstacle()


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
