"""A run's settings: TOML in, checked structures, a resolved TOML out.

Top-level ``[training]`` and ``[sampling]`` tables are defaults for every model;
``[models.NAME.training]`` and
``[models.NAME.sampling]`` replace single keys. The resolved copy saved beside the results spells
everything out per model.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import tomli_w
from msgspec import Meta, Struct

from thermosphere.models.named import NAMES
from thermosphere.sampling.options import LangevinOptions

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Index = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]

FILES = (
    ("structure", "file"),
    ("sequences", "file"),
    ("sequences", "interactions"),
    ("sequences", "couplings"),
)
MAY_GROW = (".draws", ".max_epochs", ".reference_epochs", ".trial_seconds", ".exact_gradients")

EXACT_TRAJECTORIES = 10  # at least: four must be left after burn-in to be judged

# T/T*, densest around the peak.
SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)

Checked = TypeVar("Checked", bound=Struct)

PRESETS = ("demo", "laptop", "paper", "smoke")
DEVICES = ("cpu", "cuda")


class Section(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """A table of the file: unknown keys are errors."""


class Structure(Section, frozen=True):
    """Where the contact map comes from."""

    file: str | None = None  # PDB or mmCIF; none: the built-in 2ABD
    chain: str | None = None
    model: Count = 1
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
    saturation_patience: Count = (
        10  # OT: looks in which training loss and error fell by less than …
    )
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
    moves_per_draw: Count = 100
    cooling_draws: Count | None = None  # kept a chain of the second set; default as many
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
    variance_floor: Positive | Literal["median"] | None = None
    average_axis: Index | None = None
    noise_draws: Annotated[int, Meta(ge=2)] = 100
    noise_draws_max: Annotated[int, Meta(ge=2)] = 1_000
    noise_tolerance: Positive = 0.1
    adapt_every: Index = 1_000
    adapt_every_max: Count = 50_000
    unchanged_tolerance: Positive = 0.1
    reset_probability: Annotated[float, Meta(ge=0, le=1)] = 0.1

    @property
    def draws_cooling(self) -> int:
        return self.cooling_draws or self.draws

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
    # Leapfrog steps of a trajectory. U of tf1-small at 1.25 T* forgets in 120 to 180 gradients with
    # 18 or 35, in 220 to 260 with 70, in more than 300 with 140: one swing is not what is slow.
    exact_steps: Count = 35


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

    def sampled_on(self, device: str) -> Config:
        """The same with this device for every model. Raises ValueError for an unknown one."""
        if device not in DEVICES:
            raise ValueError(f"--device must be one of {', '.join(DEVICES)}, got {device!r}")
        models = {
            name: msgspec.structs.replace(
                model, sampling=msgspec.structs.replace(model.sampling, device=device)
            )
            for name, model in self.models.items()
        }
        return msgspec.structs.replace(self, models=models)

    def to_toml(self) -> str:
        """The resolved settings; reading them back gives the same Config."""
        return tomli_w.dumps(_without_none(msgspec.to_builtins(self)))


def preset_text(name: str) -> str:
    """TOML of a built-in preset. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return (files(__package__) / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def load_config(
    source: str, *, where: str, changes: Sequence[str] = (), path_base: Path | None = None
) -> Config:
    """Read TOML ``source``; ``changes`` are ``key.path=value`` (values in TOML, bare words are
    strings).

    path_base: directory that relative file names refer to. Raises ValueError, one line, naming
    ``where``, the key, what was expected and what came.
    """
    try:
        table: dict[str, Any] = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: not TOML ({str(error).splitlines()[0]})") from error
    for change in changes:
        _set(table, change)
    for section, key in FILES:
        entry = table.get(section)
        if path_base is not None and isinstance(entry, dict) and isinstance(entry.get(key), str):
            entry[key] = str((path_base / entry[key]).resolve())
    sampled = table.get("sequences")
    if isinstance(sampled, dict) and "couplings" in sampled and "file" not in sampled:
        sampled.setdefault("moves", "mutation")
    _spread_defaults(table, where)
    for name, entry in table["models"].items():  # one by one: a message then names the model
        _convert(entry, ModelRun, f"{where}: models.{name}.")
    config = _convert(table, Config, f"{where}: ")
    _check(config, where)
    return config


def first_difference(old: Config, new: Config, settled: Callable[[str], bool]) -> str | None:
    """The first setting of a run that may no longer change, as one line; None where all may go on.

    settled(key) says whether results that depend on the dotted key are there; what has none yet may
    change, and so may the analysis. Runs may be made longer: more draws, more epochs.
    """
    before, after = _flat(msgspec.to_builtins(old)), _flat(msgspec.to_builtins(new))
    for key in sorted(before.keys() & after.keys()):
        was, now = before[key], after[key]
        free = key == "name" or key.startswith("analysis.")
        free = free or key.endswith(("checkpoint_seconds", ".sampling.device"))
        if was == now or free or not settled(key):
            continue
        if key.endswith(MAY_GROW) and now > was:
            continue
        return f"{key}: saved {was!r}, now {now!r}"
    return None


def _spread_defaults(table: dict[str, Any], where: str) -> None:
    shared = {name: table.pop(name) for name in ("training", "sampling", "pilot") if name in table}
    models = table.setdefault("models", {"tf1-small": {}})
    if not isinstance(models, dict) or not models:
        raise ValueError(f"{where}: models: expected tables [models.NAME], got {models!r}")
    for name, entry in models.items():
        if name not in NAMES:
            raise ValueError(
                f"{where}: models.{name}: expected one of {', '.join(NAMES)}{_closest(name, NAMES)}"
            )
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: models.{name}: expected a table, got {entry!r}")
        for part, defaults in shared.items():
            if not isinstance(defaults, dict) or not isinstance(entry.get(part, {}), dict):
                raise ValueError(f"{where}: {part}: expected a table")
            entry[part] = {**defaults, **entry.get(part, {})}


def _check(config: Config, where: str) -> None:
    for key, value in _flat(msgspec.to_builtins(config)).items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"{where}: {key}: expected finite numbers, got {value}")
    _check_ignored(config, where)
    total = config.data.train + config.data.validation + config.data.test
    if config.sequences.file is None and total > config.sequences.count:
        raise ValueError(
            f"{where}: data: train + validation + test must be <= sequences.count = "
            f"{config.sequences.count}, got {total}"
        )
    if config.sequences.moves == "swap" and not config.has_contacts:
        raise ValueError(
            f"{where}: sequences.moves = 'swap' keeps the composition of a structure's sequence "
            "and needs a structure.file; use 'mutation'"
        )
    if not config.sequences.temperature < config.sequences.hot_temperature:
        raise ValueError(
            f"{where}: sequences.hot_temperature must be > temperature = "
            f"{config.sequences.temperature}, "
            f"got {config.sequences.hot_temperature}"
        )
    for name, model in config.models.items():
        for key, rising in (
            ("sampling.temperatures", model.sampling.temperatures),
            ("pilot.shares", model.pilot.shares),
            ("pilot.calibrate_at", model.pilot.calibrate_at),
            ("pilot.exact_at", model.pilot.exact_at),
        ):
            if rising != "auto" and sorted(set(rising)) != rising:
                raise ValueError(f"{where}: models.{name}.{key}: expected rising, got {rising}")
        if model.sampling.test_sequences > config.data.test:
            raise ValueError(
                f"{where}: models.{name}.sampling.test_sequences must be <= data.test = "
                f"{config.data.test}, "
                f"got {model.sampling.test_sequences}"
            )
        fewest = EXACT_TRAJECTORIES * model.pilot.exact_steps
        if model.pilot.exact_gradients < fewest:
            raise ValueError(
                f"{where}: models.{name}.pilot.exact_gradients must be >= {EXACT_TRAJECTORIES} "
                f"exact_steps = {fewest}, got {model.pilot.exact_gradients}"
            )
        if model.pilot.exact_at and not model.sampling.constrained:
            raise ValueError(
                f"{where}: models.{name}.pilot.exact_at needs sampling.constrained = true: hybrid "
                f"Monte Carlo samples the sphere, got exact_at = {model.pilot.exact_at}"
            )
        try:
            model.sampling.options()
        except ValueError as error:
            raise ValueError(f"{where}: models.{name}.sampling: {error}") from error


