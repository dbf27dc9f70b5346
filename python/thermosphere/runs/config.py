"""What may be set of a run, with defaults, and the resolved TOML that is saved beside its results
(config_reading.py reads it)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
import tomli_w
from msgspec import Meta, Struct

from thermosphere.sampling.options import LangevinOptions

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Index = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]

# T/T*, densest around the peak.
SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)

DEVICES = ("cpu", "cuda")


class Section(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """A table of the file: unknown keys are errors."""


class Structure(Section, frozen=True):
    """Where the contact map comes from."""

    file: str | None = None  # PDB or mmCIF; none: the built-in 2ABD
    chain: str | None = None
    model: Index | None = None  # none: the first
    cutoff: Positive = 4.0  # Å between heavy atoms
    min_separation: Count = 2  # |i - j|
    gaps: bool = False  # keep missing residues as gaps


class Sequences(Section, frozen=True):
    """Potts sequences, sampled or read."""

    file: str | None = None  # FASTA or plain text; none: sampled
    count: Count = 15_000
    temperature: Positive = 1.0  # energy units
    hot_temperature: Positive = 20.0
    moves: Literal["swap", "mutation"] = "swap"  # with couplings: mutation, unless set
    method: Literal["simulated", "parallel"] = "simulated"  # tempering
    harvest_spacing: Count | None = None  # visits of the target; none: measured
    checkpoint_seconds: Annotated[float, Meta(ge=0)] = 10.0  # of a harvest
    interactions: str | None = None  # J from a text file; none: random, from interaction_seed
    triangle: Literal["upper", "lower"] | None = None  # of interactions whose halves differ
    couplings: str | None = None  # fields and couplings of DCA, instead of contacts and J
    couplings_format: Literal["auto", "bmdca", "ccmpred"] = "auto"
    couplings_alphabet: str | None = None  # letters of numbered states
    couplings_threshold: Annotated[float, Meta(ge=0)] = 0.0  # pairs nowhere above it are dropped
    gaps: bool = False  # sample the gap state of couplings too; the networks cannot read it
    fasta: bool = False  # write sequences.fasta too


class Data(Section, frozen=True):
    """Masks and splits."""

    train: Count = 1_000
    validation: Count = 1_000
    test: Count = 13_000
    mask_rate: Fraction = 0.15


class Training(Section, frozen=True):
    """Adam, stage 1 (early stopping fixes Q) and stage 2 (ES and OT references)."""

    runs: Count = 10  # stage 1
    references: Count = 3  # stage 2
    max_epochs: Count = 100_000
    check_every: Count = 1  # epochs between looks at the validation loss
    patience: Count = 200  # looks without a better one
    reference_epochs: Count = 100_000
    # OT: training loss and error fell, over the last third of the epochs and at least so many looks
    # after Q, by less than …
    saturation_patience: Count = 10
    saturation_tolerance: Annotated[float, Meta(ge=0)] = 5e-3  # … this
    batch: Count = 64
    warmup: Count = 4_000  # steps
    learning_rate_factor: Positive = 1.0
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.1


class Sampling(Section, frozen=True):
    """The temperature ladder and the sampler's numbers (LangevinOptions; none: its rule)."""

    # "auto": shares of T* where the ladder's pilot finds it
    temperatures: Annotated[list[Positive], Meta(min_length=1)] | Literal["auto"] = msgspec.field(
        default_factory=lambda: [1e-5, 3e-5, 6e-5, 1e-4, 2e-4, 3e-4, 6e-4, 1e-3]
    )
    calibrated: bool = False  # batch, step and m1 from MODEL/calibration.toml
    chains: Count = 2  # a temperature
    draws: Count = 100  # kept a chain
    draws_max: Index = 0  # where chains have not settled; 0: no more than draws
    going_on: Count = 4  # temperatures that go on to draws_max: the hottest of those not settled
    moves_per_draw: Count = 100
    test_sequences: Count = 13_000  # of the test set, read at each draw
    checkpoint_seconds: Annotated[float, Meta(ge=0)] = (
        10.0  # between checkpoints; lost work is redone bit for bit
    )
    device: Literal["cpu", "cuda"] = "cpu"  # files are the same: a run may go on on either
    backend: Literal["auto", "fused", "triton", "autograd"] = "auto"  # of the gradient
    scheme: Literal["leapfrog", "paper"] = "leapfrog"
    constrained: bool = True  # keep |w|² = Q
    metric_correction: bool | None = None
    ridge: Annotated[float, Meta(ge=0)] = 0.0  # λ of (λ/2)|w|², added to U
    tether: Annotated[float, Meta(ge=0)] = 0.0  # γ of (γ/2)|w - w0|², w0 the chain's start
    batch: Count | Literal["all"] = 64  # "all": the whole training set, no gradient noise
    dt: Positive = 1.0
    m1: Fraction = 0.1
    t_ratio: Fraction | None = None
    t_ratio_max: Fraction | None = None
    t_ratio_cap: Fraction = 1e-2
    displacement: Positive = 0.005
    stiffness: Positive = 0.8  # largest ω dt of the stiffest mode where batch is "all"
    modes: Index = 0  # stiffest directions with masses of their own where batch is "all"
    variance_floor: Positive | Literal["median"] | None = None
    average_axis: Index | None = None
    noise_draws: Annotated[int, Meta(ge=2)] = 100
    noise_draws_max: Annotated[int, Meta(ge=2)] = 1_000
    noise_tolerance: Positive = 0.1
    adapt_every: Index = 1_000
    adapt_every_max: Count = 50_000
    unchanged_tolerance: Positive = 0.1
    reset_probability: Annotated[float, Meta(ge=0, le=1)] = 0.1

    def options(self) -> LangevinOptions:
        """The sampler's options; raises ValueError where two of them disagree."""
        names = set(LangevinOptions.__dataclass_fields__) & set(self.__struct_fields__)
        values = {name: getattr(self, name) for name in names}
        return LangevinOptions(**{**values, "batch": None if self.batch == "all" else self.batch})


