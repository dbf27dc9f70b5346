"""The loss as a potential energy U(w) of the weights: values and gradients for C chains at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from thermosphere.models.fused import chosen_backend, encoder_shape, fused_data
from thermosphere.models.layout import Layout
from thermosphere.models.masked_sites import MaskedBatch, MaskedSites
from thermosphere.models.named import Model
from thermosphere.models.triton_gradient import TritonGradient
from thermosphere.ops.arguments import check_precision
from thermosphere.ops.dropout import Dropout
from thermosphere.ops.encoder_gradient import EncoderWorkspace, encoder_gradient
from thermosphere.ops.langevin_burst import FusedPotential
from thermosphere.ops.minibatch import Minibatch
from thermosphere.proteins.dataset import MaskedSequences


class Potential(Protocol):
    """What the sampler needs: U(w) and dU/dw, chain by chain, on a mini-batch or the full set.

    It may have more, each taken where it is there: ``device``, where it works (else the CPU);
    ``layout``, which names the weights (for ``average_axis``); ``fused``, itself as the extension
    runs it, and ``capturable``, its call as a CUDA graph can hold it (either may be None), whose
    moves take the place of calls; ``noisy``, the part of U that a mini-batch makes noisy, and
    ``harmonic_gradient(weights, rows)``, (R, N), the slope of the rest at the weights (R, N) of the
    chains ``rows`` (R,), which noise and curvature are measured without.
    """

    @property
    def parameters(self) -> int:
        """N, the number of weights."""

    @property
    def examples(self) -> int:
        """S, the number of examples a mini-batch is drawn from."""

    def __call__(
        self,
        weights: torch.Tensor,  # (C, N)
        batch: Minibatch | None = None,  # None: all S examples, weight 1/S each
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses (C,), gradient (C, N)) of U_c = Σ_b weights[c, b] · loss(indices[c, b])."""


Gradient = Callable[[torch.Tensor, Minibatch | None], tuple[torch.Tensor, torch.Tensor]]


def device_of(potential: Potential) -> torch.device:
    """Where a potential works: its own ``device``, or the CPU where it has none."""
    return torch.device(getattr(potential, "device", "cpu"))


