"""Pseudo-Langevin sampling of exp(-U(w)/T) on the sphere |w|² = Q (Eq. 34-41 of arXiv
2603.29529).

``scheme="leapfrog"`` (default), one gradient and one fused update a move:

    Π̃ = c1² Π - (1 + c1²)(dt/2) g(w) + sqrt((1 + c1²)(k² - v (c1 dt/2)²)) η
    w' = w + (dt/M) Π̃ + λ (dt²/M) w;   Π = Π̃ + λ dt w

``scheme="paper"``, two gradients a move:

    Π  = c1 p - (dt/2) g(w) + k η + λ dt w;   w' = w + (dt/M) Π
    p' = c1 (Π - (dt/2) g'(w')) + sqrt(k² + v (dt m1/2)²) η', projected so that Σ p' w'/M = 0

Law targeted: exp(-U/T) on the sphere, with ``metric_correction`` (T (w/M)/Σ(w²/M) added to the
gradient); without it
exp(-U/T) sqrt(Σ w²/M), which is the same where all masses are equal. Unconstrained: exp(-U/T).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch

from thermosphere.models.potential import Potential, device_of
from thermosphere.ops.arguments import checked_whole
from thermosphere.ops.minibatch import BATCH_MAX
from thermosphere.ops.philox import Stream
from thermosphere.sampling.adaptation import Adaptation
from thermosphere.sampling.derived import noise_scales
from thermosphere.sampling.full_batch import FullBatchAdaptation
from thermosphere.sampling.held_modes import HeldModes
from thermosphere.sampling.moves import Moves
from thermosphere.sampling.noise_adaptation import NoiseAdaptation
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.recorder import Recorder
from thermosphere.sampling.start import (
    check_device,
    check_temperatures,
    checked_freedom,
    checked_identities,
    checked_masses,
    checked_potential,
    checked_seed,
    checked_temperature,
    checked_threads,
    checked_weights,
)
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.uninterrupted import Uninterrupted
from thermosphere.sampling.unreachable import UnreachableSphereError, check_momenta

__all__ = ["Langevin", "UnreachableSphereError"]

# A burst takes about this long: Ctrl-C and progress wait no longer, and returning to Python costs
# nothing beside it.
BURST_SECONDS = 0.2


class Langevin:
    """A pseudo-Langevin sampler of one potential at one temperature a chain.

    >>> sampler = Langevin(potential, temperature=[1e-4, 1e-4, 3e-4], seed=0)
    >>> state = sampler.init(weights)              # (N,) for all chains, or (C, N)
    >>> sampler.run(state, moves=1000)             # in place
    >>> state.weights, sampler.kinetic_temperature(state)

    Parameters
    ----------
    potential: a :class:`thermosphere.models.potential.Potential`.
    temperature: T of each chain, in units of U.
    seed: of all noise, mini-batches and decisions. A run is a function of (seed, chain ids, start).
    options: :class:`LangevinOptions`; keyword arguments replace single ones.
    threads: of the fused parts; default torch.get_num_threads(). Their bits do not depend on it.
    recorder: how moves are recorded (sampling/recorder.py); default a CUDA graph where the
    potential runs on a GPU and can be captured.

    With a potential on a GPU all that has the size of the weights stays there.

    Raises ValueError for an option or a temperature out of range.
    """

    def __init__(
        self,
        potential: Potential,
        temperature: float | Sequence[float] | torch.Tensor,
        *,
        seed: int = 0,
        options: LangevinOptions | None = None,
        threads: int | None = None,
        recorder: Recorder | None = None,
        **changes: object,
    ) -> None:
        known = {f.name for f in fields(LangevinOptions)}
        for name in changes:
            if name not in known:
                raise ValueError(
                    f"sampler: unknown option {name!r}, expected one of {sorted(known)}"
                )
        self.options = replace(options or LangevinOptions(), **changes)  # type: ignore[arg-type]
        self.potential = checked_potential(potential)
        most = max(potential.examples, LangevinOptions().batch or 0)  # the default always goes
        if self.options.batch is not None and self.options.batch > most:
            raise ValueError(
                f"sampler: batch must be at most the {potential.examples} examples, got "
                f"{self.options.batch}; None is the whole set"
            )
        if device_of(potential).type == "cuda" and (self.options.batch or 0) > BATCH_MAX:
            raise ValueError(
                f"sampler: batch must be at most {BATCH_MAX} on a GPU, got {self.options.batch}; "
                "None is the whole set"
            )
        self.temperature = checked_temperature(temperature)
        self.seed = checked_seed(seed)
        threads = checked_threads(threads)
        modes = HeldModes(potential, self.options, self.seed)
        self.moves = Moves(potential, self.options, self.seed, threads, recorder, modes)
        self.adaptation: Adaptation = (
            FullBatchAdaptation(potential, self.options, self.seed, modes)
            if self.options.batch is None
            else NoiseAdaptation(potential, self.options, self.seed, self.moves.recorder)
        )
        self._burst_moves: dict[int, int] = {}  # by number of chains, as the last run found it

    def init(
        self,
        weights: torch.Tensor,
        *,
        masses: torch.Tensor | float | None = None,
        norm2: float | None = None,
        chain_ids: Sequence[int] | None = None,
    ) -> LangevinState:
        """The state at step 0: noise measured, masses set, momenta thermal.

        weights: (N,), (1, N) or (C, N); kept as given, except that a ``norm2`` (Q) given rescales
        them to that squared norm.
        masses: set by hand, a number, (N,) or (C, N); they then stay. The noise of mini-batches is
        still measured every ``adapt_every`` moves, and white noise makes room for it; ValueError in
        ``run`` where it has grown so that these masses leave none.
        chain_ids: identities of the chains, default 0 … C - 1: a chain's path depends on its own
        identity, not on its row or its neighbours.
        Steps count from 0: to go on from ``state.weights``, at another temperature, say, take a
        sampler with another seed, or the same noise and mini-batches come again.
        Chains that start at the same weights share one noise estimate.
        """
        chains, parameters = len(self.temperature), self.potential.parameters
        weights, squared = checked_weights(
            weights,
            chains,
            parameters,
            norm2=norm2,
            on_sphere=self.options.constrained or norm2 is not None,
            dtype=torch.float32,
        )
        ids = checked_identities(chain_ids, chains)
        checked_freedom(parameters, constrained=self.options.constrained)
        if masses is None:
            self._check_scale(squared)
        else:
            masses = checked_masses(masses, chains, parameters, torch.float32)
        device = device_of(self.potential)
        weights, squared = weights.to(device), squared.cpu()

        state = LangevinState(
            weights=weights,
            momenta=torch.zeros_like(weights),
            masses=torch.ones_like(weights),
            noise_variance=torch.zeros_like(weights),
            temperature=self.temperature.clone(),
            t_ratio=torch.zeros(chains, dtype=torch.float64),
            norm2=squared,
            chain_ids=ids,
            next_adaptation=torch.full(
                (chains,), self.options.adapt_every or -1, dtype=torch.int64
            ),
            streak=torch.ones(chains, dtype=torch.int64),
            looked_at=weights.new_zeros((chains, 0)),
            shape=weights.new_zeros((chains, 0)),
            look_step=torch.zeros(chains, dtype=torch.int64),
            by_hand=torch.full((chains,), masses is not None),
            missed=torch.zeros(chains, dtype=torch.int64),
        )
        self.adaptation.start(state, None if masses is None else masses.to(device))
        noise_scales(state, self.options)  # refuses masses that leave the white noise no room
        return state

    def _check_scale(self, squared: torch.Tensor) -> None:
        """Default masses need a scale, that of the weights."""
        given = self.options.batch is not None and self.options.t_ratio is not None
        if not given and not bool((squared > 0).all()):
            raise ValueError(
                "init: weights must not all be zero, got |w|² = 0: a step is a share of |w|; start "
                "elsewhere, or give `masses`"
            )

    def run(
        self, state: LangevinState, moves: int, on_moves: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """Advance every chain by ``moves``, in place; returns the mean mini-batch loss of each
        chain, (C,) float64, with the harmonic terms where the potential has any.

        A mini-batch does not depend on the weights it is evaluated at, so that mean estimates ⟨U⟩
        without bias.
        on_moves(done) is called between bursts with the number of moves made: after every move
        where the potential is neither fused nor captured, else about every fifth of a second. The
        bits do not depend on the cuts. Ctrl-C comes between bursts too, or in a noise estimate, and
        leaves a state to go on from; pressed again it comes at once, and the state is spent.
        Raises ValueError for a state of other temperatures (go on at others from
        ``init(state.weights)`` of a sampler with another seed) or on another device, and
        :class:`UnreachableSphereError` naming chain, step, dt and T_ratio: that chain keeps its
        last good weights and momenta, the others may have gone on, so the state as a whole is
        spent, as after an error of the potential's own: go on from a copy or a checkpoint
        (``state.tensors()``), with a smaller step.
        """
        moves = checked_whole("run: moves", moves)
        if moves < 1:
            raise ValueError(f"run: moves must be >= 1, got {moves}")
        check_temperatures("run", state.temperature, self.temperature)
        check_device("run", state.weights, self.potential)
        chains = len(state.temperature)
        loss_sums = torch.zeros(chains, dtype=torch.float64)
        derived = self.moves.derive(state)
        done, burst = 0, self._burst_moves.get(chains, 1)
        while done < moves:
            due = self.adaptation.due(state)
            look = self.adaptation.look(state, due) if due.numel() else None
            with Uninterrupted():
                if due.numel():
                    self.adaptation.adapt(state, due, look)
                    derived = self.moves.derive(state)
                made = min(burst, moves - done, self.adaptation.moves_left(state))
                begun = time.perf_counter()
                self.moves.advance(state, derived, made, loss_sums)
            done += made
            if on_moves is not None:
                on_moves(done)
            if self.moves.fused is not None or self.moves.captured is not None:
                taken = (time.perf_counter() - begun) / made
                burst = self._burst_moves[chains] = max(1, int(BURST_SECONDS / taken))
        check_momenta(state, self.options)
        return loss_sums / moves

    def kinetic_temperature(self, state: LangevinState) -> torch.Tensor:
        """2 Σ(p²/2M) / (degrees of freedom) of the full-step momenta now, (C,) float64; its mean at
        equilibrium is T.

        Leaves the state alone; costs one gradient in the leapfrog scheme.
        """
        freedom = state.weights.shape[1] - (1 if self.options.constrained else 0)
        if self.options.scheme == "paper":
            energy = 0.5 * (state.momenta.double() ** 2 / state.masses.double()).sum(1)
        else:
            _, gradient = self.moves.gradient(state, Stream.MINIBATCH)
            out = torch.empty_like(state.momenta)
            derived = self.moves.derive(state)
            energy = self.moves.full_momenta(state, derived, gradient, out=out).clone()
        return 2.0 * energy.cpu() / freedom
