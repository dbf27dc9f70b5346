"""Registers, spills and shared memory of the step's kernels, CUDA and Triton; needs no GPU.

python benchmarks/cuda_resources.py

Writes results/cuda_resources.txt.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from device_code import ARCHITECTURES, arithmetic_flags, compile_cuda, compile_triton, find_nvcc
from record import commit, package


def main() -> Path:
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("cuda_resources: nvcc was not found in PATH, CUDA_HOME or /usr/local/cuda")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    lines = [
        f"# python benchmarks/cuda_resources.py; commit {commit()}",
        f"# {version.splitlines()[3]}; {' '.join(arithmetic_flags())}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ARCHITECTURES:
            usages = compile_cuda(nvcc, Path(folder), architecture).usage
            lines += [f"cuda   {usage.line()}" for usage in usages]
        lines.append(f"# {package('triton')}, four warps a program, no contraction")
        for architecture in ARCHITECTURES:
            usages = [code.usage for code in compile_triton(Path(folder), architecture)]
            lines += [f"triton {usage.line()}" for usage in usages]
    path = Path(__file__).parent / "results" / "cuda_resources.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    print(main().read_text(), end="")
