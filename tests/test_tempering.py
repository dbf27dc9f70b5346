"""Simulated tempering: the exact law on systems small enough to enumerate, and its promises."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from thermosphere.proteins import decorrelation, harvest, tempering
from thermosphere.proteins import ladder as ladder_module
from thermosphere.proteins.alphabet import encode
from thermosphere.proteins.crew import Crew
from thermosphere.proteins.potts import PottsModel, interaction_matrix
from thermosphere.proteins.structure import native_2abd
from thermosphere.proteins.tempering import TemperingResult, sample_sequences
from thermosphere.proteins.tempering_checkpoint import save_progress

# Six sites, three states: contacts within a loop, across it, and to a site of degree four.
SWAP_CONTACTS = np.array([[0, 1], [0, 2], [0, 3], [0, 5], [1, 4], [2, 3], [3, 5]])
SWAP_NATIVE = np.array([0, 0, 1, 1, 2, 2])
MUTATION_CONTACTS = np.array([[0, 1], [0, 2], [0, 4], [1, 3], [2, 4]])
MUTATION_NATIVE = np.zeros(5, dtype=int)
J3 = interaction_matrix(11, 3)

WALKERS, BLOCKS, PER_BLOCK = 8, 8, 4000
SEQUENCES = WALKERS * BLOCKS * PER_BLOCK


def small_run(moves, **options):
    contacts, native = (
        (MUTATION_CONTACTS, MUTATION_NATIVE)
        if moves == "mutation"
        else (SWAP_CONTACTS, SWAP_NATIVE)
    )
    native = options.pop("native", native)
    arguments = {"seed": 5, "sequences": 400, "hot": 6.0, "temperature": 0.6, "harvest_spacing": 3}
    model = options.pop("model", None) or PottsModel.from_contacts(contacts, J3, len(native))
    return sample_sequences(model, native, moves=moves, **(arguments | options))


def all_sequences(moves):
    if moves == "swap":
        return np.array(sorted(set(permutations(SWAP_NATIVE))), dtype=np.uint8)
    return np.array(list(product(range(3), repeat=5)), dtype=np.uint8)


def codes(tokens):
    """Each sequence as one integer, base 3."""
    return tokens.astype(np.int64) @ 3 ** np.arange(tokens.shape[-1])


def standard_scores(result, shift=0.0):
    """z of every sequence's frequency at every level, (K, sequences), errors from blocks.

    ``shift`` plants a fault: it multiplies the temperatures that the law is computed for.
    """
    states = all_sequences(result.settings["moves"])
    energies = result.model.energy(states)
    place = np.argsort(codes(states))
    scores = []
    for level, temperature in enumerate(result.temperatures * (1.0 + shift)):
        law = np.exp(-(energies - energies.min()) / temperature)
        law /= law.sum()
        found = np.searchsorted(codes(states)[place], codes(result.level_sequences[level]))
        blocks = place[found].reshape(WALKERS * BLOCKS, PER_BLOCK)
        frequency = np.stack([(blocks == s).mean(axis=1) for s in range(len(states))])
        # The naive binomial error bounds the block error from below where a state is never seen.
        naive = np.sqrt(law * (1 - law) / SEQUENCES)
        error = np.maximum(frequency.std(axis=1, ddof=1) / np.sqrt(WALKERS * BLOCKS), naive)
        scores.append((frequency.mean(axis=1) - law) / error)
    return np.array(scores)


@pytest.fixture(
    scope="module",
    params=[("swap", "simulated"), ("mutation", "simulated"), ("swap", "parallel")],
    ids=" ".join,
)
def recorded(request):
    moves, method = request.param
    return small_run(
        moves, method=method, sequences=SEQUENCES, walkers=WALKERS, record_levels=True, visit=0.5
    )


def test_every_level_follows_the_exact_boltzmann_law(recorded):
    scores = standard_scores(recorded)
    levels = len(recorded.temperatures)
    assert recorded.level_sequences.shape[:2] == (levels, SEQUENCES)
    assert levels >= 4
    # Of some 10³ scores a standard normal leaves one in 10³ runs beyond 5; blocks have 63 degrees.
    assert np.abs(scores).max() < 5.0
    for level in range(levels):
        # Mean of z² over m states: 1 − 1/m, spread sqrt(2/m) and more where few states dominate.
        assert (scores[level] ** 2).mean() < 1.0 + 5.0 * np.sqrt(2.0 / scores.shape[1])


def test_the_law_test_sees_a_temperature_off_by_a_tenth(recorded):
    assert np.abs(standard_scores(recorded, shift=0.1)).max() > 8.0


def test_log_partition_function_and_mean_energy(recorded):
    moves = recorded.settings["moves"]
    energies = recorded.model.energy(all_sequences(moves))
    runs = [small_run(moves, seed=seed, sequences=2000) for seed in range(8)]
    for observable in ("log_partition", "mean_energy"):
        differences, errors = [], []
        for run in runs:
            factors = np.exp(-np.outer(1.0 / run.temperatures, energies))  # (K, states)
            total = factors.sum(axis=1)
            mean = (factors * energies).sum(axis=1) / total
            exact = np.log(total / total[0]) if observable == "log_partition" else mean
            differences.append(getattr(run, observable)[-1] - exact[-1])
            errors.append(run.log_partition_error[-1])
        z = np.mean(differences) / (np.std(differences, ddof=1) / np.sqrt(len(differences)))
        assert abs(z) < 5.4  # one in a thousand for Student's t with 7 degrees of freedom
        if observable == "log_partition":
            # The jackknife's own errors: 8 of Student's t with 7 degrees, whose variance is 7/5.
            squares = np.mean((np.array(differences) / np.array(errors)) ** 2)
            assert 0.25 < squares < 5.0


def test_frozen_weights_are_thermodynamic_integrals(recorded):
    energies = recorded.model.energy(all_sequences(recorded.settings["moves"]))
    exact = np.log(np.exp(-np.outer(1.0 / recorded.temperatures, energies)).sum(axis=1))
    # Learned from 8 × 3200 visits: rough, and need not be better for the law to hold.
    assert np.abs(recorded.weights + exact - exact[0]).max() < 0.1
    share = recorded.visits / recorded.visits.sum()
    assert share.min() > 0.8 / len(share)


def test_the_last_recorded_level_is_the_harvest(recorded):
    assert (recorded.level_sequences[-1] == recorded.sequences).all()
    assert recorded.temperatures[0] == pytest.approx(6.0, rel=1e-15)
    assert recorded.temperatures[-1] == pytest.approx(0.6, rel=1e-15)
    assert (np.diff(recorded.temperatures) < 0).all()


@pytest.fixture(scope="module")
def protein():
    native = native_2abd()
    model = PottsModel.from_contacts(native.contacts, interaction_matrix(0), native.length)
    return model, encode(native.sequence)


@pytest.fixture(scope="module")
def short_run(protein):
    model, tokens = protein
    return sample_sequences(model, tokens, seed=1, sequences=60, temperature=3.0, walkers=4)


def test_protein_run(short_run, protein):
    model, tokens = protein
    result = short_run
    assert result.sequences.shape == (60, 86)
    assert result.sequences.dtype == np.uint8
    assert (np.sort(result.sequences, axis=1) == np.sort(tokens)).all()
    assert (result.energies == model.energy(result.sequences)).all()
    assert result.diagnostics["energy_drift"] < 1e-8
    assert result.diagnostics["distinct_sequences"] == 60
    assert result.diagnostics["round_trips"] > 0
    # Neighbouring levels overlap: with Δβ σ = 0.8 and Gaussian energies the exchange is accepted
    # with probability erfc(0.8 / (2 sqrt 2)) + … ≈ 0.69.
    assert (result.level_acceptance > 0.5).all()
    assert (np.diff(result.mean_energy) < 0).all()
    assert result.walker.tolist() == sorted(list(range(4)) * 15)
    assert result.warnings == []


@pytest.mark.filterwarnings("ignore:Unknown solver options")  # pymbar's, to SciPy
def test_log_partition_function_agrees_with_mbar(protein):
    """pymbar's estimate from the recorded sequences of every level of the same run."""
    mbar = pytest.importorskip("pymbar").MBAR
    model, tokens = protein
    run = sample_sequences(
        model, tokens, seed=2, sequences=2000, temperature=2.0, record_levels=True
    )
    levels = len(run.temperatures)
    energies = model.energy(run.level_sequences).ravel()  # (K · S,)
    reduced = energies / run.temperatures[:, None]
    found = mbar(reduced, np.full(levels, 2000)).compute_free_energy_differences()
    difference = run.log_partition + found["Delta_f"][0]
    # The recorded sequences are a part of the visits; MBAR takes them for independent, they are a
    # measured decorrelation apart at the target, and closer than that to being so above it.
    error = np.hypot(run.log_partition_error, found["dDelta_f"][0])
    assert (np.abs(difference[1:]) < 4.5 * error[1:]).all()
    assert error[-1] < 0.1  # of some −60
    assert abs(run.log_partition[-1]) > 20


