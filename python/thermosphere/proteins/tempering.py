"""Sequences at a low temperature, by adaptive tempering (§1 of arXiv 2603.29529).

First the ladder and its weights are learned (ladder.py) and frozen together with the length of a
visit; then the decorrelation of the target level is measured (decorrelation.py), and sequences are
harvested from that level alone, so many visits apart.  Several independent walkers share the work:
their sums are pooled between the rounds of learning, and each harvests its part.
"""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from thermosphere.proteins.alphabet import check_states
from thermosphere.proteins.crew import Crew, new_walker
from thermosphere.proteins.decorrelation import Decorrelation, measure_decorrelation
from thermosphere.proteins.fixed_point import System, fixed_point
from thermosphere.proteins.harvest import fill, new_harvests
from thermosphere.proteins.ladder import learn_ladder
from thermosphere.proteins.potts import PottsModel
from thermosphere.proteins.tempering_checkpoint import Progress, load_progress, save_progress
from thermosphere.proteins.tempering_result import TemperingResult
from thermosphere.proteins.walker import (
    DESCENTS,
    DESCENTS_TRIED,
    PROPOSALS,
    VISITS,
    Ladder,
)

_OVERLAP_PAIRS = 20_000
METHODS = ("simulated", "parallel")


def sample_sequences(
    model: PottsModel,
    native: ArrayLike,
    *,
    seed: int,
    sequences: int = 15_000,
    temperature: float = 1.0,
    hot: float = 20.0,
    moves: str = "swap",
    method: str = "simulated",
    level_spacing: float = 0.8,
    visit: float = 0.1,
    harvest_spacing: int | None = None,
    walkers: int = 8,
    threads: int | None = None,
    record_levels: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 10.0,
    progress: bool = False,
) -> TemperingResult:
    """Sample sequences from exp(−E(s)/T), E the model's energy, at one temperature.

    Arguments:
        model: n sites of q states.
        native: (n,) integers 0..q-1, where the walkers start; swap moves conserve its composition.
        seed: the sequences depend on it and on the other arguments, never on ``threads``.
        sequences: how many to harvest, S.
        temperature: target T, energy units.
        hot: temperature of the hottest level.
        moves: "swap" exchanges two sites; "mutation" sets one site to a random state.
        method: "simulated" tempering, a walker moves among the levels; "parallel" tempering, a
            walker is a replica at every level (walker.py).
        level_spacing: Δβ·σ_E of neighbouring levels.
        visit: accepted moves a site in one visit of a cold level, fewer where most are accepted;
            sets the proposals a visit.
        harvest_spacing: visits of the target level from one harvest to the next; by default twice
            the measured integrated autocorrelation time of energy or overlap, the longer one.
        walkers: independent walkers.
        threads: how many run at once; all available cores by default.
        record_levels: keep S sequences of every level, not of the target alone.
        checkpoint: a file that the harvest so far is kept in; where it is there, the harvest goes
            on from it, bit for bit.  The caller removes it once the result is safe.
        checkpoint_seconds: between two writings of it.
        progress: show bars.

    Returns: TemperingResult.  Its diagnostics: ``round_trips`` hot → cold → hot of all replicas
    during the harvest; ``round_trips_per_sequence``; ``harvest_spacing``; ``energy_time`` and
    ``overlap_time``, integrated autocorrelation times in visits of the target, None where the
    spacing was given; ``harvest_correlation``, of the energies of consecutive harvests;
    ``overlap_random``, ``overlap_consecutive`` and ``overlap_independent``, mean share of equal
    sites between harvested pairs taken at random, between neighbours of one walker, and between
    sequences of two walkers; ``overlap_baseline``, the same for sequences drawn at random, of the
    conserved composition or of equally likely states; ``distinct_sequences``; ``proposals``;
    ``energy_drift``, largest difference between a walker's running energy and the recomputed one.
    A warning is given for fewer than one round trip per 100 sequences (most of them then come from
    few basins) and for a level visited less than a tenth of the mean.

    Raises: ValueError for arguments out of range or a checkpoint of other arguments; RuntimeError
    where the ladder does not reach the target, its weights do not become even, or the target is
    visited too rarely.
    """
    tokens = _check(model, native, moves)
    if method not in METHODS:
        raise ValueError(
            f"sample_sequences: method must be 'simulated' or 'parallel', got {method!r}"
        )
    for name, value, least in (
        ("seed", seed, 0),
        ("sequences", sequences, 1),
        ("harvest_spacing", 1 if harvest_spacing is None else harvest_spacing, 1),
        ("walkers", walkers, 1),
        ("threads", 1 if threads is None else threads, 1),
    ):
        if value < least:
            raise ValueError(f"sample_sequences: {name} must be at least {least}, got {value}")
    for name, real in (
        ("temperature", temperature),
        ("level_spacing", level_spacing),
        ("visit", visit),
    ):
        if not (np.isfinite(real) and real > 0.0):
            raise ValueError(f"sample_sequences: {name} must be positive, got {real}")
    if not (np.isfinite(hot) and hot > temperature):
        raise ValueError(
            f"sample_sequences: hot must be above the target temperature {temperature}, got {hot}"
        )
    settings = {
        "seed": int(seed),  # they go into JSON, which NumPy's numbers do not
        "sequences": int(sequences),
        "temperature": float(temperature),
        "hot": float(hot),
        "moves": moves,
        "method": method,
        "level_spacing": float(level_spacing),
        "visit": float(visit),
        "harvest_spacing": None if harvest_spacing is None else int(harvest_spacing),
        "walkers": int(walkers),
        "record_levels": bool(record_levels),
        "native": hashlib.sha256(tokens.tobytes()).hexdigest()[:16],
    }
    system = fixed_point(model, mutate=moves == "mutation", hottest=hot, coldest=temperature)
    with ThreadPoolExecutor(max_workers=min(threads or _available_cores(), walkers)) as pool:
        state = None
        if checkpoint is not None:
            state = load_progress(Path(checkpoint), settings, model, system, pool)
        if state is None:
            state = _begin(model, system, tokens, settings, pool, progress)
            if checkpoint is not None:  # the ladder may have taken minutes
                save_progress(Path(checkpoint), state)
        _harvest(
            state, None if checkpoint is None else Path(checkpoint), checkpoint_seconds, progress
        )
    return _result(state)


