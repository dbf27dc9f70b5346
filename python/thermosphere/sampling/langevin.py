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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch

from thermosphere.models.potential import Potential
from thermosphere.ops.langevin_step import (
    UNCONSTRAINED,
    StepWorkspace,
    langevin_momenta,
    langevin_step,
    metric_sums,
    step_coefficients,
)
from thermosphere.ops.minibatch import draw_minibatch
from thermosphere.ops.philox import Stream
from thermosphere.sampling.adaptation import Adaptation
from thermosphere.sampling.masses import friction_factor, white_noise_scales
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.state import LangevinState


class UnreachableSphereError(RuntimeError):
    """A proposal left the sphere's reach, or is not finite. The chain keeps its last good weights
    and momenta."""


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
    threads: of the fused step; default torch.get_num_threads(). The step's bits do not depend on
    it.

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
        **changes: object,
    ) -> None:
        known = {f.name for f in fields(LangevinOptions)}
        for name in changes:
            if name not in known:
                raise ValueError(
                    f"sampler: unknown option {name!r}, expected one of {sorted(known)}"
                )
        self.options = replace(options or LangevinOptions(), **changes)  # type: ignore[arg-type]
        self.potential = potential
        self.temperature = torch.atleast_1d(torch.as_tensor(temperature, dtype=torch.float64))
        if self.temperature.ndim != 1 or not bool(
            ((self.temperature > 0) & self.temperature.isfinite()).all()
        ):
            raise ValueError(
                "sampler: temperature must be one positive number a chain, got "
                f"{self.temperature.tolist()}"
            )
        if not 0 <= seed < 2**64:
            raise ValueError(f"sampler: seed must be in [0, 2**64), got {seed}")
        self.seed = seed
        self.threads = threads
        self.adaptation = Adaptation(potential, self.options, seed)

    def init(
        self,
        weights: torch.Tensor,
        *,
        masses: torch.Tensor | float | None = None,
        norm2: float | None = None,
        chain_ids: Sequence[int] | None = None,
    ) -> LangevinState:
        """The state at step 0: noise measured, masses set, momenta thermal.

        weights: (N,) or (C, N); kept as given, except that a ``norm2`` (Q) given rescales them to
        that squared norm.
        masses: set by hand, a number, (N,) or (C, N); they are then never adapted.
        chain_ids: identities of the chains, default 0 … C - 1: a chain's path depends on its own
        identity, not on its row or its neighbours.
        Chains that start at the same weights share one noise estimate.
        """
        chains, parameters = len(self.temperature), self.potential.parameters
        weights = torch.as_tensor(weights)
        if weights.shape not in ((parameters,), (chains, parameters)):
            raise ValueError(
                f"init: weights must be ({parameters},) or ({chains}, {parameters}), got "
                f"{tuple(weights.shape)}"
            )
        if not bool(torch.isfinite(weights).all()):
            raise ValueError("init: weights must be finite, got NaN or infinity")
        weights = weights.detach().float().expand(chains, parameters).clone()
        squared = (weights.double() ** 2).sum(1)
        if (self.options.constrained or norm2 is not None) and not bool((squared > 0).all()):
            raise ValueError("init: weights on a sphere must not all be zero, got |w|² = 0")
        if norm2 is not None:
            if not norm2 > 0:
                raise ValueError(f"init: norm2 must be > 0, got {norm2}")
            weights *= (norm2 / squared).sqrt().float()[:, None]
            squared = torch.full_like(squared, norm2)
        ids = torch.arange(chains) if chain_ids is None else torch.as_tensor(list(chain_ids))
        if (
            ids.shape != (chains,)
            or ids.unique().numel() != chains
            or not bool(((ids >= 0) & (ids < 2**32)).all())
        ):
            raise ValueError(
                f"init: chain_ids must be {chains} distinct integers in [0, 2**32), got "
                f"{ids.tolist()}"
            )
        if masses is not None:
            masses = torch.as_tensor(masses, dtype=torch.float32)
            if masses.shape not in ((), (parameters,), (chains, parameters)):
                raise ValueError(
                    f"init: masses must be a number, ({parameters},) or ({chains}, {parameters}), "
                    f"got {tuple(masses.shape)}"
                )
            masses = masses.expand(chains, parameters).clone()
            if not bool((masses > 0).all()):
                raise ValueError(f"init: masses must be > 0, got {float(masses.min())}")

        state = LangevinState(
            weights=weights,
            momenta=torch.zeros_like(weights),
            masses=torch.ones_like(weights),
            noise_variance=torch.zeros_like(weights),
            temperature=self.temperature.clone(),
            t_ratio=torch.zeros(chains, dtype=torch.float64),
            norm2=squared,
            chain_ids=ids.to(torch.int64),
            next_adaptation=torch.full(
                (chains,), self.options.adapt_every or -1, dtype=torch.int64
            ),
            streak=torch.ones(chains, dtype=torch.int64),
        )
        self.adaptation.start(state, masses)
        self._noise_scales(state)  # refuses masses that leave the white noise no room
        return state

    def run(
        self, state: LangevinState, moves: int, on_move: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """Advance every chain by ``moves``, in place; returns the mean mini-batch loss of each
        chain, (C,) float64.

        A mini-batch does not depend on the weights it is evaluated at, so that mean estimates ⟨U⟩
        without bias.
        on_move(done) is called after each move. Raises :class:`UnreachableSphereError` naming
        chain, step, dt and T_ratio: that chain keeps its last good weights and momenta, the others
        may have made the move already, so the state as a whole is spent: go on from a copy or a
        checkpoint, with a smaller step.
        """
        if moves < 1:
            raise ValueError(f"run: moves must be >= 1, got {moves}")
        total = torch.zeros(len(state.temperature), dtype=torch.float64)
        derived = self._derive(state)
        for move in range(moves):
            due = self.adaptation.due(state)
            if due.numel():
                self.adaptation.adapt(state, due)
                derived = self._derive(state)
            total += self._move(state, derived)
            state.step += 1
            if on_move is not None:
                on_move(move + 1)
        return total / moves

    def kinetic_temperature(self, state: LangevinState) -> torch.Tensor:
        """2 Σ(p²/2M) / (degrees of freedom) of the full-step momenta now, (C,) float64; its mean at
        equilibrium is T.

        Leaves the state alone; costs one gradient in the leapfrog scheme.
        """
        freedom = state.weights.shape[1] - (1 if self.options.constrained else 0)
        if self.options.scheme == "paper":
            energy = 0.5 * (state.momenta.double() ** 2 / state.masses.double()).sum(1)
        else:
            _, gradient = self._gradient(state, Stream.MINIBATCH)
            out = torch.empty_like(state.momenta)
            energy = self._full_momenta(state, self._derive(state), gradient, out=out).clone()
        return 2.0 * energy / freedom

    def _move(self, state: LangevinState, derived: _Derived) -> torch.Tensor:
        losses, gradient = self._gradient(state, Stream.MINIBATCH)
        _, reachable = langevin_step(
            state.weights,
            state.momenta,
            gradient,
            derived.inverse_masses,
            derived.step_scales,
            coefficients=derived.step_coefficients,
            metric=derived.metric,
            chain_ids=state.chain_ids,
            workspace=derived.workspace,
            seed=self.seed,
            step=state.step,
            threads=self.threads,
        )
        if not bool(reachable.all()):
            self._refuse(state, reachable, losses, gradient)
        if self.options.scheme == "paper":
            _, gradient = self._gradient(state, Stream.MINIBATCH_END)
            self._full_momenta(state, derived, gradient, out=state.momenta)
        return losses.double()

    def _gradient(self, state: LangevinState, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
        if self.options.batch is None:
            return self.potential(state.weights, None)
        minibatch = draw_minibatch(
            seed=self.seed,
            step=state.step,
            stream=stream,
            chain_ids=state.chain_ids,
            batch=self.options.batch,
            examples=self.potential.examples,
        )
        return self.potential(state.weights, minibatch)

    def _full_momenta(
        self, state: LangevinState, derived: _Derived, gradient: torch.Tensor, *, out: torch.Tensor
    ) -> torch.Tensor:
        return langevin_momenta(
            state.weights,
            state.momenta,
            gradient,
            derived.inverse_masses,
            derived.momenta_scales,
            coefficients=derived.momenta_coefficients,
            metric=derived.metric,
            chain_ids=state.chain_ids,
            workspace=derived.workspace,
            seed=self.seed,
            step=state.step,
            out=out,
            threads=self.threads,
        )

    def _refuse(
        self,
        state: LangevinState,
        reachable: torch.Tensor,
        losses: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        chain = int((reachable == 0).nonzero()[0])
        numbers = (losses[chain], gradient[chain], state.momenta[chain])
        if all(bool(torch.isfinite(number).all()) for number in numbers):
            what = "left the sphere's reach"
        else:
            what = "has a loss, gradient or momentum that is not finite"
        raise UnreachableSphereError(
            f"sampler: chain {int(state.chain_ids[chain])} {what} at step {state.step}: "
            f"dt = {self.options.dt:g}, T_ratio = {float(state.t_ratio[chain]):.3g}, "
            f"T = {float(state.temperature[chain]):.3g}; lower dt or T_ratio"
        )

    def _noise_scales(self, state: LangevinState) -> tuple[torch.Tensor, torch.Tensor]:
        return white_noise_scales(
            state.noise_variance,
            state.masses,
            temperature=state.temperature,
            dt=self.options.dt,
            m1=self.options.m1,
            scheme=self.options.scheme,
        )

    def _derive(self, state: LangevinState) -> _Derived:
        """What a move needs that follows from the state and changes only when the masses do."""
        o = self.options
        c1 = friction_factor(o.m1)
        leapfrog = o.scheme == "leapfrog"
        dt = torch.full_like(state.temperature, o.dt)
        shared = {
            "dt": dt,
            "metric_temperature": state.temperature * float(o.corrects_metric),
            "norm2": state.norm2 if o.constrained else torch.full_like(dt, UNCONSTRAINED),
        }
        step_scales, momenta_scales = self._noise_scales(state)
        workspace = StepWorkspace(*state.weights.shape)
        inverse_masses = state.masses.reciprocal()
        return _Derived(
            inverse_masses=inverse_masses,
            step_scales=step_scales,
            momenta_scales=momenta_scales,
            step_coefficients=step_coefficients(
                momentum_factor=torch.full_like(dt, c1 * c1 if leapfrog else c1),
                gradient_factor=dt / 2 * (1 + c1 * c1 if leapfrog else 1),
                **shared,
            ),
            momenta_coefficients=step_coefficients(
                momentum_factor=torch.full_like(dt, c1), gradient_factor=dt / 2, **shared
            ),
            metric=metric_sums(
                state.weights, inverse_masses, workspace=workspace, threads=self.threads
            ),
            workspace=workspace,
        )


@dataclass(frozen=True)
class _Derived:
    inverse_masses: torch.Tensor  # (C, N) float32
    step_scales: torch.Tensor  # (C, N) float32
    momenta_scales: torch.Tensor  # (C, N) float32
    step_coefficients: torch.Tensor  # (C, 5) float64
    momenta_coefficients: torch.Tensor  # (C, 5) float64
    metric: torch.Tensor  # (C,) float64
    workspace: StepWorkspace
