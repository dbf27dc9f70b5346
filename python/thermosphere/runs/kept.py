"""What a publication keeps of every model, so that its page can be made again without the samples,
and together with models of other runs.

    DEST/kept/contacts.toml
    DEST/kept/MODEL/config.toml         all settings of the run
    DEST/kept/MODEL/study.safetensors   observables of the samples, and what weights were needed for
    DEST/kept/MODEL/stage1.safetensors, references.safetensors      training, without the weights
    DEST/kept/MODEL/ladder.csv, calibration.csv, exact.safetensors, embedding.safetensors,
    provenance.csv

Similarities and norm vectors are kept of the weights that the page shows, attention maps of all
temperatures in half precision; observables in single precision.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from thermosphere.analysis.embedding import EffectiveDimension
from thermosphere.analysis.figures_ladder import Reference
from thermosphere.analysis.self_averaging import SelfAveraging
from thermosphere.archive import read_archive, write_archive
from thermosphere.models.named import NAMES
from thermosphere.proteins.structure import ContactMap
from thermosphere.runs import embedding_dimension, exact, exact_table, provenance
from thermosphere.runs.config import Config
from thermosphere.runs.config_reading import flat, load_config
from thermosphere.runs.store import OBSERVABLES
from thermosphere.runs.studied_run import SequenceSets, StudiedRun
from thermosphere.runs.study import (
    Ensemble,
    FromWeights,
    ModelStudy,
    assembled,
    second_samples,
)
from thermosphere.runs.study_attention import BlockAttention
from thermosphere.training import EarlyStopped, References

KIND = "thermosphere kept study"
FOLDER = "kept"
FILE = "study.safetensors"
CONTACTS = "contacts.toml"
WHOLE = ("ladder.csv", "calibration.csv", embedding_dimension.FILE)  # kept as they are
COORDINATES = {"temperature": "chain", "start": "chain", "move": "draw"}

Tensors = dict[str, torch.Tensor]


def keep(run: StudiedRun, folder: Path) -> None:
    """Write each model of the run to ``folder``/MODEL, in place of what was kept of it before.

    All are written before the first one is replaced. Raises ValueError where a model is kept there
    that cannot stand on one page with these: of other sequences or contacts, seed or analysis.
    """
    belongs = _belongs(run)
    for name in _kept_models(folder):
        if name not in run.studies:
            _check_alike(folder / name, _header(folder / name)["belongs"], belongs)
    for name, study in run.studies.items():
        building = _beside(folder, name, "new")
        building.mkdir(parents=True)
        _keep_model(run, name, study, building, belongs)
    if run.protein is not None:
        run.protein.save(folder / CONTACTS)
    else:
        (folder / CONTACTS).unlink(missing_ok=True)
    for name in run.studies:
        before = _beside(folder, name, "old")
        if (folder / name).exists():
            os.replace(folder / name, before)
        os.replace(folder / f"{name}.new", folder / name)
        shutil.rmtree(before, ignore_errors=True)


def _beside(folder: Path, name: str, end: str) -> Path:
    """folder/NAME.end, which is no longer there."""
    path = folder / f"{name}.{end}"
    shutil.rmtree(path, ignore_errors=True)
    return path


def _kept_models(folder: Path) -> list[str]:
    """Those that are there, with what a kill had put aside."""
    for name in NAMES:
        aside = folder / f"{name}.old"
        if aside.is_dir() and not (folder / name).exists():
            os.replace(aside, folder / name)
    return [name for name in NAMES if (folder / name / FILE).is_file()]


def _header(path: Path) -> dict[str, Any]:
    return read_archive(path / FILE, KIND)[1]


def read_kept(folder: Path) -> StudiedRun:
    """Every model that is kept there, as one run. ValueError where there is none, a file is
    damaged, or they are not of one study (after a kill)."""
    found = _kept_models(folder)
    if not found:
        raise ValueError(f"publish: {folder} keeps no model; publish a run first (-o DIR)")
    configs = {name: _config(folder / name / "config.toml") for name in found}
    settings = [config.models for config in configs.values()]
    models = {name: own for every in settings for name, own in every.items()}
    models |= {name: config.models[name] for name, config in configs.items()}
    config = msgspec.structs.replace(
        configs[found[0]],
        name=", ".join(dict.fromkeys(one.name for one in configs.values())),
        models={name: models[name] for name in sorted(models, key=_order)},
    )
    archives = {name: read_archive(folder / name / FILE, KIND) for name in found}
    contacts = folder / CONTACTS
    protein = ContactMap.load(contacts) if contacts.is_file() else None
    belongs = [header["belongs"] for _, header in archives.values()]
    for name, own in zip(found, belongs, strict=True):
        _check_alike(folder / name, own, {**belongs[-1], "contacts": _contacts(protein)})
    return StudiedRun(
        directory=folder,
        config=config,
        protein=protein,
        data=SequenceSets(**belongs[-1]["sequences"]),
        studies={name: _study(name, *archives[name], config) for name in found},
        stage1={name: EarlyStopped.load(folder / name / "stage1.safetensors") for name in found},
        trained={name: References.load(folder / name / "references.safetensors") for name in found},
    )


def _order(name: str) -> int:
    return NAMES.index(name)


def _config(path: Path) -> Config:
    return load_config(path.read_text(encoding="utf-8"), where=str(path))


def _belongs(run: StudiedRun) -> dict[str, Any]:
    """What all models on one page have in common."""
    shared = msgspec.to_builtins(run.config)
    return {
        "sequences": asdict(run.data),
        "contacts": _contacts(run.protein),
        "seed": run.config.seed,
        "analysis": shared["analysis"],
    }


def _contacts(protein: ContactMap | None) -> list[list[int]] | None:
    return None if protein is None else protein.contacts.tolist()


def _check_alike(path: Path, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    before, after = flat(dict(kept)), flat(dict(now))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            raise ValueError(
                f"publish: {path} is of another run ({key} differs) and cannot stand on one page "
                "with the other models; remove it, or publish elsewhere (--to)"
            )


def _keep_model(
    run: StudiedRun, name: str, study: ModelStudy, folder: Path, belongs: dict[str, Any]
) -> None:
    source = run.directory / name
    tensors = _observables("samples", study.samples)
    second = second_samples(source)
    if second is not None:
        tensors |= _observables("cooling", second)
    columns = [str(key) for key in study.table if str(key).startswith("precision")]
    tensors |= {f"columns/{key}": _tensor(study.table[key].values) for key in columns}
    for reference in study.references:
        for key, values in reference.values.items():
            tensors[f"references/{reference.label}/{key}"] = _tensor(values)
    described = []
    for number, one in enumerate(study.ensembles):
        arrays, words = _ensemble(one, shown=study.shown.get(one.label) is one)
        tensors |= {f"ensembles/{number}/{key}": tensor for key, tensor in arrays.items()}
        described.append(words)
    header = {
        "kind": KIND,
        "belongs": belongs,
        "norm2": float(study.samples.attrs["norm2"]),
        "parameters": study.parameters,
        "blocks": study.blocks,
        "typical": study.typical,
        "heated": [] if second is None else list(second.attrs.get("heated", [])),
        "ensembles": described,
    }
    write_archive(folder / FILE, tensors, header)
    (folder / "config.toml").write_text(run.config.to_toml(), encoding="utf-8")
    stage1, trained = run.stage1[name], run.trained[name]
    replace(stage1, weights=_none_of(stage1.weights)).save(folder / "stage1.safetensors")
    replace(
        trained,
        early_stopped=_none_of(trained.early_stopped),
        over_trained=_none_of(trained.over_trained),
    ).save(folder / "references.safetensors")
    for file in WHOLE:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
    if (source / exact.FILE).is_file():
        tensors, header = read_archive(source / exact.FILE, exact.KIND)
        read = (*exact_table.READ, exact_table.READ_OF_HOTTER)
        write_archive(
            folder / exact.FILE, {key: tensors[key] for key in read if key in tensors}, header
        )
    provenance.save(provenance.rows_of(run.directory, name), folder)


def _study(name: str, tensors: Tensors, header: Mapping[str, Any], config: Config) -> ModelStudy:
    by_part: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for key, tensor in tensors.items():
        part, _, rest = key.partition("/")
        by_part.setdefault(part, {})[rest] = tensor.numpy()
    references: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for key, values in by_part["references"].items():
        label, _, observable = key.partition("/")
        references.setdefault(label, {})[observable] = values
    arrays: list[dict[str, npt.NDArray[Any]]] = [{} for _ in header["ensembles"]]
    for key, values in by_part["ensembles"].items():
        number, _, rest = key.partition("/")
        arrays[int(number)][rest] = values
    found = FromWeights(
        parameters=header["parameters"],
        blocks=header["blocks"],
        references=tuple(Reference(label, own) for label, own in references.items()),
        ensembles=tuple(map(_restored, arrays, header["ensembles"])),
        columns=by_part.get("columns", {}),
    )
    norm2 = header["norm2"]
    second = _dataset(by_part["cooling"], norm2) if "cooling" in by_part else None
    if second is not None:
        second.attrs["heated"] = header.get("heated", [])
    samples = _dataset(by_part["samples"], norm2)
    return assembled(name, samples, second, found, config.analysis, typical=header["typical"])


def _observables(part: str, samples: xr.Dataset) -> Tensors:
    single = {key: _tensor(samples[key].transpose("chain", "draw").values) for key in OBSERVABLES}
    exactly = {key: torch.from_numpy(samples[key].values.copy()) for key in COORDINATES}
    return {f"{part}/{key}": tensor for key, tensor in (single | exactly).items()}


def _dataset(arrays: Mapping[str, npt.NDArray[Any]], norm2: float) -> xr.Dataset:
    return xr.Dataset(
        {key: (("chain", "draw"), arrays[key].astype(np.float64)) for key in OBSERVABLES},
        coords={key: (dimension, arrays[key]) for key, dimension in COORDINATES.items()},
        attrs={"norm2": norm2},
    )


def _ensemble(one: Ensemble, *, shown: bool) -> tuple[Tensors, dict[str, Any]]:
    """Arrays by name, and the rest for the header."""
    tensors: Tensors = {}
    words: dict[str, Any] = {
        "label": one.label,
        "temperature": one.temperature,
        "draws": one.draws,
        "chains": list(one.chains),
        "dimensions": _described(one.dimensions),
        "halves": [_described(half) for half in one.halves],
        "motion": dict(one.motion),
    }
    if shown:
        for kind, layers in one.similarity.items():
            tensors |= {f"similarity/{kind}/{layer}": _tensor(q) for layer, q in layers.items()}
        tensors |= {f"norms/{vector}": _tensor(values) for vector, values in one.norms.items()}
    if (maps := one.attention) is not None:
        upper = np.triu_indices(maps.blocks.shape[1])  # they are symmetric
        tensors["blocks"] = torch.from_numpy(maps.blocks[:, upper[0], upper[1]]).half()
        tensors["same_start"] = _tensor(maps.alike.same_start)
        tensors["other_start"] = _tensor(maps.alike.other_start)
        tensors["starts"] = torch.from_numpy(maps.alike.starts.astype(np.int64))
        words["attention"] = {
            "draws": maps.draws,
            "start": maps.start,
            "best": [[start, block] for start, block in maps.best.items()],
            "motion": maps.alike.motion,
        }
    return tensors, words


def _restored(arrays: Mapping[str, npt.NDArray[Any]], words: Mapping[str, Any]) -> Ensemble:
    similarity: dict[str, dict[str, npt.NDArray[Any]]] = {}
    norms = {}
    for key, values in arrays.items():
        part, _, rest = key.partition("/")
        if part == "similarity":
            kind, _, layer = rest.partition("/")
            similarity.setdefault(kind, {})[layer] = values.astype(np.float64)
        elif part == "norms":
            norms[rest] = values.astype(np.float64)
    attention = None
    if (about := words.get("attention")) is not None:
        attention = BlockAttention(
            blocks=_square(arrays["blocks"].astype(np.float64)),
            draws=about["draws"],
            start=about["start"],
            best=dict(about["best"]),
            alike=SelfAveraging(
                arrays["same_start"].astype(np.float64),
                arrays["other_start"].astype(np.float64),
                arrays["starts"],
                about["motion"],
            ),
        )
    return Ensemble(
        label=words["label"],
        temperature=words["temperature"],
        draws=words["draws"],
        chains=tuple(words["chains"]),
        similarity=similarity,
        norms=norms,
        dimensions=_dimensions(words["dimensions"]),
        attention=attention,
        motion=words["motion"],
        halves=tuple(_dimensions(half) for half in words["halves"]),
    )


def _described(dimensions: Mapping[str, EffectiveDimension]) -> dict[str, Any]:
    return {vector: asdict(one) for vector, one in dimensions.items()}


def _dimensions(described: Mapping[str, Any]) -> dict[str, EffectiveDimension]:
    return {vector: EffectiveDimension(**one) for vector, one in described.items()}


def _square(upper: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(L, n(n+1)/2) -> (L, n, n), symmetric."""
    n = (math.isqrt(8 * upper.shape[1] + 1) - 1) // 2
    maps = np.empty((len(upper), n, n))
    i, j = np.triu_indices(n)
    maps[:, i, j] = maps[:, j, i] = upper
    return maps


def _tensor(values: npt.ArrayLike) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _none_of(weights: torch.Tensor) -> torch.Tensor:
    """(R, N) -> (R, 0)."""
    return weights[:, :0]
