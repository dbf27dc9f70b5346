"""benchmarks/gpu.py as far as it runs without a GPU: its checks, on the twin of captured moves, and
that they can fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import gpu
import gpu_attention
import gpu_move
import gpu_peers
import gpu_step
import pytest
import torch

from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.attention_norm import attention_norm
from thermosphere.sampling import moves
from thermosphere.sampling.recorder import CallRecorder

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("gpu: expected a GPU that PyTorch can use, got none (PyTorch ")
    assert line.endswith("); nothing was run\n")
    assert line.count("\n") == 1


def test_every_part_is_recorded_as_it_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = gpu.Record(tmp_path / "gpu.txt")

    def fails() -> Iterator[str]:
        yield "before"
        raise AssertionError("off by one\nand more")

    assert record.part("one", lambda: iter(["a time"]))
    assert not record.part("two", fails)
    written = (tmp_path / "gpu.txt").read_text()
    assert written == "a time\nbefore\nFAILED two: AssertionError: off by one\n"
    assert "Traceback" in capsys.readouterr().err
    named = " ".join(gpu.__doc__.split()).split("are named: ")[1].split(".")[0].split(", ")
    assert list(gpu.parts_of(CPU)) == named
    assert all((gpu.ROOT / "tests" / name).is_file() for name in gpu.TESTS)


def test_the_checks_of_moves_pass(one_torch_thread: None) -> None:
    line = gpu_move.check_moves(CPU, CallRecorder(), "tf1-small", 12)
    assert "tf1-small, adaptations among them: 0.0e+00 of the way off the CPU's" in line
    assert "chain 1 left the sphere's reach at step" in gpu_move.check_failure(CPU, CallRecorder())
    means = list(gpu_move.check_mean(CPU, CallRecorder(), 60, 4))
    assert [line.split(":")[0] for line in means] == [
        f"⟨U⟩ of 60 moves, 4 chains, {precision}" for precision in ("tf32x3", "tf32")
    ]
    assert len(list(gpu_move.check_gradient(CPU, ["tf1-small"]))) == 1
    replay, state = gpu_move.captured_of(
        gpu_move.Problem("tf1-small", 1, CPU, recorder=CallRecorder())
    )
    before = state.weights.clone()
    replay.replay(state, gpu_move.MOVES)()
    assert int(replay.counter.moves) == gpu_move.MOVES
    assert not torch.equal(state.weights, before)
    stock = gpu_move.stock_move(gpu_move.Problem("tf1-small", 1, CPU), state, None)
    stock()
    assert float((stock.state[0] ** 2).sum()) == pytest.approx(float(state.norm2), rel=1e-5)


def test_the_checks_of_moves_fail(monkeypatch: pytest.MonkeyPatch, one_torch_thread: None) -> None:
    """A gradient one per cent too large on the twin's side alone."""

    class Off:
        def __init__(self, potential: MaskedLanguagePotential) -> None:
            self.potential = potential

        def __call__(self, weights: torch.Tensor, batch: object) -> tuple[torch.Tensor, ...]:
            losses, gradient = self.potential(weights, batch)  # type: ignore[arg-type]
            return losses, 1.01 * gradient

    monkeypatch.setattr(MaskedLanguagePotential, "capturable", property(Off))
    with pytest.raises(AssertionError, match="of the way off after 12 moves"):
        gpu_move.check_moves(CPU, CallRecorder(), "tf1-small", 12)


def test_the_checks_of_the_layer() -> None:
    inputs = gpu_attention.inputs_of(2, 3, 10, 16, CPU)
    gpu_attention.check(attention_norm, inputs, 2e-5)
    gpu_attention.check(gpu_attention.attention_norm_sdpa, inputs, 2e-5)
    with pytest.raises(AssertionError, match="from float64"):
        gpu_attention.check(lambda *leaves: 1.001 * attention_norm(*leaves), inputs, 2e-5)


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's clock, its graphs and compiled code stood in for on the CPU: calls are made
    twice, nothing is compiled, and a call takes 1 µs, or 3 µs where it is the last contender's."""

    class Graph:
        def __init__(self, run: Callable[[], object], warm_ups: int = 1) -> None:
            self.replay = run

    def device_times(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        for call in calls.values():
            call()
            call()
        return {name: [1e-6 * (1 + 2 * at)] for at, name in enumerate(calls)}

    for part in (gpu_move, gpu_attention):
        monkeypatch.setattr(part, "capture", Graph)
        monkeypatch.setattr(part, "device_times", device_times)
    monkeypatch.setattr(gpu_move, "matrix_rate", lambda device: 1e15)
    monkeypatch.setattr(gpu_peers, "hold_codes", lambda model, device: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(moves, "graph_recorder", lambda potential: CallRecorder())


def test_the_lines_of_moves(
    clocked: None, one_torch_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay is of MOVES moves, so the calls' 1 and 3 µs are 0.1 and 0.3 a move."""
    monkeypatch.setattr(gpu_move, "MANY", 2)
    monkeypatch.setitem(gpu_move.MICROSECONDS, "tf1-small", 60.0)
    assert list(gpu_move.one_chain(CPU, ["tf1-small"])) == [
        "move of tf1-small, 1 chain: 0.1 µs, target ≤ 60; stock PyTorch, compiled, in a graph: "
        "0.3 µs, 3.0 times ours"
    ]
    head, *lines = gpu_move.many_chains(CPU, "tf1-small", ["default"])
    assert head == "tf32 matrix rate: 1000 Tflop/s"
    assert [line.split(":")[0] for line in lines] == [
        f"move of tf1-small, 2 chains, {precision}" for precision in ("tf32x3", "tf32")
    ]
    assert all("2.0 times cheaper a chain than alone (target ≥ 25)" in line for line in lines)
    assert all(line.endswith(" 3.0 times ours (target ≥ 4)") for line in lines)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_lines_of_the_layer(clocked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention has no backward on the CPU: a contender that fails is named, and left out."""
    monkeypatch.setattr(gpu_attention, "SEQUENCES", 1)
    lines = list(gpu_attention.timings(CPU, 16))
    assert len(lines) == 2 * 2 * 3
    for no_flex, forward, both in zip(*[iter(lines)] * 3, strict=True):
        assert re.fullmatch(r"attention_norm tf32(x3)?, C = \d+: no flex: .*", no_flex)
        for kind, line in (("forward", forward), ("forward and backward", both)):
            assert f", d = 16, {kind}: 1.0 µs; sdpa and layer norm, compiled: 3.0 µs" in line
            assert line.endswith(" 3.0× (target ≥ 2×)")


def test_the_lines_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(run: Callable[[], object]) -> float:
        run()
        return 2e-6

    monkeypatch.setattr(gpu_step, "TIMED", [(2, 100)])
    monkeypatch.setattr(gpu_step, "capture", lambda run: SimpleNamespace(replay=run))
    monkeypatch.setattr(gpu_step, "median_seconds", seconds)
    monkeypatch.setattr(gpu_step, "copy_rate", lambda device: 1e12)
    head, line = gpu_step.timings(CPU, ["cpu"])
    assert head == "copy: 1000 GB/s read and written"
    # 44 bytes an element, 200 elements, a tenth of a microsecond, a terabyte a second: 9 %
    assert line.endswith("0.1 µs,   9 % of the copy's bandwidth")
