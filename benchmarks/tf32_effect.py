"""What tf32 products do to loss and gradient, without a GPU: Triton's kernels under its
interpreter, whose products are made to round their operands as tensor cores do.

python benchmarks/tf32_effect.py [--output FILE]

A tf32 operand keeps 10 of 23 bits of the mantissa, the rest cut off; tf32x3 splits an operand into
such a part and what is left, and adds three of the four products. Sums stay in float32. Errors are
against float64, relative: of the loss, of the whole gradient, and of the tensor of the gradient
that is furthest off. `none`: the interpreter's own float32 products.
"""

from __future__ import annotations

import argparse
import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradient_problem import make_sequences
from triton._C.libtriton import ir
from triton.runtime import interpreter

from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import NAMES, named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.minibatch import Minibatch

SEQUENCES = 2


def cut(values: np.ndarray) -> np.ndarray:
    """Mantissas of 10 bits, as tf32 operands have."""
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def rounded_dot(rounds: bool) -> Any:
    """The interpreter's product, with operands rounded as its input_precision says."""

    def dot(self: object, a: Any, b: Any, d: Any, precision: Any, _: object) -> Any:
        left, right = np.ascontiguousarray(a.data), np.ascontiguousarray(b.data)
        if not rounds or precision == ir.INPUT_PRECISION.IEEE:
            product = left @ right
        elif precision == ir.INPUT_PRECISION.TF32:
            product = cut(left) @ cut(right)
        else:
            high_left, high_right = cut(left), cut(right)
            low_left, low_right = cut(left - high_left), cut(right - high_right)
            product = low_left @ high_right + high_left @ low_right + high_left @ high_right
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    return dot


def relative(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def effect(name: str, precision: str, rounds: bool) -> str:
    """A line of errors of one network."""
    model, sites = named_model(name), MaskedSites(make_sequences())
    weights = model.initial(1, torch.Generator().manual_seed(0))
    batch = Minibatch(
        torch.arange(SEQUENCES)[None].clone(), torch.full((1, SEQUENCES), 1 / SEQUENCES)
    )
    exact = MaskedLanguagePotential(model, sites, backend="autograd")
    loss, gradient = exact(weights.double(), batch)
    interpreter.InterpreterBuilder.create_dot = rounded_dot(rounds)
    mine = MaskedLanguagePotential(model, sites, backend="triton", precision=precision)
    got_loss, got = mine(weights, batch)
    views, wanted = model.layout.views(got), model.layout.views(gradient)
    worst = max(views, key=lambda tensor: relative(views[tensor], wanted[tensor]))
    return (
        f"{name:<10}{precision if rounds else 'none':<8}{relative(got_loss, loss):9.1e}"
        f"{relative(got, gradient):10.1e}{relative(views[worst], wanted[worst]):9.1e} {worst}"
    )


def main(output: Path | None) -> None:
    lines = [f"{'model':<10}{'products':<8}{'loss':>9}{'gradient':>10}{'worst':>9} tensor"]
    print(lines[0], flush=True)
    for name in NAMES:
        for precision, rounds in (("tf32x3", False), ("tf32x3", True), ("tf32", True)):
            lines.append(effect(name, precision, rounds))
            print(lines[-1], flush=True)
    if output is not None:
        output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path)
    main(parser.parse_args().output)
