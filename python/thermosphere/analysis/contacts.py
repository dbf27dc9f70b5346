"""Mean attention against the contact map (arXiv 2603.29529, Figs. 6, 7, E2, E4 and E7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from thermosphere.models.fused import chosen_backend, fused_mean_attention
from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.potential import as_sites
from thermosphere.models.transformer import Transformer
from thermosphere.proteins.dataset import MaskedSequences

MINIMUM_SEPARATION = 6  # chosen: the number in the paper was lost
TOLERANCE = 1  # chosen


def mean_attention(
    model: Transformer,
    weights: torch.Tensor,
    sequences: MaskedSequences | MaskedSites,
    *,
    chunk: int = 64,
    backend: str = "auto",
    progress: bool = False,
) -> npt.NDArray[np.float64]:
    """Attention averaged over sequences and symmetrised, (A + Aᵀ)/2, for each draw and block.

    weights: (K, N) draws.  sequences: their masked inputs are what the model reads; pass a
    `MaskedSites` to spare its preparation in repeated calls.  backend: "fused"
    (ops.mean_attention, float32), "autograd" (the model's own attention, also for "triton", which
    has no kernel of it), or "auto", the fused one where it covers the model and the weights are
    float32 on the CPU.  chunk: sequences at a time with "autograd", which bounds memory.  Returns
    (K, L, n, n) float64, accumulated in float64.
    ValueError for a model without attention, weights that are not (K, N), no sequences, a chunk
    below 1, or a backend that does not serve.
    """
    if not isinstance(model, Transformer):
        raise ValueError(f"mean_attention: model must be a transformer, got {model.name}")
    parameters = model.layout.size
    if weights.ndim != 2 or weights.shape[0] < 1 or weights.shape[1] != parameters:
        raise ValueError(
            f"mean_attention: weights must be (K, {parameters}), got {tuple(weights.shape)}"
        )
    if chunk < 1:
        raise ValueError(f"mean_attention: chunk must be at least 1, got {chunk}")
    if len(sequences) < 1:
        raise ValueError("mean_attention: sequences must hold at least one sequence, got 0")
    if sequences.length != model.length:
        raise ValueError(
            f"mean_attention: sequences must have {model.length} sites, got {sequences.length}"
        )
    fused = chosen_backend("mean_attention", backend, model, weights.device) == "fused"
    if backend == "fused" and weights.dtype != torch.float32:
        raise ValueError(
            f"mean_attention: backend 'fused' needs float32 weights, got {weights.dtype}"
        )
    sites = as_sites(sequences, weights.device)
    means = []
    for row in tqdm(
        torch.split(weights, 1), desc="attention", unit="draw", leave=False, disable=not progress
    ):
        if fused and weights.dtype == torch.float32:
            mean = fused_mean_attention(model, sites, row.detach().contiguous())[0].numpy()
        else:
            mean = _mean_of_chunks(model, row, sites.inputs, chunk).cpu().numpy()
        means.append(0.5 * (mean + mean.transpose(0, 2, 1)))
    return np.stack(means)


@torch.no_grad()
def _mean_of_chunks(
    model: Transformer,
    row: torch.Tensor,  # (1, N)
    inputs: torch.Tensor,  # (S, n) int64
    chunk: int,
) -> torch.Tensor:  # (L, n, n) float64
    parts = [
        model.attention(row, part[None])[0].sum(dim=1, dtype=torch.float64)
        for part in torch.split(inputs, chunk)
    ]
    return torch.stack(parts).sum(dim=0) / len(inputs)


def precision_at_l(
    attention: npt.ArrayLike, contact_map: npt.ArrayLike, *, shift: int = 0
) -> float:
    """P@L: the share of contacts among the L = n highest elements (i < j) of the mean attention.

    attention (n, n), symmetric; contact_map (n, n), symmetric, non-zero at contacts.  shift: site
    k + shift of the sequences feels the contacts of residue k (1 for the sequences the authors
    published); sites without a residue are left out.  Equal elements rank in the order (0, 1),
    (0, 2), ….  ValueError for shapes that are not the same square, attention that is not finite, or
    a shift not below n.
    """
    return _precision("precision_at_l", attention, contact_map, shift, 1, 0)


def precision_at_l_tolerant(
    attention: npt.ArrayLike,
    contact_map: npt.ArrayLike,
    *,
    shift: int = 0,
    min_separation: int = MINIMUM_SEPARATION,
    tolerance: int = TOLERANCE,
) -> float:
    """P̃@L: as `precision_at_l`, blind to helices and lenient by a residue.

    Only pairs with |i − j| ≥ min_separation count, both as predictions (the L = n highest of them)
    and as true contacts; a prediction (i, j) is right when a true contact (i', j') has
    |i − i'| ≤ tolerance and |j − j'| ≤ tolerance.  Further ValueError for min_separation < 1,
    tolerance < 0, or a separation that leaves no pair.
    """
    function = "precision_at_l_tolerant"
    return _precision(function, attention, contact_map, shift, min_separation, tolerance)


def random_precision_at_l(
    contact_map: npt.ArrayLike, *, shift: int = 0, min_separation: int = 1, tolerance: int = 0
) -> float:
    """What a random ranking scores on average: the share of candidate pairs that would be right.

    The defaults are the baseline of `precision_at_l`; pass min_separation and tolerance of
    `precision_at_l_tolerant` for that of P̃@L.
    """
    function = "random_precision_at_l"
    residues = _contact_matrix(function, contact_map)
    right, _ = _candidates(function, residues, shift, min_separation, tolerance)
    return float(right.mean())


def highest_pairs(
    attention: npt.ArrayLike,
    contact_map: npt.ArrayLike,
    *,
    shift: int = 0,
    min_separation: int = 1,
    tolerance: int = 0,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The predictions that P@L counts: residues (L, 2) from 0, i < j, highest first, and which are
    right, (L,).

    Their share of right ones is `precision_at_l` (the defaults) or `precision_at_l_tolerant`.
    """
    function = "highest_pairs"
    return _ranked(function, attention, contact_map, shift, min_separation, tolerance)


