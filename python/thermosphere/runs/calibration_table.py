"""What a calibration found, as files and as what a terminal shows."""

from __future__ import annotations

import csv
import math
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path

import tomli_w

from thermosphere.runs.calibration import FULL_BATCH, Calibration, Row

COLUMNS = (
    "milliseconds a move",
    "moves",
    "seconds",
    "<U>",
    "error",
    "R-hat",
    "ESS of U a second",
    "ESS of |w-w0|^2 a second",
    "moves to 1/e",
    "seconds to 1/e",
    "extrapolated",
    "times the published",
    "bias",
    "bias error",
    "bias of U-Umin",
)


def save_calibrations(
    calibrations: Sequence[Calibration], decides: Calibration, directory: Path, name: str
) -> None:
    """DIR/calibration.csv with every trial at every temperature, DIR/calibration.toml with what was
    chosen at the one that decides."""
    table = directory / "calibration.csv"
    building = table.with_name(table.name + ".new")
    with building.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["temperature", "trial", *COLUMNS, "failure"])
        for calibration in calibrations:
            for row in calibration.rows:
                numbers = [f"{value:.6g}" for value in _numbers(calibration, row)]
                about = [f"{calibration.temperature:.6g}", row.trial.about]
                writer.writerow([*about, *numbers, row.series.failure])
    os.replace(building, table)
    chosen = {
        "model": name,
        "temperature": decides.temperature,
        "chosen": decides.chosen.about,
        "sampling": decides.settings(),
    }
    settings = directory / "calibration.toml"
    building = settings.with_name(settings.name + ".new")
    building.write_text(tomli_w.dumps(chosen), encoding="utf-8")
    os.replace(building, settings)


def read_settings(path: Path) -> dict[str, float | int | str]:
    """Keys of [sampling] that `save_calibrations` wrote. ValueError where it is not such a file."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))["sampling"]
    except (tomllib.TOMLDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be a calibration ({error})") from error
    unknown = set(table) - {"batch", "stiffness", "modes", "t_ratio", "m1"}
    if unknown:
        raise ValueError(
            f"{path}: [sampling] must hold batch, stiffness, modes, t_ratio, m1: {unknown}"
        )
    return dict(table)


def _numbers(calibration: Calibration, row: Row) -> list[float]:
    loss = row.loss
    nan = math.nan
    return [
        1e3 * row.series.seconds_a_move,
        row.series.moves,
        row.series.seconds,
        loss.mean if loss else nan,
        loss.error if loss else nan,
        loss.r_hat if loss else nan,
        row.effective_draws_a_second,
        row.distance_draws_a_second,
        row.decorrelation_moves,
        row.decorrelation_seconds,
        float(row.extrapolated),
        calibration.gain(row),
        row.bias,
        row.bias_error,
        row.bias / calibration.excess,
    ]


def calibration_text(calibration: Calibration, name: str) -> str:
    """What a terminal shows: a line a trial, then the choice."""
    lines = [
        f"{name}, T = {calibration.temperature:.4g}, <U> - U_min = {calibration.excess:.4f}; "
        "seconds are of all chains together",
        f"{'':<26}{'ms/move':>8}{'<U>':>10}{'error':>8}{'R-hat':>7}{'ESS_U/s':>9}"
        f"{'ESS_d/s':>9}{'1/e moves':>11}{'seconds':>10}{'gain':>9}{'bias':>9}{'+-':>7}",
    ]
    for row in calibration.rows:
        ms, _, _, mean, error, r_hat, ess, ess_d, moves, seconds, _, gain, *_ = _numbers(
            calibration, row
        )
        share, share_error = row.bias / calibration.excess, row.bias_error / calibration.excess
        mark = ">" if row.extrapolated else " "
        lines.append(
            f"{row.trial.about:<26}{ms:8.2f}{mean:10.4f}{error:8.4f}{r_hat:7.2f}{ess:9.3f}"
            f"{ess_d:9.3f}{mark:>2}{moves:9.0f}{mark:>2}{seconds:8.3g}{gain:9.3g}"
            + ("" if math.isnan(share) else f"{share:9.2%}{share_error:7.2%}")
            + (f"  {row.series.failure}" if row.series.failure else "")
        )
    if math.isfinite(calibration.softness):
        stiffness = FULL_BATCH.stiffness
        lines.append(
            f"mean curvature {calibration.softness:.2e} of the largest: a full-batch step at "
            f"ω dt = {stiffness:g} with diagonal masses leaves <U> - U_min too high by "
            f"{calibration.step_bias(stiffness):.2%}"
        )
    lines.append(
        f"chosen: {calibration.chosen.about}; > is extrapolated; gain: against the published"
    )
    return "\n".join(lines)
