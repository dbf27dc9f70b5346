"""The stock PyTorch that the GPU is compared with does the same work: held to float64,
uncompiled."""

from __future__ import annotations

import gpu_peers
import pytest
import torch
from numerics import assert_close, error_bound
from step_problem import make_problem
from test_potential import sequences

from thermosphere.models.feedforward import FeedForward
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.models.transformer import Transformer
from thermosphere.ops.attention_norm_ref import attention_norm_ref
from thermosphere.ops.langevin_step_ref import langevin_step_ref

MODELS = [
    Transformer("one", blocks=1, embedding=6, hidden=9, length=14),
    Transformer("two", blocks=2, embedding=6, hidden=9, length=14),
    FeedForward("ff", embedding=6, hidden=9, length=14),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_move(model: Transformer | FeedForward) -> None:
    """A whole move: its gradient and step against the references, on the same draw and noise."""
    sites = MaskedSites(sequences(count=9, length=14))
    problem = make_problem(3, model.layout.size)
    weights = model.initial(3, torch.Generator().manual_seed(1))
    norm2 = (weights.double() ** 2).sum(1)
    coefficients = problem.coefficients.clone()
    coefficients[:, 4] = norm2
    momenta, masses, scales = 0.01 * problem.momenta, problem.inverse_masses, problem.noise_scales
    move = gpu_peers.BatchedMove(
        model,
        sites,
        weights.clone(),
        momenta.clone(),
        masses,
        scales,
        coefficients,
        batch=8,
        mode=None,
    )
    torch.manual_seed(5)
    drawn = gpu_peers.draw(3, 8, 9, torch.device("cpu"))
    noise = torch.randn_like(weights)
    assert all(len(set(row.tolist())) < 8 for row in drawn.indices)  # duplicates among them
    potential = MaskedLanguagePotential(model, sites, backend="autograd")
    losses, gradient = potential(weights.double(), drawn)
    got_losses, got = move.gradient(weights, drawn)
    operations = 4 * (14 + model.embedding + model.hidden)
    bound = error_bound(gradient, operations=operations, dtype=torch.float32)
    assert_close(got, gradient, bound)
    assert_close(got_losses, losses, 1e-5)

    exact = langevin_step_ref(
        *(tensor.double() for tensor in (weights, momenta, got, masses, scales)),
        noise=noise.double(),
        coefficients=coefficients,
    )
    assert bool(exact.reachable.all())
    torch.manual_seed(5)
    move()
    moved, kicked = move.state[:2]
    assert_close(moved, exact.weights, error_bound(exact.weights, operations=20, dtype=moved.dtype))
    assert_close(
        kicked, exact.momenta, error_bound(exact.momenta, operations=20, dtype=moved.dtype)
    )
    assert_close(move.losses, got_losses, 1e-6)


def test_draws_merge_duplicates() -> None:
    torch.manual_seed(0)
    drawn = gpu_peers.draw(4, 12, 7, torch.device("cpu"))
    for indices, shares in zip(*drawn, strict=True):
        seen: set[int] = set()
        for index, share in zip(indices.tolist(), shares.tolist(), strict=True):
            assert (share > 0) == (index not in seen)
            seen.add(index)
        assert float(shares.sum()) == pytest.approx(1.0)
        assert float(shares.max()) == pytest.approx(1 / len(seen))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("layer", [gpu_peers.attention_norm_sdpa, gpu_peers.attention_norm_flex])
def test_the_layer(layer: object) -> None:
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 10, 16), (2, 16, 16), (2, 16, 16), (2, 16), (2, 16))
    inputs = [torch.randn(*shape, generator=g) / shape[-1] ** 0.25 for shape in shapes]
    with torch.no_grad():
        got = layer(*inputs)  # type: ignore[operator]
    exact = attention_norm_ref(*(tensor.double() for tensor in inputs))
    assert_close(got, exact, error_bound(exact, operations=60, dtype=torch.float32))
