"""Which code runs the step of tensors on a device, what doctor says of it, and clear refusals."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from step_problem import make_problem, take_step

from thermosphere import _core
from thermosphere.doctor import doctor
from thermosphere.models.fused import triton_obstacle
from thermosphere.models.named import named_model
from thermosphere.ops.backends import DEVICE_TYPES, cuda_obstacle, step_backend
from thermosphere.ops.langevin_step import StepWorkspace
from thermosphere.ops.philox import Stream, normals

GPU = torch.device("cuda:0")
# What build_info says of CUDA: (nvcc, driver, devices) -> the obstacle, and doctor's line.
MACHINES = [
    ((None, 0, 0), "the extension was built without nvcc", "Triton kernels: {}"),
    (("13.0.88", 0, 0), "no CUDA driver", "CUDA kernels of the extension, and {} to run them"),
    (("13.0.88", 13000, 0), "no CUDA device", "CUDA kernels of the extension, and {} to run them"),
    (
        ("13.0.88", 12040, 1),
        "the driver serves CUDA 12.4, the extension was built with 13.0.88",
        "Triton kernels: {}",
    ),
    (("13.0.88", 13010, 2), None, "CUDA kernels of the extension"),
]


def pretend(monkeypatch: pytest.MonkeyPatch, machine: tuple[str | None, int, int]) -> None:
    found = dict(zip(("cuda", "cuda_driver", "cuda_devices"), machine, strict=True))
    build = {**_core.build_info(), **found}
    monkeypatch.setattr(_core, "build_info", lambda: build)


@pytest.mark.parametrize(("machine", "obstacle", "line"), MACHINES)
def test_cuda_where_it_runs_and_triton_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
    machine: tuple[str | None, int, int],
    obstacle: str | None,
    line: str,
) -> None:
    pytest.importorskip("triton")
    pretend(monkeypatch, machine)
    assert cuda_obstacle() == obstacle
    assert step_backend("op", GPU) == ("triton" if obstacle else "cuda")
    assert step_backend("op", torch.device("cpu")) == "cpu"
    assert dict(doctor())["step on a GPU"] == line.format(obstacle)


def test_without_nvcc_and_triton_a_gpu_has_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, MACHINES[0][0])
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "triton" else find(name)
    )
    message = "^op: no kernels for cuda:0: the extension was built without nvcc, and Triton is"
    with pytest.raises(RuntimeError, match=message):
        step_backend("op", GPU)
    expected = "none: the extension was built without nvcc, and Triton is not installed"
    assert dict(doctor())["step on a GPU"] == expected


@pytest.mark.parametrize(
    ("capability", "served"), [((7, 5), False), ((8, 0), True), ((12, 0), True)]
)
def test_a_card_older_than_the_kernels_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], served: bool
) -> None:
    pretend(monkeypatch, MACHINES[-1][0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    if served:
        assert step_backend("op", GPU) == "cuda"
        return
    obstacle = "a GPU must have compute capability 8.0, T4 has 7.5"
    with pytest.raises(RuntimeError, match=f"^op: no kernels for cuda:0: {obstacle}$"):
        step_backend("op", GPU)
    assert triton_obstacle(named_model("tf1-small"), GPU) is not None
    assert dict(doctor())["step on a GPU"] == f"none: {obstacle}"


@pytest.mark.parametrize(
    ("device", "backend", "message"),
    [
        ("cpu", "cuda", "op: backend cuda needs tensors on cuda, got cpu"),
        ("cpu", "triton", "op: backend triton needs tensors on cuda, got cpu"),
        ("cuda", "cpu", "op: backend cpu needs tensors on cpu, got cuda"),
        ("meta", "auto", "op: expected a device of type cpu or cuda, got meta"),
        ("cpu", "sycl", "op: backend must be auto, cpu, cuda, triton, got sycl"),
    ],
)
def test_backends_and_devices_that_do_not_fit(
    device: str, backend: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEVICE_TYPES, "triton", "cuda")  # as without Triton's interpreter
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole text is compared
        step_backend("op", torch.device(device), backend)
    assert str(error.value) == message


def test_a_workspace_of_another_backend_is_refused() -> None:
    """Also where the check at its making was passed by."""
    problem = make_problem(1, 10)
    with pytest.raises(ValueError, match=r"^StepWorkspace: backend cuda needs tensors on cuda"):
        take_step(problem, backend="cuda")
    workspace = StepWorkspace(1, 10)
    workspace.backend = "cuda"
    with pytest.raises(ValueError, match=r"^langevin_step: backend cuda needs tensors on cuda"):
        torch.ops.thermosphere.langevin_step(
            *problem[:5],
            workspace.proposal,
            workspace.partial_sums,
            problem.coefficients,
            problem.metric,
            workspace.multiplier,
            workspace.reachable,
            problem.chain_ids,
            None,
            None,
            workspace.blocks_done,
            "cuda",
            0,
            0,
            False,
            1,
        )


@pytest.mark.skipif(
    cuda_obstacle() in (None, "the extension was built without nvcc"),
    reason="needs an extension with CUDA, and no GPU",
)
def test_calls_without_a_device_raise() -> None:
    """The extension's own calls: an error, and the process goes on."""
    draw = {"seed": 0, "stream": 0, "chain": 0, "step": 0, "count": 4, "out": 0}
    with pytest.raises(RuntimeError, match=r"^normals: CUDA: .+"):
        _core.normals_cuda(**draw, cuda_stream=0)


@pytest.mark.skipif(_core.build_info()["cuda"] is not None, reason="the extension has CUDA")
def test_calls_without_cuda_raise() -> None:
    draw = {"seed": 0, "stream": 0, "chain": 0, "step": 0, "count": 4, "out": 0}
    with pytest.raises(RuntimeError, match=r"^normals: this build of thermosphere has no CUDA"):
        _core.normals_cuda(**draw, cuda_stream=0)


def test_normals_on_the_cpu_are_the_default() -> None:
    draw = {"seed": 5, "stream": Stream.REDRAW, "chain": 1, "step": 2, "count": 9}
    assert torch.equal(normals(**draw), normals(**draw, device="cpu", backend="cpu"))
    assert normals(**{**draw, "count": 0}).shape == (0,)
