"""The gradient of a whole network by Triton's kernels against the formula in float64; on the CPU
they run under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_close, assert_same_bits
from test_encoder_gradient import (
    SEQUENCES,
    assert_agrees,
    feedforward,
    make_batch,
    make_data,
    make_weights,
    name_of,
)
from torch.utils._python_dispatch import TorchDispatchMode

from thermosphere.ops.encoder_gradient import EncoderResult, EncoderShape
from thermosphere.ops.encoder_gradient_ref import encoder_gradient_ref
from thermosphere.ops.minibatch import Minibatch, draw_minibatch

pytest.importorskip("triton")
import triton

from thermosphere.ops.encoder_gradient_triton import EncoderGradientTriton

SMALL = EncoderShape(2, 7, 5, 9, 21)
SMALL_FF = feedforward(7, 5, 9, 33)
# Blocks, d, m, n: published sizes; sizes below, at and above a tile.
SHAPES = [
    EncoderShape(1, 64, 256, 86, 21),
    EncoderShape(2, 14, 56, 33, 21),
    EncoderShape(1, 1, 1, 2, 21),
    EncoderShape(2, 17, 33, 20, 33),
    feedforward(64, 320, 86, 21),
    feedforward(17, 33, 31, 21),
    feedforward(1, 1, 2, 21),
]


def fresh(
    shape: EncoderShape, chains: int, batch: int, gpu: str, rate: float = 0.15, **options: bool
) -> EncoderGradientTriton:
    """The op for a shape, its buffers NaN before the first call."""
    op = EncoderGradientTriton(
        shape, make_data(shape, rate), chains=chains, batch=batch, device=gpu, **options
    )
    poison(op, set())
    return op


def poison(owner: object, seen: set[int]) -> None:
    """NaN, or a huge number, in every buffer a call must fill before it reads."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    inputs = ("_data", "_table", "_code_embedding", "_code_hidden", "_shape")
    fields = vars(owner) if hasattr(owner, "__dict__") else {}
    if isinstance(owner, list | tuple):
        fields = dict(enumerate(owner))
    for name, value in fields.items():
        if name in inputs or value is None:
            continue
        if isinstance(value, torch.Tensor):
            value.fill_(float("nan") if value.is_floating_point() else 2**30)
        elif type(value).__module__.startswith("thermosphere") or isinstance(value, list):
            poison(value, seen)


def to(gpu: str, batch: Minibatch) -> Minibatch:
    return Minibatch(batch.indices.to(gpu), batch.weights.to(gpu))


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_gradient_is_that_of_the_formula(shape: EncoderShape, gpu: str) -> None:
    chains, batch = (1, 1) if shape.embedding == 64 else (2, 2)
    weights, drawn = make_weights(shape, chains), make_batch(chains, batch)
    op = fresh(shape, chains, batch, gpu)
    result = op(weights.to(gpu), *to(gpu, drawn))
    reference = encoder_gradient_ref(shape, make_data(shape), weights.double(), drawn)
    assert_agrees(shape, EncoderResult(*result), reference)
    assert_close(result.errors, reference.errors, 1e-6, "errors")


@pytest.mark.parametrize("shape", [SMALL, SMALL_FF], ids=name_of)
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_few_and_all_sites_masked(shape: EncoderShape, rate: float, gpu: str) -> None:
    weights, drawn = make_weights(shape, 1), make_batch(1, 4)
    result = fresh(shape, 1, 4, gpu, rate)(weights.to(gpu), *to(gpu, drawn))
    reference = encoder_gradient_ref(shape, make_data(shape, rate), weights.double(), drawn)
    assert_agrees(shape, EncoderResult(*result), reference)


@pytest.mark.parametrize("shape", [SMALL, SMALL_FF], ids=name_of)
def test_weights_of_sequences_count(shape: EncoderShape, gpu: str) -> None:
    """Also those of weight zero; forward alone has the same bits."""
    weights = make_weights(shape, 1)
    shares = torch.rand(1, 9, generator=torch.Generator().manual_seed(4))
    shares[0, ::3] = 0.0
    drawn = Minibatch(torch.arange(9)[None].clone(), shares)
    result = fresh(shape, 1, 9, gpu)(weights.to(gpu), *to(gpu, drawn))
    reference = encoder_gradient_ref(shape, make_data(shape), weights.double(), drawn)
    assert_agrees(shape, EncoderResult(*result), reference)
    forward = fresh(shape, 1, 9, gpu, with_gradient=False)
    losses, errors, gradient = forward(weights.to(gpu), *to(gpu, drawn))
    assert gradient is None
    assert_same_bits(losses, result.losses, "losses")
    assert_same_bits(errors, result.errors, "errors")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, on the NaN
