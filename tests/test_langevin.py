"""The sampler: its moves as the formulas read (arXiv 2603.29529, Eq. 34-41), its reproducibility,
its start."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import SEED, NoisyQuadratic, Q, make_sampler, start_weights

from thermosphere.ops.minibatch import Minibatch, draw_minibatch
from thermosphere.ops.philox import Stream, normals
from thermosphere.sampling.langevin import Langevin
from thermosphere.sampling.state import LangevinState


def same_bits(one: LangevinState, other: LangevinState) -> bool:
    a, b = one.tensors(), other.tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# One move, in float64, as Eq. 34-41 of arXiv 2603.29529 read; the leapfrog as masses.py and
# langevin.py state it. Nothing below knows of Π's kinship with p or of fused forms.


class Exact:
    """The numbers of one chain and its draws."""

    def __init__(self, sampler: Langevin, state: LangevinState, corrected: bool) -> None:
        self.toy, self.chain = sampler.potential, int(state.chain_ids[0])
        self.mass, self.v = state.masses[0].double(), state.noise_variance[0].double()
        self.t, self.q = float(state.temperature[0]), float(state.norm2[0])
        self.dt, self.m1 = sampler.options.dt, sampler.options.m1
        self.c1 = math.sqrt(1 - self.m1**2)
        self.k2 = self.mass * self.t * self.m1**2 - self.v * self.dt**2 / 4
        self.corrected, self.constrained = corrected, sampler.options.constrained

    def gradient(self, w: torch.Tensor, step: int, stream: Stream) -> torch.Tensor:
        draw = draw_minibatch(
            seed=SEED,
            step=step,
            stream=stream,
            chain_ids=torch.tensor([self.chain]),
            batch=8,
            examples=self.toy.examples,
        )
        noise = (draw.weights[0].double()[:, None] * self.toy.noises[draw.indices[0]]).sum(0)
        g = self.toy.curvature * (w - self.toy.centre) + noise
        if self.corrected:
            g = g + self.t * (w / self.mass) / (w**2 / self.mass).sum()
        return g

    def noise(self, step: int, stream: Stream) -> torch.Tensor:
        return normals(seed=SEED, stream=stream, chain=self.chain, step=step, count=12).double()

    def root(self, w: torch.Tensor, moved: torch.Tensor) -> float:
        """λ of smaller magnitude with dt⁴ S3 λ² + 2 dt² S1 λ + (S2 - Q) = 0, the schoolbook way."""
        if not self.constrained:
            return 0.0
        s1, s2, s3 = (
            float(s)
            for s in ((moved * w / self.mass).sum(), (moved**2).sum(), ((w / self.mass) ** 2).sum())
        )
        a, b, c = self.dt**4 * s3, 2 * self.dt**2 * s1, s2 - self.q
        roots = [(-b + sign * math.sqrt(b * b - 4 * a * c)) / (2 * a) for sign in (1, -1)]
        return min(roots, key=abs)

    def paper(
        self, w: torch.Tensor, p: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dt, c1, k = self.dt, self.c1, self.k2.sqrt()
        g, eta = self.gradient(w, step, Stream.MINIBATCH), self.noise(step, Stream.NOISE)
        moved = w + (dt / self.mass) * (c1 * p - dt / 2 * g + k * eta)
        multiplier = self.root(w, moved)
        new = moved + multiplier * dt**2 / self.mass * w
        g_end = self.gradient(new, step, Stream.MINIBATCH_END)
        eta_end = self.noise(step, Stream.MOMENTUM_NOISE)
        p = (
            c1**2 * p
            - c1 * (dt / 2) * (g + g_end)
            + c1 * k * eta
            + c1 * dt * multiplier * w
            + (self.k2 + self.v * (dt * self.m1 / 2) ** 2).sqrt() * eta_end
        )
        if self.constrained:
            p = p - new * (p * new / self.mass).sum() / (new**2 / self.mass).sum()
        return new, p

    def leapfrog(
        self, w: torch.Tensor, half: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dt, c1 = self.dt, self.c1
        white = ((1 + c1**2) * (self.k2 - self.v * (c1 * dt / 2) ** 2)).sqrt()
        g, eta = self.gradient(w, step, Stream.MINIBATCH), self.noise(step, Stream.NOISE)
        half = c1**2 * half - (1 + c1**2) * (dt / 2) * g + white * eta
        moved = w + (dt / self.mass) * half
        multiplier = self.root(w, moved)
        return moved + multiplier * dt**2 / self.mass * w, half + multiplier * dt * w

    def full_momenta(self, w: torch.Tensor, half: torch.Tensor, step: int) -> torch.Tensor:
        g, eta = self.gradient(w, step, Stream.MINIBATCH), self.noise(step, Stream.MOMENTUM_NOISE)
        p = self.c1 * (half - self.dt / 2 * g)
        p = p + (self.k2 + self.v * (self.dt * self.m1 / 2) ** 2).sqrt() * eta
        if self.constrained:
            p = p - w * (p * w / self.mass).sum() / (w**2 / self.mass).sum()
        return p


@pytest.mark.parametrize(
    ("corrected", "constrained"),
    [(True, True), (False, True), (None, True), (False, False), (None, False)],
)
@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_moves_are_those_of_the_equations(
    scheme: str, corrected: bool | None, constrained: bool
) -> None:
    sampler = make_sampler(
        [0.7],
        scheme=scheme,
        metric_correction=corrected,
        constrained=constrained,
        dt=0.8,
        m1=0.3,
        adapt_every=0,
    )
    state = sampler.init(
        start_weights(1), norm2=Q, masses=torch.logspace(0.5, 1.5, 12), chain_ids=[5]
    )
    assert 0.05 < float(state.t_ratio) < 0.5  # mini-batch and white noise both count
    # The published scheme has no metric correction.
    on = (scheme == "leapfrog") if corrected is None else corrected
    exact = Exact(sampler, state, corrected=on and constrained)
    w, p = state.weights[0].double(), state.momenta[0].double()
    scale_w, scale_p = float(w.abs().max()), float(p.abs().max())
    for step in range(20):
        sampler.run(state, 1)
        w, p = getattr(exact, scheme)(w, p, step)
        # A move rounds each number by at most some 20 units of 2^-24; errors do not grow over 20
        # damped moves.
        allowed = 20 * 2.0**-24 * (step + 1)
        assert float((state.weights[0] - w).abs().max()) < allowed * scale_w
        assert float((state.momenta[0] - p).abs().max()) < allowed * scale_p
    temperature = float(sampler.kinetic_temperature(state))
    full = p if scheme == "paper" else exact.full_momenta(w, p, 20)
    expected = float((full**2 / exact.mass).sum()) / (11 if constrained else 12)
    assert temperature == pytest.approx(expected, rel=1e-4)
    assert abs(temperature - 0.7) < 0.7  # of the right order at all


# Reproducibility.


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_a_run_in_pieces_is_the_same_run(scheme: str) -> None:
    states = []
    for pieces in ([60], [1] * 60, [25, 35]):
        sampler = make_sampler(scheme=scheme, adapt_every=25, reset_probability=0.5)
        state = sampler.init(start_weights(3), norm2=Q)
        for moves in pieces:
            sampler.run(state, moves)
        assert state.step == 60
        states.append(state)
    assert same_bits(states[0], states[1])
    assert same_bits(states[0], states[2])


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_a_chain_does_not_depend_on_its_neighbours(scheme: str) -> None:
    options = {"scheme": scheme, "adapt_every": 25, "reset_probability": 0.5}
    weights = start_weights(3)
    together = make_sampler(**options)
    state = together.init(weights, norm2=Q, chain_ids=[4, 17, 2])
    loss = together.run(state, 60)
    for row, chain in enumerate([4, 17, 2]):
        alone = make_sampler([(0.5, 1.0, 2.0)[row]], **options)
        single = alone.init(weights[row], norm2=Q, chain_ids=[chain])
        assert alone.run(single, 60).tolist() == loss[row : row + 1].tolist()
        for name, tensor in single.tensors().items():
            if name != "step":
                assert torch.equal(tensor[0], state.tensors()[name][row]), name


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_a_saved_state_continues_with_the_same_bits(scheme: str, tmp_path: Path) -> None:
    options = {"scheme": scheme, "adapt_every": 20, "reset_probability": 0.5}
    sampler = make_sampler(**options)
    state = sampler.init(start_weights(3), norm2=Q)
    sampler.run(state, 33)
    save_file(state.tensors(), tmp_path / "state.safetensors")
    copy = LangevinState.from_tensors(state.tensors())
    sampler.run(state, 30)
    assert copy.step == 33
    assert not torch.equal(copy.weights, state.weights)  # a copy, not the run's own memory
    make_sampler(**options).run(copy, 30)
    assert same_bits(copy, state)
    loaded = LangevinState.from_tensors(load_file(tmp_path / "state.safetensors"))
    make_sampler(**options).run(loaded, 30)
    assert same_bits(loaded, state)


CHANGES = {
    "masses in place": lambda state: state.masses.mul_(1.5),
    "one mass, unknown to torch": lambda state: state.masses.numpy().__setitem__((1, 3), 90.0),
    "masses replaced": lambda state: setattr(state, "masses", 1.5 * state.masses),
    "noise through .data": lambda state: state.noise_variance.data.mul_(0.5),
    "norm": lambda state: state.norm2.mul_(1.001),
    "nothing": lambda state: None,
}


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
@pytest.mark.parametrize("change", list(CHANGES))
def test_a_state_changed_by_hand_moves_as_one_never_seen(change: str, scheme: str) -> None:
    """A sampler keeps what it made from masses, noise, temperature and norm from run to run."""
    sampler = make_sampler(scheme=scheme, adapt_every=0)
    state = sampler.init(start_weights(3), norm2=Q)
    sampler.run(state, 5)
    unchanged = LangevinState.from_tensors(state.tensors())
    CHANGES[change](state)
    copy = LangevinState.from_tensors(state.tensors())
    sampler.run(state, 5)
    make_sampler(scheme=scheme, adapt_every=0).run(copy, 5)
    assert same_bits(copy, state)
    sampler.run(unchanged, 5)  # another state
    assert same_bits(unchanged, state) == (change == "nothing")


def test_a_state_with_a_tensor_missing_is_refused() -> None:
    tensors = make_sampler().init(start_weights(3)).tensors()
    del tensors["masses"]
    with pytest.raises(ValueError, match=r"^sampler state: expected tensors \['masses'\], got \["):
        LangevinState.from_tensors(tensors)


def test_threads_do_not_change_the_bits() -> None:
    states = []
    for threads in (1, 2, 3):
        sampler = make_sampler(threads=threads)
        states.append(sampler.init(start_weights(3), norm2=Q))
        sampler.run(states[-1], 20)
    assert same_bits(states[0], states[1])
    assert same_bits(states[0], states[2])


def test_seeds_differ() -> None:
    ends = []
    for seed in (0, 1, 2**32, 2**64 - 1):
        sampler = make_sampler(seed=seed)
        state = sampler.init(start_weights(3), norm2=Q)
        sampler.run(state, 5)
        ends.append(state)
    for one in range(4):
        for other in range(one):
            assert not torch.equal(ends[one].weights, ends[other].weights)
            assert not torch.equal(ends[one].noise_variance, ends[other].noise_variance)


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_kinetic_temperature_leaves_the_state_alone(scheme: str) -> None:
    sampler = make_sampler(scheme=scheme)
    state = sampler.init(start_weights(3), norm2=Q)
    sampler.run(state, 10)
    before = LangevinState.from_tensors(state.tensors())
    first = sampler.kinetic_temperature(state)
    assert same_bits(before, state)
    assert torch.equal(sampler.kinetic_temperature(state), first)
    assert first.shape == (3,)
    assert first.dtype == torch.float64


def test_run_returns_the_mean_loss_of_its_mini_batches() -> None:
    sampler = make_sampler()
    losses = []
    toy = sampler.potential

    class Recording(NoisyQuadratic):
        def __call__(
            self, weights: torch.Tensor, batch: Minibatch | None = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            result = toy(weights, batch)
            losses.append(result[0].double())
            return result

    sampler.moves.potential = Recording()
    state = sampler.init(start_weights(3), norm2=Q)
    losses.clear()
    done: list[int] = []
    mean = sampler.run(state, 7, on_moves=done.append)
    assert torch.allclose(mean, torch.stack(losses).mean(0), rtol=1e-14)
    assert done == [1, 2, 3, 4, 5, 6, 7]


# The start.


def test_weights_are_kept_unless_a_norm_is_given() -> None:
    weights = start_weights(3)
    state = make_sampler().init(weights)
    assert torch.equal(state.weights, weights)
    assert state.weights.data_ptr() != weights.data_ptr()
    assert torch.equal(state.norm2, (weights.double() ** 2).sum(1))
    state = make_sampler().init(weights.double().numpy(), norm2=Q)
    assert state.norm2.tolist() == [Q] * 3
    # fl(fl(factor) · w): relative error of |w|² at most 2 · 2 u
    assert torch.allclose((state.weights.double() ** 2).sum(1), state.norm2, rtol=4.01 * 2**-24)
    same = make_sampler().init(weights[0])
    assert torch.equal(same.weights, weights[:1].expand(3, 12))


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_the_norm_is_kept(scheme: str) -> None:
    sampler = make_sampler(scheme=scheme, adapt_every=50)
    state = sampler.init(start_weights(3), norm2=Q)
    sampler.run(state, 500)
    assert bool((((state.weights.double() ** 2).sum(1) / Q - 1).abs() < 1e-6).all())


def test_masses_by_hand_are_never_adapted() -> None:
    masses = torch.logspace(2, 3, 12)
    for given in (masses, masses.expand(3, 12), 300.0):
        sampler = make_sampler(adapt_every=5)
        state = sampler.init(start_weights(3), masses=given, norm2=Q)
        expected = torch.as_tensor(given).expand(3, 12)
        assert torch.equal(state.masses, expected)
        sampler.run(state, 20)
        assert torch.equal(state.masses, expected)
    assert float(masses[0]) == 100.0


@pytest.mark.parametrize("scheme", ["leapfrog", "paper"])
def test_the_time_step_is_a_unit_where_masses_follow_the_noise(scheme: str) -> None:
    """M goes as dt² and Π as dt: T_ratio and m1 say how far a move goes, dt does not."""
    ends = []
    for dt in (0.5, 1.0, 4.0):  # powers of two: the same bits
        sampler = make_sampler(scheme=scheme, dt=dt, adapt_every=20)
        state = sampler.init(start_weights(3), norm2=Q)
        sampler.run(state, 100)
        ends.append(state)
    for other in ends[1:]:
        assert torch.equal(other.weights, ends[0].weights)
    assert torch.equal(8 * ends[0].momenta, ends[2].momenta)
    assert torch.equal(64 * ends[0].masses, ends[2].masses)
