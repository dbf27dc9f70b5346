"""What the exact check found: ⟨U⟩ of the samples' sampler against hybrid Monte Carlo, chain by
chain."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thermosphere.analysis import convergence
from thermosphere.analysis.bias import Average, paired_difference
from thermosphere.analysis.significance import Measured
from thermosphere.archive import read_archive
from thermosphere.runs.exact import FILE, HOTTER, KIND

Array = npt.NDArray[np.float64]

# Of the draws of either way. The modes that a step heats are stiff and forget in a trajectory, and
# the first 20 are no draws at all.
BURN_IN = 0.1
NEEDED = 20.0  # effective draws of U, of all chains: with fewer their error is a guess
AGREES = 2.0  # standard errors
SCATTERED = 2.0  # by chance in one check of fifty with three chains
ALLOWED = 0.01  # bias, as a share of ⟨U⟩ - U_min

# Of the tensors of a check's file; the others are what it goes on from.
READ = (
    "temperature",
    *(f"{way}.draws.{what}" for way in ("exact", "sampled") for what in ("losses", "kinetic")),
    *("exact.accepted", "exact.acceptance", "exact.counted"),
)
READ_OF_HOTTER = f"{HOTTER}.draws.losses"  # where there is a third way

COLUMNS = (
    "T",
    "T of the ladder's unit",
    "chain",
    "gradients",
    "<U> exact",
    "error exact",
    "ESS exact",
    "R-hat exact",
    "<U>",
    "error",
    "ESS",
    "R-hat",
    "difference",
    "difference error",
    "z",
    "of U-Umin",
    "of U-Umin error",
    "acceptance",
    "Tkin/T exact",
    "Tkin/T",
)


@dataclass(frozen=True)
class Comparison:
    """One temperature, all its chains."""

    temperature: float
    of_unit: float  # T over the T* of the ladder's pilot, or the middle of temperatures given
    lowest: float  # U_min
    gradients: int  # full-batch, a chain, each way
    chains: tuple[int, ...]  # rows of the samples
    exact: tuple[Average, ...]  # of U, a chain each
    sampled: tuple[Average, ...]
    acceptance: Array  # (C,), of hybrid Monte Carlo
    kinetic: Array  # (2, C), mean T_kin/T: exact, sampled

    @property
    def excess(self) -> float:
        """⟨U⟩ - U_min."""
        return float(np.mean([one.mean for one in self.exact])) - self.lowest

    @property
    def difference(self) -> Measured:
        """Of ⟨U⟩, sampled - exact."""
        return paired_difference(self.sampled, self.exact)

    @property
    def z(self) -> float:
        """The difference in standard errors."""
        difference, error = self.difference[:2]
        return difference / error if error else math.copysign(math.inf, difference)

    @property
    def scatter(self) -> float:
        """Of the chains' differences about their mean, in units of their own errors: about 1 where
        chains stay in their basins; NaN for one chain."""
        pairs = list(zip(self.sampled, self.exact, strict=True))
        if len(pairs) < 2:
            return math.nan
        spread = float(np.std([a.mean - b.mean for a, b in pairs], ddof=1))
        own = float(np.mean([a.error**2 + b.error**2 for a, b in pairs]))
        return spread / math.sqrt(own) if own else math.inf

    @property
    def enough(self) -> bool:
        """Whether there are effective draws to judge by."""
        return all(
            sum(one.effective_draws for one in way) >= NEEDED for way in (self.exact, self.sampled)
        )

    @property
    def agrees(self) -> bool:
        """Within two standard errors."""
        return abs(self.z) <= AGREES

    @property
    def bounded(self) -> bool | None:
        """Whether the bias is below 1 % of ⟨U⟩ - U_min at the 95 % level; None: it may be, or
        not."""
        difference, reach = abs(self.difference.mean), self.difference.reach
        allowed = ALLOWED * self.excess
        if difference + reach <= allowed:
            return True
        return False if difference - reach > max(0.0, allowed) else None

    def sentence(self) -> str:
        """The verdict, one line."""
        difference, error = self.difference[:2]
        share, share_error = difference / self.excess, error / self.excess
        text = (
            f"T = {self.temperature:.3g}: ⟨U⟩ − exact = "
            f"{difference:+.5f} ± {error:.5f} ({self.z:+.1f} standard errors), "
            f"{share:+.2%} ± {share_error:.2%} of ⟨U⟩ − U_min. "
        )
        if not self.enough:
            fewest = min(
                sum(one.effective_draws for one in way) for way in (self.exact, self.sampled)
            )
            return text + (
                f"Not judged: {fewest:.1f} effective draws, {NEEDED:g} are needed; "
                "raise pilot.exact_gradients."
            )
        agree = "Agree" if self.agrees else "Disagree, not"
        bound = {
            True: "the bias is below 1 % at the 95 % level",
            False: "the bias is above 1 % at the 95 % level",
            None: "whether the bias is below 1 % cannot be told at the 95 % level",
        }[self.bounded]
        text += f"{agree} within {AGREES:g} standard errors; {bound}."
        if self.scatter > SCATTERED:
            text += (
                f" The chains' differences scatter {self.scatter:.1f} times their own errors: "
                "chains are still on their way, and the two ways take them along at different "
                "speeds."
            )
        return text

    def rows(self) -> list[list[float | str]]:
        """A row a chain, then one of all, in the order of COLUMNS."""
        rows: list[list[float | str]] = []
        for at, chain in enumerate(self.chains):
            exact, sampled = self.exact[at], self.sampled[at]
            own = paired_difference([sampled], [exact])
            rows.append(
                self._row(str(chain), exact, sampled, own, self.acceptance[at : at + 1],
                          self.kinetic[:, at : at + 1])
            )  # fmt: skip
        rows.append(
            self._row("all", _over(self.exact), _over(self.sampled), self.difference,
                      self.acceptance, self.kinetic)
        )  # fmt: skip
        return rows

    def _row(
        self,
        chain: str,
        exact: Average,
        sampled: Average,
        difference: Measured,
        acceptance: Array,
        kinetic: Array,
    ) -> list[float | str]:
        moved, error = difference[:2]
        return [
            self.temperature,
            self.of_unit,
            chain,
            self.gradients,
            *exact,
            *sampled,
            moved,
            error,
            moved / error if error else math.nan,
            moved / self.excess,
            error / self.excess,
            float(acceptance.mean()),
            *kinetic.mean(1).tolist(),
        ]


def _over(chains: tuple[Average, ...]) -> Average:
    """Of independent chains: the mean of means, effective draws of all, the largest R̂."""
    return Average(
        float(np.mean([one.mean for one in chains])),
        float(np.sqrt(np.sum([one.error**2 for one in chains]))) / len(chains),
        float(np.sum([one.effective_draws for one in chains])),
        float(np.max([one.r_hat for one in chains])),
    )


def read_comparisons(directory: Path, seen: float = math.inf) -> list[Comparison]:
    """What DIR/exact.safetensors says, rising in T; empty where it holds too few draws yet. seen:
    the least U of the samples, which may be below what the pilots knew of U_min.

    OSError or ValueError where the file is missing or not a check.
    """
    tensors, header = read_archive(directory / FILE, KIND)
    temperature = tensors["temperature"].numpy()
    exact, sampled = (tensors[f"{way}.draws.losses"].numpy() for way in ("exact", "sampled"))
    kinetic = np.stack([tensors[f"{way}.draws.kinetic"].numpy() for way in ("exact", "sampled")])
    draws = exact.shape[1]
    first = int(BURN_IN * draws)
    if draws - first < 2 * convergence.MINIMUM_DRAWS:  # in each half
        return []
    accepted = tensors["exact.accepted"].numpy()
    acceptance = tensors["exact.acceptance"].numpy() / int(tensors["exact.counted"])
    return [
        compare(
            float(t),
            exact[rows],
            sampled[rows],
            kinetic[:, rows],
            accepted[rows],
            acceptance[rows],
            of_unit=float(t) / header["unit"],
            lowest=min(header["lowest"], seen),
            gradients=draws * header["fingerprint"]["exact_steps"],
            chains=tuple(header["chains"][row] for row in rows),
        )
        for t in np.unique(temperature)
        for rows in [np.flatnonzero(temperature == t)]
    ]


class HotterWay(NamedTuple):
    """U of chains at T, and of the same chains gone on at `hotter`, from the same weights."""

    temperature: float
    hotter: float
    losses: Array  # (C, K), at T
    losses_hotter: Array  # (C, K)


def read_hotter(directory: Path) -> list[HotterWay]:
    """Of each temperature of DIR/exact.safetensors, rising, all draws; empty where no third way was
    gone."""
    tensors, header = read_archive(directory / FILE, KIND)
    if READ_OF_HOTTER not in tensors:
        return []
    temperature = tensors["temperature"].numpy()
    share = 1.0 + header["fingerprint"]["exact_neighbour"]
    losses, hotter = (tensors[key].numpy() for key in ("sampled.draws.losses", READ_OF_HOTTER))
    return [
        HotterWay(float(t), float(t) * share, losses[temperature == t], hotter[temperature == t])
        for t in np.unique(temperature)
    ]


def compare(
    temperature: float,
    exact: Array,  # (C, K), U
    sampled: Array,
    kinetic: Array,  # (2, C, K), 2 K / degrees of freedom: exact, sampled
    accepted: Array,  # (C,), trajectories
    acceptance: Array,  # (C,)
    *,
    of_unit: float,
    lowest: float,
    gradients: int,
    chains: tuple[int, ...],
) -> Comparison:
    """Judge the draws of one temperature, at least 8 after burn-in. A trajectory that was refused
    is no effective draw."""
    kept = accepted * (1.0 - BURN_IN)
    averages = [
        one._replace(effective_draws=min(one.effective_draws, float(moved)))
        for one, moved in zip(_averages(exact), kept, strict=True)
    ]
    return Comparison(
        temperature,
        of_unit,
        lowest,
        gradients,
        chains,
        tuple(averages),
        _averages(sampled),
        acceptance,
        kinetic.mean(2) / temperature,
    )


def _averages(values: Array) -> tuple[Average, ...]:
    """A chain each, after burn-in; R̂ is that of its halves."""
    kept = values[:, int(BURN_IN * values.shape[1]) :]
    half = kept.shape[1] // 2
    return tuple(
        Average(
            float(row.mean()),
            convergence.standard_error(row),
            convergence.effective_sample_size(row),
            convergence.r_hat(row[0, -2 * half :].reshape(2, half)),
        )
        for row in kept[:, None]
    )


def save_comparisons(comparisons: list[Comparison], path: Path) -> None:
    """A CSV: a row a chain and one of all chains, for every temperature."""
    building = path.with_name(path.name + ".new")
    with building.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for one in comparisons:
            writer.writerows(
                [f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row]
                for row in one.rows()
            )
    os.replace(building, path)
