"""What the device compilers make of the step, with no GPU: the CPU's arithmetic, no call that
waits, no spills."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import device_code
import pytest
from device_code import (
    ARCHITECTURES,
    CudaCode,
    TritonCode,
    Usage,
    compile_cuda,
    find_nvcc,
    inexact_operations,
)

CUDA_KERNELS = ["metric", "momenta", "normals", "project", "propose", "tangent"]
TRITON_KERNELS = ["finish", *CUDA_KERNELS[:-1], "root", "tangent"]
# Runtime calls of the step's object: what registers the kernels and what launches them.
RUNTIME = {"cudaLaunchKernelExC", "cudaGetLastError", "cudaGetErrorString"}


@pytest.fixture(scope="session", params=ARCHITECTURES)
def cuda(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CudaCode:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc was not found in PATH, CUDA_HOME or /usr/local/cuda")
    return compile_cuda(nvcc, tmp_path_factory.mktemp("cuda"), request.param)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def triton(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[TritonCode]:
    return compiled_triton(tmp_path_factory.mktemp("triton"), request.param)


def compiled_triton(folder: Path, architecture: int, *, smallest: bool = False) -> list[TritonCode]:
    """compile_triton in a process of its own: in this one Triton interprets (conftest.py)."""
    pytest.importorskip("triton")
    out = folder / "code.pickle"
    script = (
        "import pickle, pathlib, device_code as d; code = d.compile_triton("
        f"pathlib.Path({str(folder)!r}), {architecture}, smallest={smallest}); "
        f"pathlib.Path({str(out)!r}).write_bytes(pickle.dumps(code))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(device_code.__file__).parent)
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    return pickle.loads(out.read_bytes())


def blocks_a_multiprocessor(usage: Usage, threads: int) -> int:
    """Blocks that the register file (65,536) and shared memory of sm_80 (164 kB) have room for; a
    block's own kilobyte counts."""
    return min(65536 // (usage.registers * threads), 164 * 1024 // (usage.shared + 1024))


def test_cuda_kernels_fit(cuda: CudaCode) -> None:
    assert [usage.kernel for usage in cuda.usage] == [f"{name}_kernel" for name in CUDA_KERNELS]
    for usage in cuda.usage:
        assert usage.stack == usage.spills == 0, usage.line()
        assert blocks_a_multiprocessor(usage, threads=256) >= 4, usage.line()


def test_cuda_arithmetic_is_the_cpus(cuda: CudaCode) -> None:
    assert inexact_operations(cuda.ptx) == []
    for operation in ("mul.rn.f32", "add.rn.f64", "sqrt.rn.f32", "sqrt.rn.f64", "div.rn.f64"):
        assert operation in cuda.ptx  # the list above looked at the step


def test_no_call_waits_for_the_gpu(cuda: CudaCode) -> None:
    """The object's undefined symbols: no synchronisation, copy, allocation or query."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    run = subprocess.run([nm, "-u", str(cuda.object)], capture_output=True, text=True, check=True)
    symbols = {line.split()[-1] for line in run.stdout.splitlines()}
    assert {name for name in symbols if name.startswith(("cuda", "cu"))} == RUNTIME
    assert all(
        "ynchron" not in name and "alloc" not in name.lower() for name in symbols if "cuda" in name
    )


def test_triton_kernels_fit(triton: list[TritonCode]) -> None:
    assert [code.usage.kernel for code in triton] == [f"{name}_kernel" for name in TRITON_KERNELS]
    for _, usage in triton:
        assert usage.stack == usage.spills == 0, usage.line()
        assert blocks_a_multiprocessor(usage, threads=128) >= 5, usage.line()


def test_triton_kernels_compile_for_one_parameter(tmp_path: Path) -> None:
    """Ones and what is left out are compiled in, which the interpreter does not do."""
    for _, usage in compiled_triton(tmp_path, 80, smallest=True):
        assert usage.stack == usage.spills == 0, usage.line()


def test_triton_arithmetic_is_the_cpus(triton: list[TritonCode]) -> None:
    assert [inexact_operations(ptx) for ptx, _ in triton] == [[]] * len(TRITON_KERNELS)


@pytest.mark.parametrize(
    "line",
    [
        "\tfma.rn.f32 \t%f1, %f2, %f3, %f4;",
        "\tmul.f32 \t%f1, %f2, %f3;",
        "\t@%p3 div.approx.f32 \t%f1, %f2, %f3;",
        "\tsqrt.approx.ftz.f32 \t%f1, %f2;",
        "\tadd.rn.ftz.f32 \t%f1, %f2, %f3;",
        "\tmad.rn.f64 \t%fd1, %fd2, %fd3, %fd4;",
        "\tlg2.approx.f32 %f1, %f2;",
        "\tadd.rz.f64 %fd1, %fd2, %fd3;",
    ],
)
def test_the_search_sees_inexact_operations(line: str) -> None:
    exact = (
        "\tadd.rn.f32 \t%f1, %f2, %f3;\n\tmad.lo.s32 \t%r1, %r2, %r3, %r4;\n\tsetp.lt.f32 %p1;\n"
    )
    assert inexact_operations(exact) == []
    assert len(inexact_operations(exact + line)) == 1
