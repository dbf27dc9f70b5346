"""The compiled walk: what it keeps, and the exact probabilities of each of its moves."""

from itertools import combinations, permutations, product

import numpy as np
import pytest

from thermosphere.proteins.crew import empty_harvest, new_walker
from thermosphere.proteins.fixed_point import TOKEN, fixed_point, grid_energy, local_differences
from thermosphere.proteins.potts import PottsModel, interaction_matrix
from thermosphere.proteins.structure import native_2abd
from thermosphere.proteins.walker import ACCEPTED, COUNTS, DESCENTS, SUMS, Ladder, walk

EPS = np.finfo(np.float64).eps


def random_model(kind, length, states, density, seed):
    """A model with one matrix for all pairs, or one each and fields; and a generator."""
    generator = np.random.default_rng(seed)
    pairs = np.array([p for p in combinations(range(length), 2) if generator.random() < density])
    if kind == "contacts":
        return PottsModel.from_contacts(pairs, interaction_matrix(seed, states), length), generator
    couplings = generator.standard_normal((len(pairs), states, states))
    fields = generator.standard_normal((length, states))
    return PottsModel.from_couplings(pairs, couplings, fields), generator


def system_of(model, moves="swap", hottest=10.0, coldest=0.1):
    return fixed_point(model, mutate=moves == "mutation", hottest=hottest, coldest=coldest)


def ladder_of(temperatures, proposals, together=False, weights=None):
    levels = len(temperatures)
    return Ladder(
        1.0 / np.asarray(temperatures, dtype=np.float64),
        np.zeros(levels) if weights is None else np.asarray(weights, dtype=np.float64),
        np.full(levels, proposals),
        np.full(levels, together),
    )


def fresh(model, system, rows, counter):
    return new_walker(model, system, np.atleast_2d(rows).astype(np.uint8), np.array([counter]))


def key(seed):
    return np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])


def states_of(walker):
    return (walker.words & TOKEN).astype(np.uint8)


CASES = [  # sites, states, share of pairs: signatures that collide, rows of one vector and of three
    ("contacts", 24, 20, 0.1),
    ("contacts", 90, 3, 0.1),
    ("couplings", 24, 21, 1.0),
    ("couplings", 70, 8, 0.2),
]


@pytest.mark.parametrize("moves", ["swap", "mutation"])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("kind", "length", "states", "density"), CASES)
def test_energy_and_differences_are_exact_after_many_moves(
    kind, length, states, density, together, moves
):
    model, generator = random_model(kind, length, states, density, 7)
    system = system_of(model, moves)
    start = generator.integers(0, states, length)
    walker = fresh(model, system, start, key(1))
    ladder = ladder_of([4.0], 500, together)
    walk(system, walker, ladder, 20, empty_harvest(1, length))
    assert walker.counts[ACCEPTED, 0] > 200
    tokens = states_of(walker)[0]
    assert walker.energies[0] == grid_energy(model, system, tokens)
    stride = int(system.stride)
    kept = walker.differences[0].reshape(length, stride)[:, :states]
    anew = local_differences(model, system, tokens).reshape(length, stride)[:, :states]
    assert (kept == anew).all()
    if moves == "swap":
        assert (np.sort(tokens) == np.sort(start)).all()
    # The grid against the model's own sum: half a unit a term, and the rounding of float64.
    terms = length + len(model.pairs)
    rounding = terms * (0.5 * system.unit + 2 * EPS * np.abs(model.couplings).max() * terms)
    assert abs(walker.energies[0] * system.unit - model.energy(tokens)) < rounding
    fields = model.local_fields(tokens)
    exact = fields - fields[np.arange(length), tokens][:, None]
    assert np.abs(kept * system.unit - exact).max() < 2 * rounding


@pytest.mark.parametrize("moves", ["swap", "mutation"])
def test_proposals_judged_together_make_the_bits_of_one_after_the_other(moves):
    model, generator = random_model("couplings", 40, 5, 0.2, 3)
    system = system_of(model, moves)
    start = generator.integers(0, 5, 40)
    for temperature in (0.5, 1.0, 3.0):
        ends = []
        for together in (False, True):
            walker = fresh(model, system, start, key(2))
            walk(system, walker, ladder_of([temperature], 333, together), 7, empty_harvest(1, 40))
            ends.append(walker)
        first, second = ends
        assert first.counts[ACCEPTED, 0] > 0
        for one, other in zip(first, second, strict=True):
            assert np.array_equal(one, other)


MODEL, _ = random_model("couplings", 4, 3, 0.8, 5)
TRIES = 8_000


def all_states(moves):
    if moves == "swap":
        return np.array(sorted(set(permutations([0, 0, 1, 2]))), dtype=np.uint8)
    return np.array(list(product(range(3), repeat=4)), dtype=np.uint8)[::5]


