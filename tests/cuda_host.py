"""csrc/*_cuda.cu compiled by the C++ compiler (tests/cuda_on_host), in place of the extension's
CUDA calls: what runs on a GPU then runs on the CPU, behind the same Python."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
# The extension's (CMakeLists.txt): what makes the same bits of the same lines.
ARITHMETIC = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


def compile_on_host(source: str, out: Path, *options: str) -> None:
    """Compile a file of tests/cuda_on_host. Skips the test where there is no C++ compiler."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler to build the CUDA kernels for the CPU")
    folder = ROOT / "tests" / "cuda_on_host"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    includes = [f"-I{folder}", f"-I{ROOT / 'csrc'}"]
    command = [compiler, "-std=c++20", "-O1", *warnings, *ARITHMETIC, "-pthread", *includes]
    subprocess.run([*command, *options, str(folder / source), "-o", str(out)], check=True)


def build_cuda_on_host(folder: Path) -> ModuleType:
    """The module of the calls, compiled into `folder`."""
    pybind11 = pytest.importorskip("pybind11")
    library = folder / f"cuda_on_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    compile_on_host("module.cpp", library, *includes, "-shared", "-fPIC", "-fvisibility=hidden")
    spec = importlib.util.spec_from_file_location("cuda_on_host", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
