"""One step of training, dropout and Adam included, through the fused gradient and through autograd.

pytest benchmarks/bench_training_step.py --benchmark-only

The gradient of a batch with dropout is first held to the formula in float64, with the same elements
dropped (ops/encoder_gradient_ref.py). Then steps of three runs at once (tf4: two) alternate.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from gradient_problem import DRAWN, SEQUENCES, make_sequences
from measure import alternating, median_ratio, seconds, torch_threads

from thermosphere import _core
from thermosphere.models.fused import encoder_shape, fused_data
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import NAMES, named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.dropout import Dropout
from thermosphere.ops.encoder_gradient import encoder_gradient
from thermosphere.ops.encoder_gradient_ref import encoder_gradient_ref
from thermosphere.ops.minibatch import Minibatch
from thermosphere.proteins.dataset import DataSet
from thermosphere.training.trainer import Trainer, TrainingOptions

SECONDS = 3.0  # of timing, where five rounds do not take longer


def hold_to_formula(name: str, sites: MaskedSites) -> None:
    model = named_model(name)
    shape, data = encoder_shape(model), fused_data(model, sites)
    weights = model.initial(1, torch.Generator().manual_seed(0))
    batch = Minibatch(torch.arange(0, SEQUENCES, 125).view(1, -1), torch.full((1, 8), 0.125))
    dropout = Dropout(0.1, seed=1)
    ours = encoder_gradient(shape, data, weights, batch, dropout=dropout)
    exact = encoder_gradient_ref(shape, data, weights.double(), batch, dropout)
    assert ours.gradient is not None
    assert exact.gradient is not None
    assert abs(float(ours.losses[0]) / float(exact.losses[0]) - 1.0) < 1e-5
    got = model.layout.views(ours.gradient.double())
    for tensor, expected in model.layout.views(exact.gradient).items():
        assert float((got[tensor] - expected).norm() / expected.norm()) < 1e-4, tensor


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_training_step(benchmark, capsys, name: str, threads: int) -> None:
    sequences = make_sequences()
    hold_to_formula(name, MaskedSites(sequences))

    runs = 2 if name == "tf4" else 3
    data = DataSet(sequences, sequences, sequences, {})
    every = torch.ones(runs, dtype=torch.bool)
    with torch_threads(threads):
        trainers = {
            backend: Trainer(named_model(name), data, runs, 0, TrainingOptions())
            for backend in ("autograd", "fused")
        }
        plain = trainers["autograd"]
        plain.potential = MaskedLanguagePotential(plain.model, sequences, backend="autograd")
        indices = plain.shuffle()[:, :DRAWN]
        calls = {
            backend: lambda trainer=trainer: trainer.update(indices, every)
            for backend, trainer in trainers.items()
        }
        rounds = max(5, min(30, int(SECONDS / sum(seconds(call) for call in calls.values()))))
        times = alternating(calls, rounds)
        benchmark.pedantic(calls["fused"], rounds=5)

    ms = {backend: 1e3 * statistics.median(t) for backend, t in times.items()}
    ratio = median_ratio(times["autograd"], times["fused"])
    benchmark.extra_info.update(ms=ms, ratio=ratio, isa=_core.isa_chosen())
    with capsys.disabled():
        print(
            f"\ntraining_step {name}, {runs} runs, {threads} thread(s), {_core.isa_chosen()}: "
            f"autograd {ms['autograd']:.1f} ms; fused {ms['fused']:.1f} ({ratio:.1f}× faster)"
        )
