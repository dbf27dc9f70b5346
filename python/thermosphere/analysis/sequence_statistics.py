"""One- and two-site statistics of a set of sequences: what coevolution methods start from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def site_frequencies(tokens: npt.NDArray[np.uint8], states: int) -> npt.NDArray[np.float64]:
    """f_i(a), (n, states): share of sequences (S, n) with state a at site i."""
    return np.stack([(tokens == state).mean(axis=0) for state in range(states)], axis=1)


def pair_frequencies(tokens: npt.NDArray[np.uint8], states: int) -> npt.NDArray[np.float64]:
    """f_ij(a, b), (n, n, states, states): share of sequences with a at site i and b at site j.

    Exact: counts of sequences are summed as whole numbers below 2²⁴ in float32.
    """
    count, sites = tokens.shape
    total = np.zeros((sites * states, sites * states))
    for begin in range(0, count, 4096):
        rows = tokens[begin : begin + 4096, :, None] == np.arange(states)
        one_hot = rows.reshape(len(rows), sites * states).astype(np.float32)
        total += one_hot.T @ one_hot
    return (total / count).reshape(sites, states, sites, states).swapaxes(1, 2)


def pair_correlations(tokens: npt.NDArray[np.uint8], states: int) -> npt.NDArray[np.float64]:
    """(n, n): Frobenius norm over a, b of f_ij(a, b) − f_i(a) f_j(b); the diagonal is 0."""
    single = site_frequencies(tokens, states)
    excess = pair_frequencies(tokens, states) - single[:, None, :, None] * single[None, :, None, :]
    norms = np.sqrt((excess**2).sum(axis=(2, 3)))
    np.fill_diagonal(norms, 0.0)
    return norms
