"""What a pointer handed to the compiled core needs, checked where it is made; and numbers."""

from __future__ import annotations

import operator
from numbers import Real

import torch

# Products on a GPU: float32 from three products of tf32, or one product, 1e-3 of the result off.
# The CPU works in float32.
PRECISIONS = ("tf32x3", "tf32")


def check_tensor(
    op: str,
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int | str, ...],
    dtype: torch.dtype,
    device: str = "cpu",
) -> None:
    """ValueError unless `tensor` is contiguous, on that type of device, of that dtype and shape. A
    size given as a name is free."""
    sizes = tensor.shape  # compared whole first: that is ten times faster, and calls are short
    fits = sizes == shape or (
        len(sizes) == len(shape)
        and all(
            isinstance(expected, str) or size == expected
            for size, expected in zip(sizes, shape, strict=True)
        )
    )
    if not fits or tensor.dtype != dtype or tensor.device.type != device:
        raise ValueError(
            f"{op}: {name} must be {_sizes(shape)} {dtype} on {device}, "
            f"got {_sizes(tuple(tensor.shape))} {tensor.dtype} on {tensor.device.type}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: {name} must be contiguous, got strides {tensor.stride()}")


def check_size(op: str, name: str, size: int, limit: int) -> None:
    """ValueError unless 1 ≤ size ≤ limit."""
    if not 1 <= size <= limit:
        raise ValueError(f"{op}: {name} must be in [1, {limit}], got {size}")


def check_positions(op: str, name: str, positions: torch.Tensor, limit: int) -> None:
    """ValueError unless all of positions (int64) are in [0, limit). On a GPU, where reading them
    would wait for it, the device stops instead."""
    if positions.numel() == 0:
        return
    if positions.is_cuda:
        inside = ((positions >= 0) & (positions < limit)).all()
        torch._assert_async(inside, f"{op}: {name} must be in [0, {limit})")
        return
    low, high = int(positions.min()), int(positions.max())
    if low < 0 or high >= limit:
        raise ValueError(f"{op}: {name} must be in [0, {limit}), got {low}..{high}")


def thread_count(op: str, threads: int | None) -> int:
    """`threads`, or torch's. ValueError below 1."""
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"{op}: threads must be >= 1, got {threads}")
    return threads


def padded(size: int) -> int:
    """Floats of a row as the kernels keep it: the next multiple of 16."""
    return -(-size // 16) * 16


def check_precision(op: str, precision: str) -> None:
    """ValueError unless it is one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"{op}: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}"
        )


def addresses(*tensors: torch.Tensor | None) -> list[int]:
    """data_ptr() of each, 0 for None."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _sizes(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def checked_whole(name: str, number: int) -> int:
    """The number. Raises ValueError where it is no whole number (1.0 is none)."""
    try:
        return operator.index(number)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {number!r}") from None


def checked_real(name: str, number: float) -> float:
    """The number. Raises ValueError where it is none."""
    if isinstance(number, bool) or not isinstance(number, Real):
        raise ValueError(f"{name} must be a number, got {number!r}")
    return number