def _check(model: PottsModel, native: ArrayLike, moves: str) -> NDArray[np.uint8]:
    where = "sample_sequences"
    tokens = np.asarray(native)
    if tokens.shape != (model.length,):
        raise ValueError(f"{where}: native must be ({model.length},), got shape {tokens.shape}")
    check_states(tokens, model.states, f"{where}: native")
    if moves not in ("swap", "mutation"):
        raise ValueError(f"{where}: moves must be 'swap' or 'mutation', got {moves!r}")
    if moves == "swap" and len(np.unique(tokens)) == 1:
        raise ValueError(f"{where}: swaps need two kinds of residue, native has one")
    if not len(model.pairs) and not model.fields.any():
        raise ValueError(f"{where}: no pairs and no fields, every sequence has energy 0")
    return tokens.astype(np.uint8)


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin(
    model: PottsModel,
    system: System,
    tokens: NDArray[np.uint8],
    settings: dict[str, Any],
    pool: ThreadPoolExecutor,
    progress: bool,
) -> Progress:
    """Everything before the harvest: a function of the arguments alone."""
    count = settings["walkers"]
    counters = [
        np.random.SeedSequence([settings["seed"], index])
        .generate_state(1, np.uint64)
        .astype(np.uint64)
        for index in range(count)
    ]
    crew = Crew(model, system, [new_walker(model, system, tokens[None], c) for c in counters], pool)
    ladder = learn_ladder(
        crew,
        1.0 / settings["hot"],
        1.0 / settings["temperature"],
        settings["level_spacing"],
        settings["visit"],
        progress,
    )
    levels = len(ladder.betas)
    if settings["method"] == "parallel":
        crew = replicated(crew, ladder)
    spacing = settings["harvest_spacing"]
    measured: Decorrelation | None = None
    crew.clear(levels)
    if spacing is None:
        measured = measure_decorrelation(crew, ladder)
        spacing = measured.spacing
        crew.clear(levels)
    quotas = [
        settings["sequences"] // count + (index < settings["sequences"] % count)
        for index in range(count)
    ]
    harvests = new_harvests(crew, ladder, quotas, spacing=spacing, every=settings["record_levels"])
    return Progress(settings, crew, ladder, harvests, measured)


def replicated(crew: Crew, ladder: Ladder) -> Crew:
    """A replica at every level for each walker, where simulated tempering brought it."""
    seeds = new_harvests(crew, ladder, [1] * len(crew.walkers), spacing=1, every=True)
    crew.clear(len(ladder.betas))
    fill(crew, ladder, seeds)
    walkers = [
        new_walker(crew.model, crew.system, seed.tokens[:, 0], walker.counter)
        for seed, walker in zip(seeds, crew.walkers, strict=True)
    ]
    return Crew(crew.model, crew.system, walkers, crew.pool)


def _harvest(state: Progress, checkpoint: Path | None, seconds: float, progress: bool) -> None:
    written = time.monotonic()
    bar = tqdm(total=state.settings["sequences"], desc="sequences", unit="", disable=not progress)

    def after_round() -> None:
        nonlocal written
        bar.update(sum(int(harvest.filled[-1]) for harvest in state.harvests) - bar.n)
        if checkpoint is not None and time.monotonic() - written >= seconds:
            save_progress(checkpoint, state)
            written = time.monotonic()

    with bar:
        fill(state.crew, state.ladder, state.harvests, after_round)
    state.crew.check_energies()


