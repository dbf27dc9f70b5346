"""What was measured before the long runs: where the ladder goes, and what mixes fastest."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from thermosphere.runs.calibration import PUBLISHED
from thermosphere.runs.calibration_table import COLUMNS
from thermosphere.runs.ladder import Ladder
from thermosphere.runs.product import Cell, Data, Product
from thermosphere.runs.report import Table
from thermosphere.runs.studied_run import StudiedRun

Rows = list[dict[str, str]]


def ladders(run: StudiedRun) -> Product | None:
    """T* of every model whose ladder was found; None where all were given."""
    columns = ["model", "T", "<U>", "error", "C", "error of C"]
    shown: list[list[str]] = []
    rows: list[list[Cell]] = []
    for name in run.studies:
        path = run.directory / name / "ladder.csv"
        if not path.is_file():
            continue
        ladder = Ladder.load(path)
        columns_of = (
            ladder.temperature,
            ladder.loss,
            ladder.loss_error,
            ladder.specific_heat,
            ladder.specific_heat_error,
        )
        rows += [[name, *numbers] for numbers in np.stack(columns_of, 1).tolist()]
        peak = abs(ladder.temperature - ladder.peak).argmin()
        shown.append(
            [
                name,
                f"{ladder.peak:.3g}",
                f"{ladder.specific_heat[peak]:.0f} ± {ladder.specific_heat_error[peak]:.0f}",
                f"{ladder.temperature[0]:.2g} to {ladder.temperature[-1]:.2g}",
            ]
        )
    if not shown:
        return None
    table = Table(["model", "T*", "C there", "looked at"], shown)
    return Product(
        "ladder",
        "Where the ladders go",
        "",
        text=[
            "A few chains were heated from ES weights; T* is the maximum of C = d⟨U⟩/dT on their "
            "way. Cold temperatures are passed too fast for equilibrium, so this only places the "
            "ladder: the T* of the figures is that of the samples."
        ],
        tables=[table],
        data=[Data("ladder", columns, rows)],
    )


def efficiency(run: StudiedRun) -> Product | None:
    """What every way to sample costs; None where nothing was calibrated."""
    tables, rows, columns, chosen = [], [], ["model"], []
    for name in run.studies:
        path = run.directory / name / "calibration.csv"
        if not path.is_file():
            continue
        trials = _read(path)
        columns = ["model", *trials[0]]
        rows += [[name, *trial.values()] for trial in trials]
        for temperature in dict.fromkeys(trial["temperature"] for trial in trials):
            here = [trial for trial in trials if trial["temperature"] == temperature]
            tables.append(_trial_table(f"{name}, T = {temperature}", here))
        gains = [
            (float(trial["times the published"]), _gain_is_extrapolated(trial, trials))
            for trial in trials
        ]
        known = [(gain, far) for gain, far in gains if math.isfinite(gain)]
        if known:
            best, far = max(known)
            chosen.append(f"{name} {best:,.0f}" + (" (extrapolated)" if far else ""))
    if not tables:
        return None
    return Product(
        "efficiency",
        "What makes it fast: sampling efficiency",
        f"Mini-batches with r = 5e-8 (here: {PUBLISHED.about}), 50 to 150 ms a move.",
        text=[
            "A few chains a model (times are of all of them together), all trials from the same "
            "settled weights, in turns on the same machine and with the same kernels. s to 1/e: "
            "until w(0)·w(t)/Q has fallen "
            "to 1/e; > where that is extrapolated from how far a trial came. Gain: how many times "
            "sooner than with the published settings. Bias: of ⟨U⟩, as a share of ⟨U⟩ − U_min, "
            "against hybrid Monte Carlo. A walk that has not turned round shows two or three "
            "effective draws whatever its length.",
            *(["Largest gain: " + "; ".join(chosen) + "."] if chosen else []),
        ],
        tables=tables,
        data=[Data("efficiency", columns, rows)],
    )


def _gain_is_extrapolated(trial: dict[str, str], trials: Rows) -> bool:
    """Whether this trial or the published one of its temperature did not come to 1/e."""
    pair = [
        one
        for one in trials
        if one["temperature"] == trial["temperature"]
        and one["trial"] in (trial["trial"], PUBLISHED.about)
    ]
    return any(float(one["extrapolated"]) for one in pair)


def _trial_table(caption: str, trials: Rows) -> Table:
    columns = [
        "",
        "ms a move",
        "ESS of U a s",
        "ESS of distance a s",
        "moves to 1/e",
        "s to 1/e",
        "gain",
        "bias",
    ]
    rows = [
        [
            trial["trial"],
            _short(trial["milliseconds a move"]),
            _short(trial["ESS of U a second"]),
            _short(trial["ESS of |w-w0|^2 a second"]),
            _far(trial, "moves to 1/e"),
            _far(trial, "seconds to 1/e"),
            _short(trial["times the published"]),
            _share(trial),
        ]
        for trial in trials
    ]
    return Table(columns, rows, caption)


def _read(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    missing = {"temperature", "trial", *COLUMNS} - set(reader.fieldnames or ())
    if missing or not rows:
        raise ValueError(
            f"{path}: must be a calibration's CSV, got columns {reader.fieldnames}; "
            "`thermosphere calibrate` writes it again"
        )
    return rows


def _short(text: str) -> str:
    value = float(text)
    return f"{value:.3g}" if math.isfinite(value) else "–"


def _far(trial: dict[str, str], column: str) -> str:
    text = _short(trial[column])
    return f"> {text}" if float(trial["extrapolated"]) and text != "–" else text


def _share(trial: dict[str, str]) -> str:
    share = float(trial["bias of U-Umin"])
    if not math.isfinite(share):
        return "–"
    bias = float(trial["bias"])
    error = abs(share / bias) * float(trial["bias error"]) if bias else math.nan
    return f"{share:+.1%} ± {error:.1%}"
