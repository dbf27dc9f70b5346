"""Averages, specific heat and equilibration of a temperature ladder (arXiv 2603.29529, Fig. 3).

One xarray.Dataset of samples in, one table over temperature out.  A temperature that has not
equilibrated is still averaged, but says so, with the reason in plain words.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from thermosphere.analysis import convergence
from thermosphere.analysis.specific_heat import Rise, StartMeans, peak_of, slope

OBSERVABLES = (
    "train_loss",
    "train_error",
    "validation_loss",
    "validation_error",
    "test_loss",
    "test_error",
    "distance2",
    "kinetic_temperature",
)

BurnIn = float | Literal["auto"]


@dataclass(frozen=True)
class EquilibrationRule:
    """When the draws of one temperature count as equilibrated; all four must hold for ⟨U⟩.

    max_drift: |z| of `convergence.drift`; 3 lets 0.3 % of equilibrated temperatures fail.
    max_r_hat: split R̂.  By chance alone R̂² ≈ 1 + 2·chains/ESS, 1.1 for two chains with the ESS
        demanded here; the recommended 1.01 takes hundreds of effective draws a chain.
    min_ess: effective draws; 20 know the size of their own error bar to 16 % (1/√(2·20)).
    min_distance: |w−w₀|²/Q; chains that have moved less than this have not left their start.
    max_motion: where chains stay apart, as a share of T: what ⟨U⟩ of all of them moved from the
        first half of the draws to the second may be as much as this change of T would do.
    """

    max_drift: float = 3.0
    max_r_hat: float = 1.2
    min_ess: float = 20.0
    min_distance: float = 0.01
    max_motion: float = 0.05


def settled(table: xr.Dataset) -> npt.NDArray[np.bool_]:
    """(temperatures,): whether chains stand still there, equilibrated or apart."""
    standing = table["equilibrated"].values.astype(bool)
    return standing | table["stationary"].values if "stationary" in table else standing


@dataclass(frozen=True)
class KeptDraws:
    """The draws of one temperature that averages use.

    chains (c,) int64 and draws (k,) int64 index the samples; every kept train loss is finite.
    dropped_chains counts chains of this temperature with too few finite draws to be used.
    """

    chains: npt.NDArray[np.int64]
    draws: npt.NDArray[np.int64]
    dropped_chains: int


def kept_draws(samples: xr.Dataset, temperature: float, *, burn_in: BurnIn = 0.5) -> KeptDraws:
    """Chains at `temperature` and their draws after burn-in.

    burn_in is the fraction of the *written* draws to drop, or "auto" for
    `convergence.automatic_burn_in` on the train loss.  Unwritten draws are NaN.  A chain with less
    than half the finite draws of the longest one (it stopped early) is left out; draws must be
    finite in all chains that stay.  ValueError for a burn_in outside [0, 1) or a temperature
    without chains.
    """
    if burn_in != "auto" and not (isinstance(burn_in, int | float) and 0.0 <= burn_in < 1.0):
        raise ValueError(f'kept_draws: burn_in must be in [0, 1) or "auto", got {burn_in!r}')
    chains = np.flatnonzero(samples["temperature"].values == temperature)
    if chains.size == 0:
        raise ValueError(f"kept_draws: no chain has temperature {temperature!r}")
    finite = np.isfinite(samples["train_loss"].transpose("chain", "draw").values[chains])
    written = finite.sum(axis=1)
    usable = (written > 0) & (2 * written >= written.max())
    if not usable.any():
        return KeptDraws(chains[:0], np.zeros(0, np.int64), int(chains.size))
    draws = np.flatnonzero(finite[usable].all(axis=0))
    if draws.size == 0:
        return KeptDraws(chains[:0], draws, int(chains.size))
    if burn_in == "auto":
        cut = convergence.automatic_burn_in(_values(samples, "train_loss", chains[usable], draws))
    else:
        cut = int(draws.size * burn_in)
    return KeptDraws(chains[usable], draws[cut:], int(chains.size - usable.sum()))


def thermodynamics(
    samples: xr.Dataset,
    *,
    burn_in: BurnIn = 0.5,
    rule: EquilibrationRule | None = None,
) -> xr.Dataset:
    """Averages over the chains of each temperature, with errors, C(T), T* and equilibration.

    samples: dims chain, draw; coordinate temperature (chain); `train_loss` = U, the mean loss over
    the full training set, and any of the other `OBSERVABLES`; attribute norm2 = Q.  NaN: unwritten.

    Returned, over dim temperature (ascending):
    - `<observable>`, `<observable>_error`: mean and standard error (`convergence.standard_error`);
      kinetic_temperature also as `kinetic_ratio` = kinetic temperature / T, 1 in equilibrium;
      distance2 also as `distance` = |w−w₀|²/Q;
    - `<observable>_motion`, `…_motion_error`: the second half of the draws less the first, mean
      over starts and its error (NaN of a single one), with `starts` - 1 degrees of freedom;
    - `ess`, `r_hat`, `drift`: bulk ESS, split R̂ and drift z of U; `distance_drift`: drift z of
      |w−w₀|²; `chains`, `draws`: how many chains and draws a chain were used;
    - `specific_heat`, `specific_heat_error`: C = (⟨U²⟩ − ⟨U⟩²)/T²;
    - `loss_slope`, `…_error`, `…_freedom`: d⟨U⟩/dT through the settled temperatures (NaN at the
      others), which equals C up to the coarseness of the ladder; start by start where chains stay
      apart (`specific_heat.Rise`);
    - `equilibrated` (bool) by `rule`, `reason` (str, empty when equilibrated), `note` (str: what
      else to know, such as weights that still wander while ⟨U⟩ stands);
    - `stationary` (bool): not equilibrated, as chains stay apart or have few independent draws,
      but every chain stands still (see `_stands`). Averages are then over the starts (those of
      coordinate `start`; without it every chain is one), errors those of the starts as independent
      draws and what they still moved, C the mean of the variances within chains; `freedom`,
      `<observable>_freedom`: of the errors, ESS − 1 (of U, and of each), or starts − 1 where
      stationary; `starts`: how many there are.
    Attributes: `peak_temperature` T* = arg max d⟨U⟩/dT over settled temperatures (over all of them
    when none is), NaN when no ⟨U⟩ is known; `peak_low`, `peak_high`: where it lies as far as the
    errors tell, NaN for an open end; `peak_caveat` (str, empty when there is nothing to say).
    ValueError when train_loss or temperature is missing or a temperature is not positive.
    """
    rule = rule or EquilibrationRule()
    _check(samples)
    temperatures = np.unique(samples["temperature"].values.astype(np.float64))
    kept = [kept_draws(samples, float(t), burn_in=burn_in) for t in temperatures]
    losses = [_finite(samples, "train_loss", one) for one in kept]
    raw = np.array([loss.mean() if loss.size else math.nan for loss in losses])
    rise, _ = slope(temperatures, raw, np.zeros(raw.shape))  # of all, settled or not
    rows = [
        _one_temperature(samples, float(t), float(dudt), one, rule)
        for t, dudt, one in zip(temperatures, rise, kept, strict=True)
    ]
    variables: dict[Hashable, tuple[str, npt.NDArray[np.generic]]] = {
        name: ("temperature", np.array([row[name] for row in rows])) for name in rows[0]
    }
    table = xr.Dataset(variables, coords={"temperature": temperatures})
    of_starts = [_start_means(samples, one) for one in kept]
    settled_rows = np.flatnonzero(settled(table))
    rise_of = _rise(table, settled_rows, of_starts)
    for name, column in _along(table, settled_rows, rise_of).items():
        table[name] = ("temperature", column)
    table.attrs = {**_peak(table, rise_of, of_starts), "burn_in": burn_in}
    return table


def _rise(
    table: xr.Dataset, rows: npt.NDArray[np.int64], of_starts: Sequence[StartMeans | None]
) -> Rise | None:
    """d⟨U⟩/dT through these temperatures; start by start where chains stay apart at one of them and
    all have the same starts. None through none."""
    if not rows.size:
        return None
    means = [one for one in (of_starts[row] for row in rows) if one is not None]
    alike = len(means) == rows.size and len({one.starts for one in means}) == 1
    apart = not table["equilibrated"].values[rows].all()
    own = table.isel(temperature=rows)
    return Rise(
        own["temperature"].values,
        own["train_loss"].values,
        own["train_loss_error"].values,
        own["freedom"].values,
        means if apart and alike and len(means[0].starts) > 1 else None,
    )


def _start_means(samples: xr.Dataset, kept: KeptDraws) -> StartMeans | None:
    """⟨U⟩ start by start; None where the samples do not tell."""
    loss = _finite(samples, "train_loss", kept)
    half = loss.shape[1] // 2
    if "start" not in samples.coords or not half:
        return None
    own = start_of_chains(samples, kept.chains)
    whole, early, late = (
        means_of_starts(part, own) for part in (loss, loss[:, :half], loss[:, -half:])
    )
    return StartMeans(tuple(np.unique(own).tolist()), whole, early, late)


def _along(
    table: xr.Dataset, rows: npt.NDArray[np.int64], rise: Rise | None
) -> dict[str, npt.NDArray[np.float64]]:
    """The slope, its error and freedom over all temperatures, NaN where it is not known."""
    columns = np.full((3, table.sizes["temperature"]), np.nan)
    if rise is not None:
        for index, row in enumerate(rows):
            columns[:, row] = rise.at(index)[:3]
    return dict(zip(("loss_slope", "loss_slope_error", "loss_slope_freedom"), columns, strict=True))


def _peak(
    table: xr.Dataset, rise: Rise | None, of_starts: Sequence[StartMeans | None]
) -> dict[str, float | str]:
    """Attributes of T*.

    A ⟨U⟩ on its way rises along the ladder as its chains have come, so temperatures that have not
    settled count only when there are no others.
    """
    doubt = []
    if rise is None:
        doubt.append("no temperature settled")
        known = np.flatnonzero(np.isfinite(table["train_loss"].values))
        rise = _rise(table, known, of_starts)
    if rise is None:
        return {
            "peak_temperature": math.nan,
            "peak_low": math.nan,
            "peak_high": math.nan,
            "peak_caveat": "no ⟨U⟩ is known",
        }
    found = peak_of(rise)
    doubt += [found.caveat] if found.caveat else []
    return {
        "peak_temperature": found.temperature,
        "peak_low": found.low,
        "peak_high": found.high,
        "peak_caveat": "; ".join(doubt),
    }


def _one_temperature(
    samples: xr.Dataset,
    temperature: float,
    rise: float,
    kept: KeptDraws,
    rule: EquilibrationRule,
) -> dict[str, float | int | bool | str]:
    row: dict[str, float | int | bool | str] = {}
    loss = _finite(samples, "train_loss", kept)
    row["chains"], row["draws"] = loss.shape
    known = loss.size > 0
    row["ess"] = convergence.effective_sample_size(loss) if known else math.nan
    row["r_hat"] = convergence.r_hat(loss) if known else math.nan
    row["drift"] = convergence.drift(loss) if known else math.nan
    norm2 = float(samples.attrs.get("norm2", math.nan))
    distance = _finite(samples, "distance2", kept) / norm2
    distance = distance if np.isfinite(norm2) else distance[:0]
    far = float(distance.mean()) if distance.size else math.nan
    reason = _reason(row, loss, far, kept, rule)
    stationary = bool(reason) and _stands(loss, temperature, rise, far, kept, rule)
    starts = start_of_chains(samples, kept.chains)
    row["starts"] = np.unique(starts).size
    average = partial(_mean_of_starts, starts=starts) if stationary else _mean
    row["freedom"] = (float(row["starts"]) if stationary else float(row["ess"])) - 1.0
    for name in OBSERVABLES:
        if name in samples:
            values = _finite(samples, name, kept)
            row[name], row[name + "_error"] = average(values)
            own = row["starts"] if stationary else _effective(values)
            row[name + "_freedom"] = float(own) - 1.0
            motion = _motion(values, starts)
            row[name + "_motion"], row[name + "_motion_error"] = motion
    variance, error = math.nan, math.nan
    if known:
        variance, error = (_variance_within if stationary else convergence.variance_with_error)(
            loss
        )
    row["specific_heat"] = variance / temperature**2
    row["specific_heat_error"] = error / temperature**2
    if "kinetic_temperature" in samples:
        row["kinetic_ratio"] = float(row["kinetic_temperature"]) / temperature
        row["kinetic_ratio_error"] = float(row["kinetic_temperature_error"]) / temperature
    row["distance"], row["distance_error"] = average(distance)
    row["distance_drift"] = convergence.drift(distance) if distance.size else math.nan
    row["equilibrated"] = not reason
    row["stationary"] = stationary
    row["reason"] = reason
    row["note"] = _note(row, distance, rule)
    return row


def _reason(
    row: dict[str, float | int | bool | str],
    loss: npt.NDArray[np.float64],
    distance: float,
    kept: KeptDraws,
    rule: EquilibrationRule,
) -> str:
    """Why this temperature is not equilibrated, in plain words; empty when it is."""
    draws = loss.shape[1]
    if draws < 2 * convergence.MINIMUM_DRAWS:
        return f"only {draws} draws a chain after burn-in, too few to tell"
    reasons = []
    if kept.dropped_chains:
        total = kept.dropped_chains + kept.chains.size
        reasons.append(f"{kept.dropped_chains} of {total} chains stopped early and were left out")
    if np.any(np.ptp(loss, axis=1) == 0.0):
        reasons.append("the loss of a chain never changed")
    drift, r_hat, ess = float(row["drift"]), float(row["r_hat"]), float(row["ess"])
    if abs(drift) > rule.max_drift:
        direction = "rising" if drift > 0 else "falling"
        reasons.append(f"the loss is still {direction} (by {abs(drift):.1f} standard errors)")
    if r_hat > rule.max_r_hat:
        reasons.append(f"chains or their halves disagree (R̂ = {r_hat:.2f}, should be near 1)")
    if ess < rule.min_ess:
        reasons.append(f"only about {ess:.0f} independent draws")
    if distance < rule.min_distance:
        reasons.append(f"the weights have hardly left their start (|w−w₀|²/Q = {distance:.2g})")
    return "; ".join(reasons)


def _stands(
    loss: npt.NDArray[np.float64],
    temperature: float,
    rise: float,
    distance: float,
    kept: KeptDraws,
    rule: EquilibrationRule,
) -> bool:
    """Whether every chain has settled, though each in a place of its own: what their mean still
    moved, from the first half of the draws to the second, a small change of T would do too.

    What that does is the smaller of C within chains, which chains that fall along a curve make too
    large, and ``rise``, d⟨U⟩/dT along the ladder (NaN: of a single temperature).
    """
    if loss.shape[0] < 2 or loss.shape[1] < 2 * convergence.MINIMUM_DRAWS:
        return False
    if kept.dropped_chains or np.any(np.ptp(loss, axis=1) == 0.0) or distance < rule.min_distance:
        return False
    heat = _variance_within(loss)[0] / temperature**2
    heat = min(heat, rise) if math.isfinite(rise) else heat
    return abs(moved(loss)) <= rule.max_motion * temperature * heat


def moved(values: npt.NDArray[np.float64]) -> float:
    """Mean of the second half of the draws of values (chains, draws) less that of the first."""
    half = values.shape[1] // 2
    return float(values[:, -half:].mean() - values[:, :half].mean()) if half else 0.0


def _effective(values: npt.NDArray[np.float64]) -> float:
    return convergence.effective_sample_size(values) if values.size else math.nan


def _motion(values: npt.NDArray[np.float64], starts: npt.NDArray[np.int64]) -> tuple[float, float]:
    half = values.shape[1] // 2
    if not half or len(values) != len(starts):
        return math.nan, math.nan
    each = means_of_starts(values[:, -half:] - values[:, :half], starts)
    error = float(each.std(ddof=1)) / math.sqrt(each.size) if each.size > 1 else math.nan
    return float(each.mean()), error


def start_of_chains(samples: xr.Dataset, chains: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which start each of these chains, of any shape, began from; each from its own where the
    samples do not tell."""
    if "start" in samples.coords:
        return np.asarray(samples["start"].values[chains], dtype=np.int64)
    return chains


