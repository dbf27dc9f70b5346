"""Mini-batches drawn by Triton: the bits of the CPU's, whatever the step in device memory."""

from __future__ import annotations

import pytest
import torch
from numerics import assert_same_bits

from thermosphere.ops.minibatch import Minibatch
from thermosphere.ops.minibatch_ref import draw_minibatch_ref
from thermosphere.ops.philox import Stream

pytest.importorskip("triton")
from thermosphere.ops.minibatch_triton import launch

IDS = torch.tensor([0, 3, 2**31, 2**32 - 1])


@pytest.mark.parametrize("batch", [1, 5, 65])
@pytest.mark.parametrize(("seed", "examples"), [(1, 1), (2**63 + 5, 7), (2**64 - 1, 1000)])
def test_equals_the_reference(batch: int, seed: int, examples: int, gpu: str) -> None:
    drawn = Minibatch(
        torch.full((4, batch), -1, device=gpu), torch.full((4, batch), float("nan"), device=gpu)
    )
    counter = torch.zeros(1, dtype=torch.int64, device=gpu)
    for step in (2**33 + batch, 2**56 - 1):
        counter.fill_(step)
        launch(
            drawn,
            seed=seed,
            step=counter,
            chain_ids=IDS.to(gpu),
            examples=examples,
            stream=Stream.MINIBATCH_END,
        )
        expected = draw_minibatch_ref(
            seed=seed,
            step=step,
            chain_ids=IDS,
            batch=batch,
            examples=examples,
            stream=Stream.MINIBATCH_END,
        )
        assert_same_bits(drawn.indices, expected.indices, f"step {step}")
        assert_same_bits(drawn.weights, expected.weights, f"step {step}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"examples": 0}, r"examples must be in \[1, 2\*\*32\), got 0"),
        ({"step": torch.zeros(1)}, r"step must be \(1,\) int64, got \(1,\) torch.float32"),
        ({"chain_ids": IDS[:3]}, r"chain_ids must be \(4,\) int64, got \(3,\) torch.int64"),
        (
            {"batch": Minibatch(torch.zeros(4, 1025).long(), torch.zeros(4, 1025))},
            r"batch must be in \[1, 1024\], got 1025",
        ),
    ],
)
def test_bad_arguments_are_one_line(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "batch": Minibatch(torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2)),
        "seed": 0,
        "step": torch.zeros(1, dtype=torch.int64),
        "chain_ids": IDS,
        "examples": 10,
    }
    with pytest.raises(ValueError, match=f"^draw_minibatch_triton: {message}$"):
        launch(**(arguments | change))  # type: ignore[arg-type]
