"""The counter-based generator: published vectors, the same bits everywhere, normals that are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from thermosphere import _core
from thermosphere.ops.philox import Stream, normals, uniform
from thermosphere.ops.philox_ref import draw_words_ref, normals_ref, philox4x32_ref

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, words.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]

DRAW = {"seed": 0x0123_4567_89AB_CDEF, "stream": Stream.NOISE, "chain": 5, "step": 2**40 + 7}


@pytest.fixture
def every_isa() -> Iterator[list[str]]:
    """The instruction sets of this machine; the chosen one is put back afterwards."""
    chosen = _core.isa_chosen()
    yield _core.isa_available()
    _core.isa_choose(chosen)


def numbers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_published_vectors(counter: str, key: str, words: str) -> None:
    assert _core.philox4x32(numbers(counter), numbers(key)) == numbers(words)
    low, high = numbers(key)
    reference = philox4x32_ref(np.array(numbers(counter), dtype=np.uint32), (low, high))
    assert reference.tolist() == numbers(words)


def test_words_equal_the_reference() -> None:
    random = np.random.default_rng(1)
    counters = random.integers(0, 2**32, (1000, 4), dtype=np.uint32)
    key = (0xDEADBEEF, 0xFFFFFFFE)
    expected = philox4x32_ref(counters, key)
    for counter, words in zip(counters.tolist(), expected.tolist(), strict=True):
        assert _core.philox4x32(counter, list(key)) == words


def test_words_equal_tritons(tmp_path: Path) -> None:
    """tl.philox with our counter makes our words, so a GPU kernel can draw the same noise."""
    pytest.importorskip("triton")
    script = tmp_path / "words.py"
    script.write_text(
        "import torch, triton, triton.language as tl\n"
        "@triton.jit\n"
        "def words(out, seed, chain, step, stream, QUADS: tl.constexpr):\n"
        "    quad = tl.arange(0, QUADS)\n"
        "    o = quad * 0\n"
        "    a, b, c, d = tl.philox(seed, quad, o + chain, o + step, o + stream)\n"
        "    tl.store(out + 4 * quad, a)\n"
        "    tl.store(out + 4 * quad + 1, b)\n"
        "    tl.store(out + 4 * quad + 2, c)\n"
        "    tl.store(out + 4 * quad + 3, d)\n"
        "out = torch.zeros(64, dtype=torch.int32)\n"
        "words[(1,)](out, 0x1234567890ABCDEF, 3, 17, 2 << 24, 16)\n"
        "print(*[word % 2**32 for word in out.tolist()])\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
    )
    ours = draw_words_ref(seed=0x1234567890ABCDEF, stream=Stream.REDRAW, chain=3, step=17, count=64)
    assert [int(word) for word in run.stdout.split()] == ours.tolist()


def test_normals_within_the_documented_bound() -> None:
    """csrc/normal.h: absolute error below 1e-6 against the float64 transform of the same words."""
    for step in range(20):
        draw = {**DRAW, "step": step}
        ours = normals(**draw, count=100_000).numpy().astype(np.float64)
        error = np.abs(ours - normals_ref(**draw, count=100_000))
        assert error.max() < 1e-6  # a NaN fails too


def counters_of(words: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 backwards: words (..., 4) uint32 -> the counters (..., 4) that make them."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (words[..., i].astype(np.uint64) for i in range(4))
    for turn in reversed(range(10)):
        k0 = np.uint64((key[0] + turn * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + turn * 0xBB67AE85) & 0xFFFFFFFF)
        b0 = c3 * np.uint64(pow(0xD2511F53, -1, 2**32)) & low
        b2 = c1 * np.uint64(pow(0xCD9E8D57, -1, 2**32)) & low
        c1, c3 = (
            c0 ^ (np.uint64(0xCD9E8D57) * b2 >> np.uint64(32)) ^ k0,
            c2 ^ (np.uint64(0xD2511F53) * b0 >> np.uint64(32)) ^ k1,
        )
        c0, c2 = b0, b2
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


@pytest.mark.parametrize("radius_word", [0, 1, 2, 3, 2**31, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF])
def test_normals_at_the_ends_of_the_uniforms(radius_word: int) -> None:
    """Words no random draw finds: the largest and smallest radius, the seams of the quadrants."""
    seed, tries = 0xA4093822_299F31D0, 2**18
    random = np.random.default_rng(2)
    for angle_word in [0, 1, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 1]:
        words = random.integers(0, 2**32, (tries, 4), dtype=np.uint32)
        words[:, 0], words[:, 1] = radius_word, angle_word
        counters = counters_of(words, (seed & 0xFFFFFFFF, seed >> 32))
        quad, chain, step, top = counters[
            counters[:, 0].argmin()
        ].tolist()  # the nearest to element 0
        draw = {"seed": seed, "chain": chain, "step": step | (top & 0xFFFFFF) << 32}
        out = torch.empty(4 * quad + 2)
        _core.normals(**draw, stream=top >> 24, count=len(out), out=out.data_ptr())
        pair = out[-2:].double().numpy()
        uniform = float((np.float32(radius_word >> 1) + np.float32(0.5)) * np.float32(2.0**-31))
        radius, angle = (-2 * np.log(uniform)) ** 0.5, 2 * np.pi * (angle_word + 0.5) / 2**32
        expected = radius * np.array([np.cos(angle - np.pi / 4), np.sin(angle - np.pi / 4)])
        # The documented bound, and the angle in float32: 2^-25 of a quadrant.
        assert np.abs(pair - expected).max() < 1e-6 + radius * np.pi / 2 * 2**-25
    assert (
        counters_of(philox4x32_ref(counters[:9], (1, 2)), (1, 2)).tolist() == counters[:9].tolist()
    )


def test_same_bits_on_every_instruction_set(every_isa: list[str]) -> None:
    for count in (1, 63, 64, 65, 4097):
        results = []
        for isa in every_isa:
            _core.isa_choose(isa)
            assert _core.isa_chosen() == isa
            results.append(normals(**DRAW, count=count))
        assert all(torch.equal(results[0], result) for result in results)


def test_a_shorter_draw_is_a_prefix() -> None:
    longest = normals(**DRAW, count=5000)
    for count in (0, 1, 2, 3, 4, 5, 63, 64, 65, 127, 4095, 4096, 4097):
        assert torch.equal(normals(**DRAW, count=count), longest[:count])


def test_moments_are_those_of_a_normal() -> None:
    n = 1_000_000
    x = normals(seed=11, stream=Stream.NOISE, chain=0, step=0, count=n).double()
    root = n**0.5
    # Var of x, x², x³, x⁴ under N(0, 1): 1, 2, 15, 96
    z = [
        float(x.mean() * root),
        float(((x**2).mean() - 1) * root / 2**0.5),
        float((x**3).mean() * root / 15**0.5),
        float(((x**4).mean() - 3) * root / 96**0.5),
    ]
    assert max(map(abs, z)) < 4.5, z


def test_distribution_is_normal() -> None:
    n = 1_000_000
    x = normals(seed=12, stream=Stream.REDRAW, chain=1, step=9, count=n).double().numpy()
    distance = stats.kstest(x, "norm").statistic
    assert distance * n**0.5 < 2.3  # P(larger) = 2 exp(-2 · 2.3²) = 5e-5
    # Pairs share a radius and an angle: their angle must be uniform and their half squared radius
    # exponential.
    angle = np.arctan2(x[1::2], x[0::2]) / (2 * np.pi) + 0.5
    energy = (x[0::2] ** 2 + x[1::2] ** 2) / 2
    assert stats.kstest(angle, "uniform").statistic * (n / 2) ** 0.5 < 2.3
    assert stats.kstest(energy, "expon").statistic * (n / 2) ** 0.5 < 2.3


@pytest.mark.parametrize(
    "change",
    [
        {"stream": Stream.MOMENTUM_NOISE},
        {"chain": 6},
        {"step": 2**40 + 8},
        {"step": 7},  # the high word of the step counts
        {"seed": 0x0123_4567_89AB_CDEE},
        {"seed": 0x89AB_CDEF},  # and the high word of the seed
    ],
)
def test_draws_that_differ_in_one_number_are_independent(change: dict[str, int]) -> None:
    n = 200_000
    x = normals(**DRAW, count=n).double()
    y = normals(**{**DRAW, **change}, count=n).double()
    for f in (lambda t: t, lambda t: (t**2 - 1) / 2**0.5):  # both of mean 0 and variance 1
        assert abs(float((f(x) * f(y)).sum()) / n**0.5) < 4.5


def test_elements_of_a_draw_are_independent() -> None:
    n = 200_000
    x = normals(**DRAW, count=n + 64).double()
    for lag in (1, 2, 3, 4, 8, 16, 32, 64):
        for f in (lambda t: t, lambda t: (t**2 - 1) / 2**0.5):
            assert abs(float((f(x[:n]) * f(x[lag : n + lag])).sum()) / n**0.5) < 4.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, r"^normals: seed must be in \[0, 2\*\*64\), got -1$"),
        ({"seed": 2**64}, r"^normals: seed must be in \[0, 2\*\*64\), got 18446744073709551616$"),
        ({"step": -1}, r"^normals: step must be in \[0, 2\*\*56\), got -1$"),
        ({"step": 2**56}, r"^normals: step must be in \[0, 2\*\*56\), got 72057594037927936$"),
        ({"chain": -1}, r"^normals: chain must be in \[0, 2\*\*32\), got -1$"),
        ({"chain": 2**32}, r"^normals: chain must be in \[0, 2\*\*32\), got 4294967296$"),
        ({"count": -1}, r"^normals: count must be >= 0, got -1$"),
    ],
)
def test_arguments_out_of_range(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normals(**{**DRAW, "count": 4, **change})


def test_uniform_is_the_first_word() -> None:
    for chain, step in [(0, 0), (5, 7), (2**32 - 1, 2**40 + 7), (1, 2**56 - 1)]:
        draw = {**DRAW, "stream": Stream.DECISION, "chain": chain, "step": step}
        (word,) = draw_words_ref(**draw, count=1)
        assert uniform(**draw) * 2**32 == int(word)


def test_uniforms_are_uniform() -> None:
    draw = {"seed": 3, "stream": Stream.DECISION}
    x = [uniform(**draw, chain=c, step=1000 * s) for c in range(100) for s in range(100)]
    assert min(x) >= 0.0
    assert max(x) < 1.0
    assert stats.kstest(x, "uniform").statistic * len(x) ** 0.5 < 2.3


@pytest.mark.parametrize("change", [{"seed": 2**64}, {"step": -1}, {"chain": 2**32}])
def test_uniform_arguments_out_of_range(change: dict[str, int]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=rf"^uniform: {name} must be in "):
        uniform(**{**DRAW, **change})


def test_an_unknown_instruction_set_is_refused(every_isa: list[str]) -> None:
    expected = "instruction set: expected one of " + ", ".join(every_isa) + ", got sse9"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        _core.isa_choose("sse9")
