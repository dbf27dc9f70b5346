"""Mean attention against the contact map (Figs. 6, E2 and E4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from thermosphere.analysis.contacts import on_residues
from thermosphere.analysis.figures import WIDTH, new_figure, styled


@styled
def attention_figure(
    attention: npt.ArrayLike, contact_map: npt.ArrayLike, *, shift: int = 0, title: str = ""
) -> Figure:
    """Mean attention (n, n) above the diagonal, contacts (n, n) below it, on residue numbers.

    shift as in `contacts.precision_at_l`: residue k is drawn from site k + shift.  The colour scale
    ends at the 99.5th percentile of the pairs shown, or a few bright pairs would hide the rest.
    ValueError when the two are not the same square.
    """
    figure = new_figure(5.0)
    axes = figure.add_subplot()
    image = _draw("attention_figure", axes, attention, contact_map, shift)
    axes.set_xlabel("residue")
    axes.set_ylabel("residue")
    axes.set_title(title or "above: attention, below: contacts", loc="left")
    figure.colorbar(image, ax=axes, shrink=0.85, label="mean attention", extend="max")
    return figure


@styled
def attention_grid(
    maps: Sequence[tuple[str, npt.ArrayLike]],
    contact_map: npt.ArrayLike,
    *,
    columns: int,
    shift: int = 0,
) -> Figure:
    """Many maps as in `attention_figure`, (title, attention (n, n)) each, row by row; every one has
    a colour scale of its own, since only the order of the pairs is read."""
    if not maps:
        raise ValueError("attention_grid: maps must hold at least one, got none")
    rows = -(-len(maps) // columns)
    figure = new_figure(0.4 + (WIDTH / columns + 0.2) * rows)
    for position, (title, attention) in enumerate(maps):
        axes = figure.add_subplot(rows, columns, position + 1)
        _draw("attention_grid", axes, attention, contact_map, shift)
        axes.set_xticks(())
        axes.set_yticks(())
        axes.set_title(title, loc="left", fontsize=10)
    figure.supxlabel("residue (above: attention, below: contacts)", fontsize=12)
    figure.supylabel("residue", fontsize=12)
    return figure


def _draw(
    function: str, axes: Axes, attention: npt.ArrayLike, contact_map: npt.ArrayLike, shift: int
) -> AxesImage:
    sites = np.asarray(attention, dtype=np.float64)
    contacts = np.asarray(contact_map) != 0
    n = contacts.shape[0]
    if sites.shape != (n, n) or contacts.shape != (n, n):
        raise ValueError(
            f"{function}: attention and contact_map must be (n, n), "
            f"got {sites.shape} and {contacts.shape}"
        )
    aligned = on_residues(sites, shift)
    residue = np.arange(n)
    above = residue[:, None] < residue[None, :]
    shown = aligned[above & np.isfinite(aligned)]
    extent = (0.5, n + 0.5, n + 0.5, 0.5)
    image = axes.imshow(
        np.where(above, aligned, np.nan),
        cmap="viridis",
        vmin=0.0,
        vmax=float(np.percentile(shown, 99.5)) if shown.size else 1.0,
        extent=extent,
        interpolation="nearest",
    )
    black = np.zeros((n, n, 4))
    black[contacts & above.T] = to_rgba("black")
    axes.imshow(black, extent=extent, interpolation="nearest")
    axes.plot((0.5, n + 0.5), (0.5, n + 0.5), color="#999999", linewidth=0.6)
    axes.grid(False)
    return image
