"""Named tensors and a JSON header in one safetensors file, written whole or not at all; and what
tells tensors apart."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def write_archive(
    path: str | os.PathLike[str], tensors: dict[str, torch.Tensor], header: dict[str, Any]
) -> None:
    """Write `tensors` and `header` (JSON) to `path` atomically: a temporary file, then a rename.

    OSError when it cannot be written; what was there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, partial, metadata={"header": json.dumps(header)})
    except SafetensorError as error:  # a full disk, in its own exception
        raise OSError(f"{path}: not written ({error})") from error
    umask = os.umask(0)  # which can only be read by setting it
    os.umask(umask)
    partial.chmod(0o666 & ~umask)  # safetensors leaves its files to their owner alone
    os.replace(partial, path)


def read_archive(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write_archive` wrote with header["kind"] == `kind`.

    OSError when it cannot be opened; ValueError when it is not such a file, or truncated.
    """
    Path(path).stat()  # a missing file is the operating system's error, not a corrupt archive
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["header"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: must be a whole {kind} file, got: {reason}") from error
    if not isinstance(header, dict) or header.get("kind") != kind:
        got = header.get("kind") if isinstance(header, dict) else header
        raise ValueError(f"{path}: must be a {kind} file, got {got!r}")
    return tensors, header


def digest(*tensors: torch.Tensor) -> str:
    """What tells one set of numbers from another, 16 hexadecimal digits."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(tensor.cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]
