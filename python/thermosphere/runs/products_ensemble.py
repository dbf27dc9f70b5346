"""Whether the samples have the laws of their temperatures: kinetic energies, and potential energies
at two temperatures a few per cent apart."""

from __future__ import annotations

import math

import numpy as np

from thermosphere.analysis.convergence import MINIMUM_DRAWS
from thermosphere.analysis.ensemble import (
    JUDGED,
    Array,
    apart,
    ensemble_distance,
    independent,
    kinetic_distances,
)
from thermosphere.analysis.thermodynamics import kept_draws, settled
from thermosphere.runs.exact import FILE
from thermosphere.runs.exact_table import read_hotter
from thermosphere.runs.product import Cell, Data, Product
from thermosphere.runs.report import Table
from thermosphere.runs.report_tables import format_temperature
from thermosphere.runs.studied_run import StudiedRun
from thermosphere.runs.study import ModelStudy

FAR = 4.0  # standard errors
BURN_IN = 0.25  # of the draws of a way that begins at another temperature


def ensemble(run: StudiedRun) -> Product | None:
    """What physical_validation says of every equilibrated temperature; None where it is not
    installed."""
    rows: list[list[Cell]] = []
    try:
        for study in run.studies.values():
            rows += _judged(study, run)
    except ImportError:
        return None
    columns = [
        "model", "T", "draws of K", "kinetic mean", "kinetic width", "T'", "draws of U", "slope"
    ]  # fmt: skip
    shown = [[str(row[0]), format_temperature(float(row[1])), *map(_text, row[2:])] for row in rows]
    distances = [float(x) for row in rows for x in (row[3], row[4], row[7]) if x != ""]
    known = [x for x in distances if math.isfinite(x)]
    far = sum(abs(x) > FAR for x in known)
    return Product(
        "ensemble",
        "The law of the samples",
        "",
        text=[
            "physical_validation on temperatures whose chains stand still and have "
            f"{JUDGED} independent draws or more. Distances in standard errors: of mean and width "
            "of the kinetic energy from the Maxwell-Boltzmann law, and of the slope of "
            "ln P(U|T')/P(U|T) from 1/T − 1/T'. T' is a few per cent hotter where chains went on "
            "at both from the same weights (the exact check; each chain's own place is taken out), "
            "elsewhere the next temperature, where chains of different starts agree (– where the "
            "two do not overlap).",
            f"{len(known)} distances, {far} of them above {FAR:g}. {_together(rows)}"
            if known
            else "No temperature has enough independent draws to be judged.",
        ],
        tables=[Table(columns, shown)] if shown else [],
        data=[Data("ensemble", columns, rows)],
    )


def _together(rows: list[list[Cell]]) -> str:
    """χ² of each model's distances, as if independent: many that are a little far off say as much
    as one that is far."""
    from scipy.stats import chi2  # physical_validation needs it, nothing else does

    words = []
    for name in dict.fromkeys(str(row[0]) for row in rows):
        of_model = [float(row[k]) for row in rows if str(row[0]) == name for k in (3, 4, 7)
                    if row[k] != ""]  # fmt: skip
        known = [x for x in of_model if math.isfinite(x)]
        total = sum(x * x for x in known)
        words.append(f"{name} {total:.1f} of {len(known)} (p = {chi2.sf(total, len(known)):.2g})")
    return f"Sums of their squares: {', '.join(words)}."


def _judged(study: ModelStudy, run: StudiedRun) -> list[list[Cell]]:
    table, parameters = study.table, study.parameters
    standing = [float(t) for t in table["temperature"].values[settled(table)]]
    alike = {float(t) for t in table["temperature"].values[table["equilibrated"].values]}
    losses = {t: _pooled(_draws(study, run, t, "train_loss")) for t in alike}
    close = _a_little_hotter(study, run)
    rows: list[list[Cell]] = []
    for at, temperature in enumerate(standing):
        # Kinetic energies forget within a few moves, also where potential ones remember the start.
        kinetic = _pooled(_draws(study, run, temperature, "kinetic_temperature"))
        if len(kinetic) < JUDGED:
            continue
        found = kinetic_distances(kinetic, temperature, parameters)
        row: list[Cell] = [study.name, temperature, len(kinetic), found.mean, found.width]
        hot = standing[at + 1] if at + 1 < len(standing) else math.nan
        cold, warm = losses.get(temperature, np.zeros(0)), losses.get(hot, np.zeros(0))
        if temperature in close:
            hot, cold, warm = close[temperature]
        fewest = min(len(cold), len(warm))
        if fewest >= JUDGED:
            row += [hot, fewest, ensemble_distance(cold, warm, (temperature, hot), parameters)]
        else:
            row += ["", "", ""]
        rows.append(row)
    return rows


def _a_little_hotter(study: ModelStudy, run: StudiedRun) -> dict[float, tuple[float, Array, Array]]:
    """T → T' and independent draws of U at both, where the exact check went a third way."""
    directory = run.directory / study.name
    if not (directory / FILE).is_file():
        return {}
    found = {}
    for one in read_hotter(directory):
        first = int(BURN_IN * one.losses.shape[1])
        if one.losses.shape[1] - first < MINIMUM_DRAWS:
            continue
        cold, hot = apart(one.losses[:, first:], one.losses_hotter[:, first:])
        found[one.temperature] = (one.hotter, cold, hot)
    return found


def _draws(study: ModelStudy, run: StudiedRun, temperature: float, name: str) -> Array:
    """(chains, draws) after burn-in."""
    kept = kept_draws(study.samples, temperature, burn_in=run.config.analysis.burn_in)
    values = study.samples[name].values[np.ix_(kept.chains, kept.draws)]
    return np.asarray(values, np.float64)


def _pooled(values: Array) -> Array:
    """Independent draws of all chains; none where they are too few to tell."""
    return independent(values) if values.shape[1] >= MINIMUM_DRAWS else np.zeros(0)


def _text(value: Cell) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        return f"{value:.1f}" if value > 1e-2 else format_temperature(value)
    return str(value)
