"""Which code runs the step of tensors on a device: the extension on the CPU, its CUDA kernels on a
GPU, or the Triton kernels where CUDA was not built or cannot run."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version

import torch

from thermosphere import _core

TRITON = "3.5"  # the oldest whose loops can be told to keep operands where they are
NO_GPU = ("no CUDA driver", "no CUDA device")
CAPABILITY = (8, 0)  # of a GPU: the least that the kernels are compiled for
# What each backend's tensors lie on. Triton's interpreter runs on the CPU.
DEVICE_TYPES = {
    "cpu": "cpu",
    "cuda": "cuda",
    "triton": "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda",
}


def cuda_obstacle() -> str | None:
    """Why the extension's CUDA kernels cannot run here; None where they can."""
    build = _core.build_info()
    if build["cuda"] is None:
        return "the extension was built without nvcc"
    built, driver = str(build["cuda"]), int(str(build["cuda_driver"]))
    if driver == 0:
        return NO_GPU[0]
    if driver // 1000 < int(built.split(".")[0]):
        served = f"{driver // 1000}.{driver % 1000 // 10}"
        return f"the driver serves CUDA {served}, the extension was built with {built}"
    return None if int(str(build["cuda_devices"])) else NO_GPU[1]


def card_obstacle(device: torch.device | str = "cuda") -> str | None:
    """Why no kernels run on this GPU, as one phrase; None where they do, and where none is seen."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_capability(device)
    if found >= CAPABILITY:
        return None
    name = torch.cuda.get_device_name(device)
    (major, minor), (has_major, has_minor) = CAPABILITY, found
    return f"a GPU must have compute capability {major}.{minor}, {name} has {has_major}.{has_minor}"


def triton_obstacle() -> str | None:
    """Why Triton's kernels cannot be compiled here, as one phrase; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (extra: gpu)"
    if torch.version.hip is not None:
        return "its kernels are for CUDA, and this PyTorch is built for ROCm"
    try:
        found = version("triton")
    except PackageNotFoundError:  # it came with a torch under another name
        found = TRITON
    if tuple(map(int, found.split(".")[:2])) < tuple(map(int, TRITON.split("."))):
        return f"Triton must be at least {TRITON}, got {found}"
    return None


def check_triton(op: str) -> None:
    """RuntimeError where Triton's kernels cannot be compiled."""
    if (obstacle := triton_obstacle()) is not None:
        raise RuntimeError(f"{op}: no kernels for this device: {obstacle}")


def step_backend(op: str, device: torch.device, requested: str = "auto") -> str:
    """ "cpu", "cuda" or "triton". "auto" is the extension, and Triton only where the extension
    cannot run on that GPU.

    Raises ValueError where the requested backend does not serve the device, RuntimeError where none
    does.
    """
    if requested not in ("auto", *DEVICE_TYPES):
        raise ValueError(f"{op}: backend must be auto, {', '.join(DEVICE_TYPES)}, got {requested}")
    if requested != "auto":
        check_backend_device(op, requested, device)
        return requested
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda":
        raise ValueError(f"{op}: expected a device of type cpu or cuda, got {device}")
    if (obstacle := card_obstacle(device)) is not None:
        raise RuntimeError(f"{op}: no kernels for {device}: {obstacle}")
    obstacle = cuda_obstacle()
    if obstacle is None:
        return "cuda"
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError(f"{op}: no kernels for {device}: {obstacle}, and Triton is missing")
    return "triton"


def check_backend_device(op: str, backend: str, device: torch.device) -> None:
    """ValueError unless the backend runs on tensors of that device."""
    expected = DEVICE_TYPES[backend]
    if device.type != expected:
        raise ValueError(f"{op}: backend {backend} needs tensors on {expected}, got {device}")


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one, which launches go to; nothing on the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def stream_handle(device: torch.device) -> int:
    """The current stream of a GPU, as the extension takes it; read at every call, for capture."""
    return torch.cuda.current_stream(device).cuda_stream
