"""Figures against temperature: loss, specific heat, errors, contact precision (Figs. 3 and 7).

A table is what `thermodynamics` returns for one model; the caller may add further variables over
temperature, each with its `…_error`, and draw them with `observable_figure`.  Temperatures that are
not equilibrated are hollow.  Early-stopped and overtrained weights (ES, OT), which have no
temperature, stand in a panel of their own on the left: every run a dot, mean ± standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from thermosphere.analysis.figures import (
    GREY,
    colour,
    legend_above,
    marker,
    new_figure,
    styled,
)
from thermosphere.analysis.specific_heat import slope
from thermosphere.analysis.thermodynamics import settled

LABELS = {
    "train_loss": "mean loss ⟨U⟩ (nats per masked site)",
    "validation_loss": "validation loss (nats per masked site)",
    "test_loss": "test loss (nats per masked site)",
    "train_error": "train error (share of masked sites)",
    "validation_error": "validation error (share of masked sites)",
    "test_error": "test error (share of masked sites)",
    "distance": "squared distance |w − w₀|²/Q",
    "kinetic_ratio": "kinetic temperature / T",
    "precision_at_l": "P@L",
    "precision_at_l_tolerant": "P̃@L",
    "precision_at_l_tolerance_1": "P̃@L, tolerance 1",
    "precision_at_l_tolerance_2": "P̃@L, tolerance 2",
    "precision_at_l_tolerance_3": "P̃@L, tolerance 3",
}

HOLLOW = "not equilibrated"
HALF = "chains stand still"


@dataclass(frozen=True)
class Reference:
    """Trained weights without a temperature: a short label ("ES", "OT") and, for each observable,
    its value in every run (R,)."""

    label: str
    values: Mapping[str, npt.ArrayLike]


@dataclass(frozen=True)
class _Series:
    """One run of points in a panel."""

    label: str
    colour: str
    marker: str
    temperature: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]
    equilibrated: npt.NDArray[np.bool_]
    settled: npt.NDArray[np.bool_]  # these, and where chains stand still but stay apart
    references: Sequence[tuple[str, npt.NDArray[np.float64]]]


@styled
def observable_figure(
    tables: Mapping[str, xr.Dataset],
    observable: str,
    *,
    references: Mapping[str, Sequence[Reference]] | None = None,
    relative: bool = False,
    baseline: float | None = None,
    label: str | None = None,
) -> Figure:
    """One observable against T, one series a model (key of `tables`).

    references: for each model its ES and OT values.  relative: T in units of each model's T*
    instead of absolute, for models whose temperatures are not comparable; models without a T* are
    left out.  baseline: a dashed line, the score of a random ranking.  label: of the y axis.
    ValueError when no table is given or a table lacks the observable.
    """
    _check("observable_figure", tables, observable)
    figure = new_figure(4.1)
    series = _model_series(tables, observable, references, relative)
    main = _ladder_panel(figure, series, label or LABELS.get(observable, observable), baseline)
    _legend(main, series, "random ranking" if baseline is not None else "")
    _temperature_axis(main, tables, relative)
    return figure


@styled
def error_figure(table: xr.Dataset, *, references: Sequence[Reference] = ()) -> Figure:
    """Train, validation and test error of one model against T."""
    names = [name for name in ("train_error", "validation_error", "test_error") if name in table]
    if not names:
        raise ValueError(f"error_figure: table must hold train_error, got {list(table)}")
    series = [
        _series(name.removesuffix("_error"), table, name, references, index, 1.0)
        for index, name in enumerate(names)
    ]
    figure = new_figure(4.1)
    main = _ladder_panel(figure, series, "error (share of masked sites)", None)
    _legend(main, series)
    _temperature_axis(main, {"": table}, relative=False)
    return figure


@styled
def precision_figure(
    tables: Mapping[str, xr.Dataset],
    observables: Mapping[str, float | None],
    *,
    references: Mapping[str, Sequence[Reference]] | None = None,
    relative: bool = False,
) -> Figure:
    """Precisions against T, one above the other, such as `precision_at_l`.

    observables: the precision → what a random ranking scores by it, a dashed line
    (`contacts.random_precision_at_l`); None draws none.  Each table holds them and their `…_error`.
    """
    for observable in observables:
        _check("precision_figure", tables, observable)
    figure = new_figure(3.6 * len(observables))
    parts = figure.subfigures(len(observables), 1, squeeze=False)[:, 0]
    for part, (observable, baseline) in zip(parts, observables.items(), strict=True):
        series = _model_series(tables, observable, references, relative)
        main = _ladder_panel(part, series, LABELS[observable], baseline)
        main.set_ylim(bottom=0.0)
        if part is parts[0]:
            _legend(main, series, "random ranking" if baseline is not None else "")
        _temperature_axis(main, tables, relative)
    return figure


@styled
def specific_heat_figure(tables: Mapping[str, xr.Dataset], *, relative: bool = False) -> Figure:
    """C(T) from fluctuations (points), and d⟨U⟩/dT along the ladder (dashed), equal in equilibrium.

    The axis is scaled to the settled points and slopes of all models, or, where there are none, to
    the slopes of all points, which a drift changes less; a hollow triangle at the rim is a point
    beyond it, as drifting chains produce.
    """
    _check("specific_heat_figure", tables, "specific_heat")
    figure = new_figure(4.1)
    axes = figure.add_subplot()
    series = _model_series(tables, "specific_heat", None, relative)
    top = 1.15 * max(_reach(series), _steepest_settled(tables[one.label] for one in series))
    known = any(np.isfinite(one.mean).any() for one in series)
    if known and not any(one.settled.any() for one in series):
        steepest = max((_steepest(tables[one.label]) for one in series), default=0.0)
        top = 1.3 * steepest if steepest > 0 else top
    for one in series:
        slopes = tables[one.label]["loss_slope"].values
        axes.plot(one.temperature, slopes, "--", color=one.colour, linewidth=1.0)
        beyond = one.mean > top if top > 0 else np.zeros(one.mean.shape, np.bool_)
        _points(axes, one, np.isfinite(one.mean) & ~beyond)
        rim = np.full(int(beyond.sum()), top)
        axes.plot(one.temperature[beyond], rim, "^", color=one.colour, mfc="white", clip_on=False)
    axes.set_ylabel("specific heat C (units of k_B)")
    axes.ticklabel_format(axis="y", style="plain")  # a "1e6" above the axis would hit the legend
    if top > 0:
        axes.set_ylim(0.0, top)
    _legend(axes, series, "d⟨U⟩/dT of neighbours")
    _temperature_axis(axes, tables, relative)
    return figure


def _steepest_settled(tables: Iterable[xr.Dataset]) -> float:
    """Largest d⟨U⟩/dT of settled temperatures; 0 where none is known."""
    slopes = np.concatenate([[0.0], *(table["loss_slope"].values for table in tables)])
    return float(np.nanmax(slopes))


def _steepest(table: xr.Dataset) -> float:
    """Largest d⟨U⟩/dT along the ladder, of all temperatures; 0 where none is known."""
    mean = table["train_loss"].values.astype(np.float64)
    values, _ = slope(table["temperature"].values, mean, np.zeros(mean.shape))
    return float(np.nanmax(values)) if np.isfinite(values).any() else 0.0


def _model_series(
    tables: Mapping[str, xr.Dataset],
    observable: str,
    references: Mapping[str, Sequence[Reference]] | None,
    relative: bool,
) -> list[_Series]:
    series = []
    for index, (name, table) in enumerate(tables.items()):
        unit = _peak(table) if relative else 1.0
        if math.isfinite(unit):
            own = (references or {}).get(name, ())
            series.append(_series(name, table, observable, own, index, unit))
    return series


def _series(
    label: str,
    table: xr.Dataset,
    observable: str,
    references: Sequence[Reference],
    index: int,
    unit: float,
) -> _Series:
    mean = table[observable].values.astype(np.float64)
    error = observable + "_error"
    known = "equilibrated" in table
    return _Series(
        label=label,
        colour=colour(index),
        marker=marker(index),
        temperature=table["temperature"].values / unit,
        mean=mean,
        error=table[error].values if error in table else np.zeros(mean.shape),
        equilibrated=table["equilibrated"].values if known else np.ones(mean.shape, np.bool_),
        settled=settled(table) if known else np.ones(mean.shape, np.bool_),
        references=[
            (reference.label, np.asarray(reference.values[observable], dtype=np.float64).ravel())
            for reference in references
            if observable in reference.values
        ],
    )


def _ladder_panel(
    figure: FigureBase, series: Sequence[_Series], label: str, baseline: float | None
) -> Axes:
    """References on the left when there are any, the ladder on the right; returns the latter."""
    categories = list(dict.fromkeys(name for one in series for name, _ in one.references))
    if categories:
        widths = (0.03 + 0.11 * len(categories), 1.0)
        side, main = figure.subplots(1, 2, sharey=True, width_ratios=widths, squeeze=False)[0]
        _references(side, series, categories)
        panels = [side, main]
        main.tick_params(axis="y", length=0)
    else:
        main = figure.add_subplot()
        panels = [main]
    panels[0].set_ylabel(label)
    for one in series:
        _points(main, one, np.isfinite(one.mean))
    if baseline is not None:
        for panel in panels:
            panel.axhline(baseline, color=GREY, linestyle="--", linewidth=1.0)
    return main


def _references(axes: Axes, series: Sequence[_Series], categories: Sequence[str]) -> None:
    for position, one in enumerate(series):
        offset = 0.22 * (position - 0.5 * (len(series) - 1))
        for name, values in one.references:
            at = categories.index(name) + offset
            finite = values[np.isfinite(values)]
            if finite.size == 0:
                continue
            spread = float(finite.std(ddof=1)) if finite.size > 1 else 0.0
            axes.plot(np.full(finite.size, at), finite, ".", color=one.colour, alpha=0.4)
            axes.errorbar(at, finite.mean(), spread, fmt=one.marker, color=one.colour, markersize=6)
    axes.set_xticks(range(len(categories)), categories)
    axes.set_xlim(-0.5, len(categories) - 0.5)
    axes.grid(False, axis="x")


def _points(axes: Axes, series: _Series, shown: npt.NDArray[np.bool_]) -> None:
    """Error bars joined by a faint line; half filled where chains stay apart, hollow where they
    move."""
    axes.plot(
        series.temperature[shown],
        series.mean[shown],
        color=series.colour,
        alpha=0.35,
        linewidth=1.0,
    )
    apart = series.settled & ~series.equilibrated
    for which, fill, face in (
        (series.equilibrated, "full", series.colour),
        (apart, "left", series.colour),
        (~series.settled, "full", "white"),
    ):
        chosen = shown & which
        axes.errorbar(
            series.temperature[chosen],
            series.mean[chosen],
            np.nan_to_num(series.error[chosen]),
            fmt=series.marker,
            color=series.colour,
            fillstyle=fill,
            markerfacecolor=face,
            markerfacecoloralt="white",
        )


def _legend(axes: Axes, series: Sequence[_Series], dashed: str = "") -> None:
    """Names of the series when there are several, of the dashed line, and what half-filled and
    hollow points are."""
    handles = []
    if len(series) > 1:
        for one in series:
            handles.append(
                Line2D([], [], color=one.colour, marker=one.marker, linestyle="", label=one.label)
            )
    if dashed:
        handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1.0, label=dashed))
    if any(np.any(np.isfinite(one.mean) & one.settled & ~one.equilibrated) for one in series):
        handles.append(
            Line2D(
                [], [], color=GREY, marker="o", linestyle="", label=HALF,
                fillstyle="left", markerfacecoloralt="white",
            )
        )  # fmt: skip
    if any(np.any(np.isfinite(one.mean) & ~one.settled) for one in series):
        handles.append(
            Line2D([], [], color=GREY, marker="o", mfc="white", linestyle="", label=HOLLOW)
        )
    legend_above(axes, handles)


def _temperature_axis(axes: Axes, tables: Mapping[str, xr.Dataset], relative: bool) -> None:
    """Logarithmic T, absolute or in units of T*; each T* a dotted line."""
    axes.set_xscale("log")
    _label_decades(axes.xaxis)
    axes.set_xlabel("temperature T/T*" if relative else "temperature T (nats)")
    # A T* found among drifting chains is no transition: it gets no line.
    peaks = [_peak(table) if bool(settled(table).any()) else math.nan for table in tables.values()]
    for index, peak in enumerate(peaks):
        if relative or not math.isfinite(peak):
            continue
        shade = GREY if len(tables) == 1 else colour(index)
        axes.axvline(peak, color=shade, linestyle=":", linewidth=1.0)
    if relative:
        axes.axvline(1.0, color=GREY, linestyle=":", linewidth=1.0)
    elif len(peaks) == 1 and math.isfinite(peaks[0]):
        # x in data, y in axes: beside the line's foot, where no point of a rising curve lies.
        axes.text(peaks[0], 0.02, " T*", color=GREY, transform=axes.get_xaxis_transform())


def _label_decades(axis: Axis) -> None:
    """Label powers of ten, or 1, 2 and 5 of each decade when there are fewer than two decades."""
    low, high = axis.get_view_interval()
    if math.log10(high / low) < 2.0:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(_power_of_ten))
    axis.set_minor_formatter(NullFormatter())


def _power_of_ten(value: float, _position: int) -> str:
    if 0.01 <= value < 1000.0:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = round(value / 10.0**exponent)
    factor = "" if mantissa == 1 else rf"{mantissa}\cdot "
    return f"${factor}10^{{{exponent}}}$"


def _reach(series: Sequence[_Series]) -> float:
    """Highest end of an error bar among settled points, or among all when there are none.

    A model without a settled point must not set the scale of one that has some.
    """
    ends = [one.mean + np.nan_to_num(one.error) for one in series]
    trusted = [end[one.settled] for end, one in zip(ends, series, strict=True)]
    for values in (trusted, ends):
        known = [value for part in values for value in part[np.isfinite(part)]]
        if known:
            return float(max(known))
    return 0.0


def _peak(table: xr.Dataset) -> float:
    return float(table.attrs.get("peak_temperature", math.nan))


def _check(function: str, tables: Mapping[str, xr.Dataset], observable: str) -> None:
    if not tables:
        raise ValueError(f"{function}: tables must hold at least one model, got none")
    for name, table in tables.items():
        if observable not in table:
            raise ValueError(
                f"{function}: table of {name} must hold {observable!r}, got {list(table)}"
            )
