"""The counter-based generator as its authors define it, in NumPy, float64 transform."""

from __future__ import annotations

import numpy as np

from thermosphere.ops.philox import Stream


def philox4x32_ref(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 (Salmon et al., SC'11): counter ``(..., 4)`` uint32 -> words ``(..., 4)``
    uint32."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0 = (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1 = product1 & low
        c3 = product0 & low
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def draw_words_ref(*, seed: int, stream: Stream, chain: int, step: int, count: int) -> np.ndarray:
    """Words ``(count,)`` uint32 of elements 0 … count - 1."""
    quads = -(-count // 4)
    counter = np.empty((quads, 4), dtype=np.uint32)
    counter[:, 0] = np.arange(quads, dtype=np.uint32)
    counter[:, 1] = chain
    counter[:, 2] = step & 0xFFFFFFFF
    counter[:, 3] = (step >> 32) | (int(stream) << 24)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    return philox4x32_ref(counter, key).reshape(-1)[:count]


def normals_ref(*, seed: int, stream: Stream, chain: int, step: int, count: int) -> np.ndarray:
    """Box-Muller normals ``(count,)`` float64: radius from 31 bits, angle π/2 (quadrant + t) from
    32."""
    padded = -(-count // 4) * 4
    words = draw_words_ref(seed=seed, stream=stream, chain=chain, step=step, count=padded)
    radius_word, angle_word = words[0::2], words[1::2]
    half = np.float32(
        0.5
    )  # the two uniforms are float32 by definition, the transform is float64 here
    uniform = ((radius_word >> np.uint32(1)).astype(np.float32) + half) * np.float32(2.0**-31)
    radius = np.sqrt(-2.0 * np.log(uniform.astype(np.float64)))
    turn = ((angle_word & np.uint32(0x3FFFFFFF)).astype(np.float32) + half) * np.float32(2.0**-30)
    turn = (turn - half).astype(np.float64)
    angle = 0.5 * np.pi * ((angle_word >> np.uint32(30)) + turn)
    out = np.empty(padded)
    out[0::2] = radius * np.cos(angle)
    out[1::2] = radius * np.sin(angle)
    return out[:count]
