"""Loss and gradient of a masked-language transformer, or of the feed-forward baseline, in one fused
call on the CPU (arXiv 2603.29529, Eq. 3-14, 24-30 and appendix A.3; csrc/encoder_gradient*).

Packs each chain's weights, works through (chain × group of sequences) with all that the loss allows
(the last block; the baseline after its pooling) at the masked rows only, and adds the groups up in
a fixed order: the same bits for any number of threads, but not for every instruction set. Float32
throughout, losses summed in float64. The formulas are in encoder_gradient_ref.py.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from thermosphere import _core
from thermosphere.ops.arguments import check_tensor, padded, thread_count
from thermosphere.ops.dropout import Dropout
from thermosphere.ops.minibatch import Minibatch


@dataclass(frozen=True)
class EncoderShape:
    """L blocks (1 for "feedforward"), embedding d, hidden m, length n, V tokens. The flat vector is
    that of models.Transformer, or of models.FeedForward."""

    blocks: int
    embedding: int
    hidden: int
    length: int
    tokens: int
    network: str = "transformer"  # or "feedforward"

    def sizes(self) -> tuple[int, int, int, int, int]:
        return (self.blocks, self.embedding, self.hidden, self.length, self.tokens)

    def number(self) -> int:
        """The network as the extension counts them."""
        return int(_core.encoder_networks[self.network])

    def obstacle(self) -> str | None:
        """Why the fused kernel does not cover this shape, as one phrase; None where it does."""
        if self.network not in _core.encoder_networks:
            names = ", ".join(_core.encoder_networks)
            return f"network must be one of {names}, got {self.network!r}"
        if self.network == "feedforward" and self.blocks != 1:
            return f"blocks must be 1 for feedforward, got {self.blocks}"
        limits = _core.encoder_size_limits
        sizes = ("blocks", "embedding", "hidden", "length", "tokens")
        for name, size, limit in zip(sizes, self.sizes(), limits, strict=True):
            if not 1 <= size <= limit:
                return f"{name} must be in [1, {limit}], got {size}"
        return None


class EncoderData(NamedTuple):
    """A masked sequence set as the kernel reads it, and the positional codes.

    Made by `encoder_data`, which checks the values.
    """

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

    Raises ValueError where shapes or dtypes do not fit, a sequence has no masked site, the masked
    sites do not hold one and the same token, or it is not the largest of all.
    """
    if inputs.shape != masked.shape or truth.shape != masked.shape or masked.ndim != 2:
        raise ValueError(
            f"encoder_data: inputs, masked and truth must be (S, n), got {tuple(inputs.shape)}, "
            f"{tuple(masked.shape)}, {tuple(truth.shape)}"
        )
    if masked.dtype != torch.bool:
        raise ValueError(f"encoder_data: masked must be bool, got {masked.dtype}")
    for name, code in (("code_embedding", code_embedding), ("code_hidden", code_hidden)):
        if code.ndim != 2 or len(code) != masked.shape[1]:
            raise ValueError(
                f"encoder_data: {name} must be ({masked.shape[1]}, ·), got {tuple(code.shape)}"
            )
    if len(masked) == 0:
        raise ValueError("encoder_data: expected at least one sequence, got none")
    without = (~masked.any(dim=1)).nonzero().flatten()
    if len(without) > 0:
        raise ValueError(
            "encoder_data: expected at least one masked site in every sequence, got none in "
            f"sequence {int(without[0])}"
        )
    mask = int(inputs[masked][0])
    if not bool((inputs[masked] == mask).all()):
        raise ValueError("encoder_data: inputs must hold one and the same token at masked sites")
    for name, tokens in (("inputs", inputs), ("truth", truth)):
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high > mask:
            raise ValueError(
                f"encoder_data: {name} must be in [0, {mask}], the mask token the last, "
                f"got {low}..{high}"
            )
    if mask > 255:
        raise ValueError(f"encoder_data: tokens must be < 256, got {mask}")
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


class EncoderWorkspace(threading.local):
    """Packed weights and partial gradients, grown when a call needs more: nothing is allocated in
    steady state. Each Python thread that uses it has its own, so that calls may overlap. It knows
    the set that was last checked: a call of a small network is short beside that."""

    def __init__(self) -> None:
        self._floats = torch.empty(0)
        self._checked: tuple[EncoderShape, EncoderData] | None = None

    def check_set(self, op: str, shape: EncoderShape, data: EncoderData) -> None:
        if self._checked is None or self._checked[1] is not data or self._checked[0] != shape:
            check_set(op, shape, data)
            self._checked = (shape, data)

    def __reduce__(self) -> tuple[type[EncoderWorkspace], tuple[()]]:
        return EncoderWorkspace, ()  # a copy starts empty

    def at_least(self, floats: int) -> torch.Tensor:
        if self._floats.numel() < floats:
            self._floats = torch.empty(floats, dtype=torch.float32)
        return self._floats


