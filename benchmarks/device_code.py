"""What the device compilers make of the step, with no GPU: instructions, registers, spills, shared
memory. For the tests and for cuda_resources.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc" / "langevin_step_cuda.cu"
ARCHITECTURES = (80, 90)


class Usage(NamedTuple):
    """One kernel's resources."""

    kernel: str
    architecture: int
    registers: int  # a thread
    stack: int  # bytes a thread
    spills: int  # bytes a thread, stores and loads
    shared: int  # bytes a block, static

    def line(self) -> str:
        return (
            f"{self.kernel:18} sm_{self.architecture}: {self.registers:3} registers, "
            f"{self.stack} B stack, {self.spills} B spilled, {self.shared} B shared"
        )


def find_nvcc() -> str | None:
    """nvcc where CMakeLists.txt looks for it."""
    folders = [
        os.environ[name] + "/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ
    ]
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders, "/usr/local/cuda/bin"])
    return shutil.which("nvcc", path=path)


def arithmetic_flags() -> list[str]:
    """The flags that CMakeLists.txt gives nvcc for its arithmetic."""
    found = re.search(
        r"set\(THERMOSPHERE_CUDA_ARITHMETIC ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text()
    )
    if found is None:
        raise ValueError("CMakeLists.txt: expected set(THERMOSPHERE_CUDA_ARITHMETIC …), found none")
    return found[1].split()


class CudaCode(NamedTuple):
    object: Path  # host and device code
    ptx: str
    usage: list[Usage]


def compile_cuda(nvcc: str, folder: Path, architecture: int) -> CudaCode:
    """The step's source as the extension compiles it. CalledProcessError where nvcc refuses it."""
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    out = folder / f"step_{architecture}.o"
    command = [nvcc, "-std=c++20", *arithmetic_flags(), target, "--keep", f"--keep-dir={folder}"]
    command += ["-Xptxas=-v", "-Xcompiler=-fPIC,-Wall,-Wextra", "-Werror=all-warnings"]
    run = subprocess.run(
        [*command, "-c", str(SOURCE), "-o", str(out)], capture_output=True, text=True, check=True
    )
    usage = []
    for part in run.stderr.split("Compiling entry function '")[1:]:
        name = re.match(r"\w*?\d\d([a-z]+_kernel)E", part)
        registers = re.search(r"Used (\d+) registers", part)
        frame = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", part
        )
        shared = re.search(r"(\d+) bytes smem", part)
        if name is None or registers is None or frame is None:
            raise ValueError(f"ptxas: expected the usage of a kernel, got {part[:300]}")
        stack, stores, loads = map(int, frame.groups())
        bytes_shared = int(shared[1]) if shared else 0
        usage.append(
            Usage(name[1], architecture, int(registers[1]), stack, stores + loads, bytes_shared)
        )
    return CudaCode(out, next(folder.glob(f"{SOURCE.stem}*.ptx")).read_text(), sorted(usage))


TRITON_TYPES = {
    **dict.fromkeys(("weights", "momenta", "gradient", "inverse_masses", "noise_scales"), "*fp32"),
    **dict.fromkeys(("proposal", "full_momenta"), "*fp32"),
    **dict.fromkeys(("partial_sums", "coefficients", "metric", "multiplier"), "*fp64"),
    **dict.fromkeys(("chain_ids", "moves", "failed_move"), "*i64"),
    **dict.fromkeys(("parameters", "segments", "count"), "i32"),
    **dict.fromkeys(("step", "chain_id"), "i64"),
    "reachable": "*u8",
    "out": "*fp64",
    "seed": "u64",
}
TRITON_CONSTANTS: dict[str, object] = {
    "SEGMENT": 4096,
    "PADDED": 64,  # segments of tf4's 168,853 parameters
    "WHICH": 0,
    "FACTOR": 1.0,
    "ADVANCE": True,
    "STREAM": 2,
}


class TritonCode(NamedTuple):
    ptx: str
    usage: Usage


def compile_triton(folder: Path, architecture: int, *, smallest: bool = False) -> list[TritonCode]:
    """The Triton step's kernels, compiled ahead of time: for tf4 with a counter, or as Triton does
    it for one parameter, one segment and no counter, which it compiles in."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from thermosphere.ops import langevin_step_kernels as kernels
    from thermosphere.ops import langevin_step_triton as step

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    constants = {**TRITON_CONSTANTS, "CHUNK": step.CHUNK}
    if smallest:
        constants |= dict.fromkeys(("parameters", "segments", "count"), 1)
        constants |= dict.fromkeys(("moves", "failed_move"))
        constants |= {"PADDED": 1, "ADVANCE": False}
    code = []
    for name in sorted(name for name in vars(kernels) if name.endswith("_kernel")):
        kernel = getattr(kernels, name)
        types = {a: "constexpr" if a in constants else TRITON_TYPES[a] for a in kernel.arg_names}
        if name == "normals_kernel":
            types["out"] = "*fp32"
        values = {a: constants[a] for a, type_ in types.items() if type_ == "constexpr"}
        compiled = triton.compile(
            ASTSource(kernel, types, values),
            target=GPUTarget("cuda", architecture, 32),
            options=step.OPTIONS,
        )
        cubin = folder / f"{name}_{architecture}.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        text = subprocess.run(
            [str(tool), "-res-usage", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
        used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        usage = Usage(
            name, architecture, used["REG"], used["STACK"], used["LOCAL"], compiled.metadata.shared
        )
        code.append(TritonCode(compiled.asm["ptx"], usage))
    return code


def inexact_operations(ptx: str) -> list[str]:
    """Floating-point operations that would not make the CPU's bits: contracted, approximate or
    flushed ones, and those without a stated rounding."""
    operations = set(re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z][a-z0-9._]*)", ptx, re.MULTILINE))
    arithmetic = re.compile(r"(add|sub|mul|div|sqrt|fma|mad|rcp|rsqrt|sin|cos|lg2|ex2|tanh)\.")
    exact = re.compile(r"(add|sub|mul|div|sqrt)\.rn\.f(32|64)$")
    return sorted(
        operation
        for operation in operations
        if re.search(r"\.f(16|32|64)", operation)
        and (".ftz" in operation or ".approx" in operation or arithmetic.match(operation))
        and not exact.match(operation)
    )
