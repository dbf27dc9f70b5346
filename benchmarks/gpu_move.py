"""Captured moves on a GPU: held to the CPU's, then timed against the same batched move of stock
PyTorch (gpu_peers.py). A part of gpu.py."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator

import torch
from bench_encoder_gradient import needed_operations
from gpu_clock import capture, device_times, matrix_rate
from gpu_peers import BatchedMove
from gradient_problem import DRAWN, gradient_problem, make_sequences

from thermosphere.models.masked_sites import MaskedSites
from thermosphere.models.named import Model, named_model
from thermosphere.models.potential import MaskedLanguagePotential
from thermosphere.ops.minibatch import Minibatch, draw_minibatch
from thermosphere.sampling.captured import MOVES, CapturedMoves
from thermosphere.sampling.langevin import Langevin, UnreachableSphereError
from thermosphere.sampling.recorder import Recorder
from thermosphere.sampling.state import LangevinState

TEMPERATURE = 1e-4
MICROSECONDS = {"tf1": 60.0, "tf4": 200.0}  # targets of one move of one chain
MANY = 64  # chains


class Problem:
    """A network at random weights, on a device, and its sampler."""

    def __init__(
        self,
        name: str,
        chains: int,
        device: torch.device,
        *,
        recorder: Recorder | None = None,
        precision: str = "tf32x3",
        seed: int = 0,
        **options: object,
    ) -> None:
        self.model: Model = named_model(name)
        self.sites = MaskedSites(make_sequences(), device)
        self.potential = MaskedLanguagePotential(self.model, self.sites, precision=precision)
        quick = {"noise_draws": 20, "noise_draws_max": 40}
        self.sampler = Langevin(
            self.potential,
            [TEMPERATURE] * chains,
            seed=seed,
            recorder=recorder,
            **{**quick, **options},  # type: ignore[arg-type]
        )
        self.start = self.model.initial(1, torch.Generator().manual_seed(0))[0]

    def state(self) -> LangevinState:
        return self.sampler.init(self.start)


def check_gradient(device: torch.device, names: list[str]) -> Iterator[str]:
    """Loss and every tensor of the gradient against float64."""
    for name in names:
        problem = gradient_problem(name)
        potential = MaskedLanguagePotential(problem.model, MaskedSites(make_sequences(), device))
        batch = Minibatch(*(tensor.to(device) for tensor in problem.batch))
        loss, gradient = potential(problem.weights.to(device), batch)
        problem.hold(potential.backend, float(loss), gradient[0].cpu())
        yield f"gradient of {name}, {potential.backend}: every tensor within 1e-4 of float64"


def check_moves(device: torch.device, recorder: Recorder | None, name: str, moves: int) -> str:
    """As far from the CPU's run as rounding takes it, adaptations among the moves."""
    ends = []
    for where, record in ((device, recorder), (torch.device("cpu"), None)):
        problem = Problem(name, 2, where, recorder=record, adapt_every=moves // 4)
        state = problem.state()
        loss = problem.sampler.run(state, moves)
        kinetic = problem.sampler.kinetic_temperature(state)
        losses, errors = problem.potential.evaluate(state.weights)
        ends.append((state, loss, kinetic, losses.cpu(), errors.cpu(), problem))
    (got, *here), (cpu, *there) = ends
    went = float((cpu.weights - there[-1].start).norm())
    off = float((got.weights.cpu() - cpu.weights).norm()) / went
    # 40 moves make 1e-6 … 1e-4 of gradients that are 1e-6 apart, 7e-3 … 2e-2 of one per cent.
    assert off < 3e-3, f"{name}: {off:.1e} of the way off after {moves} moves"
    for one, other in zip(here[:4], there[:4], strict=True):
        assert torch.allclose(one, other, rtol=1e-2), f"{name}: {one} here, {other} on the CPU"
    return (
        f"{moves} {here[-1].sampler.moves.way} of {name}, adaptations among them: {off:.1e} of the "
        "way off the CPU's; losses, errors and kinetic temperature agree"
    )


def check_failure(device: torch.device, recorder: Recorder | None) -> str:
    """A chain too light is named with its step as on the CPU, and keeps its last good weights."""
    found = []
    for where, record in ((device, recorder), (torch.device("cpu"), None)):
        problem = Problem("tf1-small", 3, where, recorder=record, adapt_every=0)
        state = problem.state()
        problem.sampler.run(state, 3)
        state.masses[1] *= 1e-8
        state.noise_variance[1] *= 1e-8
        try:
            problem.sampler.run(state, 40)
        except UnreachableSphereError as error:
            found.append((str(error), (state.weights[1].double() ** 2).sum().cpu()))
    assert len(found) == 2, "no chain failed"
    assert found[0][0] == found[1][0], f"{found[0][0]} here, {found[1][0]} on the CPU"
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-6), "its norm has changed"
    return f"as on the CPU: {found[0][0]}"


