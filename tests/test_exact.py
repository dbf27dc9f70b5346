"""The exact check: what it finds on a toy whose ⟨U⟩ is known, with and without a planted bias; a
kill; what it refuses and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from sphere_law import sphere_law
from toy import NoisyQuadratic, Q, start_weights

from thermosphere.archive import read_archive
from thermosphere.runs import exact
from thermosphere.runs.config import Pilot, Sampling
from thermosphere.runs.exact import chains_near, check_model, moves_of
from thermosphere.runs.exact_table import (
    BURN_IN,
    COLUMNS,
    Comparison,
    compare,
    read_comparisons,
    read_hotter,
    save_comparisons,
)
from thermosphere.runs.store import OBSERVABLES, SampleStore, open_samples
from thermosphere.sampling import full_batch
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.options import LangevinOptions

pytestmark = pytest.mark.usefixtures("one_torch_thread")

N, CHAINS = 12, 12
LADDER = (0.25, 0.5, 1.0)
SETTINGS = Sampling(temperatures=list(LADDER), chains=CHAINS, draws=2, batch="all", m1=0.5)
PILOT = Pilot(exact_at=[1.0], exact_gradients=600, exact_steps=6)


@cache
def exact_energy(temperature: float) -> float:
    return sphere_law(NoisyQuadratic(N), norm2=Q, temperature=temperature).energy


class Toy(NoisyQuadratic):
    """The quadratic, as a network's potential is asked for U and its name."""

    model = SimpleNamespace(name="toy")

    def evaluate(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        losses = torch.from_numpy(self.energy(weights.double().numpy()))
        return losses, torch.zeros_like(losses)


def sampled(directory: Path, toy: Toy) -> None:
    """Samples of two draws, the last of them at equilibrium."""
    temperature = np.repeat(LADDER, CHAINS)
    store = SampleStore.create(
        directory / "samples.zarr",
        draws=2,
        parameters=N,
        temperature=temperature,
        start=np.tile(np.arange(CHAINS), len(LADDER)),
        moves_per_draw=1,
        attributes={"norm2": Q},
    )
    sampler = Langevin(toy, temperature.tolist(), seed=5, options=SETTINGS.options())
    state = sampler.init(start_weights(len(temperature)), norm2=Q)
    nothing = dict.fromkeys(OBSERVABLES, torch.zeros(len(temperature)))
    for draw in range(2):
        sampler.run(state, 100)
        store.write(draw, nothing, state.weights)


@pytest.fixture(autouse=True)
def turning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen parameters turn farther in a move than those of a network may."""
    monkeypatch.setattr(full_batch, "LARGEST_TURN", 0.1)


def check(
    directory: Path, *, pilot: Pilot = PILOT, settings: Sampling = SETTINGS, resume: bool = False
) -> list[Comparison]:
    toy = Toy(N)
    if not (directory / "samples.zarr").exists():
        sampled(directory, toy)
    references = SimpleNamespace(early_stopped=start_weights(CHAINS, seed=9))
    check_model(directory, toy, references, settings, pilot, 1.0, 0.0, seed=2, resume=resume)  # type: ignore[arg-type]
    return read_comparisons(directory)


def test_both_ways_agree_with_each_other_and_with_quadrature(tmp_path: Path) -> None:
    pilot = msgspec.structs.replace(PILOT, exact_at=[0.45, 1.1])
    found = check(tmp_path, pilot=pilot)
    assert [one.temperature for one in found] == [0.5, 1.0]
    for one in found:
        law = exact_energy(one.temperature)
        error = np.sqrt(sum(a.error**2 for a in one.exact)) / CHAINS
        assert abs(one.excess - law) < 4 * error
        assert error < 0.02 * law  # else nothing was shown
        assert one.enough
        assert one.agrees
        assert one.bounded is not False
        assert "Agree within 2 standard errors" in one.sentence()
        assert 0.6 < one.acceptance.mean() < 0.98
        assert np.abs(one.kinetic.mean(1) - 1).max() < 0.05
    assert found[1].chains == tuple(range(2 * CHAINS, 3 * CHAINS))


def test_the_third_way_has_the_law_of_its_temperature(tmp_path: Path) -> None:
    wide = msgspec.structs.replace(PILOT, exact_at=[0.5, 1.0], exact_neighbour=0.3)
    check(tmp_path, pilot=wide)
    found = read_hotter(tmp_path)
    assert [(one.temperature, one.hotter) for one in found] == [(0.5, 0.65), (1.0, 1.3)]
    for one in found:
        assert one.losses.shape == one.losses_hotter.shape == (CHAINS, 100)
        assert not np.isclose(one.losses, one.losses_hotter).any()
        for temperature, losses in ((one.temperature, one.losses), (one.hotter, one.losses_hotter)):
            means = losses[:, 10:].mean(1)
            error = means.std(ddof=1) / CHAINS**0.5
            assert abs(means.mean() - exact_energy(temperature)) < 4 * error
            assert error < 0.03 * exact_energy(temperature)  # else nothing was shown
        noise = np.corrcoef(one.losses.ravel(), one.losses_hotter.ravel())[0, 1]
        assert abs(noise) < 0.2  # not the same noise twice

    none = msgspec.structs.replace(PILOT, exact_neighbour=0.0)
    (tmp_path / exact.FILE).unlink()
    check(tmp_path, pilot=none)
    assert read_hotter(tmp_path) == []


def hot(monkeypatch: pytest.MonkeyPatch) -> Sampling:
    class Hot(Langevin):
        def __init__(self, energy: object, temperature: torch.Tensor, **rest: object) -> None:
            super().__init__(energy, 1.5 * temperature, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(exact, "Langevin", Hot)
    return SETTINGS


def too_long(monkeypatch: pytest.MonkeyPatch) -> Sampling:
    """ω dt = 1.2 of the stiffest mode, and of the others not much less."""
    monkeypatch.setattr(full_batch, "STEP_BIAS", 1.0)
    monkeypatch.setattr(full_batch, "LARGEST_TURN", 1.0)
    return msgspec.structs.replace(SETTINGS, stiffness=1.2)


@pytest.mark.parametrize(("planted", "temperature"), [(hot, 1.0), (too_long, 0.25)])
def test_a_planted_bias_is_found(
    planted: Callable[[pytest.MonkeyPatch], Sampling],
    temperature: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampled(tmp_path, Toy(N))
    pilot = msgspec.structs.replace(PILOT, exact_at=[temperature], exact_gradients=1500)
    (one,) = check(tmp_path, pilot=pilot, settings=planted(monkeypatch))
    assert one.enough
    assert one.z > 4
    assert not one.agrees
    assert one.bounded is False
    assert "Disagree, not within 2 standard errors; the bias is above 1 %" in one.sentence()
    if temperature == 1.0:
        assert one.excess == pytest.approx(exact_energy(1.0), rel=0.03)  # that side has none of it


def test_every_chain_goes_on_from_its_own_last_draw(tmp_path: Path) -> None:
    toy = Toy(N)
    sampled(tmp_path, toy)
    store = SampleStore.open(
        tmp_path / "samples.zarr", draws=3, chains=CHAINS * len(LADDER), parameters=N
    )
    late = np.arange(CHAINS)  # of the first temperature: these went on
    new = start_weights(CHAINS, seed=4)
    store.write(2, dict.fromkeys(OBSERVABLES, torch.zeros(CHAINS)), new, torch.from_numpy(late))
    samples = open_samples(tmp_path / "samples.zarr")
    rows = np.array([CHAINS, 1, 0])
    found = exact._last_weights(samples, rows, np.array([2, 3, 3]))
    assert torch.equal(found[1:], new[[1, 0]])
    assert np.array_equal(found[0].numpy(), samples["weights"].values[CHAINS, 1])
    settings = msgspec.structs.replace(SETTINGS, draws=2)
    pilot = msgspec.structs.replace(PILOT, exact_at=[LADDER[0], LADDER[1]])
    check(tmp_path, pilot=pilot, settings=settings)
    _, header = read_archive(tmp_path / exact.FILE, exact.KIND)
    assert header["draws"] == [3] * CHAINS + [2] * CHAINS


def test_a_killed_check_goes_on_bit_for_bit_and_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pilot = msgspec.structs.replace(PILOT, exact_gradients=90)
    shorter = msgspec.structs.replace(PILOT, exact_gradients=72)
    settings = msgspec.structs.replace(SETTINGS, checkpoint_seconds=0.0)
    check(whole, pilot=pilot, settings=settings)

    def killed(name: str, owner: object, after: int) -> None:
        """Go on until the function has been called that often."""
        real, calls = getattr(owner, name), []

        def dying(*arguments: object) -> None:
            calls.append(1)
            if len(calls) == after:
                raise KeyboardInterrupt
            real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, dying)
            with pytest.raises(KeyboardInterrupt):
                check(broken, pilot=shorter, settings=settings, resume=True)

    killed("write_archive", exact, 8)
    assert read_archive(broken / exact.FILE, exact.KIND)[0]["exact.tuned"] == 7
    assert read_comparisons(broken) == []  # no draw yet
    with pytest.raises(ValueError, match=r"^exact: .*exact\.safetensors is there; --resume"):
        check(broken, pilot=shorter, settings=settings)
    killed("draw", exact.Continued, 8)  # between the two ways
    check(broken, pilot=shorter, settings=settings, resume=True)
    check(broken, pilot=pilot, settings=settings, resume=True)

    one, two = (read_archive(d / exact.FILE, exact.KIND) for d in (whole, broken))
    assert one[1] == two[1]
    assert one[0].keys() == two[0].keys()
    for name, tensor in one[0].items():
        assert torch.equal(tensor, two[0][name]), name
    assert two[0]["exact.draws.losses"].shape == (CHAINS, 15)
    other = msgspec.structs.replace(pilot, exact_steps=5)
    with pytest.raises(ValueError, match="must be of the same run: exact_steps expected 5, got 6"):
        check(broken, pilot=other, settings=settings, resume=True)


def test_samples_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    sampled(tmp_path, Toy(N))
    longer = msgspec.structs.replace(SETTINGS, draws=3)
    with pytest.raises(ValueError, match=r"^exact: .*holds 2 of 3 draws: run `thermosphere sample"):
        check(tmp_path, settings=longer)


def draws(mean: float, seed: int, *, chains: int = 3, correlated: float = 0.5) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.standard_normal((chains, 400))
    for k in range(1, 400):
        values[:, k] = correlated * values[:, k - 1] + values[:, k] * (1 - correlated**2) ** 0.5
    return mean + 0.01 * values


def judged(exact_draws: np.ndarray, sampled_draws: np.ndarray, **changed: object) -> Comparison:
    chains = len(exact_draws)
    one = compare(
        1e-4,
        exact_draws,
        sampled_draws,
        np.full((2, chains, 400), 1e-4),
        np.full(chains, 320),
        np.full(chains, 0.8),
        of_unit=1.25,
        lowest=1.0,
        gradients=14_000,
        chains=tuple(range(chains)),
    )
    return replace(one, **changed)  # type: ignore[arg-type]


def test_chains_are_held_against_themselves() -> None:
    """Basins a tenth of ⟨U⟩ − U_min apart say nothing of a bias of a hundredth of it, and hide
    none."""
    basins = np.array([[0.0], [0.1], [-0.1]])
    fair = judged(draws(2.0, 1) + basins, draws(2.0, 2) + basins)
    assert fair.agrees
    assert fair.bounded is True
    assert "the bias is below 1 % at the 95 % level" in fair.sentence()
    biased = judged(draws(2.0, 1) + basins, draws(2.02, 2) + basins)
    assert not biased.agrees
    assert biased.bounded is False
    assert biased.difference[0] == pytest.approx(0.02, abs=4 * biased.difference[1])
    apart = judged(draws(2.0, 1) + basins, draws(2.0, 2) - basins)
    assert apart.difference[1] > 0.1  # what chains disagree about is no small error
    assert apart.bounded is None
    assert "cannot be told" in apart.sentence()
    assert "scatter" in apart.sentence()  # and it is said
    assert "scatter" not in fair.sentence()
    assert fair.scatter < 2


def test_few_chains_know_their_error_badly() -> None:
    """Where the spread of the differences is the error, two chains leave it one degree of freedom:
    six times the reach."""
    basins = np.array([[0.0], [0.0], [0.0]])
    spread = np.array([[0.002], [0.006], [0.004]])
    few, many = (
        judged(np.tile(draws(2.0, 1)[:1], (k, 1)) + basins[:k], sampled)
        for k, sampled in (
            (2, np.tile(draws(2.0, 2)[:1], (2, 1)) + spread[:2]),
            (3, np.tile(draws(2.0, 2)[:1], (3, 1)) + spread),
        )
    )
    few, many = (replace(one, sampled=tuple(a._replace(error=1e-6) for a in one.sampled),
                         exact=tuple(a._replace(error=1e-6) for a in one.exact))
                 for one in (few, many))  # fmt: skip
    assert few.difference.freedom == 1
    assert many.difference.freedom == 2
    assert few.difference.reach > 12 * few.difference.error
    assert few.bounded is None


def test_a_lowest_u_above_the_draws_bounds_nothing() -> None:
    """With U_min above ⟨U⟩ a bias of nothing is not above 1 % of it."""
    one = judged(draws(2.0, 1), draws(2.0, 1), lowest=2.5)
    assert one.bounded is None


def test_errors_of_paired_differences() -> None:
    z = [judged(draws(2.0, 2 * k), draws(2.0, 2 * k + 1)).z for k in range(40)]
    assert 0.5 < np.std(z) < 1.1  # the larger of two estimates
    assert abs(np.mean(z)) < 4 * np.std(z) / 40**0.5


def test_too_few_effective_draws_are_not_judged() -> None:
    slow = judged(draws(2.0, 1, correlated=0.995), draws(2.0, 2))
    assert not slow.enough
    assert "Not judged: " in slow.sentence()
    assert "raise pilot.exact_gradients" in slow.sentence()
    assert "gree" not in slow.sentence()
    # A chain whose every trajectory was refused stands still, and proves nothing.
    still = compare(
        1e-4, np.full((2, 40), 2.0), draws(2.0, 1, chains=2)[:, :40], np.full((2, 2, 40), 1e-4),
        np.zeros(2), np.zeros(2), of_unit=1.0, lowest=1.0, gradients=1400, chains=(0, 1),
    )  # fmt: skip
    assert not still.enough


def test_the_table_has_a_row_a_chain_and_one_of_all(tmp_path: Path) -> None:
    one = judged(draws(2.0, 1), draws(2.0, 2))
    save_comparisons([one], tmp_path / "exact.csv")
    lines = (tmp_path / "exact.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == ",".join(COLUMNS)
    cells = [dict(zip(COLUMNS, line.split(","), strict=True)) for line in lines[1:]]
    assert [row["chain"] for row in cells] == ["0", "1", "2", "all"]
    kept = draws(2.0, 2)[:, int(BURN_IN * 400) :]
    assert float(cells[0]["<U>"]) == pytest.approx(kept[0].mean(), rel=1e-5)
    assert float(cells[3]["difference"]) == pytest.approx(one.difference[0], rel=1e-5)
    assert float(cells[3]["z"]) == pytest.approx(one.z, rel=1e-5)
    mean = np.mean([float(row["difference"]) for row in cells[:3]])
    assert float(cells[3]["difference"]) == pytest.approx(mean, rel=1e-4)
    assert sum(float(row["ESS"]) for row in cells[:3]) == pytest.approx(
        float(cells[3]["ESS"]), rel=1e-4
    )


def test_which_chains_and_how_many_moves() -> None:
    temperature = np.repeat([1e-5, 1e-4, 1.03e-4, 3e-4], 2)
    assert chains_near(temperature, [1.25e-4, 5e-4]).tolist() == [4, 5, 6, 7]
    assert chains_near(temperature, [3e-4, 5e-4]).tolist() == [6, 7]  # the same one twice
    assert chains_near(temperature, [1.8e-4]).tolist() == [6, 7]  # by their ratio
    assert moves_of(35, LangevinOptions(batch=None), 1000) == 35
    assert moves_of(35, LangevinOptions(batch=64), 1000) == 546
    assert moves_of(35, LangevinOptions("paper", batch=64), 1000) == 273
    assert moves_of(35, LangevinOptions(batch=64), 32) == 35
