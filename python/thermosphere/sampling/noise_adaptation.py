"""Masses and momenta that follow the noise of mini-batches: at the start and every ``adapt_every``
moves (arXiv 2603.29529, appendix D and its reference [26])."""

from __future__ import annotations

import torch

from thermosphere.models.potential import Potential
from thermosphere.ops.philox import Stream, uniform
from thermosphere.sampling.adaptation import Adaptation
from thermosphere.sampling.masses import (
    T_RATIO_LIMIT,
    default_t_ratio,
    floored_variance,
    masses_from_variance,
    realised_t_ratio,
)
from thermosphere.sampling.noise import NoiseEstimate, difference, estimate_noise
from thermosphere.sampling.noise_draws import NoiseDraws
from thermosphere.sampling.options import LangevinOptions
from thermosphere.sampling.recorder import Recorder
from thermosphere.sampling.state import LangevinState
from thermosphere.sampling.unreachable import check_gradient


class NoiseAdaptation(Adaptation):
    """Measures the gradient noise of the options' mini-batches and sets masses by it; on a GPU the
    draws of the estimate are replayed by the `recorder`."""

    def __init__(
        self,
        potential: Potential,
        options: LangevinOptions,
        seed: int,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(potential, options, seed)
        assert options.batch is not None  # the whole set: full_batch.py
        self.draws = NoiseDraws(self.noisy, seed=seed, batch=options.batch, recorder=recorder)

    def start(self, state: LangevinState, masses: torch.Tensor | None) -> None:
        """Measure the noise, set the masses (unless given), draw thermal momenta."""
        chains = torch.arange(state.weights.shape[0])
        mean_gradient = self._measure_start(state)
        if masses is None:
            self._set_t_ratio(state)
            self._set_masses(state, chains)
        else:
            state.masses = masses
            state.t_ratio = self._realised(state, chains).amax(1).cpu()
        self._redraw_momenta(
            state, chains, torch.ones_like(state.weights, dtype=torch.bool), mean_gradient
        )

    def look(self, state: LangevinState, rows: torch.Tensor) -> NoiseEstimate:
        """The noise of these rows now."""
        return self._estimate(state.weights[rows], state.step, state.chain_ids[rows])

    def adapt(
        self, state: LangevinState, rows: torch.Tensor, look: NoiseEstimate | None = None
    ) -> None:
        """Take up the noise of these rows as it is now; reset with some probability, else raise the
        masses that need it. Masses by hand, and their momenta, stay."""
        o = self.options
        variance, mean_gradient, _ = self.look(state, rows) if look is None else look
        check_gradient(state, o, rows, mean_gradient)
        before = self._floored(state.noise_variance[rows])
        moved = difference(self._floored(variance), before) > o.unchanged_tolerance
        state.noise_variance[rows] = variance
        state.streak[rows] = torch.where(moved, 1, state.streak[rows] + 1)
        interval = (state.streak[rows] * o.adapt_every).clamp(
            max=max(o.adapt_every_max, o.adapt_every)
        )
        state.next_adaptation[rows] = state.step + interval

        free = ~state.by_hand[rows]
        given, rows = rows[~free], rows[free]
        if len(given):
            state.t_ratio[given] = self._realised(state, given).amax(1).cpu()
        if not len(rows):
            return
        mean_gradient = mean_gradient[free.to(mean_gradient.device)] + self._harmonic(state, rows)
        reset = torch.tensor([self._resets(state, row) for row in rows.tolist()])
        if bool(reset.any()):
            self._set_masses(state, rows[reset])
        above = self._raise_masses(state, rows)
        redraw = above | reset[:, None].to(above.device)
        self._redraw_momenta(state, rows, redraw, mean_gradient)

    # Noise.

    def _measure_start(self, state: LangevinState) -> torch.Tensor:
        """Noise at the start; every chain sees the same mini-batches, so equal weights need one
        estimate."""
        groups = self._same_start(state)
        first = torch.stack([group[0] for group in groups])
        same_batches = torch.zeros(len(groups), dtype=torch.int64)
        variance, gradient, _ = self._estimate(state.weights[first].contiguous(), 0, same_batches)
        mean_gradient = torch.empty_like(state.weights)
        check_gradient(state, self.options, first, gradient)
        for at, group in enumerate(groups):
            state.noise_variance[group] = variance[at]
            mean_gradient[group] = gradient[at]
        return mean_gradient + self._harmonic(state, torch.arange(len(state.weights)))

    def _estimate(self, weights: torch.Tensor, step: int, chain_ids: torch.Tensor) -> NoiseEstimate:
        """Of the mini-batch gradients without harmonic terms, (R, N)."""
        o = self.options
        return estimate_noise(
            self.noisy,
            weights,
            seed=self.seed,
            step=step,
            chain_ids=chain_ids,
            batch=self.draws.batch,
            draws=o.noise_draws,
            draws_max=o.noise_draws_max,
            tolerance=o.noise_tolerance,
            kept=self.draws,
        )

    def _floored(self, variance: torch.Tensor) -> torch.Tensor:
        """What estimates are compared by, (R, N) float64; a row without any noise as it is."""
        floored = variance.double()
        noisy = (variance > 0).any(1)
        floored[noisy] = floored_variance(variance[noisy], self.options.floor)
        return floored

    # Masses.

    def _set_t_ratio(self, state: LangevinState) -> None:
        o = self.options
        if o.t_ratio is not None:
            state.t_ratio.fill_(o.t_ratio)
            return
        state.t_ratio = default_t_ratio(
            state.noise_variance,
            temperature=state.temperature,
            norm2=state.norm2,
            m1=o.m1,
            displacement=o.displacement,
            cap=min(o.t_ratio_cap, o.t_ratio_max or o.t_ratio_cap),
            chain_ids=state.chain_ids,
        )

    def _t_ratio_max(self, state: LangevinState) -> torch.Tensor:
        o = self.options
        if o.t_ratio_max is not None:
            return torch.full_like(state.t_ratio, o.t_ratio_max)
        largest = state.t_ratio * (1.0 if o.scheme == "paper" else 2.0)
        return largest.clamp(max=T_RATIO_LIMIT)

    def _set_masses(self, state: LangevinState, rows: torch.Tensor) -> None:
        o = self.options
        floored = floored_variance(
            state.noise_variance[rows],
            o.floor,
            layout=getattr(self.potential, "layout", None),
            average_axis=o.average_axis,
            chain_ids=state.chain_ids[rows],
        )
        state.masses[rows] = masses_from_variance(
            floored,
            temperature=state.temperature[rows],
            t_ratio=state.t_ratio[rows],
            dt=o.dt,
            m1=o.m1,
        )
        self._raise_masses(state, rows)  # an averaged variance can be below a parameter's own

    def _raise_masses(self, state: LangevinState, rows: torch.Tensor) -> torch.Tensor:
        """Raise the masses whose share of mini-batch noise exceeds the maximum; (R, N) bool says
        which."""
        o = self.options
        temperature, variance = state.temperature[rows], state.noise_variance[rows]
        realised = self._realised(state, rows)
        # Float32 masses: the set value itself must not count as above.
        largest = self._t_ratio_max(state)[rows, None] * (1 + 1e-6)
        above = realised > largest.to(realised.device)
        raised = masses_from_variance(
            variance, temperature=temperature, t_ratio=state.t_ratio[rows], dt=o.dt, m1=o.m1
        )
        state.masses[rows] = torch.where(above, raised, state.masses[rows])
        return above

    def _realised(self, state: LangevinState, rows: torch.Tensor) -> torch.Tensor:
        return realised_t_ratio(
            state.noise_variance[rows],
            state.masses[rows],
            temperature=state.temperature[rows],
            dt=self.options.dt,
            m1=self.options.m1,
        )

    def _resets(self, state: LangevinState, row: int) -> bool:
        drawn = uniform(
            seed=self.seed,
            stream=Stream.DECISION,
            chain=int(state.chain_ids[row]),
            step=state.step,
        )
        return drawn < self.options.reset_probability
