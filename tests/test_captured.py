"""Captured moves, by their twin on the CPU: the same Python that records a CUDA graph, with plain
calls in its place. The same bits as moves that are not captured, however a burst is cut."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest
import torch
from numerics import assert_close
from test_langevin_burst import Plain, assert_same_state, make_potential, make_sampler, start
from test_potential import sequences, weights_of
from toy import NoisyQuadratic, Q, start_weights
from toy import make_sampler as make_toy_sampler

from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.models.regularised import Regularised
from thermosphere.models.transformer import Transformer
from thermosphere.ops.minibatch import Minibatch, draw_minibatch, empty_minibatch, redraw_minibatch
from thermosphere.ops.philox import Stream
from thermosphere.sampling.captured import MOVES
from thermosphere.sampling.langevin import Langevin, UnreachableSphereError
from thermosphere.sampling.moves import graph_recorder
from thermosphere.sampling.recorder import Call, CallRecorder, GraphRecorder
from thermosphere.sampling.state import LangevinState


class Spy(CallRecorder):
    """Notes what is recorded, and what is called from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[tuple[list[str], int]] = []
        self.log: list[str] = []

    def record(self, calls: Sequence[Call], times: int) -> Call:
        self.recorded.append(([call.__name__ for call in calls], times))

        def noted(call: Call) -> Call:
            def logged() -> None:
                self.log.append(call.__name__)
                call()

            return logged

        replay = super().record([noted(call) for call in calls], times)
        self.log.clear()  # the warm-up
        return replay


