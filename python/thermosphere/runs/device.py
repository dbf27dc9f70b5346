"""Where weights are sampled: the setting ``sampling.device``, checked before other stages run."""

from __future__ import annotations

import torch

from thermosphere.ops.backends import step_backend
from thermosphere.ops.minibatch import BATCH_MAX


def sampling_device(
    name: str, where: str, backend: str = "auto", batch: int | str = "all"
) -> torch.device:
    """The device of this name ("cpu" or "cuda"). Raises ValueError, naming `where`, if it cannot be
    used here, or not with this backend of the gradient or this mini-batch."""
    if name == "cpu":
        return torch.device(name)
    if backend == "fused":
        raise ValueError(f"{where} = {name!r} needs backend auto, triton or autograd, got 'fused'")
    if isinstance(batch, int) and batch > BATCH_MAX:
        raise ValueError(f"{where} = {name!r} needs a batch of at most {BATCH_MAX}, got {batch}")
    expected = f"{where} = {name!r} needs a GPU that PyTorch can use"
    if torch.version.cuda is None:
        built = "the CPU alone" if torch.version.hip is None else "ROCm, which has no kernels here"
        raise ValueError(f"{expected}, got PyTorch {torch.__version__}, built for {built}")
    if not torch.cuda.is_available():
        raise ValueError(f"{expected}, got none (torch.cuda.is_available() is false)")
    device = torch.device(name, torch.cuda.current_device())
    try:
        step_backend(where, device)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return device