@pytest.mark.parametrize("shape", [SMALL, SMALL_FF], ids=name_of)
def test_a_chain_does_not_see_its_neighbours_or_the_last_call(
    shape: EncoderShape, gpu: str
) -> None:
    weights, drawn = make_weights(shape, 2).to(gpu), to(gpu, make_batch(2, 2))
    op = fresh(shape, 2, 2, gpu)
    losses, errors, gradient = (tensor.clone() for tensor in op(weights, *drawn))  # type: ignore[union-attr]
    spoiled = weights.clone()
    spoiled[0].fill_(float("nan"))
    beside = op(spoiled, *drawn)
    assert beside.gradient is not None
    assert_same_bits(beside.losses[1], losses[1], "losses beside NaN")
    assert_same_bits(beside.gradient[1], gradient[1], "gradient beside NaN")
    assert torch.isnan(beside.losses[0])
    again = op(weights, *drawn)
    for now, before in zip(again, (losses, errors, gradient), strict=True):
        assert_same_bits(now, before, "after a call on NaN")


class Called(TorchDispatchMode):
    """The operators of torch that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [SMALL, SMALL_FF], ids=name_of)
def test_a_call_neither_allocates_nor_waits(
    shape: EncoderShape, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CUDA graph asks: beside launches, nothing but views, in static memory."""
    weights, drawn = make_weights(shape, 2).to(gpu), to(gpu, make_batch(2, 4))
    op = fresh(shape, 2, 4, gpu)
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    launches: list[str] = []
    for kind in (interpreter.InterpretedFunction, triton.runtime.jit.JITFunction):
        monkeypatch.setattr(
            kind, "run", lambda self, *args, **named: launches.append(self.fn.__name__)
        )
    first = op(weights, *drawn)
    launches.clear()
    with Called() as called:
        second = op(weights, *drawn)
    assert len(launches) > 10
    views = {
        "aten.alias",
        "aten.slice",
        "aten.select",
        "aten.view",
        "aten.unflatten",
        "aten.as_strided",
    }
    assert called.names <= views, called.names - views
    for one, other in zip(first, second, strict=True):
        assert one is not None
        assert other is not None
        assert one.data_ptr() == other.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("shape", [SMALL, SMALL_FF], ids=name_of)
def test_a_captured_move_draws_the_next_batch_at_every_replay(shape: EncoderShape) -> None:
    from thermosphere.ops.minibatch_triton import launch

    weights, batch = make_weights(shape, 2).cuda(), to("cuda", make_batch(2, 4))
    step = torch.zeros(1, dtype=torch.int64, device="cuda")
    ids = torch.arange(2, device="cuda")
    op = fresh(shape, 2, 4, "cuda")

    def move() -> None:
        launch(batch, seed=1, step=step, chain_ids=ids, examples=SEQUENCES)
        op(weights, *batch)
        step.add_(1)

    with torch.cuda.stream(torch.cuda.Stream()):
        move()
    torch.cuda.synchronize()
    gradient = op(weights, *batch).gradient  # the static buffer
    assert gradient is not None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        move()
    step.zero_()
    for number in range(3):
        graph.replay()
        replayed = gradient.clone()
        drawn = draw_minibatch(
            seed=1, step=number, chain_ids=torch.arange(2), batch=4, examples=SEQUENCES
        )
        assert_same_bits(batch.indices, drawn.indices, f"step {number}")
        assert_same_bits(op(weights, *to("cuda", drawn)).gradient, replayed, f"step {number}")


def test_bad_arguments_are_one_line(gpu: str) -> None:
    data = make_data(SMALL)

    def refused(message: str, **change: object) -> None:
        arguments: dict[str, object] = {"shape": SMALL, "data": data, "chains": 2, "batch": 4}
        with pytest.raises(ValueError, match=f"^encoder_gradient_triton: {message}"):
            EncoderGradientTriton(device=gpu, **(arguments | change))  # type: ignore[arg-type]

    refused(r"embedding must be in \[1, 128\], got 129", shape=EncoderShape(1, 129, 8, 9, 21))
    refused("precision must be one of tf32x3, tf32, got 'ieee'", precision="ieee")
    refused("chains must be >= 1, got 0", chains=0)
    refused("batch must be >= 1, got 0", batch=0)
    refused(r"data.code_embedding must be \(9, 32\) .*", shape=EncoderShape(2, 17, 5, 9, 21))
    refused("data must have the last token, 21, at masked", shape=EncoderShape(2, 7, 5, 9, 22))
    op = EncoderGradientTriton(SMALL, data, chains=2, batch=4, device=gpu)
    weights, (indices, shares) = make_weights(SMALL, 2).to(gpu), to(gpu, make_batch(2, 4))
    for message, arguments in (
        (r"weights must be \(2, \d+\) torch.float32", (weights[:1], indices, shares)),
        (r"weights must be .*float64", (weights.double(), indices, shares)),
        (r"indices must be \(2, 4\) torch.int64 .*int32", (weights, indices.int(), shares)),
        (r"shares must be \(2, 4\) .*\(2, 3\)", (weights, indices, shares[:, 1:])),
        ("weights must be .* on meta", (weights.to("meta"), indices, shares)),
    ):
        with pytest.raises(ValueError, match=f"^encoder_gradient_triton: {message}"):
            op(*arguments)
