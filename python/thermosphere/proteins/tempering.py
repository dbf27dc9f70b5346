"""Sequences at a low temperature, by adaptive simulated tempering (§1 of arXiv 2603.29529).

First the ladder and its weights are learned (ladder.py), then both are frozen together with the
length of a visit, and sequences are harvested from the target level alone.  Several independent
walkers share the work: their sums are pooled between the rounds of learning, and each harvests its
part.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from thermosphere.proteins.alphabet import check_states
from thermosphere.proteins.ladder import Crew, learn_ladder
from thermosphere.proteins.potts import PottsModel
from thermosphere.proteins.tempering_result import TemperingResult
from thermosphere.proteins.walker import (
    COUNTS,
    DESCENTS,
    DESCENTS_TRIED,
    LEVEL,
    PROPOSALS,
    ROUND_TRIPS,
    VISITS,
    Harvest,
    Ladder,
    System,
    Walker,
    walk,
)

# The harvest may take this many times the cycles that evenly visited levels need.
_HARVEST_PATIENCE = 20
_CHUNK = 2000  # cycles between looks at the clock: some milliseconds
_OVERLAP_PAIRS = 20_000


def sample_sequences(
    model: PottsModel,
    native: ArrayLike,
    *,
    seed: int,
    sequences: int = 15_000,
    temperature: float = 1.0,
    hot: float = 20.0,
    moves: str = "swap",
    level_spacing: float = 0.8,
    visit: float = 0.1,
    harvest_spacing: int = 50,
    walkers: int = 8,
    threads: int | None = None,
    record_levels: bool = False,
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
        level_spacing: Δβ·σ_E of neighbouring levels.
        visit: accepted moves a site in one visit of a level; sets the proposals a visit.
        harvest_spacing: visits of the target level from one harvest to the next.
        walkers: independent walkers.
        threads: how many run at once; all available cores by default.
        record_levels: keep S sequences of every level, not of the target alone.
        progress: show bars.

    Returns: TemperingResult.  Its diagnostics: ``round_trips`` hot → cold → hot of all walkers
    during the harvest; ``round_trips_per_sequence``; ``overlap_random`` and
    ``overlap_consecutive``, mean share of equal sites between harvested pairs taken at random and
    between neighbours of one walker; ``overlap_baseline``, the same for sequences drawn at random,
    of the conserved composition or of equally likely states; ``distinct_sequences``; ``proposals``;
    ``energy_drift``, largest difference between a walker's running energy and the recomputed one.
    A warning is given for fewer than one round trip per 100 sequences (most of them then come from
    few basins) and for a level visited less than a tenth of the mean.

    Raises: ValueError for arguments out of range; RuntimeError where the ladder does not reach the
    target, or the target is visited too rarely.
    """
    system, tokens = _check(model, native, moves)
    for name, value, least in (
        ("seed", seed, 0),
        ("sequences", sequences, 1),
        ("harvest_spacing", harvest_spacing, 1),
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
        "seed": seed,
        "sequences": sequences,
        "temperature": temperature,
        "hot": hot,
        "moves": moves,
        "level_spacing": level_spacing,
        "visit": visit,
        "harvest_spacing": harvest_spacing,
        "walkers": walkers,
        "record_levels": record_levels,
    }
    crew = Crew(
        system,
        [_new_walker(model, tokens, seed, index) for index in range(walkers)],
        threads or _available_cores(),
    )
    with crew.pool:
        ladder = learn_ladder(crew, 1.0 / hot, 1.0 / temperature, level_spacing, visit, progress)
        harvests = _harvest(crew, ladder, sequences, harvest_spacing, record_levels, progress)
    return _result(crew, ladder, harvests, model, settings)