class Pilot(Section, frozen=True):
    """Short runs before the long ones: where the ladder goes, what mixes fastest."""

    chains: Annotated[int, Meta(ge=2)] = 2
    coldest: Positive = 2e-6  # where the ladder's heating starts, in units of U
    ladder_moves: Annotated[int, Meta(ge=2)] = 250  # a temperature
    shares: Annotated[list[Positive], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: list(SHARES)  # of T*
    )
    calibrate_at: Annotated[list[Positive], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: [1.0]  # of T*; the one nearest 1 decides
    )
    settling: Count = 1_000  # moves from ES weights to where all trials start
    trial_seconds: Annotated[float, Meta(ge=0)] = 40.0  # of each trial
    exact_at: list[Positive] = msgspec.field(
        default_factory=list
    )  # of T*: where samples are held against hybrid Monte Carlo; none: nowhere
    exact_gradients: Count = 4_000  # full-batch, a chain, each of the two ways
    # Leapfrog steps of a trajectory. In short trials of tf1-small 18 and 35 gave most effective
    # draws of U a gradient, 70 and 140 fewer; MODEL/exact.csv has what a run's own gives.
    exact_steps: Count = 35
    # The share of T by which a third way is hotter, for the law of U at two temperatures, whose U
    # must overlap; 0: none.
    exact_neighbour: Annotated[float, Meta(ge=0, le=0.5)] = 0.03


class Analysis(Section, frozen=True):
    """What is computed from the samples."""

    burn_in: Annotated[float, Meta(ge=0, lt=1)] | Literal["auto"] = (
        0.5  # share of the draws left out
    )
    attention_sequences: Count = 1_000  # of the test set, for the mean attention
    attention_samples: Count = 20  # weight samples a temperature
    similarity_samples: Count = 100
    min_separation: Count = 6  # of P̃@L
    tolerance: Index = 1  # of P̃@L
    contact_shift: int = 0  # 1 for the published sequences


class ModelRun(Section, frozen=True):
    training: Training = msgspec.field(default_factory=Training)
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    pilot: Pilot = msgspec.field(default_factory=Pilot)

    def sampled_on_cpu(self) -> ModelRun:
        """The same on the CPU, by the gradient that serves it there."""
        backend = "auto" if self.sampling.backend == "triton" else self.sampling.backend
        sampling = msgspec.structs.replace(self.sampling, device="cpu", backend=backend)
        return msgspec.structs.replace(self, sampling=sampling)


class Config(Section, frozen=True):
    """All settings of a run."""

    name: str = "run"
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    interaction_seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0  # of the interaction matrix J
    structure: Structure = msgspec.field(default_factory=Structure)
    sequences: Sequences = msgspec.field(default_factory=Sequences)
    data: Data = msgspec.field(default_factory=Data)
    models: dict[str, ModelRun] = msgspec.field(default_factory=lambda: {"tf1-small": ModelRun()})
    analysis: Analysis = msgspec.field(default_factory=Analysis)

    @property
    def has_contacts(self) -> bool:
        """Whether there is a contact map: couplings need none, and then only a structure's own."""
        return self.sequences.couplings is None or self.structure.file is not None

    def sampled_on(self, device: str, only: Iterable[str] = ()) -> Config:
        """The same with this device for these models, for all where none is named. Raises
        ValueError for an unknown device."""
        named = set(only) or set(self.models)
        if device not in DEVICES:
            raise ValueError(f"--device must be one of {', '.join(DEVICES)}, got {device!r}")
        models = {
            name: msgspec.structs.replace(
                model, sampling=msgspec.structs.replace(model.sampling, device=device)
            )
            if name in named
            else model
            for name, model in self.models.items()
        }
        return msgspec.structs.replace(self, models=models)

    def to_toml(self) -> str:
        """The resolved settings; reading them back gives the same Config."""
        return tomli_w.dumps(_without_none(msgspec.to_builtins(self)))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return value
