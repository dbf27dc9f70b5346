"""Against temperature: what equilibrated, Fig. 3, and Figs. 7 and E7."""

from __future__ import annotations

import numpy as np
import xarray as xr

from thermosphere.analysis.figures_ladder import (
    observable_figure,
    precision_figure,
    specific_heat_figure,
)
from thermosphere.analysis.figures_runs import trace_figure
from thermosphere.analysis.hysteresis import hysteresis
from thermosphere.analysis.thermodynamics import settled
from thermosphere.runs.claims import bracketed, peak, second_moves, tested, two_sets, usable
from thermosphere.runs.claims_attention import PRECISION
from thermosphere.runs.claims_ladder import FIGURE
from thermosphere.runs.product import (
    Cell,
    Data,
    Picture,
    Product,
    axis_words,
    by_peak,
    ladder_data,
)
from thermosphere.runs.report import Table
from thermosphere.runs.report_tables import (
    equilibration_warnings,
    format_temperature,
    training_warnings,
    with_error,
)
from thermosphere.runs.studied_run import StudiedRun
from thermosphere.runs.study import ModelStudy
from thermosphere.runs.study_attention import TOLERANCES, random_precisions

EQUILIBRIUM = "equilibrium"
OBSERVABLES = (
    "train_loss", "specific_heat", "loss_slope", "train_error", "validation_error", "test_error"
)  # fmt: skip


def equilibrium(run: StudiedRun) -> Product:
    """Which temperatures count, and where the second set is."""
    studies = list(run.studies.values())
    text = []
    for study in studies:
        name = study.name
        said = [
            *training_warnings(name, run.stage1[name], run.trained[name]),
            *equilibration_warnings(name, study.table),
            second_set_words(study),
        ]
        sentences = [sentence.removeprefix(f"{name}: ") for sentence in said]
        text.append(f"{name}: " + " ".join(one[0].upper() + one[1:] for one in sentences))
    burn_in = run.config.analysis.burn_in
    pictures = [
        Picture(
            f"traces_{study.name}",
            trace_figure(study.samples, burn_in=burn_in if isinstance(burn_in, float) else None),
            f"{study.name}: training loss of every chain against the move.",
        )
        for study in studies
    ]
    pictures += [
        Picture(
            f"cooling_{study.name}",
            observable_figure(_sets(study.table, study.second), "train_loss"),
            f"{study.name}: ⟨U⟩ of chains from ES weights and from the last draws of a "
            "neighbouring temperature, on the other side of ⟨U⟩.",
        )
        for study in studies
        if study.second is not None
    ]
    return Product(
        EQUILIBRIUM,
        "What equilibrated",
        "",
        text=text,
        tables=[_usable_table(run)],
        pictures=pictures,
        data=[_equilibrium_data(studies)],
    )


def _sets(first: xr.Dataset, second: xr.Dataset) -> dict[str, xr.Dataset]:
    """By where they began."""
    heated = np.isin(second["temperature"].values, second.attrs.get("heated", []))
    run = second["draws"].values > 0
    parts = {"from the hotter neighbour": run & ~heated, "from the colder neighbour": run & heated}
    return {"from ES": first} | {
        name: second.isel(temperature=np.flatnonzero(rows))
        for name, rows in parts.items()
        if rows.any()
    }


