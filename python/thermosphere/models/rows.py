"""Which rows (sequence, site) of a batch the last block works on: ragged, no padding to K."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rows(NamedTuple):
    """R rows a chain, those of one sequence next to each other, the sequences in batch order.

    The number of masked sites varies from sequence to sequence (86 sites masked with probability
    0.15: 12.9 ± 3.3). Listing rows instead of padding every sequence to the fullest of the batch
    saves the padding in everything that is done row by row.
    """

    sequence: torch.Tensor  # (C, R) int64, index in the batch, [0, B)
    position: torch.Tensor  # (C, R) int64, site in the sequence, [0, n)
    start: torch.Tensor  # (C, B) int64, first row of each sequence
    width: int  # K, most rows of any one sequence

    @staticmethod
    def of_positions(positions: torch.Tensor) -> Rows:
        """All K positions of every sequence, `positions` (C, B, K) int64: row b·K + k."""
        chains, batch, width = positions.shape
        sequence = torch.arange(batch, device=positions.device)
        return Rows(
            sequence=sequence.repeat_interleave(width).expand(chains, -1),
            position=positions.reshape(chains, batch * width),
            start=(sequence * width).expand(chains, -1),
            width=width,
        )

    def padded(self) -> torch.Tensor:
        """(C, B, K) int64: row of the k-th slot of each sequence; spare slots point at some row."""
        slot = torch.arange(self.width, device=self.start.device)
        return (self.start.unsqueeze(-1) + slot).clamp_(max=self.sequence.shape[1] - 1)

    def slots(self) -> torch.Tensor:
        """(C, R) int64: b·K + k of each row, the inverse of `padded`."""
        row = torch.arange(self.sequence.shape[1], device=self.start.device)
        place = row - torch.gather(self.start, 1, self.sequence)
        # rows beyond a chain's own count repeat its last sequence: any slot of it will do
        return self.sequence * self.width + place.clamp_(max=self.width - 1)