def same(first, second):
    return all(
        np.array_equal(getattr(first, entry.name), getattr(second, entry.name))
        for entry in fields(TemperingResult)
        if entry.name != "model"
    ) and all(
        np.array_equal(value, getattr(second.model, name))
        for name, value in vars(first.model).items()
    )


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("method", ["simulated", "parallel"])
def test_a_killed_harvest_goes_on_bit_for_bit(method, tmp_path, monkeypatch):
    monkeypatch.setattr(harvest, "_ROUND", 500)
    options = {"method": method, "harvest_spacing": None, "sequences": 3000}
    whole = small_run("swap", **options)
    path = tmp_path / "sequences.checkpoint.npz"
    written = []

    def save(target, state):
        if len(written) % 3 == 2:
            written.append(target)
            raise Killed
        save_progress(target, state)
        written.append(target)

    monkeypatch.setattr(tempering, "save_progress", save)
    kills = 0
    while True:
        try:
            broken = small_run("swap", checkpoint=path, checkpoint_seconds=0.0, **options)
            break
        except Killed:
            kills += 1
    assert kills > 1
    assert same(whole, broken)
    # The file of a harvest that is complete changes nothing.
    assert same(whole, small_run("swap", checkpoint=path, checkpoint_seconds=0.0, **options))