def _result(state: Progress) -> TemperingResult:
    crew, ladder, harvests = state.crew, state.ladder, state.harvests
    model, settings = crew.model, state.settings
    found = crew.levels()
    visits = found.counts[VISITS]
    tokens = np.concatenate([harvest.tokens for harvest in harvests], axis=1)  # (R, S, n)
    sequences = tokens[-1]
    walker = np.repeat(np.arange(len(harvests)), [h.tokens.shape[1] for h in harvests])
    energies = model.energy(sequences)
    trips = crew.round_trips()
    measured = state.decorrelation
    drift = [
        walker.energies * crew.system.unit - model.energy(rows)
        for walker, rows in zip(crew.walkers, crew.tokens(), strict=True)
    ]
    diagnostics = {
        "round_trips": trips,
        "round_trips_per_sequence": trips / len(sequences),
        "harvest_spacing": harvests[0].spacing,
        "energy_time": measured.energy if measured else None,
        "overlap_time": measured.overlap if measured else None,
        "harvest_correlation": _consecutive_correlation(energies, walker),
        **_overlaps(sequences, walker, model.states, settings),
        "distinct_sequences": len(np.unique(sequences, axis=0)),
        "proposals": int(found.counts[PROPOSALS].sum()),
        "energy_drift": float(np.abs(drift).max()),
    }
    warnings = []
    if 100 * trips < len(sequences):
        warnings.append(
            f"{trips} round trips for {len(sequences)} sequences, fewer than 1 per 100: raise "
            "harvest_spacing or the temperature"
        )
    rare = int(np.argmin(visits))
    if visits[rare] < 0.1 * visits.mean():
        warnings.append(
            f"T = {1.0 / ladder.betas[rare]:.4g} has {visits[rare]} visits, the mean level "
            f"{visits.mean():.0f}: the weights are poor"
        )
    return TemperingResult(
        sequences=sequences,
        energies=energies,
        walker=walker,
        model=model,
        temperatures=1.0 / ladder.betas,
        weights=ladder.weights,
        cycle=ladder.cycle,
        visits=visits,
        mean_energy=found.mean,
        energy_deviation=found.deviation,
        acceptance=found.acceptance,
        level_acceptance=found.counts[DESCENTS, :-1]
        / np.maximum(found.counts[DESCENTS_TRIED, :-1], 1),
        log_partition=np.append(0.0, np.cumsum(crew.log_ratios(ladder))),
        log_partition_error=crew.log_ratio_errors(ladder),
        level_sequences=tokens if settings["record_levels"] else tokens[:0, :0],
        diagnostics=diagnostics,
        settings=settings,
        warnings=warnings,
    )


def _overlaps(
    sequences: NDArray[np.uint8],
    walker: NDArray[np.int64],
    states: int,
    settings: dict[str, Any],
) -> dict[str, float | None]:
    """Mean share of equal sites; None where there is no pair to compare."""
    if settings["moves"] == "mutation":
        shares = np.full(states, 1.0 / states)
    else:
        shares = np.bincount(sequences[0], minlength=states) / sequences.shape[1]
    overlaps: dict[str, float | None] = {
        "overlap_random": None,
        "overlap_consecutive": None,
        "overlap_independent": None,
        "overlap_baseline": float((shares**2).sum()),
    }
    neighbours = np.flatnonzero(walker[1:] == walker[:-1])
    if len(neighbours):
        equal = sequences[neighbours] == sequences[neighbours + 1]
        overlaps["overlap_consecutive"] = float(equal.mean())
    if len(sequences) > 1:
        generator = np.random.default_rng(settings["seed"])
        first = generator.integers(len(sequences), size=_OVERLAP_PAIRS)
        second = (first + generator.integers(1, len(sequences), size=_OVERLAP_PAIRS)) % len(
            sequences
        )
        equal = (sequences[first] == sequences[second]).mean(axis=1)
        overlaps["overlap_random"] = float(equal.mean())
        apart = walker[first] != walker[second]
        if apart.any():
            overlaps["overlap_independent"] = float(equal[apart].mean())
    return overlaps


def _consecutive_correlation(
    energies: NDArray[np.float64], walker: NDArray[np.int64]
) -> float | None:
    """Correlation of the energies of consecutive harvests of a walker; None for too few."""
    centred = energies - energies.mean()
    same = walker[1:] == walker[:-1]
    if same.sum() < 2 or not centred.any():
        return None
    return float((centred[1:] * centred[:-1])[same].mean() / (centred**2).mean())
