"""How every figure looks, and how one becomes a PNG.

Figures are matplotlib `Figure` objects made without pyplot: no global state, no display.  They are
5.4 inches wide with 12-point type, so that one fills a phone at its natural size and three stand
side by side on a projector.  The figures themselves are in figures_ladder (against temperature),
figures_weights, figures_attention and figures_runs.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

WIDTH = 5.4  # inches
DPI = 150

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the same picture everywhere
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "lines.linewidth": 1.4,
    "lines.markersize": 6,
    "errorbar.capsize": 2.5,
    "savefig.dpi": DPI,
    "text.usetex": False,
}

# Okabe and Ito's palette without yellow, which is lost on white: safe for colour-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#555555"  # guides: thresholds, baselines, T*
MARKERS = ("o", "s", "D", "^", "v", "P", "X")

styled = matplotlib.rc_context(STYLE)


def new_figure(height: float) -> Figure:
    """An empty Figure of the house width and the given height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def temperature_colours() -> Colormap:
    """Viridis from cold to hot, without its pale yellow end."""
    viridis = matplotlib.colormaps["viridis"]
    return LinearSegmentedColormap.from_list("temperature", viridis(np.linspace(0.0, 0.9, 256)))


def colour(index: int) -> str:
    """Colour of the index-th series."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """Marker of the index-th series, so that series differ without colour too."""
    return MARKERS[index % len(MARKERS)]


def legend_above(axes: Axes, handles: Sequence[Artist], columns: int = 2) -> None:
    """Legend in rows above the axes, where it hides no point; none without handles."""
    if handles:
        axes.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=columns,
            borderaxespad=0.2,
            columnspacing=1.0,
        )


def split_block(layer: str) -> tuple[str, int | None]:
    """Kind and block of a layer's name: blocks.2.norm1.gain → ("norm1.gain", 2)."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
    return (match[2], int(match[1])) if match else (layer, None)


@styled
def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes (no date, no version inside).

    Stored with a palette of 256 colours, a third of the size, told apart by nobody.  The layout
    is frozen as first drawn: constrained layout would move a little each time.
    """
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    figure.set_layout_engine("none")
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    palette = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure to `path` as PNG, atomically."""
    target = Path(path)
    data = png_bytes(figure)
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".png", delete=False) as file:
        file.write(data)
    os.chmod(file.name, 0o644)
    os.replace(file.name, target)
