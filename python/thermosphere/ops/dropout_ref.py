"""The factors of dropout as csrc/dropout_cpu.h defines them, in NumPy."""

from __future__ import annotations

import numpy as np
import torch

from thermosphere.ops.arguments import padded
from thermosphere.ops.dropout import Dropout
from thermosphere.ops.philox import Stream
from thermosphere.ops.philox_ref import philox4x32_ref

BLOCK = 32  # counters, of 8 elements each; every activation begins with a block of its own


def blocks_of(rows: int, columns: int) -> int:
    """Blocks of an activation, whose rows are padded to multiples of 16."""
    return -(-rows * padded(columns) // (8 * BLOCK))


class DropoutFactors:
    """The factors of one sequence's activations, in the order in which the network has them."""

    def __init__(self, dropout: Dropout, chain: int, first_block: int) -> None:
        self.dropout, self.chain, self.block = dropout, chain, first_block

    def next(self, rows: int, columns: int) -> torch.Tensor:
        """Factors (rows, columns) float64 of the next activation, 0 or 1/(1 - rate)."""
        threshold = self.dropout.threshold
        if threshold == 0:
            return torch.ones(rows, columns, dtype=torch.float64)
        blocks = blocks_of(rows, columns)
        counter = np.zeros((blocks * BLOCK, 4), dtype=np.uint32)
        counter[:, 0] = np.arange(self.block * BLOCK, (self.block + blocks) * BLOCK)
        counter[:, 1] = self.chain
        counter[:, 3] = int(Stream.DROPOUT) << 24
        seed = self.dropout.seed
        words = philox4x32_ref(counter, (seed & 0xFFFFFFFF, seed >> 32))
        self.block += blocks
        # element e of a block: half word e // 32 of counter e % 32
        halves = words.view(np.uint16).reshape(blocks, BLOCK, 8).transpose(0, 2, 1).reshape(-1)
        kept = np.where(halves < threshold, 0.0, 65536.0 / (65536 - threshold))
        wide = padded(columns)
        return torch.from_numpy(kept[: rows * wide].reshape(rows, wide)[:, :columns].copy())
