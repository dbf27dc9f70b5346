"""benchmarks/gpu.py as far as it runs without a GPU: its checks, on the twin of captured moves, and
that they can fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gpu
import gpu_attention
import gpu_move
import pytest
import torch

from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.attention_norm import attention_norm
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
    assert list(gpu.parts_of(CPU)) == gpu.__doc__.split("are named: ")[1].split(".")[0].split(", ")
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
