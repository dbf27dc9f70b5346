"""A device that is pretended: its tensors lie in memory of the CPU, but refuse to be mixed with
the CPU's, as a GPU's do, and count how often the host waits for them.

Sampling on it must give the bits of the CPU. Run by test_pretended_gpu.py in a process of its own:
the device is registered with PyTorch once and for all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from study_problem import MODEL, trained
from test_device import DATA, SETTINGS
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map
from toy import NoisyQuadratic, Q, start_weights

from thermosphere.analysis.contacts import mean_attention
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops import langevin_step, langevin_step_call, philox
from thermosphere.ops.minibatch import Minibatch, redraw_minibatch
from thermosphere.runs import chains as runs_chains
from thermosphere.runs import sample as runs_sample
from thermosphere.runs.config import Sampling
from thermosphere.runs.sample import sample_model
from thermosphere.sampling import (
    adaptation,
    captured,
    moves,
    noise,
    noise_draws,
)
from thermosphere.sampling.captured import MOVES
from thermosphere.sampling.hmc import HybridMonteCarlo
from thermosphere.sampling.langevin import Langevin, UnreachableSphereError
from thermosphere.sampling.recorder import CallRecorder
from thermosphere.sampling.state import LangevinState

backend_registration._setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend", 0)
CPU = torch.device("cpu")
# What a GPU lets take tensors of the CPU beside its own.
TRANSFERS = ("aten::copy_", "aten::_to_copy")
INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
waits = 0


class There(torch.Tensor):
    """A tensor on the device; `inner` is its memory."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> There:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        self.inner = inner
        return self

    def tolist(self) -> Any:
        wait()
        return self.inner.tolist()

    def __repr__(self) -> str:
        return f"There({self.inner})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        strangers = [x for x in given if not isinstance(x, There) and x.ndim > 0]
        own_index = name in INDEXING and isinstance(args[0], There)
        if strangers and name not in TRANSFERS and not own_index:
            raise RuntimeError(f"{name}: tensors of the CPU among those of {DEVICE}")
        to_host = "device" in kwargs and kwargs["device"] == CPU
        to_host = to_host or (name == "aten::copy_" and not isinstance(args[0], There))
        masked = name in INDEXING and any(
            isinstance(x, There) and x.dtype == torch.bool for x in args[1]
        )
        if to_host or name in WAITS or masked:
            wait()
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        out = func(*tree_map(inside, args), **tree_map(inside, kwargs))
        if name.endswith("_"):
            return args[0]
        return out.clone() if to_host else tree_map(outside, out)


def wait() -> None:
    global waits
    waits += 1


def inside(value: Any) -> Any:
    return value.inner if isinstance(value, There) else value


def outside(value: Any) -> Any:
    return There(value) if isinstance(value, torch.Tensor) else value


LIBRARY = torch.library.Library("aten", "IMPL")


def make_there(op: Any) -> Any:
    """A call that makes a tensor on the device, of numbers or of a tensor of the CPU."""

    def call(*args: Any, **kwargs: Any) -> There:
        return There(op(*args, **{**kwargs, "device": CPU}).clone())

    return call


for factory in ("empty.memory_format", "empty_strided", "_to_copy"):
    op = getattr(torch.ops.aten, factory.split(".")[0])
    LIBRARY.impl(factory, make_there(op), "PrivateUse1")


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extension's step, draws and normals on the device's memory, none of which wait."""
    torch.set_num_threads(1)
    step_of_memory = langevin_step_call._run

    def run(op: str, backend: str, arrays: Any, numbers: Any, done: Any, threads: Any) -> None:
        step_of_memory(op, backend, tree_map(inside, arrays), numbers, inside(done), threads)

    def redraw(batch: Minibatch, *, step: Any, chain_ids: Any, **rest: Any) -> None:
        """Reads the step from the device's memory, as the kernel does."""
        assert len({x.device for x in (*batch, step, chain_ids)}) == 1
        rest["backend"] = "auto"
        memory = Minibatch(*map(inside, batch))
        redraw_minibatch(memory, step=inside(step), chain_ids=inside(chain_ids), **rest)

    plain = philox.normals

    def normals(*, device: torch.device, **draw: Any) -> torch.Tensor:
        drawn = plain(**draw)
        return There(drawn) if device == DEVICE else drawn

    monkeypatch.setattr(langevin_step_call, "_run", run)
    monkeypatch.setattr(langevin_step, "step_backend", lambda op, device, backend: "cpu")
    for module in (adaptation, philox):
        monkeypatch.setattr(module, "normals", normals)
    for module in (captured, noise_draws):
        monkeypatch.setattr(module, "redraw_minibatch", redraw)


