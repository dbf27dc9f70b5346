"""The networks once more, one sequence and one row at a time, straight from the formulas, in NumPy.

Nothing here is shared with the package but the names in the layout. Float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Tensors = dict[str, Floats]
MASK = 20


def unpack(row: Floats, layout: object) -> Tensors:
    """The named tensors of one flat vector, by offsets."""
    return {
        entry.name: row[entry.offset : entry.offset + math.prod(entry.shape)].reshape(entry.shape)
        for entry in layout.entries  # type: ignore[attr-defined]
    }


def code(position: int, features: int) -> Floats:
    """PE of one position: sin, cos, sin, cos, …"""
    out = np.zeros(features)
    for k in range(features):
        angle = position / 10000 ** (2 * (k // 2) / features)
        out[k] = math.sin(angle) if k % 2 == 0 else math.cos(angle)
    return out


def norm(row: Floats, gain: Floats, bias: Floats) -> Floats:
    """LayerNorm of one row, eps 1e-5, variance over all features."""
    centred = row - row.sum() / len(row)
    return centred / math.sqrt((centred**2).sum() / len(row) + 1e-5) * gain + bias


def softmax(row: Floats) -> Floats:
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def transformer(w: Tensors, blocks: int, sequence: list[int]) -> tuple[Floats, list[Floats]]:
    """Logits (n, V) of one sequence and the attention matrix of every block."""
    n = len(sequence)
    d = w["embedding"].shape[1]
    m = w["blocks.0.feedforward1.weight"].shape[0]
    x = [w["embedding"][sequence[i]] + code(i, d) for i in range(n)]
    matrices = []
    for block in range(blocks):
        own = {name.split(".", 2)[2]: v for name, v in w.items() if f"blocks.{block}." in name}
        attention = np.zeros((n, n))
        for i in range(n):
            query = own["query_key"] @ x[i]
            scores = np.array([query @ x[j] for j in range(n)]) / math.sqrt(d)
            attention[i] = softmax(scores)
        matrices.append(attention)
        new = []
        for i in range(n):
            mixed = sum(attention[i, j] * x[j] for j in range(n))
            y = norm(x[i] + own["value_output"] @ mixed, own["norm1.gain"], own["norm1.bias"])
            h = np.maximum(own["feedforward1.weight"] @ y + own["feedforward1.bias"], 0)
            f = own["feedforward2.weight"] @ (h + code(i, m)) + own["feedforward2.bias"]
            new.append(norm(y + f, own["norm2.gain"], own["norm2.bias"]))
        x = new
    return np.array([w["output.weight"] @ x[i] + w["output.bias"] for i in range(n)]), matrices


def feed_forward(w: Tensors, sequence: list[int], visible: list[bool]) -> Floats:
    """Logits (n, V) of one sequence."""
    n = len(sequence)
    d = w["embedding"].shape[1]
    m = w["feedforward1.weight"].shape[0]
    u = [
        norm(w["embedding"][sequence[i]] + code(i, d), w["norm1.gain"], w["norm1.bias"])
        for i in range(n)
    ]
    seen = [u[i] for i in range(n) if visible[i]]
    g = sum(seen) / len(seen) if seen else np.zeros(d)
    out = []
    for i in range(n):
        z = np.concatenate([u[i], g])
        h = np.maximum(w["feedforward1.weight"] @ z + w["feedforward1.bias"], 0) + code(i, m)
        f = np.maximum(w["feedforward2.weight"] @ h + w["feedforward2.bias"], 0)
        r = w["residual.weight"] @ u[i] + w["residual.bias"]
        x = norm(f + r, w["norm2.gain"], w["norm2.bias"])
        out.append(w["output.weight"] @ x + w["output.bias"])
    return np.array(out)


def logits(model: object, row: Floats, sequence: list[int]) -> Floats:
    """Logits (n, V) of one sequence by either network."""
    w = unpack(row, model.layout)  # type: ignore[attr-defined]
    if hasattr(model, "blocks"):
        return transformer(w, model.blocks, sequence)[0]
    return feed_forward(w, sequence, [token != MASK for token in sequence])


def masked_loss(
    model: object, row: Floats, truth: list[int], masked: list[bool]
) -> tuple[float, float]:
    """Loss and error of one sequence: means over its masked sites (Eq. 26-30)."""
    inputs = [MASK if hidden else token for token, hidden in zip(truth, masked, strict=True)]
    out = logits(model, row, inputs)
    sites = [i for i in range(len(truth)) if masked[i]]
    losses = [-math.log(softmax(out[i])[truth[i]]) for i in sites]
    errors = [float(np.argmax(out[i]) != truth[i]) for i in sites]
    return sum(losses) / len(sites), sum(errors) / len(sites)


def slope(function: Callable[[Floats], float], row: Floats, direction: int) -> tuple[float, float]:
    """Central difference along one coordinate, and a bound on its error.

    D(h) = f' + a h² + …, so D(2h) - D(h) = 3 a h²: that difference bounds the truncation of D(h)
    with a factor 3 to spare; the rounding of f adds eps |f| / h, with 64 roundings allowed for.
    """
    step = 1e-4

    def difference(h: float) -> float:
        ahead, behind = row.copy(), row.copy()
        ahead[direction] += h
        behind[direction] -= h
        return (function(ahead) - function(behind)) / (2 * h)

    near, far = difference(step), difference(2 * step)
    rounding = 64 * 2.0**-53 * max(abs(function(row)), 1.0) / step
    return near, abs(far - near) + rounding