class MaskedLanguagePotential:
    """Masked cross-entropy of a network (arXiv 2603.29529, Eq. 26-27).

    The loss of a sequence is the mean cross-entropy over its masked sites; U is the weighted mean
    over sequences. The network works on the masked rows only, wherever that is exact.

    `chunk` concerns the autograd backend alone: the largest number of (chain, sequence) pairs
    worked on at once; more chains or sequences are done in pieces, so that activations stay in the
    cache. `backend`: "fused" (ops.encoder_gradient, on the CPU), "triton" (the same on a GPU),
    "autograd", or "auto", the first two where they cover the model and the device of the sites.
    `precision`: of Triton's products, ops.arguments.PRECISIONS.

    Raises ValueError when the sequences do not fit the model.
    """

    def __init__(
        self,
        model: Model,
        sequences: MaskedSequences | MaskedSites,
        *,
        chunk: int = 512,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        precision: str = "tf32x3",
    ) -> None:
        if sequences.length != model.length:
            raise ValueError(
                f"MaskedLanguagePotential: sequences must have {model.length} sites, "
                f"got {sequences.length}"
            )
        if chunk < 1:
            raise ValueError(f"MaskedLanguagePotential: chunk must be at least 1, got {chunk}")
        self.model = model
        self.sites = as_sites(sequences, device)
        self.chunk = chunk
        self.backend = chosen_backend(
            "MaskedLanguagePotential", backend, model, self.sites.inputs.device
        )
        # then a call it does not cover is an error
        self.required = backend in ("fused", "triton")
        check_precision("MaskedLanguagePotential", precision)
        self._workspace = EncoderWorkspace()
        self._triton: TritonGradient | None = None
        if self.backend == "triton":
            self._triton = TritonGradient(model, self.sites, precision)
        self._evaluators: WeakKeyDictionary[MaskedSites, TritonGradient] = WeakKeyDictionary()

    @property
    def parameters(self) -> int:
        """N, the number of weights."""
        return self.model.layout.size

    @property
    def examples(self) -> int:
        """S, the number of sequences."""
        return len(self.sites)

    @property
    def layout(self) -> Layout:
        """Names, shapes and offsets of the N weights."""
        return self.model.layout

    @property
    def fused(self) -> FusedPotential | None:
        """This potential as the extension runs it, for bursts of moves; None with autograd."""
        if self.backend != "fused" or not self._as_written:
            return None
        return FusedPotential(encoder_shape(self.model), fused_data(self.model, self.sites))

    @property
    def device(self) -> torch.device:
        """Where the sites are, and weights are expected."""
        return self.sites.inputs.device

    @property
    def capturable(self) -> Gradient | None:
        """`__call__` as a CUDA graph can capture it: nothing waits, and the next call writes the
        results anew. None for the backends that do not run on a GPU, or wait."""
        if self._triton is None or not self._as_written:
            return None
        return self._triton.capturable

    @property
    def _as_written(self) -> bool:
        """Whether a call is this class's own: what else a subclass makes of it the kernels would
        leave out."""
        own, kind = MaskedLanguagePotential, type(self)
        return kind.__call__ is own.__call__ and kind.gradient is own.gradient

    def __call__(
        self,
        weights: torch.Tensor,  # (C, N)
        batch: Minibatch | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses (C,), gradient (C, N)) in the dtype of `weights`, but losses float64 from the
        kernels of our own: sums of float32 rows. ValueError for bad shapes."""
        return self.gradient(weights, batch)

    def gradient(
        self,
        weights: torch.Tensor,  # (C, N)
        batch: Minibatch | None = None,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`__call__`, with dropout for training, whose randomness is `generator`'s."""
        check_weights("MaskedLanguagePotential", weights, self.parameters)
        if self._serves(weights, dropout):
            if batch is not None:
                batch = type(batch)(batch.indices.contiguous(), batch.weights.float().contiguous())
            if self._triton is not None:
                result = self._triton(weights, batch)
                assert result.gradient is not None
                return result.losses, result.gradient
            result = encoder_gradient(
                encoder_shape(self.model),
                fused_data(self.model, self.sites),
                weights.detach().contiguous(),
                batch,
                dropout=drawn_dropout(dropout, generator),
                workspace=self._workspace,
            )
            assert result.gradient is not None
            return result.losses, result.gradient
        indices, shares = full_or_given(weights, batch, self.examples)
        losses = weights.new_zeros(len(weights))
        gradient = torch.zeros_like(weights)
        for chains, part in pieces(indices, self.chunk):
            masked = self.sites.batch(indices[chains, part], shares[chains, part])
            # Leaves of their own, not slices of one leaf: the backward of a slice would fill and
            # add a whole (C, N) for every tensor.
            views = self.layout.views(weights[chains].detach())
            leaves = {name: view.requires_grad_() for name, view in views.items()}
            with torch.enable_grad():
                logits = self.model.masked_logits(
                    leaves, masked.tokens, masked.rows, dropout=dropout, generator=generator
                )
                loss = (cross_entropy(logits, masked.targets) * masked.weights).sum(dim=1)
            slopes = torch.autograd.grad(loss.sum(), list(leaves.values()))
            losses[chains] += loss.detach()
            for view, slope in zip(
                self.layout.views(gradient[chains]).values(), slopes, strict=True
            ):
                view += slope
        return losses, gradient

    def evaluate(
        self,
        weights: torch.Tensor,  # (C, N)
        sequences: MaskedSequences | MaskedSites | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`evaluate` of this model on `sequences` (its own if not given), with tf32x3 products
        whatever the gradient's. What Triton needs for a `MaskedSites` is made once and kept with
        it."""
        sites = as_sites(self.sites if sequences is None else sequences, self.device)
        if self._triton is not None and weights.dtype == torch.float32:
            check_weights("evaluate", weights, self.parameters)
            if sites not in self._evaluators:
                self._evaluators[sites] = TritonGradient(self.model, sites)
            losses, errors, _ = self._evaluators[sites](weights, with_gradient=False)
            return losses, errors
        return evaluate(
            self.model,
            weights,
            sites,
            chunk=self.chunk,
            backend=self.backend if weights.dtype == torch.float32 else "autograd",
        )

    def _serves(self, weights: torch.Tensor, dropout: float) -> bool:
        """Whether the fused kernels do this call. ValueError where they must and cannot."""
        if self.backend == "autograd":
            return False
        if weights.dtype == torch.float32 and (dropout == 0.0 or self.backend == "fused"):
            return True
        if self.required:
            only = "" if self.backend == "fused" else " and no dropout"
            raise ValueError(
                f"MaskedLanguagePotential: backend {self.backend!r} needs float32 weights{only}, "
                f"got {weights.dtype} and dropout {dropout}"
            )
        return False


def drawn_dropout(rate: float, generator: torch.Generator | None) -> Dropout | None:
    """Dropout at this rate, its seed drawn from the generator; None where nothing is dropped."""
    if rate == 0.0:
        return None
    return Dropout(rate, int(torch.randint(2**63 - 1, (), generator=generator)))


@torch.no_grad()
def evaluate(
    model: Model,
    weights: torch.Tensor,  # (C, N)
    sequences: MaskedSequences | MaskedSites,
    *,
    chunk: int = 512,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and errors on a whole set, no gradient: (losses (C,), errors (C,)), float64.

    Error = mean over sequences of the fraction of masked sites whose most likely residue is wrong
    (arXiv 2603.29529, Eq. 29-30). `backend` as for `MaskedLanguagePotential`. Pass a `MaskedSites`
    to spare its preparation in repeated calls.
    ValueError for shapes that do not fit the model.
    """
    check_weights("evaluate", weights, model.layout.size)
    sites = as_sites(sequences, weights.device)
    if sites.length != model.length:
        raise ValueError(f"evaluate: sequences must have {model.length} sites, got {sites.length}")
    chosen = chosen_backend("evaluate", backend, model, sites.inputs.device)
    if chosen != "autograd" and weights.dtype != torch.float32 and backend == "auto":
        chosen = "autograd"
    if chosen == "triton":
        losses, errors, _ = TritonGradient(model, sites)(weights, with_gradient=False)
        return losses, errors
    if chosen == "fused":
        result = encoder_gradient(
            encoder_shape(model),
            fused_data(model, sites),
            weights.detach().contiguous(),
            with_gradient=False,
        )
        return result.losses, result.errors
    indices, shares = full_or_given(weights, None, len(sites))
    losses = torch.zeros(len(weights), dtype=torch.float64, device=weights.device)
    errors = torch.zeros_like(losses)
    for chains, part in pieces(indices, chunk):
        masked: MaskedBatch = sites.batch(indices[chains, part], shares[chains, part])
        views = model.layout.views(weights[chains])
        logits = model.masked_logits(views, masked.tokens, masked.rows)
        share = masked.weights.double()
        losses[chains] += (cross_entropy(logits, masked.targets) * share).sum(dim=1)
        errors[chains] += ((logits.argmax(dim=-1) != masked.targets) * share).sum(dim=1)
    return losses, errors


def cross_entropy(
    logits: torch.Tensor,  # (C, R, V)
    targets: torch.Tensor,  # (C, R) int64
) -> torch.Tensor:  # (C, R)
    """-ln softmax(logits)[target] of every row, in nats."""
    rows = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return rows.view(targets.shape)


def as_sites(sequences: MaskedSequences | MaskedSites, device: torch.device | str) -> MaskedSites:
    """The sequences as they are, or prepared."""
    return sequences if isinstance(sequences, MaskedSites) else MaskedSites(sequences, device)


def check_weights(where: str, weights: torch.Tensor, parameters: int) -> None:
    """ValueError unless `weights` is (C, N) floating point."""
    if weights.ndim != 2 or weights.shape[1] != parameters or not weights.is_floating_point():
        raise ValueError(
            f"{where}: weights must be (C, {parameters}) floating point, "
            f"got {tuple(weights.shape)} {weights.dtype}"
        )


def full_or_given(
    weights: torch.Tensor,  # (C, N)
    batch: Minibatch | None,
    examples: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # (C, B) int64, (C, B) in the dtype of the weights
    """Indices and shares of the batch, or of all examples. ValueError for bad shapes."""
    chains = len(weights)
    if batch is None:
        every = torch.arange(examples, device=weights.device).expand(chains, -1)
        return every, weights.new_full((chains, examples), 1.0 / examples)
    indices, shares = batch.indices, batch.weights
    if indices.ndim != 2 or len(indices) != chains or indices.dtype != torch.int64:
        raise ValueError(
            f"Minibatch: indices must be ({chains}, B) int64, "
            f"got {tuple(indices.shape)} {indices.dtype}"
        )
    if shares.shape != indices.shape:
        raise ValueError(
            f"Minibatch: weights must be {tuple(indices.shape)}, got {tuple(shares.shape)}"
        )
    return indices, shares.to(weights.dtype)


def pieces(
    indices: torch.Tensor,  # (C, B)
    chunk: int,
) -> Iterator[tuple[slice, slice]]:
    """Slices of the chain axis and of the batch axis, at most `chunk` pairs in each product."""
    chains, batch = indices.shape
    together = max(1, chunk // batch)
    for chain in range(0, chains, together):
        for example in range(0, batch, chunk):
            yield slice(chain, chain + together), slice(example, example + chunk)
