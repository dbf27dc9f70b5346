"""Dropout of the fused gradient, from the counter-based generator (csrc/dropout_cpu.h)."""

from __future__ import annotations

from dataclasses import dataclass

from thermosphere.ops.philox import check_counter


@dataclass(frozen=True)
class Dropout:
    """Each element of an activation is zeroed with probability `rate`, the others are scaled by
    1/(1 - rate).

    The rate is a multiple of 2⁻¹⁶, the nearest to the one given. What is dropped depends on
    `seed`, on the chain's row in the call and on the sequence's position in the batch, never on
    threads or instruction set. Raises ValueError unless 0 <= rate < 1 and 0 <= seed < 2⁶⁴.
    """

    rate: float
    seed: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"Dropout: rate must be in [0, 1), got {self.rate}")
        check_counter("Dropout", self.seed, 0)

    @property
    def threshold(self) -> int:
        """rate · 2¹⁶; an element is zeroed where its 16 bits are below."""
        return min(round(self.rate * 65536), 65535)
