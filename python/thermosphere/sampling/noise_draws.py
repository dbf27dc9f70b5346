"""Gradients of mini-batches drawn at fixed weights, added up on the device of the potential: what a
noise estimate replays hundreds of times."""

from __future__ import annotations

import torch

from thermosphere.models.potential import Potential, device_of
from thermosphere.ops.backends import on_device
from thermosphere.ops.minibatch import empty_minibatch, redraw_minibatch
from thermosphere.ops.philox import Stream
from thermosphere.sampling.recorder import Call, Recorder


class NoiseDraws:
    """Mean and squared deviations of the gradients of one potential's mini-batches.

    With a `recorder` a draw is recorded once for a number of rows, rounded up to a power of two,
    and its buffers are kept: estimates of any chains find one that fits.
    """

    def __init__(
        self, potential: Potential, *, seed: int, batch: int, recorder: Recorder | None = None
    ) -> None:
        self.potential = potential
        self.seed = seed
        self.batch = batch
        self.recorder = recorder
        self._kept: dict[int, GradientSums] = {}

    def sums(self, rows: int) -> GradientSums:
        """Buffers for at least this many rows."""
        if self.recorder is None:
            return GradientSums(self.potential, rows, self.seed, self.batch, None)
        size = 1 << (rows - 1).bit_length()
        if size not in self._kept:
            self._kept[size] = GradientSums(
                self.potential, size, self.seed, self.batch, self.recorder
            )
        return self._kept[size]


class GradientSums:
    """Buffers of R rows, and one draw at a time added to them by Welford's rule: no cancellation
    for a small variance. It refers to nobody who refers to it: buffers of hundreds of megabytes
    must not wait for a search for cycles."""

    def __init__(
        self, potential: Potential, rows: int, seed: int, batch: int, recorder: Recorder | None
    ) -> None:
        device = device_of(potential)
        shape = (rows, potential.parameters)
        self.weights = torch.zeros(shape, dtype=torch.float32, device=device)
        self.mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)  # Σ (gradient - mean)²
        self._seed, self._examples = seed, potential.examples
        self._backend = "auto" if recorder is None else recorder.backend
        self._chain_ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self._number = torch.zeros(1, dtype=torch.int64, device=device)  # of the next draw
        self._made = torch.zeros(1, dtype=torch.float64, device=device)
        self._gradient = torch.empty(0)
        self._minibatch = empty_minibatch(rows, batch, device)
        self._gradient_of = getattr(potential, "capturable", None) or potential
        self._replay: Call | None = None
        if recorder is not None:
            calls = (self._draw, self._differentiate, self._add)
            with on_device(device):
                self._replay = recorder.record(calls, 1)

    def add(
        self,
        weights: torch.Tensor,  # (K, N), K ≤ R
        mean: torch.Tensor,  # (K, N) float64, of `made` draws
        squares: torch.Tensor,  # (K, N) float64
        chain_ids: torch.Tensor,  # (K,) int64
        *,
        number: int,  # of the next draw
        made: int,
        draws: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and squared deviations, (K, N), after `draws` more: the buffers themselves. Rows to
        spare repeat the first."""
        rows = len(weights)
        for buffer, values in (
            (self.weights, weights),
            (self.mean, mean),
            (self.squares, squares),
            (self._chain_ids, chain_ids),
        ):
            buffer[:rows] = values
            buffer[rows:] = values[0]
        self._number.fill_(number)
        self._made.fill_(made)
        with on_device(self.weights.device):
            for _ in range(draws):
                if self._replay is None:
                    self._once()
                else:
                    self._replay()
        return self.mean[:rows], self.squares[:rows]

    def _once(self) -> None:
        self._draw()
        self._differentiate()
        self._add()

    def _draw(self) -> None:
        redraw_minibatch(
            self._minibatch,
            seed=self._seed,
            step=self._number,
            stream=Stream.ESTIMATE,
            chain_ids=self._chain_ids,
            examples=self._examples,
            backend=self._backend,
        )

    def _differentiate(self) -> None:
        _, self._gradient = self._gradient_of(self.weights, self._minibatch)

    def _add(self) -> None:
        self._made += 1
        deviation = self._gradient.double() - self.mean
        self.mean += deviation / self._made
        self.squares += deviation * (self._gradient - self.mean)
        self._number += 1