def advance(sampler: Langevin, state: LangevinState, cuts: Sequence[int]) -> torch.Tensor:
    """Bursts of these numbers of moves; the sums of the losses."""
    sums = torch.zeros(len(state.temperature), dtype=torch.float64)
    derived = sampler.moves.derive(state)
    for moves in cuts:
        sampler.moves.advance(state, derived, moves, sums)
    return sums


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheme": "paper"},
        {"constrained": False},
        {"metric_correction": False},
        {"adapt_every": 7, "reset_probability": 0.5},
        {"adapt_every": 7, "scheme": "paper", "noise_tolerance": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("tether", [0.0, 0.01])
def test_captured_moves_are_the_moves(options: dict[str, object], tether: float) -> None:
    """Against the extension's bursts, with a tether against single moves, and with adaptations
    among them: the same bits."""
    inside = make_potential()
    reference = model_weights(inside.parameters)
    potential = Regularised(inside, 0.02, tether, reference) if tether else inside
    twin = make_sampler(potential, recorder=CallRecorder(), **options)
    plain = make_sampler(Plain(potential) if tether else potential, **options)
    assert twin.moves.captured is not None
    assert (plain.moves.fused is None) == bool(tether)
    states = start(twin), start(plain)
    means = twin.run(states[0], 33), plain.run(states[1], 33)
    assert_same_state(*states)
    # single moves sum float32 losses
    assert torch.allclose(*means, rtol=1e-6 if tether else 0.0, atol=0.0)


def model_weights(parameters: int) -> torch.Tensor:
    return 0.1 * torch.randn(parameters, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_captured_moves_are_the_moves_of_any_potential(scheme: str) -> None:
    twin = make_toy_sampler(scheme=scheme, adapt_every=25, recorder=CallRecorder())
    plain = make_toy_sampler(scheme=scheme, adapt_every=25)
    assert plain.moves.captured is None
    assert plain.moves.fused is None
    states = [s.init(start_weights(3), norm2=Q, chain_ids=[4, 17, 2]) for s in (twin, plain)]
    means = [s.run(state, 60) for s, state in zip((twin, plain), states, strict=True)]
    assert_same_state(*states)
    assert torch.equal(*means)
    kinetic = twin.kinetic_temperature(states[0]), plain.kinetic_temperature(states[1])
    assert torch.equal(*kinetic)


@pytest.mark.parametrize("batch", [8, None])
@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_a_burst_is_its_moves_however_it_is_cut(scheme: str, batch: int | None) -> None:
    ends = []
    for cuts in ([47], [1] * 47, [20, 27], [3, 10, 11, 23]):
        sampler = make_toy_sampler(scheme=scheme, batch=batch, recorder=CallRecorder())
        state = sampler.init(start_weights(3), norm2=Q, masses=300.0)
        sums = advance(sampler, state, cuts)
        assert state.step == 47
        captured = sampler.moves.captured
        assert captured is not None
        assert captured.counter.moves.tolist() == [47]  # by the moves themselves, not the host
        assert captured.counter.failed_move.tolist() == [-1] * 3
        ends.append((state, sums))
    for state, sums in ends[1:]:
        assert_same_state(state, ends[0][0])
        assert torch.equal(sums, ends[0][1])


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_moves_are_recorded_once_and_replayed_in_order(scheme: str) -> None:
    spy = Spy()
    sampler = make_toy_sampler(scheme=scheme, adapt_every=0, recorder=spy)
    state = sampler.init(start_weights(3), norm2=Q)
    move = ["_draw", "_differentiate", "_step", "_observe"]
    if scheme == "paper":
        move += ["_draw_end", "_differentiate", "_finish"]
    draw = (["_draw", "_differentiate", "_add"], 1)
    assert spy.recorded == [draw]  # the noise at the start
    derived = sampler.moves.derive(state)
    spy.log.clear()
    sampler.moves.advance(state, derived, 1, torch.zeros(3, dtype=torch.float64))
    assert spy.recorded == [draw, (move, 1)]
    assert spy.log == move
    sampler.moves.advance(state, derived, 3, torch.zeros(3, dtype=torch.float64))
    assert spy.log == 4 * move
    sampler.moves.advance(state, derived, 2 * MOVES + 1, torch.zeros(3, dtype=torch.float64))
    assert spy.recorded == [draw, (move, 1), (move, MOVES)]
    assert spy.log == (2 * MOVES + 1) * move  # those after the last recording
    sampler.run(state, 50)
    assert len(spy.recorded) == 3


def test_an_adaptation_is_picked_up_without_recording_again() -> None:
    spy = Spy()
    # Every estimate counts as changed: the chains are looked at together.
    options = {"adapt_every": 12, "reset_probability": 1.0, "unchanged_tolerance": 1e-9}
    sampler, plain = make_toy_sampler(recorder=spy, **options), make_toy_sampler(**options)
    states = [s.init(start_weights(3), norm2=Q) for s in (sampler, plain)]
    for s, state in zip((sampler, plain), states, strict=True):
        s.run(state, 11)
        s.potential.scale_noise(torch.full((12,), 1.7))
    masses = states[0].masses.clone()
    for s, state in zip((sampler, plain), states, strict=True):
        s.run(state, 30)
    assert float((states[0].masses / masses).median()) > 2.0
    assert_same_state(*states)
    unique = {(tuple(names), times) for names, times in spy.recorded}
    assert len(spy.recorded) == len(unique)  # single moves, MOVES of them, and draws: once each


def test_another_state_is_recorded_for_itself() -> None:
    spy = Spy()
    sampler = make_toy_sampler(adapt_every=0, recorder=spy)
    one = sampler.init(start_weights(3), norm2=Q, chain_ids=[0, 1, 2])
    other = sampler.init(start_weights(3, seed=1), norm2=Q, chain_ids=[7, 8, 9])
    before = LangevinState.from_tensors(other.tensors())
    sampler.run(one, 5)
    assert_same_state(other, before)
    sampler.run(other, 5)
    sampler.run(one, 5)
    assert one.chain_ids.tolist() == [0, 1, 2]
    plain = make_toy_sampler(adapt_every=0)
    for state, seed, ids in ((one, 0, [0, 1, 2]), (other, 1, [7, 8, 9])):
        expected = plain.init(start_weights(3, seed=seed), norm2=Q, chain_ids=ids)
        plain.run(expected, state.step)
        assert_same_state(state, expected)


def test_recording_moves_nothing() -> None:
    """The warm-up runs a whole move; chains that have failed stand still in it."""
    sampler = make_toy_sampler(adapt_every=0, recorder=CallRecorder())
    state = sampler.init(start_weights(3), norm2=Q)
    before = LangevinState.from_tensors(state.tensors())
    derived = sampler.moves.derive(state)
    metric = derived.metric.clone()
    captured = sampler.moves.captured
    assert captured is not None
    captured.replay(state, 1)
    assert_same_state(state, before)
    assert torch.equal(derived.metric, metric)


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
@pytest.mark.parametrize("cuts", [[40], [1] * 40, [13, 27]])
def test_a_chain_that_fails_is_named_with_its_step(scheme: str, cuts: list[int]) -> None:
    """As the path that is not captured names it, and it keeps the same last good weights."""
    messages, kept, momenta = [], [], []
    for recorder in (CallRecorder(), None):
        sampler = make_sampler(make_potential(), adapt_every=0, scheme=scheme, recorder=recorder)
        state = start(sampler)
        sampler.run(state, 3)
        # light masses: chain 1 overshoots the sphere within a few moves
        state.masses[1] *= 1e-7
        state.noise_variance[1] *= 1e-7
        with pytest.raises(UnreachableSphereError) as error:
            advance(sampler, state, cuts if recorder is not None else [40])
        messages.append(str(error.value))
        kept.append(state.weights[1])
        momenta.append(state.momenta[1])
        assert bool(torch.isfinite(state.weights).all())
    assert messages[0] == messages[1]
    assert messages[0].startswith("sampler: chain 1 left the sphere's reach at step ")
    assert torch.equal(*kept)
    assert torch.equal(*momenta)


def test_the_first_of_several_failures_is_named() -> None:
    sampler = make_toy_sampler([0.5] * 4, adapt_every=0, recorder=CallRecorder())
    state = sampler.init(start_weights(4), norm2=Q, chain_ids=[9, 8, 7, 6])
    sampler.run(state, 6)
    state.momenta[1:3] *= 1e4
    with pytest.raises(UnreachableSphereError, match=r"chain 8 left the sphere's .* at step 6:"):
        sampler.run(state, 20)


class Infinite(NoisyQuadratic):
    """The gradient of example 3 is infinite: only a mini-batch that holds it fails."""

    def __call__(
        self, weights: torch.Tensor, batch: Minibatch | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, gradient = super().__call__(weights, batch)
        if batch is not None:
            held = ((batch.indices == 3) & (batch.weights > 0)).any(1)
            gradient[held, 0] = float("inf")
        return losses, gradient


def test_a_number_that_is_not_finite_is_named_by_the_failed_move() -> None:
    """The moves after it draw other mini-batches: the reason is that of the move that failed."""
    messages = []
    for recorder in (CallRecorder(), None):
        toy = Infinite()
        options = {"batch": 2, "adapt_every": 0, "recorder": recorder}
        sampler = Langevin(toy, [1.0] * 2, seed=5, noise_draws=2, noise_draws_max=2, **options)
        clean = NoisyQuadratic()
        state = Langevin(clean, [1.0] * 2, seed=5, batch=8).init(start_weights(2), norm2=Q)
        with pytest.raises(UnreachableSphereError) as error:
            advance(sampler, state, [60])
        messages.append(str(error.value))
    assert "has a loss, gradient or momentum that is not finite at step" in messages[0]
    assert " at step 0:" not in messages[0]  # else later moves would not have been told apart
    assert messages[0] == messages[1]


def test_a_mini_batch_drawn_again_is_the_one_drawn() -> None:
    ids = torch.tensor([3, 2**32 - 1])
    again = empty_minibatch(2, 9)
    for step in (0, 2**40 + 1):
        draw = {"seed": 5, "chain_ids": ids, "examples": 20, "stream": Stream.ESTIMATE}
        redraw_minibatch(again, step=torch.tensor([step]), **draw)
        expected = draw_minibatch(step=step, batch=9, **draw)
        assert torch.equal(again.indices, expected.indices)
        assert torch.equal(again.weights, expected.weights)


def test_a_checkpoint_of_captured_moves_goes_on_without_them() -> None:
    """Files are the same whatever made them: half a run each way, in both orders."""
    options = {"adapt_every": 20, "reset_probability": 0.5}
    whole = make_toy_sampler(**options)
    expected = whole.init(start_weights(3), norm2=Q)
    whole.run(expected, 60)
    for recorders in ((CallRecorder(), None), (None, CallRecorder())):
        first = make_toy_sampler(recorder=recorders[0], **options)
        state = first.init(start_weights(3), norm2=Q)
        first.run(state, 33)
        state = LangevinState.from_tensors(state.tensors())
        make_toy_sampler(recorder=recorders[1], **options).run(state, 27)
        assert_same_state(state, expected)


def test_the_kernels_of_a_gpu_run_in_the_same_order(gpu: str) -> None:
    """Triton's draw and gradient, captured where there is a GPU and interpreted elsewhere, against
    autograd in float32: one adaptation among five moves."""
    model = Transformer("small", blocks=1, embedding=5, hidden=7, length=12)
    data = sequences(count=9, length=12)
    recorder = CallRecorder(backend="triton") if gpu == "cpu" else None
    options = {
        "seed": 2,
        "batch": 3,
        "noise_draws": 3,
        "noise_draws_max": 3,
        "t_ratio": 1e-3,
        "adapt_every": 3,
    }
    ends = []
    for backend, where in (("triton", gpu), ("autograd", "cpu")):
        potential = MaskedLanguagePotential(model, data, backend=backend, device=where)
        record = recorder if backend == "triton" else None
        sampler = Langevin(potential, [1e-3, 1e-2], recorder=record, **options)
        state = sampler.init(weights_of(model).float()[:2], norm2=30.0)
        loss = sampler.run(state, 5)
        kinetic = sampler.kinetic_temperature(state)
        ends.append((state.tensors(), loss, kinetic))
    captured, plain = ends
    assert int(captured[0]["step"]) == 5
    for name, tensor in plain[0].items():
        if not tensor.numel():  # where stiff modes would be
            continue
        scale = float(tensor.double().abs().max())
        assert_close(captured[0][name], tensor, 1e-4 * scale + 1e-12, name)
    for got, expected in zip(captured[1:], plain[1:], strict=True):
        assert_close(got, expected, 1e-4 * float(expected.abs().max()))


def test_a_graph_is_captured_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What GraphRecorder asks of torch.cuda, in order; its arguments are those of this PyTorch."""
    log: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    class Within:
        def __init__(self, what: str) -> None:
            self.what = what

        def __enter__(self) -> None:
            log.append(f"into {self.what}")

        def __exit__(self, *error: object) -> None:
            log.append(f"out of {self.what}")

    known = inspect.signature(torch.cuda.graph.__init__)

    def graph(*arguments: object, **keywords: object) -> Within:
        known.bind(None, *arguments, **keywords)
        assert isinstance(arguments[0], Graph)
        assert keywords["stream"].name == "side"  # type: ignore[attr-defined]
        return Within("capture")

    current = Stream("current")
    for name, stand_in in {
        "device": lambda device: Within(str(device)),
        "Stream": Stream,
        "stream": lambda stream: Within(stream.name),
        "current_stream": lambda: current,
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    recorder = GraphRecorder(torch.device("cuda", 1))
    replay = recorder.record([lambda: log.append("a"), lambda: log.append("b")], 2)
    warm = ["side waits for current", "into side", "a", "b", "out of side"]
    joined = ["current waits for side", "into capture", *"abab", "out of capture"]
    assert log == ["into cuda:1", *warm, *joined, "out of cuda:1"]
    log.clear()
    replay()
    assert log == ["replay"]


def test_potentials_of_a_gpu_are_captured_where_they_can_be() -> None:
    class There(NoisyQuadratic):
        device = torch.device("cuda", 1)

    class Capturable(There):
        def capturable(self, weights: torch.Tensor, batch: Minibatch) -> None: ...

    assert graph_recorder(NoisyQuadratic()) is None
    assert graph_recorder(There()) is None  # one by one
    assert graph_recorder(Regularised(There(), 0.1)) is None
    for potential in (Capturable(), Regularised(Capturable(), 0.1)):
        recorder = graph_recorder(potential)
        assert isinstance(recorder, GraphRecorder)
        assert recorder.device == torch.device("cuda", 1)
