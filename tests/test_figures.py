"""Figures: what they draw, that they repeat byte for byte, and that they stay small."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from PIL import Image

from thermosphere.analysis.embedding import EffectiveDimension
from thermosphere.analysis.figures import png_bytes, save_png, split_block
from thermosphere.analysis.figures_attention import attention_figure, attention_grid
from thermosphere.analysis.figures_ladder import (
    Reference,
    error_figure,
    observable_figure,
    precision_figure,
    specific_heat_figure,
)
from thermosphere.analysis.figures_runs import (
    TrainingCurve,
    tempering_figure,
    trace_figure,
    training_figure,
)
from thermosphere.analysis.figures_sequences import frequencies_figure
from thermosphere.analysis.figures_weights import norm_figure, similarity_figure

LIMIT = 120_000  # bytes


def ladder_table(peak: float = 1e-4) -> xr.Dataset:
    temperature = np.geomspace(1e-5, 1e-3, 5)
    equilibrated = np.array([False, True, True, True, True])
    table = xr.Dataset(coords={"temperature": temperature})
    for name in (
        "train_loss",
        "train_error",
        "validation_error",
        "test_error",
        "precision_at_l",
        "precision_at_l_tolerant",
        "loss_slope",
        "specific_heat",
    ):
        table[name] = ("temperature", np.array([0.9, 0.2, 0.3, 0.4, 0.5]))
        table[name + "_error"] = ("temperature", np.array([np.nan, 0.01, 0.01, 0.01, 0.01]))
    table["specific_heat"] = ("temperature", np.array([1e6, 100.0, 300.0, 200.0, 100.0]))
    table["equilibrated"] = ("temperature", equilibrated)
    table.attrs["peak_temperature"] = peak
    return table


REFERENCES = [
    Reference("ES", {"train_loss": [1.0, 1.2, 1.4], "test_error": [0.3, 0.4, 0.5]}),
    Reference("OT", {"train_loss": [0.0, 0.1, 0.2], "test_error": [0.4, 0.4, 0.4]}),
]


def samples() -> xr.Dataset:
    generator = np.random.default_rng(0)
    loss = generator.normal(size=(4, 1200))
    loss[:, 1000:] = np.nan
    return xr.Dataset(
        {"train_loss": (("chain", "draw"), loss)},
        coords={
            "temperature": ("chain", np.array([1e-5, 1e-5, 1e-4, 1e-4])),
            "move": ("draw", 10 * np.arange(1200)),
        },
    )


def layers(blocks: int, size: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    names = [
        "embedding",
        *(f"blocks.{b}.norm1.{k}" for b in range(blocks) for k in ("gain", "bias")),
    ]
    return {name: np.clip(generator.normal(0.5, 0.2, size), -1, 1) for name in names}


def every_figure() -> dict[str, Figure]:
    table = ladder_table()
    tables = {"tf1": table, "tf1-small": ladder_table(2e-4)}
    steps = np.arange(0, 1000, 10)
    contacts = np.eye(12, k=3) + np.eye(12, k=-3)
    dimension = EffectiveDimension(64, 26.0, 0.0, 0.5, 9.0, True)
    return {
        "observable": observable_figure(tables, "train_loss", references={"tf1": REFERENCES}),
        "relative": observable_figure(tables, "test_error", relative=True, baseline=0.9),
        "errors": error_figure(table, references=REFERENCES),
        "heat": specific_heat_figure(tables),
        "precision": precision_figure(
            tables, {"precision_at_l": 0.07, "precision_at_l_tolerant": None}
        ),
        "trace": trace_figure(samples()),
        "similarity": similarity_figure({"tf4": layers(4, 500)}),
        "between": similarity_figure({"within": layers(2, 90), "between": layers(2, 90)}),
        "norms": norm_figure({"tf1": layers(1, 64)}, dimensions={"blocks.0.norm1.gain": dimension}),
        "attention": attention_figure(np.random.default_rng(2).random((12, 12)), contacts),
        "maps": attention_grid(
            [(f"T = {k}", np.random.default_rng(k).random((12, 12))) for k in range(5)],
            contacts,
            columns=4,
        ),
        "training": training_figure(
            [TrainingCurve("run 1", steps, 1 / (1 + steps), 2 / (1 + steps), steps, stop=500)],
            norm2=600.0,
        ),
        "tempering": tempering_figure(
            np.geomspace(1, 20, 8),
            -np.arange(8.0),
            np.ones(8),
            np.full(8, 100),
            np.random.default_rng(3).random(50),
            consecutive_overlaps=np.random.default_rng(4).random(20),
            independent_overlaps=np.random.default_rng(5).random(20),
            random_overlap=0.07,
        ),
        "frequencies": frequencies_figure(
            np.random.default_rng(6).random((12, 20)),
            np.random.default_rng(7).random((12, 12)),
            np.argwhere(np.triu(contacts)),
            letters="ARNDCQEGHILKMFPSTWYV",
        ),
    }


FIGURES = sorted(every_figure())


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    return {name: png_bytes(figure) for name, figure in every_figure().items()}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_small_picture_with_something_on_it(
    name: str, pictures: dict[str, bytes]
) -> None:
    assert len(pictures[name]) < LIMIT
    picture = np.asarray(Image.open(io.BytesIO(pictures[name])).convert("L"))
    assert picture.shape[1] == 810
    assert 0.002 < np.mean(picture < 128) < 0.6  # ink


def test_pictures_repeat_byte_for_byte(pictures: dict[str, bytes]) -> None:
    again = every_figure()
    for name in ("errors", "attention", "trace"):
        assert png_bytes(again[name]) == pictures[name]
        assert png_bytes(again[name]) == pictures[name]  # drawing does not change a figure


@pytest.mark.parametrize("name", FIGURES)
def test_type_is_large_enough_and_axes_are_labelled(name: str) -> None:
    figure = every_figure()[name]
    png_bytes(figure)
    for axes in figure.axes:
        labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label]
        assert all(label.get_fontsize() >= 11 for label in labels if label.get_text())
    assert any(axes.get_xlabel() for axes in figure.axes) or figure.get_supxlabel()
    assert any(axes.get_ylabel() for axes in figure.axes) or figure.get_supylabel()


def test_temperatures_that_are_not_equilibrated_are_hollow() -> None:
    figure = observable_figure({"tf1": ladder_table()}, "train_loss")
    (axes,) = figure.axes
    drawn = {
        len(line.get_xdata()): line.get_markerfacecolor()
        for line in axes.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    }
    assert drawn.keys() == {1, 4}
    assert same_color(drawn[1], "white")
    assert not same_color(drawn[4], "white")
    legend = axes.get_legend()
    assert legend is not None
    assert "not equilibrated" in [text.get_text() for text in legend.get_texts()]


def test_temperatures_whose_chains_stay_apart_are_half_filled() -> None:
    table = ladder_table()
    table["stationary"] = ("temperature", np.array([False, True, True, False, False]))
    table["equilibrated"] = ("temperature", np.array([False, False, False, True, True]))
    figure = observable_figure({"tf1": table}, "train_loss")
    (axes,) = figure.axes
    drawn = {
        tuple(line.get_ydata()): (line.get_fillstyle(), line.get_markerfacecolor() == "white")
        for line in axes.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    }
    assert drawn == {
        (0.2, 0.3): ("left", False), (0.4, 0.5): ("full", False), (0.9,): ("full", True)
    }  # fmt: skip
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["chains stand still", "not equilibrated"]


def test_references_stand_beside_the_ladder_with_their_spread() -> None:
    figure = observable_figure(
        {"tf1": ladder_table()}, "train_loss", references={"tf1": REFERENCES}
    )
    side, main = figure.axes
    assert [label.get_text() for label in side.get_xticklabels()] == ["ES", "OT"]
    means = [bar.lines[0].get_ydata()[0] for bar in side.containers]
    assert means == pytest.approx([1.2, 0.1])
    low, high = side.containers[0].lines[1]
    assert high.get_ydata()[0] - low.get_ydata()[0] == pytest.approx(2 * 0.2)
    assert main.get_xscale() == "log"
    assert side.get_ylim() == main.get_ylim()


def test_relative_temperatures_and_models_without_a_peak() -> None:
    figure = observable_figure(
        {"tf1": ladder_table(1e-4), "ff": ladder_table(math.nan)}, "train_loss", relative=True
    )
    (axes,) = figure.axes
    points = np.concatenate([bar.lines[0].get_xdata() for bar in axes.containers])
    assert sorted(points) == pytest.approx(np.geomspace(1e-5, 1e-3, 5) / 1e-4)


def test_specific_heat_scale_is_not_set_by_a_drifting_temperature() -> None:
    (axes,) = specific_heat_figure({"tf1": ladder_table()}).axes
    assert 300.0 < axes.get_ylim()[1] < 400.0
    assert any(line.get_marker() == "^" and len(line.get_xdata()) == 1 for line in axes.lines)


def test_specific_heat_scale_is_not_set_by_a_model_without_equilibrated_points() -> None:
    adrift = ladder_table()
    adrift["specific_heat"] = 1e6 + 0 * adrift["specific_heat"]
    adrift["equilibrated"] = ("temperature", np.zeros(5, np.bool_))
    (axes,) = specific_heat_figure({"tf1": ladder_table(), "adrift": adrift}).axes
    assert 300.0 < axes.get_ylim()[1] < 400.0
    # Alone: by d⟨U⟩/dT of all its temperatures, here 200 T.
    adrift["train_loss"] = 200.0 * adrift["temperature"]
    (alone,) = specific_heat_figure({"adrift": adrift}).axes
    assert 260.0 <= alone.get_ylim()[1] < 600.0  # differences on the scale of ln T
    assert any(line.get_marker() == "^" and len(line.get_xdata()) == 5 for line in alone.lines)


def test_specific_heat_that_is_unknown_everywhere_is_an_empty_figure() -> None:
    short = ladder_table()
    for name in ("specific_heat", "loss_slope"):
        short[name] = np.nan * short[name]
    short["equilibrated"] = ("temperature", np.zeros(5, np.bool_))
    (axes,) = specific_heat_figure({"short": short}).axes
    assert min(axes.get_xlim()) > 0


def test_attention_figure_puts_sites_on_residues() -> None:
    n = 10
    attention = np.zeros((n, n))
    attention[3, 7] = attention[7, 3] = 1.0
    for shift, row, column in ((0, 3, 7), (1, 2, 6)):
        axes = attention_figure(attention, np.zeros((n, n)), shift=shift).axes[0]
        drawn = np.asarray(axes.images[0].get_array(), dtype=float)
        assert np.nanargmax(np.nan_to_num(drawn)) == row * n + column
        assert np.isnan(np.ma.filled(axes.images[0].get_array(), np.nan)[column, row])


def test_traces_stop_where_writing_stopped() -> None:
    axes = trace_figure(samples()).axes[0]
    for line in axes.lines:
        assert len(line.get_xdata()) <= 500
        finite = np.isfinite(line.get_ydata())
        assert 9900 < line.get_xdata()[finite].max() < 10000


def test_burn_in_is_that_of_short_and_of_long_chains() -> None:
    some = samples().isel(draw=slice(100))
    some["train_loss"][:] = 1.0
    assert len(trace_figure(some).axes[0].patches) == 1
    some["train_loss"][1, 40:] = np.nan
    axes = trace_figure(some, burn_in=0.5).axes[0]
    ends = sorted(patch.get_x() + patch.get_width() for patch in axes.patches)
    assert ends == [float(some["move"][20]), float(some["move"][50])]
    assert "went on" in axes.get_xlabel()
    assert not trace_figure(some, burn_in=None).axes[0].patches


def test_threshold_lines_only_where_values_split() -> None:
    values = {"norm1.gain": np.linspace(-1.0, 1.0, 64)}
    split = EffectiveDimension(64, 26.0, 0.0, 0.5, 9.0, True)
    whole = EffectiveDimension(64, 64.0, 0.0, math.nan, 2.0, False)
    assert len(norm_figure({"": values}, dimensions={"norm1.gain": split}).axes[0].lines) == 2
    assert len(norm_figure({"": values}, dimensions={"norm1.gain": whole}).axes[0].lines) == 0


def test_layers_can_be_chosen() -> None:
    figure = similarity_figure({"tf4": layers(4, 20)}, layers=["norm1.gain"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["norm1.gain"]


def test_split_block() -> None:
    assert split_block("blocks.12.norm1.gain") == ("norm1.gain", 12)
    assert split_block("output.bias") == ("output.bias", None)


def test_save_png_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "figure.png"
    target.write_bytes(b"old")
    figure = error_figure(ladder_table())
    save_png(figure, target)
    assert target.read_bytes() == png_bytes(figure)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_bad_input_is_refused() -> None:
    table = ladder_table()
    with pytest.raises(ValueError, match="tables must hold at least one model"):
        observable_figure({}, "train_loss")
    with pytest.raises(ValueError, match="table of tf1 must hold 'distance'"):
        observable_figure({"tf1": table}, "distance")
    with pytest.raises(ValueError, match="samples must hold 'test_loss'"):
        trace_figure(samples(), "test_loss")
    with pytest.raises(ValueError, match="curves must hold at least one run"):
        training_figure([])
    with pytest.raises(ValueError, match="there must be a layer to draw"):
        similarity_figure({"tf1": layers(1, 5)}, layers=["nothing"])
    with pytest.raises(ValueError, match=r"must be \(n, n\), got \(4, 5\)"):
        attention_figure(np.zeros((4, 5)), np.zeros((4, 4)))