def test_checkpoints_of_something_else_are_refused(tmp_path):
    path = tmp_path / "sequences.checkpoint.npz"
    small_run("swap", checkpoint=path, checkpoint_seconds=0.0)
    with pytest.raises(ValueError, match="does not fit: seed was 5, now 6"):
        small_run("swap", checkpoint=path, seed=6)
    model = PottsModel.from_contacts(SWAP_CONTACTS[1:], J3, 6)
    with pytest.raises(ValueError, match="does not fit: it was another model"):
        small_run("swap", checkpoint=path, model=model)
    with pytest.raises(ValueError, match=r"does not fit: native was '[0-9a-f]+', now "):
        small_run("swap", checkpoint=path, native=SWAP_NATIVE[::-1])
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="thermosphere tempering checkpoint 1 file"):
        small_run("swap", checkpoint=path)


def test_energies_are_summed_anew_at_a_checkpoint(tmp_path, monkeypatch):
    def spoil(target, state):
        state.crew.walkers[3].energies[0] += 1
        save_progress(target, state)

    monkeypatch.setattr(tempering, "save_progress", spoil)
    with pytest.raises(RuntimeError, match="a walker's energy is"):
        small_run("swap", checkpoint=tmp_path / "c.npz", checkpoint_seconds=0.0)


@pytest.mark.parametrize("method", ["simulated", "parallel"])
@pytest.mark.parametrize("moves", ["swap", "mutation"])
def test_seed_decides_and_threads_do_not(moves, method):
    runs = [
        small_run(moves, method=method, harvest_spacing=None, threads=threads)
        for threads in (1, 2, 5)
    ]
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])
    other = small_run(moves, method=method, harvest_spacing=None, seed=6)
    assert (runs[0].sequences != other.sequences).any()