class QuadraticThere(NoisyQuadratic):
    """The toy on the device."""

    device = DEVICE

    def __call__(
        self, weights: torch.Tensor, batch: Minibatch | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(weights, There)
        batch = None if batch is None else Minibatch(*(x.inner for x in batch))  # type: ignore[attr-defined]
        losses, gradient = super().__call__(weights.inner, batch)
        return There(losses), There(gradient)


def sampler(potential: NoisyQuadratic, recorder: CallRecorder | None, **options: Any) -> Langevin:
    numbers = {"batch": 8, "seed": 3, "noise_draws": 20, "noise_draws_max": 40, "t_ratio": 0.02}
    if "batch" in options and options["batch"] is None:
        del numbers["t_ratio"]
    return Langevin(potential, [0.5, 1.0, 2.0], recorder=recorder, **{**numbers, **options})


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    here, there = torch.ones(3), torch.ones(3).to(DEVICE)
    assert there.device == DEVICE
    for wrong in (
        lambda: there + here,
        lambda: here + there,
        lambda: here.add_(there),
        lambda: torch.where(there > 0, here, there),
        lambda: here[there.long()],
    ):
        with pytest.raises(RuntimeError, match="tensors of the CPU among those of"):
            wrong()
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    assert (there * torch.tensor(2.0)).tolist() == [2.0] * 3  # of no dimension
    assert there[torch.tensor([0, 2])].device == DEVICE
    before = waits
    assert bool((there > 0).all())
    there.cpu()
    here.copy_(there)
    assert waits == before + 3


@pytest.mark.parametrize("recorder", [CallRecorder(), None], ids=["captured", "one by one"])
@pytest.mark.parametrize(
    "options",
    [
        {"adapt_every": 12, "reset_probability": 0.5},
        {"adapt_every": 12, "scheme": "paper", "noise_tolerance": 0.02},
        {"constrained": False, "variance_floor": 0.5},
        {"batch": None, "adapt_every": 12},
    ],
    ids=str,
)
def test_sampling_there_has_the_bits_of_the_cpu(
    options: dict[str, object], recorder: CallRecorder | None
) -> None:
    """Start, moves, adaptations, kinetic temperature, and on with a saved state."""
    ends = []
    for toy, record, device in (
        (QuadraticThere(), recorder, DEVICE),
        (NoisyQuadratic(), None, CPU),
    ):
        runs = sampler(toy, record, **options)
        state = runs.init(start_weights(3), norm2=Q, chain_ids=[4, 17, 2])
        sizes = {name: getattr(state, name).device for name in ("weights", "masses", "momenta")}
        assert set(sizes.values()) == {device}
        losses = runs.run(state, 31)
        state = LangevinState.from_tensors(state.tensors(), device)
        losses += runs.run(state, 20)
        assert losses.device == CPU
        ends.append((state.tensors(), losses, runs.kinetic_temperature(state)))
    (there, *numbers), (here, *expected) = ends
    for name, tensor in here.items():
        assert there[name].device == CPU
        assert torch.equal(there[name], tensor), name
    for one, other in zip(numbers, expected, strict=True):
        assert torch.equal(one, other)


def test_stiff_modes_there_are_those_of_the_cpu() -> None:
    """Products of all chains at once, so but for rounding: twelve moves, one look among them."""
    ends = []
    for toy, device in ((QuadraticThere(), DEVICE), (NoisyQuadratic(), CPU)):
        runs = sampler(toy, None, batch=None, modes=3, adapt_every=1000)
        state = runs.init(start_weights(3), norm2=Q, chain_ids=[4, 17, 2])
        runs.run(state, 12)
        assert int(state.look_step.max()) == 10
        assert state.looked_at.device == device
        ends.append({**state.tensors(), "kinetic": runs.kinetic_temperature(state)})
    for name, tensor in ends[1].items():
        torch.testing.assert_close(ends[0][name], tensor, rtol=1e-3, atol=1e-3, msg=name)


def test_masses_by_hand_and_failures_there() -> None:
    messages = []
    for toy, record in ((QuadraticThere(), CallRecorder()), (NoisyQuadratic(), None)):
        runs = sampler(toy, record)
        state = runs.init(start_weights(3), norm2=Q, masses=torch.logspace(2, 3, 12))
        runs.run(state, 5)
        state.momenta[1] *= 1e4
        with pytest.raises(UnreachableSphereError) as error:
            runs.run(state, 30)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    with pytest.raises(ValueError, match="share of the thermal noise must be"):
        sampler(QuadraticThere(), CallRecorder()).init(start_weights(3), masses=1e-3)


def test_numbers_from_there_are_brought_to_where_they_are_needed() -> None:
    """Temperatures to the CPU, weights to the potential; a state that is elsewhere is refused."""
    there = start_weights(2).to(DEVICE)
    temperature = torch.tensor([0.5, 1.0]).to(DEVICE)
    exact = HybridMonteCarlo(NoisyQuadratic(), temperature)
    state = exact.init(there, masses=torch.full((12,), 2.0).to(DEVICE))
    exact.run(state, 1)
    assert state.weights.device == state.norm2.device == exact.temperature.device == CPU
    runs = Langevin(QuadraticThere(), temperature, batch=8)
    assert runs.temperature.device == CPU
    stranger = LangevinState.from_tensors(runs.init(start_weights(2)).tensors())
    with pytest.raises(ValueError, match="state must be on the potential's device pretend:0, got "):
        runs.run(stranger, 1)


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_the_host_waits_once_a_burst(scheme: str) -> None:
    """For the failures, and at the same moment for the sums of losses."""
    runs = sampler(QuadraticThere(), CallRecorder(), scheme=scheme)
    state = runs.init(start_weights(3), norm2=Q)
    derived = runs.moves.derive(state)
    sums = torch.zeros(3, dtype=torch.float64)
    runs.moves.advance(state, derived, 1, sums)
    for burst in (1, MOVES, 7 * MOVES + 3):
        before = waits
        runs.moves.advance(state, derived, burst, sums)
        assert waits - before == 2


def test_an_estimate_waits_once_a_round() -> None:
    runs = sampler(QuadraticThere(), CallRecorder(), noise_tolerance=1e-9)
    counts = []
    for draws in (5, 100):
        sources = noise_draws.NoiseDraws(QuadraticThere(), seed=3, batch=8, recorder=CallRecorder())
        before = waits
        noise.estimate_noise(
            runs.potential,
            start_weights(3).to(DEVICE),
            seed=3,
            step=0,
            chain_ids=torch.arange(3),
            batch=8,
            draws=draws,
            draws_max=2 * draws,
            tolerance=1e-9,
            kept=sources,
        )
        counts.append(waits - before)
    assert counts == [1, 1]  # one comparison, of the second round with the first


QUICK = {"moves_per_draw": 5, "adapt_every": 4, "noise_draws": 3, "noise_draws_max": 6}


class Captured(MaskedLanguagePotential):
    """Autograd on the device, as if it did not wait."""

    @property
    def capturable(self) -> Any:
        return self.__call__


@pytest.mark.parametrize("kind", [MaskedLanguagePotential, Captured])
def test_a_run_there_writes_the_files_of_the_cpu(
    kind: type[MaskedLanguagePotential], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws 0 and 1 there, 2 on the CPU: store and observables of a run on the CPU alone."""
    for user in (runs_sample, runs_chains):
        monkeypatch.setattr(user, "place", lambda potential: "a pretended device")
    monkeypatch.setattr(runs_chains, "step_backend", lambda op, device: "pretended")
    if kind is Captured:
        wait_free = lambda p: CallRecorder() if isinstance(p, Captured) else None  # noqa: E731
        monkeypatch.setattr(
            moves, "graph_recorder", lambda p: wait_free(getattr(p, "potential", p))
        )

    def sampled(name: str, draws: int, device: torch.device, chosen: Any) -> xr.Dataset:
        potential = chosen(MODEL, DATA.train, backend="autograd", device=device)
        settings = Sampling(draws=draws, **{**SETTINGS, **QUICK})  # type: ignore[arg-type]
        directory = tmp_path / name
        path = sample_model(directory, potential, DATA, trained(), settings, seed=3, resume=True)
        return xr.open_zarr(path).load()

    expected = sampled("here", 3, CPU, MaskedLanguagePotential)
    sampled("there", 2, DEVICE, kind)
    found = sampled("there", 3, CPU, MaskedLanguagePotential)
    xr.testing.assert_identical(found, expected)


def test_the_mean_attention_there_is_that_of_the_cpu() -> None:
    weights = trained().early_stopped
    found, expected = (
        mean_attention(MODEL, weights.to(device), DATA.test, backend="autograd", chunk=4)
        for device in (DEVICE, CPU)
    )
    assert found.tobytes() == expected.tobytes()