def on_residues(attention: npt.ArrayLike, shift: int = 0) -> npt.NDArray[np.float64]:
    """Attention (n, n) between sites as that between residues: residue k is site k + shift; NaN
    where a residue has no site."""
    sites = np.asarray(attention, dtype=np.float64)
    n = sites.shape[0]
    residue = np.arange(n)
    inside = (residue + shift >= 0) & (residue + shift < n)
    aligned = np.full((n, n), np.nan)
    site = residue[inside] + shift
    aligned[np.ix_(inside, inside)] = sites[np.ix_(site, site)]
    return aligned


@dataclass(frozen=True)
class BestBlock:
    """The block whose mean attention is nearest to the contact map.

    index: zero-based block.  precision, precision_tolerant: P@L and P̃@L of every draw, (K, L)
    float64.  Choosing the best of L blocks is itself worth a little: compare with the runner-up
    before comparing with `random_precision_at_l`.
    """

    index: int
    precision: npt.NDArray[np.float64]
    precision_tolerant: npt.NDArray[np.float64]


def best_block(
    attention: npt.ArrayLike,
    contact_map: npt.ArrayLike,
    *,
    shift: int = 0,
    min_separation: int = MINIMUM_SEPARATION,
    tolerance: int = TOLERANCE,
) -> BestBlock:
    """Score every draw and block of attention (K, L, n, n); best has the highest mean P̃@L.

    Blocks may exchange roles between starts: score the draws of each start by themselves.
    """
    maps = np.asarray(attention, dtype=np.float64)
    if maps.ndim != 4 or maps.size == 0:
        raise ValueError(f"best_block: attention must be (K, L, n, n), got shape {maps.shape}")
    strict = [[precision_at_l(a, contact_map, shift=shift) for a in blocks] for blocks in maps]
    tolerant = [
        [
            precision_at_l_tolerant(
                a, contact_map, shift=shift, min_separation=min_separation, tolerance=tolerance
            )
            for a in blocks
        ]
        for blocks in maps
    ]
    index = int(np.argmax(np.mean(tolerant, axis=0)))
    return BestBlock(index, np.array(strict), np.array(tolerant))


def _precision(
    function: str,
    attention: npt.ArrayLike,
    contact_map: npt.ArrayLike,
    shift: int,
    min_separation: int,
    tolerance: int,
) -> float:
    _, right = _ranked(function, attention, contact_map, shift, min_separation, tolerance)
    return float(right.mean())


def _ranked(
    function: str,
    attention: npt.ArrayLike,
    contact_map: npt.ArrayLike,
    shift: int,
    min_separation: int,
    tolerance: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The L = n highest candidate pairs, as residues (L, 2), and which are right, (L,)."""
    scores = np.asarray(attention, dtype=np.float64)
    residues = _contact_matrix(function, contact_map)
    if scores.shape != residues.shape:
        raise ValueError(f"{function}: attention must be {residues.shape}, got {scores.shape}")
    if not np.all(np.isfinite(scores)):
        raise ValueError(f"{function}: attention must be finite, got NaN or infinity")
    right, sites = _candidates(function, residues, shift, min_separation, tolerance)
    ranking = np.argsort(-scores[sites], kind="stable")[: residues.shape[0]]
    return np.column_stack(sites)[ranking] - shift, right[ranking]


def _contact_matrix(function: str, contact_map: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    contacts = np.asarray(contact_map) != 0
    if contacts.ndim != 2 or contacts.shape[0] != contacts.shape[1]:
        raise ValueError(f"{function}: contact_map must be (n, n), got shape {contacts.shape}")
    if not np.array_equal(contacts, contacts.T):
        raise ValueError(f"{function}: contact_map must be symmetric, got one that is not")
    return contacts


def _candidates(
    function: str,
    contacts: npt.NDArray[np.bool_],
    shift: int,
    min_separation: int,
    tolerance: int,
) -> tuple[npt.NDArray[np.bool_], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Whether each candidate pair (P,) would be right, and its two sites i < j, each (P,)."""
    n = contacts.shape[0]
    if abs(shift) >= n:
        raise ValueError(f"{function}: shift must be between {1 - n} and {n - 1}, got {shift}")
    if min_separation < 1:
        raise ValueError(f"{function}: min_separation must be at least 1, got {min_separation}")
    if tolerance < 0:
        raise ValueError(f"{function}: tolerance must be at least 0, got {tolerance}")
    residue = np.arange(n)
    separate = np.abs(residue[:, None] - residue[None, :]) >= min_separation
    near = _dilate(contacts & separate, tolerance)
    i, j = np.nonzero(np.triu(separate))  # sites
    inside = (i - shift >= 0) & (j - shift < n)
    i, j = i[inside], j[inside]
    if i.size == 0:
        raise ValueError(
            f"{function}: min_separation and shift must leave a pair of {n} sites, "
            f"got {min_separation} and {shift}"
        )
    return near[i - shift, j - shift], (i, j)


def _dilate(contacts: npt.NDArray[np.bool_], tolerance: int) -> npt.NDArray[np.bool_]:
    """True (n, n) wherever a contact lies within `tolerance` in both indices."""
    n = contacts.shape[0]
    padded = np.pad(contacts, tolerance)
    near = np.zeros((n, n), np.bool_)
    for down in range(2 * tolerance + 1):
        for right in range(2 * tolerance + 1):
            near |= padded[down : down + n, right : right + n]
    return near
