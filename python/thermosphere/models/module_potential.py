"""Any torch.nn.Module as a potential of its flat weight vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from thermosphere.models.layout import Layout
from thermosphere.models.potential import check_weights, full_or_given, pieces
from thermosphere.ops.arguments import checked_whole
from thermosphere.ops.minibatch import Minibatch

Loss = Callable[..., torch.Tensor]  # (network, *batch) → (B,)


class ModulePotential:
    """U(w) = weighted mean over examples of a loss of `module` with weights w.

    >>> def loss(network, images, labels):  # call network like the module; one loss an example
    ...     return torch.nn.functional.cross_entropy(network(images), labels, reduction="none")
    >>> potential = ModulePotential(network, loss, images, labels)
    >>> losses, gradient = potential(potential.initial())

    `network` can only be called: it is the module at other weights, and has no attributes. `data`
    are the tensors of the S examples, each (S, ...); a batch gets their rows. Their gradients, and
    those of other modules that the loss calls, are not followed. The flat
    vector holds the parameters in the order of `module.named_parameters()` (tied ones once); frozen
    ones (requires_grad False) and buffers stay as they are in the module. The module itself is
    never written to, but by `load`. A call puts other weights in their place while it runs: not for
    two threads at once.

    `chunk` is the largest number of examples of a chain in one call of `loss`. `vectorise` runs all
    chains in one torch.func.vmap call, which pays for small networks on a GPU and needs a module
    and a loss that vmap can batch; otherwise chains follow one another. For weights of another
    dtype than the module's, what the module and the data hold of its dtype is taken in theirs.

    Raises ValueError for data of unequal lengths, data, buffers or frozen parameters on different
    devices, a module without trainable parameters, parameters
    of more than one dtype, for layers whose output is random or depends on the rest of the batch,
    or that write to their buffers: BatchNorm, Dropout and others in training mode (call
    `module.eval()` first), and for a loss that does not depend on the network it is given. To see
    that, `loss` is called on a few examples. A call raises it where a layer is no longer in the
    mode, training or eval, that was looked at.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Loss,
        *data: torch.Tensor,
        chunk: int = 4096,
        vectorise: bool = False,
    ) -> None:
        if not isinstance(module, torch.nn.Module) or not callable(loss):
            raise ValueError(
                "ModulePotential: needs a torch.nn.Module and a function, "
                f"got {type(module).__name__} and {type(loss).__name__}"
            )
        kinds = [type(item).__name__ for item in data if not isinstance(item, torch.Tensor)]
        if kinds:
            raise ValueError(
                f"ModulePotential: data must be tensors of all examples, got {', '.join(kinds)}"
            )
        chunk = checked_whole("ModulePotential: chunk", chunk)
        if not data or any(item.ndim == 0 or len(item) != len(data[0]) for item in data):
            raise ValueError(
                "ModulePotential: data must be tensors with one row an example, "
                f"got shapes {[tuple(item.shape) for item in data]}"
            )
        if len(data[0]) == 0 or chunk < 1:
            raise ValueError(
                "ModulePotential: examples and chunk must be at least 1, "
                f"got {len(data[0])} and {chunk}"
            )
        trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if len({p.dtype for p in trainable.values()}) != 1:
            raise ValueError(
                "ModulePotential: module needs trainable parameters of one dtype, "
                f"got {sorted({str(p.dtype) for p in trainable.values()})}"
            )
        for name, layer in module.named_modules():
            norm = isinstance(layer, _BatchNorm)
            random = isinstance(layer, _DropoutNd) and layer.p > 0.0
            if layer.training and (random or norm):
                raise ValueError(
                    f"ModulePotential: {type(layer).__name__} {name!r} must be in eval mode, "
                    "got training mode"
                )
            if norm and layer.running_mean is None:
                raise ValueError(
                    f"ModulePotential: {type(layer).__name__} {name!r} must have running "
                    "statistics, got those of the batch"
                )
        held = {f"data {at}": item for at, item in enumerate(data)}
        held |= {f"buffer {name}": buffer for name, buffer in module.named_buffers()}
        held |= {
            f"frozen {name}": p for name, p in module.named_parameters() if not p.requires_grad
        }
        elsewhere = [n for n, tensor in held.items() if tensor.device != data[0].device]
        if elsewhere:
            raise ValueError(
                f"ModulePotential: all must be on the device of the data, {data[0].device}, got "
                f"{elsewhere[0]} on {held[elsewhere[0]].device}"
            )
        self.module = module
        self.loss = loss
        self.data = data
        self.chunk = chunk
        self.vectorise = vectorise
        self._layout = Layout.from_shapes({n: p.shape for n, p in trainable.items()})
        self._dtype = next(iter(trainable.values())).dtype
        self._training = {name: layer.training for name, layer in module.named_modules()}
        self._check_function()

    @property
    def parameters(self) -> int:
        """N, the number of trainable weights."""
        return self._layout.size

    @property
    def examples(self) -> int:
        """S, the number of examples."""
        return len(self.data[0])

    @property
    def device(self) -> torch.device:
        """Where the data are, and weights are expected."""
        return self.data[0].device

    @property
    def layout(self) -> Layout:
        """Names (as in `named_parameters`), shapes and offsets of the N weights."""
        return self._layout

    @torch.no_grad()
    def initial(self) -> torch.Tensor:
        """A copy of the module's present weights, (1, N)."""
        own = dict(self.module.named_parameters())
        return torch.cat([own[entry.name].flatten() for entry in self._layout.entries])[None]

    @torch.no_grad()
    def load(self, flat_row: torch.Tensor) -> None:
        """Write one sample, (N,), into the module. ValueError for another shape."""
        if flat_row.shape != (self.parameters,):
            raise ValueError(
                f"ModulePotential.load: flat_row must be ({self.parameters},), "
                f"got {tuple(flat_row.shape)}"
            )
        own = dict(self.module.named_parameters())
        for name, view in self._layout.views(flat_row).items():
            own[name].copy_(view)

    @torch.no_grad()  # what else the loss calls, or the data come from, has gradients of its own
    def __call__(
        self,
        weights: torch.Tensor,  # (C, N)
        batch: Minibatch | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses (C,), gradient (C, N)). ValueError for shapes that do not fit, and where a layer
        has changed between training and eval mode."""
        check_weights("ModulePotential", weights, self.parameters)
        self._check_mode()
        indices, shares = full_or_given(weights, batch, self.examples)
        losses = weights.new_zeros(len(weights))
        gradient = torch.zeros_like(weights)
        slope = grad_and_value(self._weighted_loss)
        if self.vectorise:
            for first in range(0, indices.shape[1], self.chunk):
                part = slice(first, first + self.chunk)
                slopes, values = vmap(slope)(weights.detach(), indices[:, part], shares[:, part])
                gradient += slopes
                losses += values
            return losses, gradient
        for some, part in pieces(indices, self.chunk):
            rows = (weights[some].detach(), indices[some, part], shares[some, part])
            for chain, row in enumerate(zip(*rows, strict=True), start=some.start):
                slopes, values = slope(*row)
                gradient[chain] += slopes
                losses[chain] += values
        return losses, gradient

    def _weighted_loss(
        self,
        row: torch.Tensor,  # (N,)
        indices: torch.Tensor,  # (B,) int64
        shares: torch.Tensor,  # (B,)
    ) -> torch.Tensor:  # ()
        return (self._losses(row, indices) * shares).sum()

    def _losses(
        self,
        row: torch.Tensor,  # (N,)
        indices: torch.Tensor,  # (B,) int64
    ) -> torch.Tensor:  # (B,)
        tensors = {**self._others(row.dtype), **self._layout.views(row)}

        def network(*arguments: Any, **keywords: Any) -> Any:
            return functional_call(self.module, tensors, arguments, keywords)

        own = [self._of_dtype(item[indices], row.dtype) for item in self.data]
        each = self.loss(network, *own)
        if not isinstance(each, torch.Tensor) or each.shape != indices.shape:
            got = tuple(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__
            raise ValueError(
                f"ModulePotential: loss must return {tuple(indices.shape)}, one an example, "
                f"got {got}"
            )
        return each

    def _others(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Frozen parameters and buffers of the module's dtype in this one; none where it is the
        module's."""
        if dtype == self._dtype:
            return {}
        held = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {n: t.detach().to(dtype) for n, t in held.items() if t.dtype == self._dtype}

    def _of_dtype(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return tensor.to(dtype) if tensor.dtype == self._dtype else tensor

    def _check_mode(self) -> None:
        """ValueError unless every layer is in the mode in which its function was looked at."""
        for name, layer in self.module.named_modules():
            was = self._training.get(name, layer.training)
            if layer.training != was:
                mode = "training" if was else "eval"
                raise ValueError(
                    f"ModulePotential: {type(layer).__name__} {name!r} must be in {mode} mode, as "
                    f"it was at first: call module.{'train' if was else 'eval'}()"
                )

    @torch.no_grad()
    def _check_function(self) -> None:
        """ValueError unless the loss of an example is a function of the weights and of it alone."""
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        weights = self.initial()[0].to(self.device)
        some = torch.arange(min(4, self.examples), device=self.device)
        first, second = (self._losses(weights, some).double() for _ in range(2))
        alone = self._losses(weights, some[:1]).double()
        beside = _beside(weights)
        self._losses(beside, some)  # what a call writes may be there already, at these weights
        changed = []
        for name, buffer in self.module.named_buffers():
            old = buffers[name]
            if not bool(((buffer == old) | ((buffer != buffer) & (old != old))).all()):  # NaN too
                changed.append(name)
                buffer.copy_(old)
        if changed:
            raise ValueError(
                "ModulePotential: a call must not write to the module, got new values of its "
                f"buffers {', '.join(changed)}; call module.eval() first"
            )
        near = {"rtol": torch.finfo(self._dtype).eps ** 0.5, "equal_nan": True}
        near["atol"] = near["rtol"]
        if not torch.allclose(first, second, **near):
            raise ValueError(
                "ModulePotential: the loss must not be random, got two values for the same "
                "weights and examples; call module.eval() first"
            )
        if not torch.allclose(first[:1], alone, **near):
            raise ValueError(
                "ModulePotential: the loss of an example must not depend on the others, got "
                f"{float(first[0]):.6g} among {len(some)} and {float(alone[0]):.6g} alone"
            )
        # Where the loss is least it may have no slope; beside it it has.
        shares = torch.ones_like(some, dtype=weights.dtype)
        for at in (weights, beside):
            slopes, _ = grad_and_value(self._weighted_loss)(at, some, shares)
            if bool((slopes != 0).any()):
                return
        raise ValueError(
            "ModulePotential: the loss must depend on the network it is given (its first argument, "
            "not the module itself, and not detached), got a gradient of zero"
        )


def _beside(weights: torch.Tensor) -> torch.Tensor:
    """Other weights (N,), a tenth of their size away; always the same."""
    random = torch.Generator().manual_seed(0)
    away = torch.randn(len(weights), generator=random).to(weights)
    return weights + 0.1 * weights.square().mean().sqrt().clamp(min=1e-2) * away
