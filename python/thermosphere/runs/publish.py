"""A finished run as a results section: README.md with the paper's figures and tables, their data
and the verdict on every claim.

    DEST/README.md      the text, all of it generated
    DEST/*.png *.csv    figures and the numbers behind them
    DEST/config.toml    the settings, resolved: `thermosphere reproduce --config` repeats the run
    DEST/kept/          what the page is made of (runs/kept.py)

What is needed of a run is kept first, beside models of runs published there before; the page is of
all that is kept.  So one study may be put together from runs on several machines, and its page can
be made again without any of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from thermosphere import __version__
from thermosphere.analysis.figures import save_png
from thermosphere.analysis.thermodynamics import settled
from thermosphere.runs import (
    kept,
    products_ensemble,
    products_exact,
    products_ladder,
    products_pilots,
    products_training,
    products_weights,
    provenance,
)
from thermosphere.runs.claims import Finding
from thermosphere.runs.paper_claims import findings
from thermosphere.runs.product import Picture, Product
from thermosphere.runs.report import Table
from thermosphere.runs.studied_run import StudiedRun

MARK = "<!-- written by thermosphere publish; edits are lost -->"
OWN = ("*.png", "*.csv", "config.toml", "README.md")  # what is replaced

PRODUCTS: tuple[Callable[[StudiedRun], Product | None], ...] = (
    products_ladder.equilibrium,
    products_ladder.loss_heat_and_errors,
    products_weights.similarity,
    products_weights.norms,
    products_weights.attention,
    products_ladder.contacts_found,
    products_training.models,
    products_training.trained_weights,
    products_training.norm_in_training,
    products_ensemble.ensemble,
    products_exact.exact,
    products_pilots.ladders,
    products_pilots.efficiency,
)


def publish(destination: Path, run: StudiedRun | None = None, *, progress: bool = False) -> Path:
    """Write the results under ``destination`` and return the path of its README.md: of the models
    of the run, and of those that were published there before.

    Raises ValueError where the directory holds something that `publish` did not write, where
    nothing is kept there and no run is given, and where the run is not of the same sequences,
    contacts, seed and analysis as what is kept.
    """
    page = destination / "README.md"
    commit = provenance.commit()  # before files of the tree, which these may be, are changed
    _check_ours(destination)
    folder = destination / kept.FOLDER
    if run is not None:
        kept.keep(run, folder)
    whole = kept.read_kept(folder)
    verdicts = findings(whole.studies, whole.config)
    _clear(destination)
    _write(page, MARK + "\n")  # what a kill leaves is known as ours
    chapters = []
    for make in tqdm(PRODUCTS, desc="figures", unit="product", disable=not progress):
        product = make(whole)
        if product is None:
            continue
        for picture in product.pictures:
            save_png(picture.figure, destination / f"{picture.stem}.png")
        for data in product.data:
            _write(destination / f"{data.stem}.csv", data.text())
        own = [verdict for verdict in verdicts if verdict.product == product.key]
        chapters.append(_chapter(product, own))
    _write(destination / "config.toml", whole.config.to_toml())
    head = _head(whole, destination, commit)
    _write(page, "\n\n".join([*head, *_verdicts(whole, verdicts), *chapters]) + "\n")
    return page


def _check_ours(destination: Path) -> None:
    """ValueError where the directory holds something that was not published there."""
    if not destination.exists():
        return
    if not destination.is_dir():
        raise ValueError(f"publish: --to must be a directory, got {destination}")
    page = destination / "README.md"
    ours = page.is_file() and page.read_text(encoding="utf-8").startswith(MARK)
    others = [path for path in destination.iterdir() if path.name != kept.FOLDER]
    if others and not ours:
        raise ValueError(f"publish: --to must be new, empty or published before, got {destination}")


def _clear(destination: Path) -> None:
    """Empty the directory of what was published there before, but for what was kept."""
    for pattern in OWN:
        for path in destination.glob(pattern):
            path.unlink(missing_ok=True)


def _head(run: StudiedRun, destination: Path, commit: str) -> list[str]:
    models = ", ".join(run.studies)
    if run.protein is not None:
        source = f"{run.data.length} residues and {len(run.protein.contacts)} contacts"
    else:
        source = f"{run.data.length} sites, without a contact map"
    stages = provenance.stage_times(*(run.directory / name for name in run.studies))
    waiting = [name for name in run.config.models if name not in run.studies]
    rows = [
        [
            "this page",
            f"`thermosphere publish --to {_shown(destination)}`, of what is kept in "
            f"[{kept.FOLDER}]({kept.FOLDER}); with `-o DIR` also of the models of that run",
        ],
        [
            "settings",
            "[config.toml](config.toml); `thermosphere reproduce --config config.toml -o DIR`",
        ],
        ["thermosphere", f"{__version__}, commit {commit or 'unknown'}"],
        ["seed", str(run.config.seed)],
        *([["not sampled yet", ", ".join(waiting)]] if waiting else []),
        ["written on", provenance.machine()],
    ]
    for stage in stages:
        made = f"commit {', '.join(stage.commits)}; " if stage.commits else ""
        when = f"{_duration(stage.seconds)} ({made}{'; '.join(stage.machines)})"
        of = f", {stage.models.replace(' ', ', ')}" if stage.models else ""
        rows.append([f"wall time: {stage.stage}{of}", when])
    if not stages:
        rows.append(["wall time", "not recorded by this run"])
    return [
        f"{MARK}\n# Results of `{run.config.name}`",
        f"Weights of {models}, sampled at constant norm and fixed temperature, on masked sequences "
        f"of {source}: {run.data.sentence()}. This page holds them against *Sampling at "
        "intermediate temperatures is optimal for training large language models in protein "
        "structure prediction* (arXiv 2603.29529).",
        _markdown_table(Table(["", ""], rows), escape=False),
    ]


def _verdicts(run: StudiedRun, verdicts: Sequence[Finding]) -> list[str]:
    """The first chapter: how many claims hold, and the list."""
    lost = [name for name, study in run.studies.items() if not settled(study.table).any()]
    warning = (
        f"**No temperature of {', '.join(lost)} settled: what is shown of "
        f"{'it' if len(lost) == 1 else 'them'} is a run still on its way, not an ensemble.**"
    )
    counts = dict.fromkeys(("agrees", "disagrees", "undecided"), 0)
    for one in verdicts:
        counts[one.verdict] += 1
    by_claim: dict[str, list[Finding]] = {}
    for one in verdicts:
        by_claim.setdefault(one.claim, []).append(one)
    rows = [
        [claim, "; ".join(f"{one.subject} {_emphasised(one)}" for one in own)]
        for claim, own in by_claim.items()
    ]
    return [
        "## In short",
        *([warning] if lost else []),
        f"Of {len(verdicts)} claims agree: {counts['agrees']}, disagree: "
        f"{counts['disagrees']}, are undecided: {counts['undecided']}. A temperature counts when "
        "it equilibrated (no drift, R̂ and ESS of independent chains, weights that left their "
        "start), or when chains stand still, within what a change of T by 5 % would do, but those "
        "of different starts stay apart, or have few independent draws (the starts are then the "
        "draws, and what the chains still moved is part of the error), and a second set, where the "
        "model has one, settled too and agrees: chains from a neighbouring temperature, on the "
        "other side of ⟨U⟩ than those from ES. Losses and errors count where neither set moves "
        "away from the other: their interval is then all between the two sets, the equilibrium "
        "being there if both relax towards it. A claim agrees or disagrees when the 95 % interval "
        "of what decides it says so. Errors are one standard error, from effective sample sizes "
        "and blocks, or of the starts, for trained weights of the runs. Half-filled points: chains "
        "stand still; hollow points: they still move.",
        _markdown_table(Table(["claim", "verdict"], rows)),
    ]


def _chapter(product: Product, verdicts: Sequence[Finding]) -> str:
    parts = [f"## {_escaped(product.title)}"]
    if product.reported:
        parts.append(f"*Reported:* {_escaped(product.reported)}")
    sentences = [_escaped(sentence) for sentence in product.text]
    if verdicts:  # which are a list themselves
        parts += sentences
    elif sentences:
        parts.append("\n".join(f"- {sentence}" for sentence in sentences))
    if verdicts:
        parts.append("\n".join(_listed(verdicts)))
    for table in product.tables:
        parts.append(_markdown_table(table))
        if table.caption:
            parts.append(f"{_escaped(table.caption)}.")
    if product.pictures:
        parts.append(_gallery(product.pictures))
    if product.data:
        links = ", ".join(f"[{data.stem}.csv]({data.stem}.csv)" for data in product.data)
        parts.append(f"Data: {links}")
    return "\n\n".join(parts)


def _gallery(pictures: Sequence[Picture]) -> str:
    """Two beside each other, every one above its caption."""
    lines = []
    for left in range(0, len(pictures), 2):
        pair = pictures[left : left + 2]
        images = [f'<img src="{one.stem}.png" width="400" alt="{one.stem}">' for one in pair]
        captions = [_escaped(one.caption).replace("|", "\\|") for one in pair]
        lines += [" | ".join(images), " | ".join(captions)]
        if left == 0:
            lines.insert(1, " | ".join(["---"] * len(pair)))
    return "\n".join(f"| {line} |" for line in lines)


def _listed(verdicts: Sequence[Finding]) -> list[str]:
    """One line a finding; those undecided for the same reason, without a number, share one."""
    lines = []
    shared: dict[str, list[str]] = {}
    for one in verdicts:
        if one.numbers:
            text = f"- {one.subject}, {one.claim}: {_emphasised(one)} ({one.numbers})."
            if one.because:
                text += f" {one.because[0].upper()}{one.because[1:].removesuffix('.')}."
            lines.append(_escaped_but_bold(text))
        else:
            shared.setdefault(one.because, []).append(f"{one.subject}, {one.claim}")
    for reason, claims in shared.items():
        lines.append(_escaped(f"- undecided, because {reason}: {'; '.join(claims)}."))
    return lines


def _emphasised(one: Finding) -> str:
    return one.verdict if one.verdict == "undecided" else f"**{one.verdict}**"


def _markdown_table(table: Table, *, escape: bool = True) -> str:
    """Pipe table; doubtful rows in italics."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    text = []
    for number, line in enumerate(lines):
        cells = [_escaped_but_bold(cell) if escape else cell for cell in line]
        if number - 2 in table.doubtful:
            cells = [f"*{cell}*" for cell in cells]
        text.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(text)


def _escaped(text: str) -> str:
    """Plain text as Markdown: T* opens no emphasis, < no tag."""
    return text.replace("*", "\\*").replace("<", "&lt;")


def _escaped_but_bold(text: str) -> str:
    return "**".join(_escaped(part) for part in text.split("**"))


def _shown(path: Path) -> str:
    """A path as a reader elsewhere can use it: relative to the working directory, or its name."""
    resolved = path.resolve()
    here = Path.cwd().resolve()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else resolved.name


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, delete=False, encoding="utf-8", newline=""
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
