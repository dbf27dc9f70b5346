"""The masked sites of a sequence set, listed once, and the ragged rows of any batch of it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from thermosphere.models.rows import Rows
from thermosphere.ops.encoder_gradient import EncoderData
from thermosphere.proteins.alphabet import MASK
from thermosphere.proteins.dataset import MaskedSequences


class MaskedBatch(NamedTuple):
    """What a model needs of one batch a chain, and the loss after it."""

    tokens: torch.Tensor  # (C, B, n) int64, with MASK at the masked sites
    rows: Rows  # the masked sites, (C, R)
    targets: torch.Tensor  # (C, R) int64, the true residues there
    weights: torch.Tensor  # (C, R), weight of the sequence / its masked sites; 0 = padding


class MaskedSites:
    """Tensors of a `MaskedSequences`: inputs (S, n), and the sites and residues behind the masks.

    S sequences of n sites; K is the largest number of masked sites in one of them.
    """

    def __init__(self, sequences: MaskedSequences, device: torch.device | str = "cpu") -> None:
        masked = torch.from_numpy(sequences.masked).to(device)  # (S, n)
        truth = torch.from_numpy(sequences.tokens).to(device=device, dtype=torch.int64)
        if len(sequences) == 0:
            raise ValueError("MaskedSites: sequences must not be empty, got 0")
        self.masked = masked  # (S, n) bool
        self.truth = truth  # (S, n) int64
        self.inputs = truth.masked_fill(masked, MASK)  # (S, n) int64
        self.encoded: dict[tuple[int, int], EncoderData] = {}  # models/fused.py's, by (d, m)
        self.count = masked.sum(dim=1)  # (S,) int64
        width = int(self.count.max())
        order = torch.argsort((~masked).to(torch.uint8), dim=1, stable=True)
        self.site = order[:, :width].contiguous()  # (S, K) int64, ascending, spare slots unmasked
        self.residue = truth.gather(1, self.site)  # (S, K) int64

    def __len__(self) -> int:
        return len(self.count)

    @property
    def length(self) -> int:
        """Number of sites n."""
        return int(self.inputs.shape[1])

    def batch(
        self,
        indices: torch.Tensor,  # (C, B) int64
        weights: torch.Tensor,  # (C, B), weight of each sequence's loss
    ) -> MaskedBatch:
        """The masked rows of these sequences; one of weight zero (a repeated draw) gets no rows.

        Chains have different numbers of rows; the shorter ones are filled up with rows of weight
        zero.
        """
        chains = len(indices)
        own = self.count[indices]  # (C, B)
        count = torch.where(weights != 0, own, 0)
        end = count.cumsum(dim=1)
        start = end - count
        total = end[:, -1:]
        row = torch.arange(max(int(total.max()), 1), device=indices.device).expand(chains, -1)
        real = row < total  # (C, R)
        sequence = torch.searchsorted(end, row.contiguous(), right=True)
        sequence.clamp_(max=indices.shape[1] - 1)
        slot = torch.where(real, row - start.gather(1, sequence), 0)
        example = indices.gather(1, sequence)
        weight = (weights / own).gather(1, sequence)
        return MaskedBatch(
            tokens=self.inputs[indices],
            rows=Rows(sequence, self.site[example, slot], start, max(int(count.max()), 1)),
            targets=self.residue[example, slot],
            weights=torch.where(real, weight, 0.0),
        )
