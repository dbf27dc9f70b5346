"""The pilot that finds T*: against a potential whose specific heat is known by quadrature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from thermosphere.runs.ladder import FACTOR, Ladder, find_ladder
from thermosphere.sampling.options import LangevinOptions

N, Q, DEPTH, BEND = 24, 24.0, 3.0, 0.5
OPTIONS = LangevinOptions(batch=None, m1=0.2, noise_draws=10, noise_draws_max=10)


class Valley:
    """U = -DEPTH m⁴, m = w_1/|w|: ordered when cold, a peak of C where it melts.

    With BEND (|w|² - Q)/2, which is nothing on the sphere, but a curvature to set the step by.
    """

    parameters, examples = N, 16

    def __init__(self) -> None:
        noises = np.random.default_rng(0).standard_normal((self.examples, N))
        self.noises = torch.from_numpy(noises - noises.mean(0)).float()
        self.calls = 0

    def __call__(self, weights, batch=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        m = weights[:, 0] / Q**0.5
        gradient = BEND * weights
        gradient[:, 0] -= 4 * DEPTH * m**3 / Q**0.5
        if batch is not None:
            force = torch.nn.functional.embedding_bag(
                batch.indices, self.noises, per_sample_weights=batch.weights, mode="sum"
            )
            gradient = gradient + force
        return -DEPTH * m**4 + 0.5 * BEND * (weights.square().sum(1) - Q), gradient


def exact(temperature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """⟨U⟩ and C (K,) by quadrature over m, of density (1 - m²)^((N-3)/2)."""
    m = np.linspace(-1, 1, 20_001)[1:-1]
    energy = -DEPTH * m**4
    log = 0.5 * (N - 3) * np.log1p(-(m**2)) - energy / temperature[:, None]
    weight = np.exp(log - log.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    mean = weight @ energy
    return mean, (weight @ energy**2 - mean**2) / temperature**2


def ordered(chains: int) -> torch.Tensor:
    weights = 0.1 * torch.randn(chains, N, generator=torch.Generator().manual_seed(0))
    weights[:, 0] = Q**0.5
    return weights


def test_the_peak_is_found_and_the_losses_are_the_exact_ones() -> None:
    found = find_ladder(Valley(), ordered(6), Q, coldest=0.02, moves=2000, seed=1, options=OPTIONS)
    fine = np.geomspace(0.02, 2.0, 400)
    peak = fine[np.argmax(exact(fine)[1])]
    assert abs(np.log(found.peak / peak)) < np.log(FACTOR)
    assert found.temperature[-1] >= 6 * peak / FACTOR  # bracketed from above
    away = np.abs(np.log(found.temperature / peak)) > 1.5 * np.log(FACTOR)  # there it mixes
    mean, _ = exact(found.temperature)
    z = (found.loss - mean) / np.maximum(found.loss_error, 2e-3 * DEPTH)
    assert np.abs(z[away]).max() < 5.0
    assert found.temperatures([0.5, 1.0]) == [
        pytest.approx(0.5 * found.peak, rel=1e-3),
        pytest.approx(found.peak, rel=1e-3),
    ]


def test_a_killed_search_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def search(checkpoint: Path | None, stop: int = 99) -> Ladder:
        seen: list[float] = []

        def on_temperature(temperature: float, loss: float) -> None:
            seen.append(temperature)
            if len(seen) == stop:
                raise KeyboardInterrupt

        return find_ladder(
            Valley(),
            ordered(2),
            Q,
            coldest=0.03,
            moves=400,
            seed=3,
            options=OPTIONS,
            checkpoint=checkpoint,
            on_temperature=on_temperature,
        )

    whole = search(None)
    checkpoint = tmp_path / "pilot.safetensors"
    with pytest.raises(KeyboardInterrupt):
        search(checkpoint, stop=3)
    again = search(checkpoint)
    assert np.array_equal(again.loss, whole.loss)
    assert again.peak == whole.peak
    with pytest.raises(ValueError, match="checkpoint must be of the same run: moves expected 401"):
        find_ladder(
            Valley(),
            ordered(2),
            Q,
            coldest=0.03,
            moves=401,
            seed=3,
            options=OPTIONS,
            checkpoint=checkpoint,
        )


def test_a_ladder_is_written_and_read(tmp_path: Path) -> None:
    columns = np.arange(20, dtype=np.float64).reshape(5, 4) + 0.25
    ladder = Ladder(*columns, peak=1.25)
    ladder.save(tmp_path / "ladder.csv")
    again = Ladder.load(tmp_path / "ladder.csv")
    assert again.peak == 1.25
    for one, other in zip(vars(again).values(), vars(ladder).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "ladder.csv").write_text("# T* = 1\na,b\n1,x\n")
    with pytest.raises(ValueError, match=r"ladder\.csv: must be a ladder's CSV"):
        Ladder.load(tmp_path / "ladder.csv")


def test_no_peak_is_one_clear_line() -> None:
    """A field alone: C falls from (N - 1)/2 with T, its maximum is wherever the search begins."""

    class Field(Valley):
        def __call__(self, weights, batch=None):  # type: ignore[no-untyped-def]
            loss, gradient = super().__call__(weights, batch)
            m = weights[:, 0] / Q**0.5
            gradient[:, 0] += (4 * DEPTH * m**3 - DEPTH) / Q**0.5
            return loss + DEPTH * (m**4 - m), gradient

    with pytest.raises(ValueError, match=r"^ladder: the specific heat must rise from the coldest"):
        find_ladder(Field(), ordered(2), Q, coldest=0.05, moves=400, seed=0, options=OPTIONS)
    with pytest.raises(ValueError, match=r"^ladder: .* a maximum between T = 0.9 and 1, got none"):
        find_ladder(Valley(), ordered(2), Q, coldest=0.9, moves=4, seed=0, options=OPTIONS)
