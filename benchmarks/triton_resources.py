"""Registers, spills and shared memory of every Triton kernel at the published shapes, compiled
ahead of time: no GPU is needed.

python benchmarks/triton_resources.py [--model NAME]... [--chains C]... [--arch 80]... [--output F]

The launches are those of the ops themselves, recorded on tensors without memory, so what is
compiled is what a GPU would run. One line a distinct kernel: where it is from, programs of the
launch, and per architecture registers a thread, bytes of spills a thread, bytes of shared memory a
program, and how many warps do the same product where a tile is too small for them (1: none).
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from thermosphere.models.fused import encoder_shape
from thermosphere.models.named import NAMES, named_model
from thermosphere.models.positional import sinusoidal_code
from thermosphere.ops.encoder_gradient import EncoderData, EncoderShape, encoder_data
from thermosphere.ops.encoder_gradient_triton import EncoderGradientTriton
from thermosphere.ops.minibatch import Minibatch
from thermosphere.ops.minibatch_triton import launch as draw_minibatch

BATCH, EXAMPLES = 64, 1000
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


class Launch(NamedTuple):
    """A recorded launch as the compiler wants it."""

    kernel: JITFunction
    grid: tuple[int, ...]
    signature: dict[str, str]
    constants: dict[tuple[int], Any]
    aligned: tuple[int, ...]  # arguments divisible by 16
    options: dict[str, Any]

    def key(self) -> str:
        """Launches of one key are one compiled kernel."""
        return repr((self.kernel.fn.__name__, *self[2:]))


class Resources(NamedTuple):
    registers: int  # a thread
    spilled: int  # bytes a thread
    shared: int  # bytes a program
    repeated: int  # warps that do the same product


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches within are recorded, not run."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        launches.append(_launch(kernel, grid, args, named))

    run: Callable[..., Any] = JITFunction.run
    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def _launch(kernel: JITFunction, grid: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    """Types and special values as Triton's own launcher takes them: 1 and None are constants,
    pointers and integers divisible by 16 are known to be."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | named
    signature, constants, aligned = {}, {}, []
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            # allocations are aligned; a view is where its offset is
            if value.storage_offset() * value.element_size() % 16 == 0:
                aligned.append(i)
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(i)
        else:
            signature[parameter.name] = "fp32"
    options = {name: named[name] for name in OPTIONS if named.get(name) is not None}
    options.setdefault("enable_fp_fusion", True)
    return Launch(kernel, tuple(grid), signature, constants, tuple(aligned), options)


def compiled(launch: Launch, arch: int) -> Resources:
    """What the launch needs on sm_`arch`."""
    attributes = {(i,): [["tt.divisibility", 16]] for i in launch.aligned}
    source = ASTSource(launch.kernel, launch.signature, launch.constants, attributes)
    kernel = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options=dict(launch.options)
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [_cuobjdump(), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    repeated = _repeated(kernel.asm["ttgir"])
    return Resources(int(found[1]), int(found[2]), int(kernel.metadata.shared), repeated)


def _repeated(code: str) -> int:
    """The largest ratio of what the warps of a program cover, 16 x 8 results each, to a product's
    results, over the products of Ampere's kind; Hopper's share a product among four warps."""
    layout = r"^(#\w+) = #ttg.nvidia_mma<\{versionMajor = 2.*?warpsPerCTA = \[(\d+), (\d+)\]"
    warps = {m[1]: (int(m[2]), int(m[3])) for m in re.finditer(layout, code, re.MULTILINE)}
    most = 1
    for found in re.finditer(r"tt\.dot .*-> tensor<(\d+)x(\d+)xf32, (#\w+)>", code):
        down, across = warps[found[3]]
        rows, columns = int(found[1]), int(found[2])
        most = max(most, max(1, 16 * down // rows) * max(1, 8 * across // columns))
    return most


def _cuobjdump() -> str:
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    assert path is not None, "cuobjdump must be bundled with triton or on the path"
    return path


def example_data(shape: EncoderShape) -> EncoderData:
    """Sites masked as published, each with probability 0.15."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, shape.tokens - 1, (EXAMPLES, shape.length), generator=generator)
    masked = torch.rand(truth.shape, generator=generator) < 0.15
    masked[:, 0] = True
    codes = [sinusoidal_code(shape.length, size) for size in (shape.embedding, shape.hidden)]
    return encoder_data(truth.masked_fill(masked, shape.tokens - 1), masked, truth, *codes)


def launches_of(name: str, chains: int) -> list[Launch]:
    """A mini-batch and its gradient, of a model by name."""
    model = named_model(name)
    shape = encoder_shape(model)
    gradient = EncoderGradientTriton(
        shape, example_data(shape), chains=chains, batch=BATCH, device="meta"
    )
    on = {"device": "meta"}
    indices = torch.empty(chains, BATCH, dtype=torch.int64, **on)
    shares = torch.empty(chains, BATCH, **on)
    with recorded() as launches:
        draw_minibatch(
            Minibatch(indices, shares),
            seed=1,
            step=torch.empty(1, dtype=torch.int64, **on),
            chain_ids=torch.empty(chains, dtype=torch.int64, **on),
            examples=EXAMPLES,
        )
        gradient(torch.empty(chains, model.layout.size, **on), indices, shares)
    return launches


def main(models: list[str], chains: list[int], archs: list[int], output: Path | None) -> None:
    head = "".join(f"{f'sm_{arch} reg':>10} spill shared repeated" for arch in archs)
    lines = [f"{'kernel':<32}{'model':<11}{'C':>3}{'programs':>9}{head}"]
    seen: set[str] = set()
    print(f"# Triton {triton.__version__}\n{lines[0]}", flush=True)
    for model in models:
        for count in chains:
            for launch in launches_of(model, count):
                if launch.key() in seen:
                    continue
                seen.add(launch.key())
                line = f"{launch.kernel.fn.__name__:<32}{model:<11}{count:>3}"
                line += f"{math.prod(launch.grid):>9}"
                for arch in archs:
                    found = compiled(launch, arch)
                    line += f"{found.registers:>10}{found.spilled:>6}{found.shared:>7}"
                    line += f"{found.repeated:>9}"
                lines.append(line)
                print(line, flush=True)
    if output is not None:
        output.write_text(f"# Triton {triton.__version__}\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", action="append", choices=NAMES)
    parser.add_argument("--chains", action="append", type=int)
    parser.add_argument("--arch", action="append", type=int, choices=(80, 90))
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    main(asked.model or list(NAMES), asked.chains or [1, 64], asked.arch or [80, 90], asked.output)
