"""A harvest under way, and its file: walkers at rest, what they saw, what they harvested."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermosphere.proteins.archive import read_archive, write_archive
from thermosphere.proteins.crew import Crew, new_walker
from thermosphere.proteins.decorrelation import Decorrelation
from thermosphere.proteins.fixed_point import System
from thermosphere.proteins.potts import PottsModel
from thermosphere.proteins.walker import Harvest, Ladder

FORMAT = "thermosphere tempering checkpoint 1"
# What a walker is beside its tokens, of which the rest is a function.
_KEPT = ("counter", "levels", "ways", "last_ends", "round_trips", "counts", "sums")


@dataclass
class Progress:
    """A frozen ladder, the walkers on it, and their harvests."""

    settings: dict[str, Any]
    crew: Crew
    ladder: Ladder
    harvests: list[Harvest]  # one a walker
    decorrelation: Decorrelation | None  # None: the spacing was given


def save_progress(path: Path, state: Progress) -> None:
    """Write the file atomically, the energies summed anew.

    Raises: RuntimeError where a walker's energy is not its sequence's; OSError.
    """
    state.crew.check_energies()
    arrays: dict[str, NDArray[Any]] = {
        f"ladder_{name}": value for name, value in state.ladder._asdict().items()
    }
    arrays["tokens"] = state.crew.tokens()
    for name in _KEPT:
        arrays[name] = np.stack([getattr(walker, name) for walker in state.crew.walkers])
    for index, harvest in enumerate(state.harvests):
        arrays[f"harvest_{index}"] = harvest.tokens
    arrays["filled"] = np.stack([harvest.filled for harvest in state.harvests])
    arrays["row"] = state.harvests[0].row
    measured = state.decorrelation
    header = {
        "settings": state.settings,
        "model": _digest(state.crew.model),
        "spacing": state.harvests[0].spacing,
        "decorrelation": asdict(measured) if measured else None,
    }
    write_archive(path, FORMAT, header, arrays)


def load_progress(
    path: Path,
    settings: dict[str, Any],
    model: PottsModel,
    system: System,
    pool: ThreadPoolExecutor,
) -> Progress | None:
    """Go on from the file; None where there is none.

    Raises: ValueError for a file that is not whole, or of other settings or another model.
    """
    if not path.exists():
        return None
    header, arrays = read_archive(path, FORMAT)
    try:
        for name, value in settings.items():
            if header["settings"].get(name) != value:
                raise ValueError(f"{name} was {header['settings'].get(name)!r}, now {value!r}")
        if header["model"] != _digest(model):
            raise ValueError("it was another model")
        walkers = []
        for index, tokens in enumerate(arrays["tokens"]):
            fresh = new_walker(model, system, tokens, arrays["counter"][index])
            walkers.append(fresh._replace(**{name: arrays[name][index] for name in _KEPT}))
        harvests = [
            Harvest(arrays["row"], arrays[f"harvest_{index}"], filled.copy(), header["spacing"])
            for index, filled in enumerate(arrays["filled"])
        ]
        ladder = Ladder(*(arrays[f"ladder_{name}"] for name in Ladder._fields))
        measured = header["decorrelation"]
        return Progress(
            settings,
            Crew(model, system, walkers, pool),
            ladder,
            harvests,
            Decorrelation(**measured) if measured else None,
        )
    except KeyError as error:
        raise ValueError(f"{path} is a damaged {FORMAT} file ({error})") from None
    except ValueError as error:
        raise ValueError(f"sample_sequences: checkpoint {path} does not fit: {error}") from None


def _digest(model: PottsModel) -> str:
    parts = (model.pairs, model.couplings, model.block, model.fields)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