def loss_heat_and_errors(run: StudiedRun) -> Product:
    """Fig. 3: ⟨U⟩, C, validation and test error, with ES and OT."""
    references = {name: study.references for name, study in run.studies.items()}
    pictures = []
    for letter, name, words in (
        ("a", "train_loss", "Mean training loss ⟨U⟩"),
        ("b", "specific_heat", "Specific heat; points from fluctuations, dashed d⟨U⟩/dT;"),
        ("c", "validation_error", "Validation error"),
        ("d", "test_error", "Test error"),
    ):
        for end, relative, group in by_peak(run.studies):
            if name == "specific_heat":
                figure = specific_heat_figure(group, relative=relative)
            else:
                own = {model: references[model] for model in group}
                figure = observable_figure(group, name, references=own, relative=relative)
            caption = f"Fig. 3{letter}. {words} {axis_words(relative, group)}."
            pictures.append(Picture(f"fig3{letter}{end}", figure, caption))
    return Product(
        FIGURE,
        "Fig. 3: loss, specific heat and errors against temperature",
        "⟨U⟩(T) of the transformers is smooth, that of the feed-forward network jumps, with a "
        "sharp peak of C. The test error has its minimum just above T*, 0.01 to 0.04 below that "
        "of ES, and ES runs spread more than samples. The small models reach the test error of the "
        "large ones.",
        pictures=pictures,
        data=[ladder_data("fig3", list(run.studies.values()), OBSERVABLES)],
    )


def contacts_found(run: StudiedRun) -> Product | None:
    """Figs. 7 and E7: P@L and P̃@L, tolerances 1 to 3; None without attention or contacts."""
    studies = [one for one in run.studies.values() if "precision_at_l" in one.table]
    if not studies or run.contacts is None:
        return None
    references = {study.name: study.references for study in studies}
    analysis = run.config.analysis
    random = random_precisions(run.contacts, analysis)
    main = ["precision_at_l", "precision_at_l_tolerant"]
    tolerances = [f"precision_at_l_tolerance_{tolerance}" for tolerance in TOLERANCES]
    pictures = []
    for stem, names, words in (
        ("fig7", main, "Fig. 7. P@L and P̃@L of the best block of each start"),
        ("figE7", tolerances, "Fig. E7. P̃@L with tolerances 1, 2 and 3"),
    ):
        for end, relative, group in by_peak({study.name: study for study in studies}):
            own = {model: references[model] for model in group}
            baselines = {name: random[name] for name in names}
            figure = precision_figure(group, baselines, references=own, relative=relative)
            caption = f"{words} {axis_words(relative, group)}."
            pictures.append(Picture(f"{stem}{end}", figure, caption))
    return Product(
        PRECISION,
        "Figs. 7 and E7: contacts found by the mean attention",
        "P̃@L of samples is above that of ES and OT for tf1 and tf4, less or not at all for the "
        "small models, which are clearly worse; tf4's best block is above tf1; P̃@L is largest at "
        "temperatures above that of least test error; OT is above ES. A larger tolerance shifts "
        "the curves up and changes nothing else.",
        text=[
            f"P̃@L counts pairs with |i−j| ≥ {analysis.min_separation}, with a tolerance of "
            f"{analysis.tolerance} in Fig. 7. A random ranking scores "
            + ", ".join(f"{random[name]:.3f}" for name in main)
            + " by P@L and P̃@L. Error bars are those of the means of chains, "
            f"{analysis.attention_samples} weight samples a temperature at most."
        ],
        pictures=pictures,
        data=[ladder_data("fig7", studies, [*main, *tolerances])],
    )


def _usable_table(run: StudiedRun) -> Table:
    rows = []
    for study in run.studies.values():
        table, unit = study.table, peak(study)
        mixed = int(table["equilibrated"].values.sum())
        apart = int(table["stationary"].values.sum())
        counting = usable(study).sizes["temperature"]
        between = bracketed(study).sizes["temperature"]
        found = float(table.attrs["peak_temperature"])
        t_star = format_temperature(found) if np.isfinite(found) else "unknown"
        rows.append(
            [
                study.name,
                f"{study.parameters:,}",
                f"{float(run.trained[study.name].norm2):.1f}",
                str(table.sizes["temperature"]),
                str(mixed),
                str(apart),
                str(counting),
                str(between),
                t_star if np.isfinite(unit) else f"{t_star} (in doubt)",
                f"{float(table['ess'].min()):.0f} to {float(table['ess'].max()):.0f}",
            ]
        )
    columns = [
        "model", "N", "Q", "temperatures", "equilibrated", "still but apart",
        "of these count", "with ⟨U⟩ between two sets", "T*", "ESS of U",
    ]  # fmt: skip
    return Table(columns, rows, "", [i for i, row in enumerate(rows) if row[4:6] == ["0", "0"]])


