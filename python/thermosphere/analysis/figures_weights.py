"""Figures of sampled weights: layer similarity, norm gains and biases (Figs. 4, 5 and E5).

Both draw one panel for each kind of layer (blocks of a transformer share it) and one line for each
label and block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thermosphere.analysis.embedding import EffectiveDimension
from thermosphere.analysis.figures import GREY, colour, new_figure, split_block, styled
from thermosphere.analysis.similarity import similarity_histogram

Layers = Mapping[str, npt.NDArray[np.float64]]
Histogram = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # heights (b,), edges (b+1,)
LINE_STYLES = ("-", "--", "-.", ":")
PANEL_HEIGHT = 1.75  # inches


# kind of layer → (label, block) → values
Grouped = dict[str, dict[tuple[str, int | None], npt.NDArray[np.float64]]]


@styled
def similarity_figure(
    similarities: Mapping[str, Layers], *, layers: Sequence[str] | None = None, bins: int = 100
) -> Figure:
    """Distribution of q(t, t') for each kind of layer, scaled to the same height.

    similarities: label → `layer_similarity`, such as one entry a model, or one within chains and
    one between them.  layers: kinds to show, in order ("query_key", "norm1.gain", …); all by
    default.  ValueError when there is nothing to draw.
    """
    grouped = _by_kind("similarity_figure", similarities, layers)

    def histogram(kind: str, values: npt.NDArray[np.float64]) -> Histogram:
        return similarity_histogram(values, bins=bins)

    figure, panels = _panels(grouped, list(similarities), histogram)
    for axes in panels.values():
        axes.set_xlim(-1.05, 1.05)
        axes.set_xticks((-1, 0, 1))
    figure.supxlabel("similarity q of two weight vectors", fontsize=12)
    return figure


@styled
def norm_figure(
    vectors: Mapping[str, Layers],
    *,
    dimensions: Mapping[str, EffectiveDimension] | None = None,
    bins: int = 60,
) -> Figure:
    """Distribution of the elements of each norm's gain and bias, scaled to the same height.

    vectors: label → `norm_vectors`, such as one entry for the samples and one for the ES weights.
    dimensions: `effective_dimensions` of one of them; where its values fall into two groups, dotted
    lines mark ± the threshold between elements at zero and away from it.  ValueError when there is
    nothing to draw.
    """
    grouped = _by_kind("norm_figure", vectors, None)
    edges = norm_edges(vectors, bins=bins)

    def histogram(kind: str, values: npt.NDArray[np.float64]) -> Histogram:
        counts, own = np.histogram(values, edges[kind])
        return counts.astype(np.float64), own

    figure, panels = _panels(grouped, list(vectors), histogram)
    for name, dimension in (dimensions or {}).items():
        kind, _ = split_block(name)
        if dimension.split and kind in panels:
            for at in (-dimension.threshold, dimension.threshold):
                if edges[kind][0] < at < edges[kind][-1]:
                    panels[kind].axvline(at, color=GREY, linestyle=":", linewidth=1.0)
    figure.supxlabel("value of an element", fontsize=12)
    return figure


def norm_edges(
    vectors: Mapping[str, Layers], *, bins: int = 60
) -> dict[str, npt.NDArray[np.float64]]:
    """Bin edges (bins + 1,) of each kind of norm vector ("norm1.gain", …) in `norm_figure`."""
    grouped = _by_kind("norm_edges", vectors, None)
    return {kind: _edges(curves.values(), bins) for kind, curves in grouped.items()}


def _by_kind(function: str, labelled: Mapping[str, Layers], kinds: Sequence[str] | None) -> Grouped:
    grouped: Grouped = {}
    for label, layers in labelled.items():
        for name, values in layers.items():
            kind, block = split_block(name)
            if kinds is None or kind in kinds:
                grouped.setdefault(kind, {})[label, block] = values
    if not grouped:
        raise ValueError(f"{function}: there must be a layer to draw, got none of {kinds}")
    return {kind: grouped[kind] for kind in kinds or grouped if kind in grouped}


def _edges(curves: Iterable[npt.NDArray[np.float64]], bins: int) -> npt.NDArray[np.float64]:
    """Bin edges over all values, zero included."""
    pooled = np.concatenate([values.ravel() for values in curves] + [np.zeros(1)])
    margin = 0.03 * float(np.ptp(pooled)) or 0.5
    return np.linspace(float(pooled.min()) - margin, float(pooled.max()) + margin, bins + 1)


def _panels(
    grouped: Grouped,
    labels: Sequence[str],
    histogram: Callable[[str, npt.NDArray[np.float64]], Histogram],
) -> tuple[Figure, dict[str, Axes]]:
    """Two columns of panels, one a kind.  Several labels: a colour each, line style by block; a
    single label: a colour a block."""
    blocks = sorted({b for curves in grouped.values() for _, b in curves if b is not None})
    rows = (len(grouped) + 1) // 2
    figure = new_figure(1.0 + PANEL_HEIGHT * rows)
    panels: dict[str, Axes] = {}
    for position, (kind, curves) in enumerate(grouped.items()):
        axes = panels[kind] = figure.add_subplot(rows, 2, position + 1)
        axes.set_title(kind.replace("_", "–"), fontsize=11, loc="left")
        axes.set_ylim(0.0, 1.08)
        axes.set_yticks(())
        for (label, block), values in curves.items():
            heights, edges = histogram(kind, values)
            shade, line = _look(label, block, labels)
            if len(labels) == 1 and len(blocks) > 1 and block is None:
                shade = GREY  # not the colour of a block
            highest = float(heights.max()) or 1.0
            # The tint makes a single tall bin at q = 1 visible.
            axes.stairs(heights / highest, edges, color=shade, fill=True, alpha=0.15)
            axes.stairs(heights / highest, edges, color=shade, linestyle=line, linewidth=1.4)
    handles = []
    if len(labels) > 1:
        handles += [Line2D([], [], color=colour(i), label=name) for i, name in enumerate(labels)]
    if len(blocks) > 1:
        for block in blocks:
            shade, line = _look(labels[0], block, labels)
            shade = GREY if len(labels) > 1 else shade
            handles.append(Line2D([], [], color=shade, linestyle=line, label=f"block {block + 1}"))
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
    figure.supylabel("density (scaled)", fontsize=12)
    return figure, panels


def _look(label: str, block: int | None, labels: Sequence[str]) -> tuple[str, str]:
    """Colour and line style of one curve."""
    if len(labels) > 1:
        return colour(labels.index(label)), LINE_STYLES[(block or 0) % len(LINE_STYLES)]
    return colour(block or 0), "-"
