"""A run's settings from TOML, refused in one line where they are wrong.

Top-level ``[training]``, ``[sampling]`` and ``[pilot]`` tables are defaults for every model;
``[models.NAME.training]`` and its like replace single keys.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, inspect

from thermosphere.models.named import NAMES
from thermosphere.runs.config import (
    Analysis,
    Config,
    Data,
    ModelRun,
    Pilot,
    Sampling,
    Section,
    Sequences,
    Structure,
    Training,
)
from thermosphere.sampling.options import LangevinOptions

FILES = (
    ("structure", "file"),
    ("sequences", "file"),
    ("sequences", "interactions"),
    ("sequences", "couplings"),
)

SHARED = ("training", "sampling", "pilot")  # sections that may be said once for all models

EXACT_TRAJECTORIES = 10  # at least: four must be left after burn-in to be judged

PRESETS = ("demo", "laptop", "paper", "smoke")

Checked = TypeVar("Checked", bound=Struct)


def preset_text(name: str) -> str:
    """TOML of a built-in preset. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return (files(__package__) / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def load_config(
    source: str,
    *,
    where: str,
    changes: Sequence[str] = (),
    path_base: Path | None = None,
    changes_base: Path | None = None,
) -> Config:
    """Read TOML ``source``; ``changes`` are ``key.path=value`` (values in TOML, bare words are
    strings).

    Changes of ``training``, ``sampling`` and ``pilot`` are for every model, whatever the source
    says of one. path_base, changes_base: directories that relative file names refer to, those of
    the source and those of the changes. Raises ValueError, one line, naming
    ``where``, the key, what was expected and what came.
    """
    try:
        table: dict[str, Any] = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where}: not TOML ({str(error).splitlines()[0]})") from error
    _resolve_files(table, path_base)
    sampled = table.get("sequences")
    had_couplings = isinstance(sampled, dict) and "couplings" in sampled
    changed: dict[str, Any] = {}
    for change in changes:
        _set(changed, change)
        _set(table, change)
    _resolve_files(changed, changes_base)
    for section, key in FILES:
        if isinstance(changed.get(section), dict) and key in changed[section]:
            table[section][key] = changed[section][key]
    sampled = table.get("sequences")
    if isinstance(sampled, dict) and "couplings" in sampled and "file" not in sampled:
        if not had_couplings and "moves" not in changed["sequences"]:
            sampled["moves"] = "mutation"  # what was said is of a contact map's model
        sampled.setdefault("moves", "mutation")
    _spread_defaults(table, where)
    for part in SHARED:
        for entry in table["models"].values():
            if isinstance(changed.get(part), dict) and isinstance(entry[part], dict):
                entry[part].update(changed[part])
    for change in changes:  # of one setting of one model: the last word
        path = change.partition("=")[0].split(".")
        if path[0].strip() == "models" and len(path) > 3:
            _set(table, change)
    for name, entry in table["models"].items():  # one by one: a message then names the model
        _convert(entry, ModelRun, f"{where}: models.{name}.")
    config = _convert(table, Config, f"{where}: ")
    _check(config, where)
    return config


def _resolve_files(table: dict[str, Any], base: Path | None) -> None:
    for section, key in FILES:
        entry = table.get(section)
        if base is not None and isinstance(entry, dict) and isinstance(entry.get(key), str):
            entry[key] = str((base / entry[key]).resolve())


def _spread_defaults(table: dict[str, Any], where: str) -> None:
    shared = {name: table.pop(name) for name in SHARED if name in table}
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
    for key, value in flat(msgspec.to_builtins(config)).items():
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
        most = max(config.data.train, LangevinOptions().batch or 0)
        if model.sampling.batch != "all" and model.sampling.batch > most:
            raise ValueError(
                f"{where}: models.{name}.sampling.batch must be <= data.train = "
                f"{config.data.train}, got {model.sampling.batch}"
            )
        if 0 < model.sampling.draws_max < model.sampling.draws:
            raise ValueError(
                f"{where}: models.{name}.sampling.draws_max must be 0 or >= draws = "
                f"{model.sampling.draws}, got {model.sampling.draws_max}"
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
    own = "sequences.interactions" if settings.interactions else "sequences.file"
    if config.interaction_seed and (settings.interactions or settings.file):
        raise ValueError(
            f"{where}: interaction_seed is of a random matrix, and {own} needs none, "
            f"got {config.interaction_seed!r}"
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
            if (section, key, getattr(given, key)) == (
                "structure",
                "model",
                1,
            ):  # its default, once
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
        raise ValueError(prefix + _explain(str(error), table, kind)) from error


def _explain(message: str, table: dict[str, Any], kind: type[Struct]) -> str:
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
        if "enum value" in text:  # msgspec repeats what came, and not what may
            text = f"expected {' or '.join(_allowed(_type_at(kind, place)))}"
        text = f"{text}, got {value!r}"
    return f"{place}: {text}" if place else text


def _type_at(kind: type[Struct], place: str) -> inspect.Type:
    """The type of a dotted key of the struct ``kind``."""
    found: inspect.Type = inspect.type_info(kind)
    for key in place.split("."):
        assert isinstance(found, inspect.StructType)
        found = next(field.type for field in found.fields if field.encode_name == key)
    return found


def _allowed(kind: inspect.Type) -> list[str]:
    """What a setting may be, in words."""
    match kind:
        case inspect.UnionType():
            return [words for one in kind.types for words in _allowed(one)]
        case inspect.LiteralType():
            return [repr(value) for value in kind.values]
        case inspect.IntType():
            return ["a whole number"]
        case inspect.FloatType():
            return ["a number"]
        case inspect.ListType():
            return ["a list of numbers"]
        case inspect.NoneType():
            return []
        case _:
            return [type(kind).__name__.removesuffix("Type").lower()]


def _closest(word: str, known: Sequence[str] | set[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted key."""
    one: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            one.update(flat(entry, f"{prefix}{key}."))
        else:
            one[prefix + key] = entry
    return one