def check_mean(
    device: torch.device,
    recorder: Recorder | None,
    moves: int = 10_000,
    chains: int = 8,
    precisions: tuple[str, ...] = ("tf32x3", "tf32"),
) -> Iterator[str]:
    """⟨U⟩ of the second half of a run of tf1-small against the CPU's, by the spread of chains with
    noise of their own. Held to 4 standard errors with tf32x3; what tf32 does is reported."""

    def means(where: torch.device, record: Recorder | None, **options: object) -> torch.Tensor:
        problem = Problem("tf1-small", chains, where, recorder=record, **options)  # type: ignore[arg-type]
        state = problem.state()
        problem.sampler.run(state, moves // 2)
        return problem.sampler.run(state, moves // 2)

    cpu = means(torch.device("cpu"), None, seed=1)
    for precision in precisions:
        here = means(device, recorder, precision=precision)
        z = float((here.mean() - cpu.mean()) / ((here.var() + cpu.var()) / chains) ** 0.5)
        line = (
            f"⟨U⟩ of {moves:,} moves, {chains} chains, {precision}: {float(here.mean()):.5f} here, "
            f"{float(cpu.mean()):.5f} on the CPU, z = {z:.1f}"
        )
        assert abs(z) < 4 or precision != "tf32x3", line
        yield line


def captured_of(problem: Problem) -> tuple[CapturedMoves, LangevinState]:
    """The recorded moves of a problem, ready to be replayed."""
    state = problem.state()
    captured = problem.sampler.moves.captured
    assert captured is not None, "this device does not capture moves"
    problem.sampler.moves.derive(state)
    captured.replay(state, MOVES)
    captured.begin(state.step)
    return captured, state


def stock_move(problem: Problem, state: LangevinState, mode: str | None) -> BatchedMove:
    """The same move of the same chains in stock PyTorch."""
    derived = problem.sampler.moves.derive(state)
    return BatchedMove(
        problem.model,
        problem.sites,
        state.weights.clone(),
        state.momenta.clone(),
        derived.inverse_masses.clone(),
        derived.step_scales.clone(),
        derived.step_coefficients.clone(),
        batch=DRAWN,
        mode=mode,
    )


def operations(model: Model, sites: MaskedSites, chains: int) -> float:
    """Needed by the gradients of one move, as bench_encoder_gradient.py counts them."""
    drawn = draw_minibatch(
        seed=0, step=0, chain_ids=torch.arange(chains), batch=DRAWN, examples=len(sites)
    )
    distinct = drawn.indices[drawn.weights > 0]
    masked = float(sites.count.cpu()[distinct].sum())
    return 3 * needed_operations(model, masked, len(distinct))


def timed(
    device: torch.device, name: str, chains: int, precision: str, mode: str | None
) -> dict[str, float]:
    """Seconds of a move: "captured", and "stock" where a mode of torch.compile is given."""
    torch._dynamo.reset()  # it compiles a method for eight objects, and refuses the ninth
    gc.collect()  # graphs of the last call, and their memory, are in cycles of references
    problem = Problem(name, chains, device, precision=precision)
    captured, state = captured_of(problem)
    replay = captured.replay(state, MOVES)
    calls = {"captured": replay}
    if mode is not None:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        move = stock_move(problem, state, mode)
        for _ in range(3):
            move()  # compiles forward, backward and step
        graph = capture(lambda: [move() for _ in range(MOVES)])
        calls["stock"] = graph.replay
    times = device_times(calls)
    torch.set_float32_matmul_precision("highest")
    failed = captured.counter.failed_move.tolist()
    assert max(failed) < 0, f"{name}: chains failed while they were timed, at moves {failed}"
    if mode is not None:
        assert bool(torch.isfinite(move.state[0]).all()), f"{name}: the stock move is not finite"
    return {key: statistics.median(values) / MOVES for key, values in times.items()}


def one_chain(device: torch.device, names: list[str]) -> Iterator[str]:
    """A move of one chain of each network."""
    for name in names:
        found = timed(device, name, 1, "tf32x3", "default")
        target = f", target ≤ {MICROSECONDS[name]:.0f}" if name in MICROSECONDS else ""
        yield (
            f"move of {name}, 1 chain: {1e6 * found['captured']:.1f} µs{target}; stock PyTorch, "
            f"compiled, in a graph: {1e6 * found['stock']:.1f} µs, "
            f"{found['stock'] / found['captured']:.1f} times ours"
        )


def many_chains(device: torch.device, name: str, modes: list[str]) -> Iterator[str]:
    """A move of many chains: share of the matrix rate, gain over single chains, stock PyTorch."""
    rate = matrix_rate(device)
    yield f"tf32 matrix rate: {rate / 1e12:.0f} Tflop/s"
    single = timed(device, name, 1, "tf32x3", None)["captured"]
    problem = Problem(name, MANY, device)
    work = operations(problem.model, problem.sites, MANY)
    del problem
    for mode in modes:  # the second takes minutes to compile
        for precision, products in (("tf32x3", 3), ("tf32", 1)):
            found = timed(device, name, MANY, precision, mode)
            ours, stock = found["captured"], found["stock"]
            yield (
                f"move of {name}, {MANY} chains, {precision}: {1e3 * ours:.2f} ms, "
                f"{100 * work / ours / (rate / products):.0f} % of the tf32 rate over {products} "
                f"(target ≥ 35 over 3); {single * MANY / ours:.1f} times cheaper a chain than "
                f"alone (target ≥ 25); stock PyTorch compiled ({mode}, "
                f"{'tf32' if precision == 'tf32' else 'float32'} products), in a graph: "
                f"{1e3 * stock:.2f} ms, {stock / ours:.1f} times ours (target ≥ 4)"
            )


def hottest(device: torch.device, name: str, chains: int, count: int = 3) -> Iterator[str]:
    """The kernels that take most of a captured move."""
    captured, state = captured_of(Problem(name, chains, device))
    replay = captured.replay(state, MOVES)
    captured.begin(state.step)
    replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        replay()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)
    whole = sum(event.self_device_time_total for event in events)
    for event in events[:count]:
        yield (
            f"hottest of {name}, {chains} chains: {event.key}: "
            f"{event.self_device_time_total / MOVES:.1f} µs a move in {event.count / MOVES:g} "
            f"launches, {100 * event.self_device_time_total / whole:.0f} % of the move"
        )