def second_set_words(study: ModelStudy) -> str:
    if study.second is None:
        return f"{study.name}: a second set was not run."
    found = two_sets(study, study.second)
    apart = found.isel(temperature=np.flatnonzero(~found["agree"].values))
    known = np.abs(found["z"].values)
    known = known[np.isfinite(known)]
    still = _waiting_words(study, study.second)
    if not known.size:
        return (
            f"{study.name}: the second set settled at no temperature where the first did, and "
            f"cannot be held against it.{still}"
        )
    count = found.sizes["temperature"]
    words = (
        f"{study.name}: the two sets were compared at {count} temperature"
        f"{'s' * (count > 1)}; the largest difference is {known.max():.1f} standard errors"
    )
    if not apart.sizes["temperature"]:
        return f"{words}.{still}"
    listed = ", ".join(
        f"T = {format_temperature(float(t))} (by {with_error(float(d), float(e))})"
        for t, d, e in zip(
            apart["temperature"].values,
            apart["difference"].values,
            apart["difference_error"].values,
            strict=True,
        )
    )
    return (
        f"{words}. They disagree at {listed}: the interval of losses and errors there is the whole "
        f"gap, and nothing is said of weights.{still}"
    )


def _waiting_words(study: ModelStudy, second: xr.Dataset) -> str:
    """Where the first set stands and the second does not; begins with a space, or empty."""
    stands = settled(study.table)
    run, tests = second["draws"].values > 0, tested(study)
    missing, untested = int((stands & ~run).sum()), int((stands & run & ~tests).sum())
    unseen = f" At {missing} that settled no second set was run." if missing else ""
    if untested:
        unseen += (
            f" At {untested} it came from the side on which ES weights lie, or goes on where the "
            "first ended, and tests nothing."
        )
    rows = np.flatnonzero(stands & second_moves(second) & tests)
    if not rows.size:
        return unseen
    above = (second["train_loss"].values - study.table["train_loss"].values)[rows]
    listed = ", ".join(
        f"T = {format_temperature(float(t))} ({gap:+.3f})"
        for t, gap in zip(study.table["temperature"].values[rows], above, strict=True)
    )
    return (
        f" The second set has not settled at {listed}, in brackets how far its ⟨U⟩ is from that of "
        f"the first; what is said of weights leaves these out too.{unseen}"
    )


def _draws(table: xr.Dataset, temperature: float) -> int:
    return int(table["draws"].sel(temperature=temperature))


def _equilibrium_data(studies: list[ModelStudy]) -> Data:
    columns = [
        "model", "T", "chains", "draws", "ess", "r_hat", "drift", "distance", "equilibrated",
        "stationary", "second from", "second - first", "error", "z", "agree", "a test", "reason",
        "note",
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for study in studies:
        found = None if study.second is None else hysteresis(study.table, study.second)
        tests = tested(study)
        for index, temperature in enumerate(study.table["temperature"].values):
            row = study.table.isel(temperature=index)
            second: list[Cell] = ["", "", "", "", "not run", ""]
            if study.second is not None and _draws(study.second, temperature):
                heated = study.second.attrs.get("heated", [])
                second[0] = "colder" if temperature in heated else "hotter"
                second[4:] = ["not settled", bool(tests[index])]
            if found is not None and temperature in found["temperature"].values:
                one = found.sel(temperature=temperature)
                second[1:4] = [float(one[k]) for k in ("difference", "difference_error", "z")]
                second[4] = bool(one["agree"])
            rows.append(
                [
                    study.name,
                    float(temperature),
                    int(row["chains"]),
                    int(row["draws"]),
                    *(float(row[name]) for name in ("ess", "r_hat", "drift", "distance")),
                    bool(row["equilibrated"]),
                    bool(row["stationary"]),
                    *second,
                    str(row["reason"].values),
                    str(row["note"].values),
                ]
            )
    return Data(EQUILIBRIUM, columns, rows)