def _check(model: PottsModel, native: ArrayLike, moves: str) -> tuple[System, NDArray[np.uint8]]:
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
    i, j = model.pairs.T
    block_of = np.full((model.length, model.length), -1, dtype=np.int32)
    block_of[i, j] = block_of[j, i] = model.block
    starts = np.concatenate([[0], np.cumsum((block_of >= 0).sum(axis=1))])
    neighbours = np.nonzero(block_of >= 0)[1]
    system = System(model.couplings, block_of, starts, neighbours, moves == "mutation")
    return system, tokens.astype(np.uint8)


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _new_walker(model: PottsModel, tokens: NDArray[np.uint8], seed: int, index: int) -> Walker:
    seeds = np.random.SeedSequence([seed, index])
    return Walker(
        tokens=tokens.copy(),
        fields=model.local_fields(tokens),
        energy=model.energy(tokens[None]),
        counter=np.array(seeds.generate_state(1, np.uint64), dtype=np.uint64),
        place=np.zeros(3, dtype=np.int64),
        counts=np.zeros((COUNTS, 1), dtype=np.int64),
        sums=np.zeros((2, 1)),
    )


def _harvest(
    crew: Crew, ladder: Ladder, sequences: int, spacing: int, every: bool, progress: bool
) -> list[Harvest]:
    """Fill the quota of every walker; one Harvest a walker, its last row the target level."""
    levels, count = len(ladder.betas), len(crew.walkers)
    rows = np.arange(levels) if every else np.where(np.arange(levels) == levels - 1, 0, -1)
    harvests = []
    for index in range(count):
        quota = sequences // count + (index < sequences % count)
        tokens = np.zeros((rows[-1] + 1, quota, len(crew.walkers[0].tokens)), dtype=np.uint8)
        filled = np.zeros(rows[-1] + 1, dtype=np.int64)
        harvests.append(Harvest(rows.astype(np.int64), tokens, filled, spacing))
    crew.clear(levels)
    for walker in crew.walkers:
        walker.place[LEVEL + 1 :] = 0
    stop = threading.Event()
    lock = threading.Lock()
    bar = tqdm(total=sequences, desc="sequences", unit="", disable=not progress)

    def fill(index: int) -> None:
        try:
            fill_quota(index)
        except BaseException:
            stop.set()  # the other walkers end at their next look
            raise

    def fill_quota(index: int) -> None:
        harvest = harvests[index]
        quota = harvest.tokens.shape[1]
        patience = _HARVEST_PATIENCE * max(quota, 100) * spacing * levels
        spent = 0
        while not stop.is_set() and int(harvest.filled.min()) < quota:
            if spent > patience:
                raise RuntimeError(
                    f"sample_sequences: a walker found {int(harvest.filled.min())} of {quota} "
                    f"sequences in {spent} cycles; the weights are poor, use a larger visit"
                )
            before = int(harvest.filled[-1])
            walk(crew.system, crew.walkers[index], ladder, _CHUNK, harvest)
            spent += _CHUNK
            with lock:
                bar.update(int(harvest.filled[-1]) - before)

    with bar:
        try:
            crew.each(fill)
        finally:
            stop.set()  # an interrupt reaches this thread only
    return harvests


def _result(
    crew: Crew,
    ladder: Ladder,
    harvests: list[Harvest],
    model: PottsModel,
    settings: dict[str, Any],
) -> TemperingResult:
    found = crew.levels()
    visits = found.counts[VISITS]
    tokens = np.concatenate([harvest.tokens for harvest in harvests], axis=1)  # (R, S, n)
    sequences = tokens[-1]
    walker = np.repeat(np.arange(len(harvests)), [h.tokens.shape[1] for h in harvests])
    trips = sum(int(member.place[ROUND_TRIPS]) for member in crew.walkers)
    diagnostics = {
        "round_trips": trips,
        "round_trips_per_sequence": trips / len(sequences),
        **_overlaps(sequences, walker, model.states, settings),
        "distinct_sequences": len(np.unique(sequences, axis=0)),
        "proposals": int(found.counts[PROPOSALS].sum()),
        "energy_drift": max(
            abs(float(member.energy[0] - model.energy(member.tokens))) for member in crew.walkers
        ),
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
        energies=model.energy(sequences),
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
        log_partition=np.log(np.maximum(visits, 1) / max(visits[0], 1))
        - (ladder.weights - ladder.weights[0]),
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
        overlaps["overlap_random"] = float((sequences[first] == sequences[second]).mean())
    return overlaps