def means_of_starts(
    values: npt.NDArray[np.float64], starts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Means of values (chains, draws) over the chains of each start, in the starts' order: chains
    of one start may share a basin, and are no independent draws then."""
    return np.array([values[starts == start].mean() for start in np.unique(starts)])


def _mean_of_starts(
    values: npt.NDArray[np.float64], *, starts: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Mean over starts whose chains do not mix, and its standard error: starts are the draws, and
    what they still moved is part of it. Of a single start the error is what its chains tell."""
    if values.size == 0 or values.shape[0] < 2:
        return _mean(values)
    means = means_of_starts(values, starts)
    each = means if means.size > 1 else values.mean(axis=1)
    spread = float(each.std(ddof=1)) / math.sqrt(each.size)
    return float(means.mean()), math.hypot(spread, moved(values))


def _variance_within(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean over chains of the variance about a chain's own line, which a chain on its way to a
    level follows, and its error: the larger of the chains' spread and their own errors."""
    draw = np.arange(values.shape[1], dtype=np.float64)
    draw -= draw.mean()
    centred = values - values.mean(axis=1, keepdims=True)
    straight = centred - np.outer(centred @ draw / (draw @ draw), draw)
    each = np.array([convergence.variance_with_error(chain[None]) for chain in straight])
    spread = float(each[:, 0].std(ddof=1)) / math.sqrt(len(each))
    own = math.sqrt(float((each[:, 1] ** 2).sum())) / len(each)
    return float(each[:, 0].mean()), max(spread, own)


def _note(
    row: dict[str, float | int | bool | str],
    distance: npt.NDArray[np.float64],
    rule: EquilibrationRule,
) -> str:
    drift = float(row["distance_drift"])
    if not drift > rule.max_drift:
        return ""
    half = distance.shape[1] // 2
    early, late = distance[:, :half].mean(), distance[:, -half:].mean()
    return (
        f"the weights still move away from their start (|w−w₀|²/Q {early:.3g} → {late:.3g}), so "
        "draws of one chain are more alike than independent ones"
    )


def _mean(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    if values.size == 0:
        return math.nan, math.nan
    return float(values.mean()), convergence.standard_error(values)


def _values(
    samples: xr.Dataset,
    name: str,
    chains: npt.NDArray[np.int64],
    draws: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    values = samples[name].transpose("chain", "draw").values
    return np.asarray(values[np.ix_(chains, draws)], dtype=np.float64)


def _finite(samples: xr.Dataset, name: str, kept: KeptDraws) -> npt.NDArray[np.float64]:
    """Kept values (chains, draws) of one observable; draws it lacks in any chain are left out."""
    if name not in samples:
        return np.zeros((kept.chains.size, 0))
    values = _values(samples, name, kept.chains, kept.draws)
    return values[:, np.isfinite(values).all(axis=0)]


def _check(samples: xr.Dataset) -> None:
    for name in ("train_loss", "temperature"):
        if name not in samples:
            raise ValueError(f"thermodynamics: samples must hold {name!r}, got {list(samples)}")
    temperature = samples["temperature"].values
    if not np.all(temperature > 0):
        raise ValueError(f"thermodynamics: temperature must be positive, got {temperature.min()}")
