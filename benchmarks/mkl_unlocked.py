"""PyTorch with MKL's vendor check lifted.

MKL takes its AVX2 and AVX-512 kernels only where a function of its own, mkl_serv_intel_cpu_true,
says that the processor is Intel's; on others it falls back to slower ones. (MKL_DEBUG_CPU_TYPE,
which used to override that, went in 2020.) PyTorch's wheels link MKL statically, but libtorch_cpu
exports the function and calls it through its procedure linkage table, so one of the same name in a
preloaded object takes its place. For benchmarks: what PyTorch would do here were the check not
there.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
PATHS = {0: "generic", 5: "AVX2", 7: "AVX-512"}  # of mkl_serv_cpu_detect


def obstacle() -> str | None:
    """Why the check cannot be lifted here, as one phrase; None where it can."""
    if sys.platform != "linux" or not torch.backends.mkl.is_available():
        return "it needs Linux and a PyTorch with MKL"
    if not hasattr(torch_library(), "mkl_serv_intel_cpu_true"):
        return "this PyTorch does not export mkl_serv_intel_cpu_true"
    if torch_library().mkl_serv_intel_cpu_true():
        return "MKL has nothing to lift: it takes this processor for Intel's"
    if shutil.which("cc") is None:
        return "there is no C compiler, cc"
    return None


def environment(folder: Path) -> dict[str, str]:
    """The environment for a process with the check lifted; the object to preload is compiled into
    `folder`. CalledProcessError where that fails."""
    source, library = folder / "mkl_unlocked.c", folder / "mkl_unlocked.so"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    before = os.environ.get("LD_PRELOAD")
    return {**os.environ, "LD_PRELOAD": f"{library}:{before}" if before else str(library)}


def code_path() -> str:
    """Which kernels the MKL of this process takes."""
    if not hasattr(torch_library(), "mkl_serv_cpu_detect"):
        return "unknown"
    detected = torch_library().mkl_serv_cpu_detect()
    return PATHS.get(detected, f"type {detected}")


def torch_library() -> ctypes.CDLL:
    folder = Path(torch.__file__).parent / "lib"
    return ctypes.CDLL(str(folder / "libtorch_cpu.so"))
