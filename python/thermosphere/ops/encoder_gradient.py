"""Loss and gradient of a masked-language transformer in one fused call on the CPU (SPEC §2;
csrc/encoder_gradient*).

Packs each chain's weights, works through (chain × group of sequences) with the last block at the
masked rows only, and adds the
groups up in a fixed order: the same bits for any number of threads. Float32 throughout, losses
summed in float64.
The formulas are in encoder_gradient_ref.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from thermosphere import _core
from thermosphere.ops.minibatch import Minibatch

# What the kernel's fixed arrays and registers hold (csrc/encoder_gradient.h,
# masked_cross_entropy_cpu.h).
BLOCKS_MAX, EMBEDDING_MAX, HIDDEN_MAX, LENGTH_MAX, TOKENS_MAX = 16, 128, 512, 256, 64


@dataclass(frozen=True)
class EncoderShape:
    """L blocks, embedding d, hidden m, length n, V tokens. The flat vector is that of
    models.Transformer."""

    blocks: int
    embedding: int
    hidden: int
    length: int
    tokens: int

    def sizes(self) -> tuple[int, int, int, int, int]:
        return (self.blocks, self.embedding, self.hidden, self.length, self.tokens)

    def obstacle(self) -> str | None:
        """Why the fused kernel does not cover this shape, as one phrase; None where it does."""
        limits = (BLOCKS_MAX, EMBEDDING_MAX, HIDDEN_MAX, LENGTH_MAX, TOKENS_MAX)
        names = ("blocks", "embedding", "hidden", "length", "tokens")
        for name, size, limit in zip(names, self.sizes(), limits, strict=True):
            if not 1 <= size <= limit:
                return f"{name} must be in [1, {limit}], got {size}"
        return None


class EncoderData(NamedTuple):
    """A masked sequence set as the kernel reads it, and the positional codes."""

    tokens: torch.Tensor  # (S, n) uint8, the mask token at masked sites
    first: torch.Tensor  # (S + 1,) int64: sequence s has masked sites first[s] … first[s + 1]
    site: torch.Tensor  # (M,) int32
    target: torch.Tensor  # (M,) int32, the true residue
    code_embedding: torch.Tensor  # (n, padded d) float32
    code_hidden: torch.Tensor  # (n, padded m) float32
    mask: int  # the token at every masked site


class EncoderResult(NamedTuple):
    losses: torch.Tensor  # (C,) float64
    errors: torch.Tensor  # (C,) float64, weighted share of masked sites predicted wrong
    gradient: torch.Tensor | None  # (C, N) float32


def encoder_data(
    inputs: torch.Tensor,
    masked: torch.Tensor,
    truth: torch.Tensor,
    code_embedding: torch.Tensor,
    code_hidden: torch.Tensor,
) -> EncoderData:
    """Prepare a set once.

    inputs, truth: (S, n) integers; masked: (S, n) bool; codes: (n, d) and (n, m), padded here with
    zeros to multiples of 16.
    """
    if inputs.shape != masked.shape or truth.shape != masked.shape or masked.ndim != 2:
        raise ValueError(
            f"encoder_data: inputs, masked and truth must be (S, n), got {tuple(inputs.shape)}, "
            f"{tuple(masked.shape)}, {tuple(truth.shape)}"
        )
    if not bool(masked.any()):
        raise ValueError("encoder_data: expected at least one masked site, got none")
    mask = int(inputs[masked][0])
    if not bool((inputs[masked] == mask).all()):
        raise ValueError("encoder_data: inputs must hold one and the same token at masked sites")
    sequence, site = masked.nonzero(as_tuple=True)
    first = torch.zeros(len(masked) + 1, dtype=torch.int64)
    first[1:] = masked.sum(dim=1).cumsum(0)
    return EncoderData(
        tokens=inputs.to(torch.uint8).contiguous(),
        first=first,
        site=site.to(torch.int32).contiguous(),
        target=truth[sequence, site].to(torch.int32).contiguous(),
        code_embedding=_padded(code_embedding),
        code_hidden=_padded(code_hidden),
        mask=mask,
    )


class EncoderWorkspace:
    """Packed weights and partial gradients, grown when a call needs more: nothing is allocated in
    steady state."""

    def __init__(self) -> None:
        self._floats = torch.empty(0)

    def at_least(self, floats: int) -> torch.Tensor:
        if self._floats.numel() < floats:
            self._floats = torch.empty(floats)
        return self._floats


def encoder_gradient(
    shape: EncoderShape,
    data: EncoderData,
    weights: torch.Tensor,
    batch: Minibatch | None = None,
    *,
    with_gradient: bool = True,
    workspace: EncoderWorkspace | None = None,
    threads: int | None = None,
) -> EncoderResult:
    """U_c = Σ_b batch.weights[c, b] · loss(sequence batch.indices[c, b]) and dU/dw for every chain.

    Parameters
    ----------
    weights: (C, N) float32, contiguous.
    batch: indices (C, B) int64 in [0, S), weights (C, B) float32; sequences of weight 0 are
    skipped. None: all S, 1/S each.
    with_gradient: False does the forward pass only.
    threads: default torch.get_num_threads(); the bits do not depend on it.

    Raises ValueError naming the argument that does not fit.
    """
    obstacle = shape.obstacle()
    if obstacle is not None:
        raise ValueError(f"encoder_gradient: {obstacle}")
    _check_data(shape, data)
    if weights.ndim != 2 or weights.dtype != torch.float32 or not weights.is_contiguous():
        raise ValueError(
            f"encoder_gradient: weights must be (C, N) contiguous float32, "
            f"got {tuple(weights.shape)} {weights.dtype}"
        )
    chains, parameters = weights.shape
    if parameters != _parameters(shape):
        raise ValueError(
            f"encoder_gradient: weights must be (C, {_parameters(shape)}), "
            f"got {tuple(weights.shape)}"
        )
    sequences = len(data.tokens)
    size = sequences
    if batch is not None:
        size = _check_batch(batch, chains, sequences)
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"encoder_gradient: threads must be >= 1, got {threads}")
    gradient = torch.empty_like(weights) if with_gradient else None
    losses = torch.empty(chains, dtype=torch.float64)
    errors = torch.empty(chains, dtype=torch.float64)
    floats = _core.encoder_work_floats(shape=shape.sizes(), chains=chains, gradient=with_gradient)
    work = (workspace or EncoderWorkspace()).at_least(floats)
    _core.encoder_gradient(
        shape=shape.sizes(),
        sequences=sequences,
        tokens=data.tokens.data_ptr(),
        first=data.first.data_ptr(),
        site=data.site.data_ptr(),
        target=data.target.data_ptr(),
        code_embedding=data.code_embedding.data_ptr(),
        code_hidden=data.code_hidden.data_ptr(),
        chains=chains,
        parameters=parameters,
        batch=size,
        weights=weights.data_ptr(),
        indices=batch.indices.data_ptr() if batch is not None else 0,
        example_weights=batch.weights.data_ptr() if batch is not None else 0,
        gradient=gradient.data_ptr() if gradient is not None else 0,
        losses=losses.data_ptr(),
        errors=errors.data_ptr(),
        work=work.data_ptr(),
        threads=threads,
    )
    return EncoderResult(losses, errors, gradient)


def _parameters(shape: EncoderShape) -> int:
    d, m, v = shape.embedding, shape.hidden, shape.tokens
    return v * d + shape.blocks * (2 * d * d + 4 * d + m * d + m + d * m + d) + v * d + v


def _padded(code: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(code.float(), (0, -code.shape[1] % 16)).contiguous()


def _check_data(shape: EncoderShape, data: EncoderData) -> None:
    sequences, n = data.tokens.shape
    expected = (n, -(-shape.embedding // 16) * 16), (n, -(-shape.hidden // 16) * 16)
    got = tuple(data.code_embedding.shape), tuple(data.code_hidden.shape)
    if n != shape.length or got != expected or len(data.first) != sequences + 1:
        raise ValueError(
            f"encoder_gradient: data must be for length {shape.length} with codes {expected}, "
            f"got length {n} with codes {got}"
        )
    if data.mask != shape.tokens - 1:
        raise ValueError(
            "encoder_gradient: data must have the last token, "
            f"{shape.tokens - 1}, at masked sites, got {data.mask}"
        )


def _check_batch(batch: Minibatch, chains: int, sequences: int) -> int:
    indices, shares = batch.indices, batch.weights
    if indices.ndim != 2 or len(indices) != chains or indices.dtype != torch.int64:
        raise ValueError(
            f"encoder_gradient: batch.indices must be ({chains}, B) int64, "
            f"got {tuple(indices.shape)} {indices.dtype}"
        )
    if shares.shape != indices.shape or shares.dtype != torch.float32:
        raise ValueError(
            f"encoder_gradient: batch.weights must be {tuple(indices.shape)} float32, "
            f"got {tuple(shares.shape)} {shares.dtype}"
        )
    if not (indices.is_contiguous() and shares.is_contiguous()):
        raise ValueError("encoder_gradient: batch must be contiguous, got a strided view")
    if indices.numel() == 0 or int(indices.min()) < 0 or int(indices.max()) >= sequences:
        raise ValueError(
            f"encoder_gradient: batch.indices must be in [0, {sequences}), got "
            + (f"{int(indices.min())}..{int(indices.max())}" if indices.numel() else "none")
        )
    return indices.shape[1]
