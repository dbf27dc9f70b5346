"""The noise estimate against exact variances and against its rule, draw by draw."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from toy import NoisyQuadratic

from thermosphere.ops.minibatch import draw_minibatch
from thermosphere.ops.philox import Stream
from thermosphere.sampling.noise import changed, difference, estimate_noise
from thermosphere.sampling.noise_draws import NoiseDraws
from thermosphere.sampling.recorder import Call, CallRecorder


def test_exact_noise_variance_of_the_toy() -> None:
    """The closed form against all 4⁴ draws of 4 from 4 examples."""
    toy = NoisyQuadratic(parameters=3, examples=4)
    means = np.array(
        [
            toy.noises[sorted(set(draw))].mean(0).numpy()
            for draw in itertools.product(range(4), repeat=4)
        ]
    )
    assert np.allclose(means.mean(0), 0, atol=1e-15)
    assert np.allclose((means**2).mean(0), toy.noise_variance(4).numpy(), rtol=1e-14)


class GraphLike(CallRecorder):
    """A graph holds what its calls work on, not who makes them."""

    def record(self, calls: Sequence[Call], times: int) -> Call:
        super().record(calls, times)
        return lambda: None


@pytest.mark.parametrize("recorder", [None, GraphLike()], ids=["calls", "a graph"])
def test_buffers_go_with_the_last_who_uses_them(recorder: CallRecorder | None) -> None:
    """Not when cycles are looked for, which memory of a GPU does not wait for."""
    gc.disable()
    try:
        draws = NoiseDraws(NoisyQuadratic(), seed=1, batch=8, recorder=recorder)
        buffers = weakref.ref(draws.sums(3))
        kept = buffers()
        assert (kept is not None) == (recorder is not None)
        del draws, kept
        assert buffers() is None
    finally:
        gc.enable()


def test_estimate_is_unbiased() -> None:
    toy = NoisyQuadratic()
    chains = 200
    weights = torch.randn(12, generator=torch.Generator().manual_seed(0)).expand(chains, 12)
    estimate = estimate_noise(
        toy,
        weights.contiguous(),
        seed=1,
        step=3,
        chain_ids=torch.arange(chains),
        batch=8,
        draws=100,
        draws_max=200,
        tolerance=1e-9,
    )
    assert estimate.draws.tolist() == [200] * chains
    variance = estimate.variance.double()
    z = (variance.mean(0) - toy.noise_variance(8)) / (variance.std(0) / chains**0.5)
    assert float(z.abs().max()) < 4.5
    spread = variance.std(0) / toy.noise_variance(8)
    assert bool(
        ((spread - (2 / 199) ** 0.5).abs() < 0.04).all()
    )  # nearly Gaussian noise: sqrt(2 / (draws - 1))
    _, exact = toy(weights[:1])
    gradient = estimate.mean_gradient.double()
    z = (gradient.mean(0) - exact[0]) / (gradient.std(0) / chains**0.5)
    assert float(z.abs().max()) < 4.5


def estimate_by_definition(
    toy: NoisyQuadratic,
    weights: torch.Tensor,
    *,
    chain: int,
    seed: int,
    step: int,
    draws: int,
    most: int,
    tolerance: float,
) -> tuple[np.ndarray, int]:
    """Rounds until no standard deviation changed by more than the tolerance."""
    gradients: list[np.ndarray] = []
    previous = None
    while True:
        for draw in range(len(gradients), min(len(gradients) + draws, most)):
            batch = draw_minibatch(
                seed=seed,
                step=(step << 16) + draw,
                stream=Stream.ESTIMATE,
                chain_ids=torch.tensor([chain]),
                batch=8,
                examples=toy.examples,
            )
            gradients.append(toy(weights[None], batch)[1][0].double().numpy())
        variance = np.var(gradients, axis=0, ddof=1)
        if len(gradients) == most:
            return variance, most
        if previous is not None:
            noisy = previous > 0
            if np.all(np.abs(np.sqrt(variance[noisy] / previous[noisy]) - 1) <= tolerance):
                return variance, len(gradients)
        previous = variance


@pytest.mark.parametrize(("draws", "most"), [(20, 130), (7, 100), (50, 1000)])
def test_rounds_stop_when_no_standard_deviation_changes(draws: int, most: int) -> None:
    toy = NoisyQuadratic()
    toy.scale_noise(
        torch.tensor([0.0, 1e-6] + [1.0] * 10)
    )  # one without noise, one with almost none
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(6, 12, generator=generator)
    ids = torch.tensor([3, 1, 4, 15, 9, 26])
    rule = {"seed": 7, "step": 2, "draws": draws, "tolerance": 0.1}
    estimate = estimate_noise(toy, weights, chain_ids=ids, batch=8, draws_max=most, **rule)
    used = set()
    for row, chain in enumerate(ids.tolist()):
        variance, count = estimate_by_definition(toy, weights[row], chain=chain, most=most, **rule)
        assert int(estimate.draws[row]) == count
        # float32 gradients of order 4 carry the noise: theirs is what both average, in float64
        assert np.allclose(estimate.variance[row].numpy(), variance, rtol=1e-6, atol=0)
        used.add(count)
        alone = estimate_noise(
            toy,
            weights[row : row + 1].contiguous(),
            chain_ids=ids[row : row + 1].contiguous(),
            batch=8,
            draws_max=most,
            **rule,
        )
        assert torch.equal(alone.variance[0], estimate.variance[row])
        assert torch.equal(alone.mean_gradient[0], estimate.mean_gradient[row])
    assert len(used) > 1  # the chains did not all stop together
    assert bool((estimate.variance[:, 0] == 0).all())


def test_changed() -> None:
    old = torch.tensor([[1.0, 4.0, 0.0]])
    assert changed(old * 1.2, old, 0.1).tolist() == [False]
    assert changed(old * 1.22, old, 0.1).tolist() == [True]
    assert changed(old * 0.82, old, 0.1).tolist() == [False]
    assert changed(old * 0.80, old, 0.1).tolist() == [True]
    assert changed(torch.tensor([[1.0, 4.0, 1e-9]]), old, 0.1).tolist() == [True]
    assert changed(torch.tensor([[1.0, 0.0, 0.0]]), old, 0.1).tolist() == [True]


def test_difference_is_the_root_mean_square_of_standard_deviations() -> None:
    old = torch.tensor([[1.0, 4.0, 0.0], [1.0, 4.0, 2.0]])
    new = torch.tensor([[1.21, 4.0, 0.0], [1.21, 4.0 * 0.81, 0.5]])
    expected = [(0.01 / 3) ** 0.5, ((0.01 + 0.01 + 0.25) / 3) ** 0.5]
    assert difference(new, old).tolist() == pytest.approx(expected, rel=1e-6)
    assert difference(torch.tensor([[1.0, 1.0, 1e-9]]), old[:1]).tolist() == [float("inf")]
