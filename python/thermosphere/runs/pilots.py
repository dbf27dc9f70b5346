"""The short runs before the long ones, one model each: a calibration at every temperature asked
for, and the settings that follow."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from tqdm import tqdm

from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.runs.calibration import TRIALS, Calibration, calibrate
from thermosphere.runs.calibration_table import read_settings, save_calibrations
from thermosphere.runs.config import Pilot, Sampling
from thermosphere.runs.ladder import Ladder
from thermosphere.training import References


def pilot_start(references: References, chains: int) -> torch.Tensor:
    """ES weights for each chain, (C, N)."""
    which = torch.arange(chains) % len(references.early_stopped)
    return references.early_stopped[which].contiguous()


def ladder_unit(sampling: Sampling, ladder: Path) -> float:
    """T* as the ladder's pilot found it, or the middle of the temperatures that were given."""
    if sampling.temperatures == "auto":
        return Ladder.load(ladder).peak
    return sampling.temperatures[len(sampling.temperatures) // 2]


def ladder_temperatures(sampling: Sampling, pilot: Pilot, ladder: Path) -> list[float]:
    """The ladder, rising: as given, or where the pilot put it."""
    if sampling.temperatures == "auto":
        return Ladder.load(ladder).temperatures(pilot.shares)
    return sampling.temperatures


def lowest_loss(references: References, ladder: Path) -> float:
    """U_min, from above: the least U of the training set that training or the pilot saw."""
    lowest = float(references.over_trained_losses[:, 0].min())
    if ladder.is_file():
        lowest = min(lowest, float(Ladder.load(ladder).loss.min()))
    return lowest


def calibrated(sampling: Sampling, chosen: Path) -> Sampling:
    """The settings with what the calibration chose."""
    found: dict[str, object] = dict(read_settings(chosen))
    if found["batch"] == "all":  # what is of mini-batches goes with them
        gone = ("t_ratio", "t_ratio_max", "variance_floor", "average_axis")
        found |= dict.fromkeys(gone)
    return msgspec.structs.replace(sampling, **found)


def calibrate_model(
    directory: Path,
    potential: MaskedLanguagePotential,
    references: References,
    pilot: Pilot,
    unit: float,
    ladder: Path,
    *,
    seed: int,
    progress: bool = False,
) -> list[Calibration]:
    """Calibrate at ``pilot.calibrate_at`` times ``unit``; DIR/calibration.csv and .toml, trials
    under DIR/calibration/SHARE. The share nearest 1 decides."""
    name, shares = potential.model.name, pilot.calibrate_at
    lowest = lowest_loss(references, ladder)
    found: list[Calibration] = []
    with tqdm(
        total=len(shares) * len(TRIALS) * pilot.trial_seconds,
        desc=f"calibrating {name}",
        bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s{postfix}",
        disable=not progress,
    ) as bar:

        def on_turn(about: str, seconds: float) -> None:
            before = len(found) * len(TRIALS) * pilot.trial_seconds
            bar.set_postfix_str(about, refresh=False)
            bar.update(before + seconds - bar.n)

        for share in shares:
            one = calibrate(
                directory / "calibration" / f"{share:g}",
                potential,
                pilot_start(references, pilot.chains),
                float(references.norm2),
                share * unit,
                lowest,
                settling=pilot.settling,
                seconds=pilot.trial_seconds,
                seed=seed,
                on_turn=on_turn,
            )
            found.append(one)
    decides = found[int(np.argmin(np.abs(np.log(shares))))]
    save_calibrations(found, decides, directory, name)
    return found