def _check_ignored(config: Config, where: str) -> None:
    """Refuse settings that would be recorded but not used."""
    settings = config.sequences
    for key, source, needs in (
        ("triangle", settings.interactions, "sequences.interactions"),
        ("couplings_format", settings.couplings, "sequences.couplings"),
        ("couplings_alphabet", settings.couplings, "sequences.couplings"),
        ("couplings_threshold", settings.couplings, "sequences.couplings"),
        ("gaps", settings.couplings, "sequences.couplings"),
    ):
        value = getattr(settings, key)
        if source is None and value != getattr(Sequences(), key):
            raise ValueError(f"{where}: sequences.{key} needs {needs}, got {value!r}")
    if settings.couplings is not None:
        for key, value in (
            ("sequences.interactions", settings.interactions),
            ("interaction_seed", config.interaction_seed or None),
        ):
            if value is not None:
                raise ValueError(
                    f"{where}: {key} is of a contact map's model, and sequences.couplings is "
                    f"another, got {value!r}"
                )
    unused: list[tuple[str, Section, Section, str]] = []
    if config.structure.file is None:
        unused = [("structure", config.structure, Structure(), "a structure.file")]
    if config.sequences.file is not None:
        unused.append(("sequences", config.sequences, Sequences(), "sampled sequences"))
    for section, given, default, needs in unused:
        for key in given.__struct_fields__:
            if key in ("file", "count", "fasta") or getattr(given, key) == getattr(default, key):
                continue
            raise ValueError(f"{where}: {section}.{key} needs {needs}, got {getattr(given, key)!r}")


def _set(table: dict[str, Any], change: str) -> None:
    key, separator, text = change.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not separator or not all(path):
        raise ValueError(f"--set: expected KEY.PATH=VALUE, got {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ValueError(f"--set: {key} goes through {part}, which is no table")
    table[path[-1]] = value


def _convert(table: dict[str, Any], kind: type[Checked], prefix: str) -> Checked:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise ValueError(prefix + _explain(str(error), table)) from error


def _explain(message: str, table: dict[str, Any]) -> str:
    """msgspec's message with the key first, what came last, and for an unknown key the nearest."""
    text, _, place = message.partition(" - at `$")
    place = place.rstrip("`").lstrip(".").replace("[...]", "")
    if "unknown field" in text:
        key = text.rsplit("`", 2)[1]
        sections = (
            Config,
            Structure,
            Sequences,
            Data,
            Training,
            Sampling,
            Pilot,
            Analysis,
            ModelRun,
        )
        known = {field for section in sections for field in section.__struct_fields__}
        text = f"unknown key {key!r}{_closest(key, known)}"
    elif ", got" not in text:
        value: Any = table
        for key in place.split("."):
            value = value.get(key.partition("[")[0]) if isinstance(value, dict) else None
        text = f"{text}, got {value!r}"
    return f"{place}: {text}" if place else text


def _closest(word: str, known: Sequence[str] | set[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return value


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            flat.update(_flat(entry, f"{prefix}{key}."))
        else:
            flat[prefix + key] = entry
    return flat