def encoder_gradient(
    shape: EncoderShape,
    data: EncoderData,
    weights: torch.Tensor,
    batch: Minibatch | None = None,
    *,
    with_gradient: bool = True,
    dropout: Dropout | None = None,
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
    dropout: for training, where models/transformer.py and models/feedforward.py say; an element of
    each sequence, chain and seed drops out by itself.
    threads: default torch.get_num_threads(); the bits do not depend on it.

    Raises ValueError naming the argument that does not fit.
    """
    workspace = workspace or EncoderWorkspace()
    workspace.check_set("encoder_gradient", shape, data)
    check_weights("encoder_gradient", shape, weights)
    chains, parameters = weights.shape
    sequences = len(data.tokens)
    size = sequences
    if batch is not None:
        size = _check_batch(batch, chains, sequences)
    threads = thread_count("encoder_gradient", threads)
    gradient = torch.empty_like(weights) if with_gradient else None
    losses = torch.empty(chains, dtype=torch.float64)
    errors = torch.empty(chains, dtype=torch.float64)
    floats = _core.encoder_work_floats(
        network=shape.number(), sizes=shape.sizes(), chains=chains, gradient=with_gradient
    )
    work = workspace.at_least(floats)
    _core.encoder_gradient(
        **network_arguments(shape, data),
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
        dropout_threshold=dropout.threshold if dropout is not None else 0,
        dropout_seed=dropout.seed if dropout is not None else 0,
        threads=threads,
    )
    return EncoderResult(losses, errors, gradient)


def network_arguments(shape: EncoderShape, data: EncoderData) -> dict[str, Any]:
    """What the compiled core is told of a network and its data: sizes, and addresses that
    hold while `data` does."""
    return {
        "network": shape.number(),
        "sizes": shape.sizes(),
        "sequences": len(data.tokens),
        "tokens": data.tokens.data_ptr(),
        "first": data.first.data_ptr(),
        "site": data.site.data_ptr(),
        "target": data.target.data_ptr(),
        "code_embedding": data.code_embedding.data_ptr(),
        "code_hidden": data.code_hidden.data_ptr(),
    }


def check_network(op: str, shape: EncoderShape, data: EncoderData, weights: torch.Tensor) -> None:
    """ValueError unless the shape is covered, the data are of it, and weights are (C, N)."""
    check_set(op, shape, data)
    check_weights(op, shape, weights)


def check_set(op: str, shape: EncoderShape, data: EncoderData) -> None:
    """ValueError unless the shape is covered and the data are of it."""
    obstacle = shape.obstacle()
    if obstacle is not None:
        raise ValueError(f"{op}: {obstacle}")
    check_data(op, shape, data)


def check_weights(op: str, shape: EncoderShape, weights: torch.Tensor) -> None:
    """ValueError unless weights are (C, N)."""
    check_tensor(op, "weights", weights, ("C", "N"), torch.float32)
    if weights.shape[1] != parameters(shape):
        raise ValueError(
            f"{op}: weights must be (C, {parameters(shape)}), got {tuple(weights.shape)}"
        )


def parameters(shape: EncoderShape) -> int:
    """N, the length of the flat vector."""
    d, m, v = shape.embedding, shape.hidden, shape.tokens
    if shape.network == "feedforward":
        return v * d + 2 * d + 2 * m * d + m + m * m + m + m * d + m + 2 * m + v * m + v
    return v * d + shape.blocks * (2 * d * d + 4 * d + m * d + m + d * m + d) + v * d + v


def _padded(code: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(code.float(), (0, -code.shape[1] % 16)).contiguous()


def check_data(op: str, shape: EncoderShape, data: EncoderData) -> None:
    """ValueError unless the set, on the CPU, is of that shape."""
    n = shape.length
    check_tensor(op, "data.tokens", data.tokens, ("S", n), torch.uint8)
    check_tensor(op, "data.first", data.first, (len(data.tokens) + 1,), torch.int64)
    check_tensor(op, "data.site", data.site, ("M",), torch.int32)
    check_tensor(op, "data.target", data.target, (len(data.site),), torch.int32)
    for name, size in (("code_embedding", shape.embedding), ("code_hidden", shape.hidden)):
        check_tensor(op, f"data.{name}", getattr(data, name), (n, padded(size)), torch.float32)
    if data.mask != shape.tokens - 1:
        raise ValueError(
            f"{op}: data must have the last token, "
            f"{shape.tokens - 1}, at masked sites, got {data.mask}"
        )


def _check_batch(batch: Minibatch, chains: int, sequences: int) -> int:
    op, indices = "encoder_gradient", batch.indices
    check_tensor(op, "batch.indices", indices, (chains, "B"), torch.int64)
    check_tensor(op, "batch.weights", batch.weights, tuple(indices.shape), torch.float32)
    if indices.numel() == 0:
        raise ValueError(f"{op}: batch.indices must be in [0, {sequences}), got none")
    return indices.shape[1]
