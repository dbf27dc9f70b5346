"""The learning rate of Vaswani et al. (2017): linear warm-up, then inverse square root."""

from __future__ import annotations


def learning_rate(step: int, embedding: int, warmup: int, factor: float = 1.0) -> float:
    """factor · d^-½ · min(step^-½, step · warmup^-3/2) at step 1, 2, …; d = `embedding`.

    Its maximum, factor / sqrt(d · warmup), is at step = warmup (arXiv 2603.29529, appendix C).
    """
    return factor * embedding**-0.5 * min(step**-0.5, step * warmup**-1.5)