def test_bits_do_not_depend_on_the_instruction_set(tmp_path):
    """The same run compiled for the plainest processor of this kind, in a process of its own."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_tempering import small_run\n"
        "small_run('swap', harvest_spacing=None).save(sys.argv[2])"
    )
    path = tmp_path / "sequences.npz"
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(path)],
        env=os.environ | plain | {"NUMBA_CACHE_DIR": str(tmp_path)},
        check=True,
    )
    assert same(TemperingResult.load(path), small_run("swap", harvest_spacing=None))


def test_walkers_are_independent_of_each_other():
    result = small_run("mutation")
    first, second = (result.sequences[result.walker == index] for index in (0, 1))
    assert (first != second).any()


def test_uneven_quotas():
    result = small_run("swap", sequences=10, walkers=4)
    assert np.bincount(result.walker).tolist() == [3, 3, 2, 2]
    single = small_run("swap", sequences=1, walkers=4)
    assert single.sequences.shape == (1, 6)
    assert single.diagnostics["overlap_consecutive"] is None
    assert single.diagnostics["overlap_random"] is None


def test_overlap_diagnostics():
    result = small_run("swap", walkers=2)
    tokens = result.sequences
    consecutive = [
        (tokens[k] == tokens[k + 1]).mean()
        for k in range(len(tokens) - 1)
        if result.walker[k] == result.walker[k + 1]
    ]
    assert result.diagnostics["overlap_consecutive"] == pytest.approx(np.mean(consecutive))
    every = (tokens[:, None] == tokens[None]).mean(axis=2)
    pairs = every[~np.eye(len(tokens), dtype=bool)]
    error = pairs.std() / np.sqrt(20_000)
    assert abs(result.diagnostics["overlap_random"] - pairs.mean()) < 4 * error
    assert result.diagnostics["overlap_baseline"] == pytest.approx(1 / 3)


def test_save_and_load(tmp_path, short_run):
    path = tmp_path / "sequences.npz"
    short_run.save(path)
    assert same(TemperingResult.load(path), short_run)
    assert [entry.name for entry in tmp_path.iterdir()] == ["sequences.npz"]
    whole = path.read_bytes()
    for damaged in (b"", whole[:1000], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="thermosphere tempering 2 file"):
            TemperingResult.load(path)
    path.write_bytes(whole)
    with pytest.raises(TypeError):
        replace(short_run, settings={"not for JSON": {1}}).save(path)
    assert path.read_bytes() == whole


def test_progress_bars(capfd):
    small_run("swap", progress=True)
    shown = capfd.readouterr().err
    for word in ("ladder", "weights", "sequences"):
        assert word in shown
    small_run("swap")
    assert capfd.readouterr().err == ""


def test_few_round_trips_are_reported(protein):
    model, tokens = protein
    result = sample_sequences(
        model,
        tokens,
        seed=1,
        sequences=2000,
        temperature=1.0,
        walkers=2,
        harvest_spacing=1,
        visit=0.02,
    )
    trips = result.diagnostics["round_trips"]
    assert 100 * trips < 2000
    assert f"{trips} round trips for 2000 sequences" in result.warnings[0]


def test_a_ladder_that_cannot_reach_the_target(protein, monkeypatch):
    model, tokens = protein
    monkeypatch.setattr(ladder_module, "_MAXIMUM_LEVELS", 4)
    with pytest.raises(RuntimeError, match="4 levels reach only T = 4") as error:
        sample_sequences(model, tokens, seed=1)
    assert "\n" not in str(error.value)
    # One step from T = 20 to T = 1: no walker at 20 ever has an energy fit for 1.
    with pytest.raises(RuntimeError, match="do not reach T = 1, level 2 of the ladder"):
        sample_sequences(model, tokens, seed=1, level_spacing=20.0)


def test_weights_that_do_not_become_even(protein, monkeypatch):
    model, tokens = protein
    monkeypatch.setattr(ladder_module, "_LEARNING_VISITS", (1, 2))
    with pytest.raises(RuntimeError, match=r"after 2 visits a level .* and a walker 0\.\d round"):
        sample_sequences(model, tokens, seed=1)


def test_a_target_whose_decorrelation_takes_too_long(protein, monkeypatch):
    model, tokens = protein
    monkeypatch.setattr(decorrelation, "_FIRST_VISITS", 50)
    monkeypatch.setattr(decorrelation, "_MOST_VISITS", 50)
    with pytest.raises(RuntimeError, match="in 50 visits of T = 2 a walker does not forget"):
        sample_sequences(model, tokens, seed=1, temperature=2.0)


def test_a_target_visited_too_rarely(monkeypatch):
    monkeypatch.setattr(harvest, "_PATIENCE", 1)
    monkeypatch.setattr(harvest, "_ROUND", 1)
    monkeypatch.setattr(Crew, "harvest", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"found 0 of 50 sequences in \d+ cycles"):
        small_run("swap")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 7.0}, "hot must be above the target temperature 7.0, got 6.0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"hot": float("inf")}, "hot must be above"),
        ({"method": "annealing"}, "method must be 'simulated' or 'parallel', got 'annealing'"),
        ({"moves": "flip"}, "moves must be 'swap' or 'mutation', got 'flip'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"sequences": 0}, "sequences must be at least 1"),
        ({"walkers": 0}, "walkers must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"harvest_spacing": 0}, "harvest_spacing must be at least 1"),
        ({"level_spacing": 0.0}, "level_spacing must be positive"),
        ({"visit": -1.0}, "visit must be positive"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message) as error:
        small_run(**({"moves": "swap"} | options))
    assert str(error.value).startswith("sample_sequences: ")


@pytest.mark.parametrize(
    ("contacts", "native", "message"),
    [
        (np.zeros((0, 2), dtype=int), SWAP_NATIVE, "every sequence has energy 0"),
        ([[0, 1]], SWAP_NATIVE + 1, r"native must be 0\.\.2, got 1\.\.3"),
        ([[0, 1]], SWAP_NATIVE.astype(float), "native must be integers"),
        ([[0, 1]], np.zeros(6, dtype=int), "swaps need two kinds of residue"),
        ([[0, 1]], [1], r"native must be \(6,\), got shape \(1,\)"),
    ],
)
def test_bad_system(contacts, native, message):
    with pytest.raises(ValueError, match=message):
        sample_sequences(PottsModel.from_contacts(contacts, J3, 6), native, seed=0)