def transition_law(start, moves, temperature):
    """Probability of every sequence after one proposal from ``start``, as in the definition."""
    law = {}
    if moves == "swap":
        targets = []
        for i, j in product(range(4), repeat=2):
            target = start.copy()
            target[[i, j]] = target[[j, i]]
            targets.append(target)
    else:
        targets = []
        for i, state in product(range(4), range(3)):
            target = start.copy()
            target[i] = state
            targets.append(target)
    energy = float(MODEL.energy(start))
    for target in targets:
        accept = min(1.0, np.exp(-(float(MODEL.energy(target)) - energy) / temperature))
        law[tuple(target)] = law.get(tuple(target), 0.0) + accept / len(targets)
        law[tuple(start)] = law.get(tuple(start), 0.0) + (1.0 - accept) / len(targets)
    return law


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("moves", ["swap", "mutation"])
def test_a_proposal_has_the_metropolis_probabilities(moves, together):
    temperature = 1.3
    system = system_of(MODEL, moves)
    ladder, nothing = ladder_of([temperature], 1, together), empty_harvest(1, 4)
    square, count = 0.0, 0
    for index, start in enumerate(all_states(moves)):
        law = transition_law(start, moves, temperature)
        seen = dict.fromkeys(law, 0)
        still = fresh(MODEL, system, start, key(index))
        moving = fresh(MODEL, system, start, key(index))
        for _ in range(TRIES):
            walk(system, moving, ladder, 1, nothing)
            seen[tuple(states_of(moving)[0])] += 1
            for name in ("words", "differences", "energies"):
                getattr(moving, name)[:] = getattr(still, name)
        for target, probability in law.items():
            if probability > 1e-12:
                square += (seen[target] - TRIES * probability) ** 2 / (TRIES * probability)
        count += sum(probability > 1e-12 for probability in law.values()) - 1
    assert abs(square - count) < 4.5 * np.sqrt(2 * count)  # χ² of count degrees of freedom


def test_detailed_balance_of_the_law_itself():
    """What the proposals are held to above is reversible under Boltzmann's weights."""
    for moves in ("swap", "mutation"):
        states = (
            all_states(moves)
            if moves == "swap"
            else np.array(list(product(range(3), repeat=4)), dtype=np.uint8)
        )
        for start in states:
            for target, probability in transition_law(start, moves, 1.3).items():
                back = transition_law(np.array(target, dtype=np.uint8), moves, 1.3)[tuple(start)]
                here = probability * np.exp(-float(MODEL.energy(start)) / 1.3)
                there = back * np.exp(-float(MODEL.energy(np.array(target))) / 1.3)
                assert here == pytest.approx(there, rel=1e-12)


@pytest.mark.parametrize("way", [1, -1])
def test_a_level_move_goes_on_or_turns_round(way):
    """One move from the middle of three levels: probability, direction after it."""
    temperatures, weights = [3.0, 1.5, 1.0], [0.0, 0.4, -0.3]
    system = system_of(MODEL)
    ladder, nothing = ladder_of(temperatures, 0, weights=weights), empty_harvest(3, 4)
    start = np.array([0, 1, 0, 2])
    energy = float(MODEL.energy(start))
    expected = np.exp(
        (1 / temperatures[1] - 1 / temperatures[1 + way]) * energy + weights[1 + way] - weights[1]
    )
    walker = fresh(MODEL, system, start, key(9))._replace(
        counts=np.zeros((COUNTS, 3), dtype=np.int64), sums=np.zeros((SUMS, 3))
    )
    moved = 0
    for _ in range(TRIES):
        walker.levels[0], walker.ways[0] = 1, way
        walk(system, walker, ladder, 1, nothing)
        if walker.levels[0] == 1:
            assert walker.ways[0] == -way
        else:
            assert (walker.levels[0], walker.ways[0]) == (1 + way, way)
            moved += 1
    probability = min(1.0, expected)
    assert probability > 0.05  # else the case tells nothing
    assert abs(moved - TRIES * probability) <= 4.5 * np.sqrt(
        TRIES * probability * (1 - probability)
    )
    walker.levels[0], walker.ways[0] = 1 + way, way  # at the end of the ladder
    walk(system, walker, ladder, 1, nothing)
    assert (walker.levels[0], walker.ways[0]) == (1 + way, -way)


def test_replicas_are_exchanged_with_the_metropolis_probability():
    temperatures = [3.0, 1.5, 1.0]
    rows = np.array([[0, 1, 0, 2], [0, 0, 1, 2], [2, 0, 1, 0]])
    system = system_of(MODEL)
    ladder, nothing = ladder_of(temperatures, 0), empty_harvest(3, 4)
    energies = MODEL.energy(rows)
    walker = fresh(MODEL, system, rows, key(4))
    for parity, first in ((1, 0), (-1, 1)):
        probability = min(
            1.0,
            np.exp(
                (1 / temperatures[first + 1] - 1 / temperatures[first])
                * (energies[first + 1] - energies[first])
            ),
        )
        exchanged = 0
        for _ in range(TRIES):
            walker.levels[:] = np.arange(3)
            walker.ways[0] = parity
            walk(system, walker, ladder, 1, nothing)
            assert sorted(walker.levels) == [0, 1, 2]
            assert walker.ways[0] == -parity
            assert walker.levels[2 - 2 * first] == 2 - 2 * first  # not of this turn
            exchanged += int(walker.levels[first] == first + 1)
        deviation = np.sqrt(TRIES * probability * (1 - probability))
        assert abs(exchanged - TRIES * probability) <= 4.5 * deviation
    assert walker.counts[DESCENTS].sum() > 0


def test_every_pair_is_listed_from_both_ends_and_in_the_signatures():
    native = native_2abd()
    model = PottsModel.from_contacts(native.contacts, interaction_matrix(0), native.length)
    system = system_of(model)
    matrix = native.matrix()
    positions = (system.words >> np.uint64(8)) & np.uint64(63)
    assert positions.min() >= 14
    meet = (system.words[:, None] >> positions[None]) & np.uint64(1)
    assert (meet[matrix == 1] == 1).all()
    for i in range(86):
        found = system.neighbours[int(system.starts[i]) : int(system.starts[i + 1])]
        assert found.tolist() == np.flatnonzero(matrix[i]).tolist()


def test_energies_that_do_not_fit_the_grid_are_refused():
    model = PottsModel.from_contacts([[0, 1]], 1e12 * interaction_matrix(0, 3), 3)
    with pytest.raises(ValueError, match=r"leave a resolution of .* too coarse for T = 0.1"):
        system_of(model)
    assert system_of(model, coldest=1e11, hottest=1e12).unit < 1e5
