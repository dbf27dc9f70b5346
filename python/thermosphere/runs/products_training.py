"""The networks and their training: tables A1 and C2, Fig. C1."""

from __future__ import annotations

import numpy as np

from thermosphere.analysis.figures_runs import thinned, training_figure
from thermosphere.models.named import NAMES, named_model
from thermosphere.models.transformer import Transformer
from thermosphere.runs.product import Cell, Data, Picture, Product
from thermosphere.runs.report import Table
from thermosphere.runs.report_tables import reference_table
from thermosphere.runs.studied_run import StudiedRun
from thermosphere.runs.study_report import training_curves

PUBLISHED = {"tf1-small": 8, "tf1": 44, "tf4-small": 9, "tf4": 169, "ff": 174}  # 1,000 parameters
POINTS = 120  # a curve, in the CSV


def models(run: StudiedRun) -> Product:
    """Table A1: the five networks and how many parameters they have, counted in the code."""
    columns = [
        "model",
        "encoder",
        "L",
        "d",
        "m",
        "N",
        "published, in 1,000",
        "agrees",
        "in run",
    ]
    rows = []
    for name in NAMES:
        model = named_model(name)
        blocks = str(model.blocks) if isinstance(model, Transformer) else "–"
        kind = "transformer" if isinstance(model, Transformer) else "feed-forward"
        size = model.layout.size
        agrees = "yes" if round(size / 1000) == PUBLISHED[name] else "no"
        here = "yes" if name in run.studies else "no"
        rows.append(
            [
                name, kind, blocks, str(model.embedding), str(model.hidden), str(size),
                str(PUBLISHED[name]), agrees, here,
            ]
        )  # fmt: skip
    table = Table(columns, rows)
    return Product(
        "tableA1",
        "Table A1: the models",
        "8, 44, 9, 169 and 174 thousand parameters.",
        tables=[table],
        data=[Data("tableA1", columns, rows)],
    )


def trained_weights(run: StudiedRun) -> Product:
    """Table C2: losses, errors and epochs of the ES and OT weights."""
    tables = {name: reference_table(study.references) for name, study in run.studies.items()}
    shown = max((table.columns for table in tables.values()), key=len)
    rows = []
    for name, table in tables.items():
        trained = run.trained[name]
        epochs = {"ES": trained.early_stopped_epochs, "OT": trained.over_trained_epochs}
        for row in table.rows:
            own = epochs[row[0]].double()
            missing = ["–"] * (len(shown) - len(row))  # P@L, without attention
            rows.append([name, *row, *missing, f"{own.min():.0f} to {own.max():.0f}"])
    return Product(
        "tableC2",
        "Table C2: early-stopped and over-trained weights",
        "ES and OT epochs: 10k and 100k (tf1-small), 240 and 500k (tf1), 2k and 100k (tf4-small), "
        "170 and 1k (tf4), 170 and 2k (ff); training error of OT near 0.",
        tables=[Table(["model", *shown, "epochs"], rows, "Mean ± standard deviation over runs")],
        data=[_trained_data(run)],
    )


def norm_in_training(run: StudiedRun) -> Product:
    """Fig. C1: loss and |w|² while training."""
    return Product(
        "figC1",
        "Fig. C1: the norm during training",
        "|w|² grows through the early stop, and its mean over the early-stopped runs is Q.",
        pictures=[
            Picture(
                f"figC1_{name}",
                training_figure(training_curves(stage1), norm2=float(run.trained[name].norm2)),
                f"Fig. C1, {name}. Stage 1 of training: loss and squared norm. Circles: the early "
                "stop.",
            )
            for name, stage1 in run.stage1.items()
        ],
        data=[_curve_data(run)],
    )


def _trained_data(run: StudiedRun) -> Data:
    columns = ["model", "weights", "run", "epochs", "saturated"]
    sets = ("train", "validation", "test")
    columns += [f"{one} loss" for one in sets] + [f"{one} error" for one in sets]
    rows: list[list[Cell]] = []
    for name, trained in run.trained.items():
        for label, epochs, losses, errors in (
            (
                "ES",
                trained.early_stopped_epochs,
                trained.early_stopped_losses,
                trained.early_stopped_errors,
            ),
            (
                "OT",
                trained.over_trained_epochs,
                trained.over_trained_losses,
                trained.over_trained_errors,
            ),
        ):
            for number in range(len(epochs)):
                saturated: Cell = bool(trained.saturated[number]) if label == "OT" else ""
                head: list[Cell] = [name, label, number + 1, float(epochs[number]), saturated]
                rows.append([*head, *losses[number].tolist(), *errors[number].tolist()])
    return Data("tableC2", columns, rows)


def _curve_data(run: StudiedRun) -> Data:
    columns = ["model", "run", "epoch", "train loss", "validation loss", "|w|²"]
    rows: list[list[Cell]] = []
    for name, stage1 in run.stage1.items():
        for number, curve in enumerate(training_curves(stage1)):
            epoch = np.asarray(curve.epoch)
            values = [
                thinned(epoch, np.asarray(one, dtype=np.float64), POINTS)
                for one in (curve.train_loss, curve.validation_loss, curve.norm2)
            ]
            rows += [
                [name, number + 1, float(values[0][0][k]), *(float(one[1][k]) for one in values)]
                for k in range(len(values[0][0]))
                if np.isfinite(values[2][1][k])
            ]
    return Data("figC1", columns, rows)
