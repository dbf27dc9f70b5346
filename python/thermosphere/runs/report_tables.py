"""Numbers for the reader: a model's table over temperature and the warnings that go with it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import xarray as xr

from thermosphere.runs.report import Table

# Column, variable of the table, whether it has a `…_error`, decimals where it has none.
COLUMNS = (
    ("⟨U⟩ (nats)", "train_loss", 4),
    ("C", "specific_heat", 1),
    ("train error", "train_error", 4),
    ("validation error", "validation_error", 4),
    ("test error", "test_error", 4),
    ("P@L", "precision_at_l", 3),
    ("P̃@L", "precision_at_l_tolerant", 3),
    ("|w−w₀|²/Q", "distance", 3),
    ("kinetic/T", "kinetic_ratio", 3),
)
SHORT_COLUMNS = {
    "train_loss",
    "specific_heat",
    "train_error",
    "validation_error",
    "test_error",
    "precision_at_l_tolerant",
}


def thermodynamics_table(table: xr.Dataset, *, caption: str = "", short: bool = False) -> Table:
    """One row a temperature: mean ± standard error of what the table holds, ESS, R̂, equilibrated.

    table: from `thermodynamics`; variables it lacks make no column, so `precision_at_l_tolerant`
    appears once the caller has added it.  short: only loss, specific heat, errors and P̃@L, without
    standard errors, for a terminal.  Temperatures that are not equilibrated are doubtful rows.
    """
    chosen = [
        (column, name, decimals)
        for column, name, decimals in COLUMNS
        if name in table and (not short or name in SHORT_COLUMNS)
    ]
    columns = ["T", "equilibrated", *(column for column, _, _ in chosen), "ESS", "R̂"]
    rows = []
    for index, temperature in enumerate(table["temperature"].values):
        settled = "yes" if table["equilibrated"].values[index] else "no"
        row = [format_temperature(float(temperature)), settled]
        for _, name, decimals in chosen:
            mean = float(table[name].values[index])
            error = name + "_error"
            if short or error not in table:
                row.append(_fixed(mean, decimals))
            else:
                row.append(with_error(mean, float(table[error].values[index])))
        row.append(_fixed(float(table["ess"].values[index]), 0))
        row.append(_fixed(float(table["r_hat"].values[index]), 2))
        rows.append(row)
    doubtful = np.flatnonzero(~table["equilibrated"].values)
    return Table(columns, rows, caption, tuple(int(index) for index in doubtful))


def equilibration_warnings(name: str, table: xr.Dataset) -> list[str]:
    """What a reader of the model `name` must know before any number; empty when all is well."""
    doubtful = ~table["equilibrated"].values
    wandering = table["note"].values != ""
    sentences = []
    if doubtful.any():
        sentences.append(
            f"{name}: {doubtful.sum()} of {doubtful.size} temperatures are not equilibrated "
            f"({_list(table, doubtful)}). Their averages (hollow points, rows in italics) are of a "
            "run still on its way, and their error bars are too small."
        )
    if wandering.any():
        sentences.append(
            f"{name}: the weights still move away from their start at {_list(table, wandering)}; "
            "similarities between draws of one chain are too high there."
        )
    caveat = str(table.attrs.get("peak_caveat", ""))
    if caveat:
        sentences.append(f"{name}: the transition temperature T* is doubtful: {caveat}.")
    return sentences


def equilibration_reasons(table: xr.Dataset) -> list[str]:
    """Why each doubtful temperature is not equilibrated, one line a temperature."""
    return [
        f"T = {format_temperature(float(temperature))}: {reason}."
        for temperature, reason in zip(
            table["temperature"].values, table["reason"].values, strict=True
        )
        if reason
    ]


def _list(table: xr.Dataset, chosen: npt.NDArray[np.bool_]) -> str:
    return "T = " + ", ".join(format_temperature(float(t)) for t in table["temperature"][chosen])


def format_temperature(temperature: float) -> str:
    """Three significant digits, with a power of ten below 0.01: 0.25, 2.06e-4."""
    if temperature >= 0.01:
        return f"{temperature:.3g}"
    mantissa, exponent = f"{temperature:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def with_error(mean: float, error: float) -> str:
    """Mean ± error, the error at one significant digit, two when it starts with 1.

    1.0853 ± 0.0041 → "1.085 ± 0.004"; – for an unknown mean, no error when that is unknown.  Errors
    below 10⁻⁶ are shown as 0; powers of ten from a million on.
    """
    if not math.isfinite(mean):
        return "–"
    if not math.isfinite(error):
        return f"{mean:.4g}"
    if max(abs(mean), error) >= 1e6:
        return f"{mean:.1e} ± {error:.0e}".replace("e+0", "e").replace("e+", "e")
    if error < 1e-6:
        return f"{mean:.4g} ± 0"
    digit, exponent = f"{error:.0e}".split("e")
    decimals = min(6, (1 if digit == "1" else 0) - int(exponent))
    shown = max(0, decimals)
    return f"{round(mean, decimals):.{shown}f} ± {round(error, decimals):.{shown}f}"


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else "–"
