"""One entry of a published study: a figure or table of the paper, its data, what is said of it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from thermosphere.runs.claims import peak
from thermosphere.runs.report import Table
from thermosphere.runs.study import ModelStudy

Cell = str | float | int | bool


@dataclass(frozen=True)
class Picture:
    """A figure, the stem of its file, and its caption."""

    stem: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Data:
    """The numbers behind a figure: a CSV file with six significant digits."""

    stem: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def text(self) -> str:
        """CSV; empty cells for what is not finite."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[_cell(value) for value in row] for row in self.rows])
        return buffer.getvalue()


@dataclass(frozen=True)
class Product:
    """A chapter of the published results."""

    key: str  # of its findings (claims.Finding.product)
    title: str
    reported: str  # what the paper reports; empty where that is the claims alone
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    data: Sequence[Data] = ()


def by_peak(studies: Mapping[str, ModelStudy]) -> list[tuple[str, bool, dict[str, xr.Dataset]]]:
    """Models whose T* is beyond doubt, then the others, as figures of their own: (end of the stem,
    in units of T*, tables); none is empty."""
    tables = {name: study.table for name, study in studies.items()}
    trusted = {name: tables[name] for name in studies if math.isfinite(peak(studies[name]))}
    rest = {name: table for name, table in tables.items() if name not in trusted}
    if trusted and rest:
        return [("", True, trusted), ("_absolute", False, rest)]
    return [("", bool(trusted), trusted or rest)]


def axis_words(relative: bool, models: Mapping[str, object]) -> str:
    """The end of a caption: which models, on which axis."""
    names = ", ".join(models)
    return f"against T/T* ({names})" if relative else f"against T ({names}; no T* beyond doubt)"


def ladder_data(stem: str, studies: Sequence[ModelStudy], names: Sequence[str]) -> Data:
    """Observables with errors against temperature, and of every ES and OT run."""
    values = [column for name in names for column in (name, _error(name))]
    columns = [
        "model",
        "weights",
        "run",
        "T",
        "T/T*",
        "equilibrated",
        "stationary",
        "ess",
        "r_hat",
        *values,
    ]
    rows: list[list[Cell]] = []
    for study in studies:
        unit, table = peak(study), study.table
        for row in range(table.sizes["temperature"]):
            temperature = float(table["temperature"].values[row])
            rows.append(
                [
                    study.name, "samples", "", temperature, temperature / unit,
                    bool(table["equilibrated"].values[row]),
                    bool(table["stationary"].values[row]),
                    *(_at(table, name, row) for name in ("ess", "r_hat", *values)),
                ]
            )  # fmt: skip
        for reference in study.references:
            runs = len(np.ravel(reference.values["train_loss"]))
            for run in range(runs):
                numbers = [
                    float(np.ravel(reference.values[name])[run])
                    if name in reference.values and name in names
                    else math.nan
                    for name in values
                ]
                rows.append([study.name, reference.label, run + 1, *[""] * 6, *numbers])
    return Data(stem, columns, rows)


def _error(name: str) -> str:
    return name + "_error"


def _at(table: xr.Dataset, name: str, row: int) -> float:
    return float(table[name].values[row]) if name in table else math.nan


def _cell(value: Cell) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return str(value)
