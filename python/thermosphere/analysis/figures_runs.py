"""Figures of how a result came about: traces of the chains, training, simulated tempering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from thermosphere.analysis.figures import (
    GREY,
    colour,
    legend_above,
    new_figure,
    styled,
    temperature_colours,
)
from thermosphere.analysis.figures_ladder import LABELS

# More points than this a chain are drawn as means of runs of draws: the eye sees no difference.
MAXIMUM_POINTS = 500


@dataclass(frozen=True)
class TrainingCurve:
    """One training run, evaluated at some epochs (P,) each; stop is the epoch whose weights are
    kept (the early stop, or where |w|² reaches Q), None when there is none."""

    label: str
    epoch: npt.ArrayLike
    train_loss: npt.ArrayLike
    validation_loss: npt.ArrayLike
    norm2: npt.ArrayLike
    stop: int | None = None


@styled
def trace_figure(
    samples: xr.Dataset, observable: str = "train_loss", *, burn_in: float | None = 0.5
) -> Figure:
    """One observable of every chain against the move, coloured by temperature.

    samples as for `thermodynamics`.  burn_in: the fraction that averages drop, shaded, of the
    shortest chains and of the longest; None shades nothing.  ValueError when the samples lack the
    observable.
    """
    if observable not in samples:
        raise ValueError(
            f"trace_figure: samples must hold {observable!r}, got {list(samples.data_vars)}"
        )
    values = samples[observable].transpose("chain", "draw").values
    temperature = samples["temperature"].values.astype(np.float64)
    move = samples["move"].values if "move" in samples else np.arange(values.shape[1])
    low, high = float(temperature.min()), float(temperature.max())
    colours = ScalarMappable(
        LogNorm(low, high) if high > low else LogNorm(low / 2, high * 2), temperature_colours()
    )
    figure = new_figure(4.2)
    axes = figure.add_subplot()
    for chain in np.argsort(-temperature, kind="stable"):
        step, thin = thinned(move, values[chain])
        axes.plot(step, thin, color=colours.to_rgba(temperature[chain]), linewidth=1.0)
    written = np.isfinite(values).sum(axis=1)
    ends = np.unique(written[written > 0])
    if burn_in is not None:
        for end in {ends[0], ends[-1]} if ends.size else ():
            cut = float(move[int(end * burn_in)])
            axes.axvspan(float(move[0]), cut, color="#000000", alpha=0.06, linewidth=0)
    longer = ", lighter: of chains that went on" if ends.size > 1 else ""
    axes.set_xlabel("move" + (f" (shaded: burn-in{longer})" if burn_in is not None else ""))
    axes.set_ylabel(LABELS.get(observable, observable.replace("_", " ")))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.colorbar(colours, ax=axes, label="temperature T (nats)")
    return figure


@styled
def training_figure(curves: Sequence[TrainingCurve], *, norm2: float | None = None) -> Figure:
    """Loss above and |w|² below against the epoch, one colour a run; circles mark where runs stop.

    norm2: Q, the squared norm at which ES weights are taken, as a dashed line.
    """
    if not curves:
        raise ValueError("training_figure: curves must hold at least one run, got none")
    figure = new_figure(6.6)
    loss, norm = figure.subplots(2, 1, sharex=True, height_ratios=(1.2, 1.0))
    for index, curve in enumerate(curves):
        epoch = np.asarray(curve.epoch, dtype=np.float64)
        shade = colour(index)
        for axes, values, line in (
            (loss, curve.train_loss, "-"),
            (loss, curve.validation_loss, "--"),
            (norm, curve.norm2, "-"),
        ):
            heights = np.asarray(values, dtype=np.float64)
            axes.plot(*thinned(epoch, heights), color=shade, linestyle=line)
            if curve.stop is not None and epoch.size:
                at = int(np.argmin(np.abs(epoch - curve.stop)))
                axes.plot(epoch[at], heights[at], "o", color=shade, mfc="white")
    if norm2 is not None:
        norm.axhline(norm2, color=GREY, linestyle=":")
    handles = [Line2D([], [], color=colour(i), label=c.label) for i, c in enumerate(curves)]
    handles.append(Line2D([], [], color=GREY, label="training set"))
    handles.append(Line2D([], [], color=GREY, linestyle="--", label="validation set"))
    if any(curve.stop is not None for curve in curves):
        handles.append(
            Line2D([], [], color=GREY, marker="o", mfc="white", linestyle="", label="weights kept")
        )
    legend_above(loss, handles)
    loss.set_ylabel("loss (nats per masked site)")
    norm.set_ylabel("|w|²" + (" (dotted: Q)" if norm2 is not None else ""))
    norm.set_xlabel("epoch")
    norm.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


@styled
def tempering_figure(
    temperature: npt.ArrayLike,
    energy_mean: npt.ArrayLike,
    energy_std: npt.ArrayLike,
    visits: npt.ArrayLike,
    overlaps: npt.ArrayLike,
    *,
    consecutive_overlaps: npt.ArrayLike | None = None,
    independent_overlaps: npt.ArrayLike | None = None,
    random_overlap: float | None = None,
) -> Figure:
    """Diagnostics of the sequence sampler: energy and visits of each level, overlap of the harvest.

    temperature, energy_mean, energy_std, visits: (levels,), energies in units of the standard
    deviation of J.  overlaps: (P,) share of equal sites in pairs of harvested sequences;
    consecutive_overlaps: of sequences harvested one after the other, which agrees with the first
    when the walker forgets in between; independent_overlaps: of sequences of different walkers.
    random_overlap: of shuffled sequences, as a dotted line.
    """
    levels = np.asarray(temperature, dtype=np.float64)
    figure = new_figure(8.6)
    energy, visited, overlap = figure.subplots(3, 1)
    energy.errorbar(levels, np.asarray(energy_mean), np.asarray(energy_std), fmt="o-")
    energy.set_ylabel("energy ⟨E⟩ ± σ")
    counts = np.asarray(visits, dtype=np.float64)
    visited.plot(levels, counts / max(1.0, counts.sum()) * levels.size, "o-")
    visited.axhline(1.0, color=GREY, linestyle=":")
    visited.set_ylim(bottom=0.0)
    visited.set_ylabel("visits / even share")
    for axes in (energy, visited):
        axes.set_xscale("log")
        axes.set_xlabel("temperature (energy units)")
    edges = np.linspace(0.0, 1.0, 51)
    handles = []
    for index, (label, values) in enumerate(
        (
            ("all pairs", overlaps),
            ("consecutive", consecutive_overlaps),
            ("two walkers", independent_overlaps),
        )
    ):
        if values is not None:
            heights, _ = np.histogram(np.asarray(values), edges, density=True)
            overlap.stairs(heights, edges, color=colour(index), linewidth=1.4)
            handles.append(Line2D([], [], color=colour(index), label=label))
    if random_overlap is not None:
        overlap.axvline(random_overlap, color=GREY, linestyle=":")
        handles.append(Line2D([], [], color=GREY, linestyle=":", label="shuffled"))
    legend_above(overlap, handles, columns=2)
    overlap.set_xlabel("overlap of two harvested sequences")
    overlap.set_ylabel("density")
    return figure


def thinned(
    position: npt.NDArray[np.generic],
    values: npt.NDArray[np.float64],
    most: int = MAXIMUM_POINTS,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means of equal runs of points, at most `most` of them; a rest at the end is kept."""
    stride = -(-values.size // most) if values.size else 1
    starts = np.arange(0, values.size, max(1, stride))
    if stride <= 1:
        return position.astype(np.float64), values
    sizes = np.diff(np.append(starts, values.size))
    return (
        np.add.reduceat(position.astype(np.float64), starts) / sizes,
        np.add.reduceat(values, starts) / sizes,
    )
