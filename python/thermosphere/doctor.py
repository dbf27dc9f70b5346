"""What is installed, what was compiled, and what will be used."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from thermosphere import __version__, _core
from thermosphere.models.fused import chosen_backend
from thermosphere.models.named import NAMES, named_model
from thermosphere.ops.backends import NO_GPU, card_obstacle, cuda_obstacle

LIBRARIES = ("torch", "numpy", "numba", "xarray", "zarr", "arviz", "safetensors", "triton")


def doctor() -> list[tuple[str, str]]:
    """(what, finding) pairs, in reading order."""
    build = _core.build_info()
    findings = [
        ("thermosphere", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("compiler", str(build["compiler"])),
        (
            "instruction set",
            f"{_core.isa_chosen()} (available: {', '.join(_core.isa_available())})",
        ),
        ("threads", f"{torch.get_num_threads()} ({_core.parallel_backend()})"),
        ("gradient on the CPU", _gradient_backends("cpu")),
        ("gradient on a GPU", _gradient_backends("cuda")),
        ("CUDA in the extension", _cuda(build)),
        ("step on a GPU", _gpu_step()),
        ("CUDA in torch", _torch_cuda()),
        ("Triton", _triton()),
    ]
    return findings + [(name, _version(name)) for name in LIBRARIES]


def _gradient_backends(device: str) -> str:
    served = {name: chosen_backend("doctor", "auto", named_model(name), device) for name in NAMES}
    named = {backend: [n for n in served if served[n] == backend] for backend in served.values()}
    return "; ".join(f"{backend}: {', '.join(models)}" for backend, models in named.items())


def _cuda(build: dict[str, object]) -> str:
    if build["cuda"] is None:
        return "not compiled (no nvcc when it was built)"
    driver = int(str(build["cuda_driver"]))
    found = f"driver CUDA {driver // 1000}.{driver % 1000 // 10}" if driver else "no driver"
    return f"compiled with nvcc {build['cuda']}; {build['cuda_devices']} devices, {found}"


def _gpu_step() -> str:
    if (card := card_obstacle()) is not None:
        return f"none: {card}"
    obstacle = cuda_obstacle()
    if obstacle is None:
        return "CUDA kernels of the extension"
    if obstacle in NO_GPU:
        return f"CUDA kernels of the extension, and {obstacle} to run them"
    if importlib.util.find_spec("triton") is None:
        return f"none: {obstacle}, and Triton is not installed"
    return f"Triton kernels: {obstacle}"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed (extra: gpu)"
    try:
        importlib.import_module("triton")
    except Exception as error:  # whatever an installation that does not fit this machine raises
        return f"installed, but not importable: {error}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "importable, interpreted (TRITON_INTERPRET=1)"
    return "importable" if torch.cuda.is_available() else "importable; no GPU to use it on"


def _torch_cuda() -> str:
    if torch.version.cuda is None:
        return "not in this build of torch"
    return f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} devices"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
