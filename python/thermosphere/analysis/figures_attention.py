"""Mean attention against the contact map (Figs. 6, E2 and E4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from thermosphere.analysis.contacts import on_residues
from thermosphere.analysis.figures import new_figure, styled


@styled
def attention_figure(
    attention: npt.ArrayLike, contact_map: npt.ArrayLike, *, shift: int = 0, title: str = ""
) -> Figure:
    """Mean attention (n, n) above the diagonal, contacts (n, n) below it, on residue numbers.

    shift as in `contacts.precision_at_l`: residue k is drawn from site k + shift.  The colour scale
    ends at the 99.5th percentile of the pairs shown, or a few bright pairs would hide the rest.
    ValueError when the two are not the same square.
    """
    sites = np.asarray(attention, dtype=np.float64)
    contacts = np.asarray(contact_map) != 0
    n = contacts.shape[0]
    if sites.shape != (n, n) or contacts.shape != (n, n):
        raise ValueError(
            f"attention_figure: attention and contact_map must be (n, n), "
            f"got {sites.shape} and {contacts.shape}"
        )
    aligned = on_residues(sites, shift)
    residue = np.arange(n)
    above = residue[:, None] < residue[None, :]
    shown = aligned[above & np.isfinite(aligned)]

    figure = new_figure(5.0)
    axes = figure.add_subplot()
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
    axes.set_xlabel("residue")
    axes.set_ylabel("residue")
    axes.set_title(title or "above: attention, below: contacts", loc="left")
    figure.colorbar(image, ax=axes, shrink=0.85, label="mean attention", extend="max")
    return figure
