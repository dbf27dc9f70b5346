"""Site and pair frequencies of harvested sequences."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from thermosphere.analysis.figures import new_figure, styled


@styled
def frequencies_figure(
    site_frequencies: npt.ArrayLike,
    pair_correlations: npt.ArrayLike,
    pairs: npt.ArrayLike,
    *,
    letters: str = "",
) -> Figure:
    """Frequencies f_i(a) above; below, correlations of pairs over the coupled ones.

    site_frequencies: (n, q).  pair_correlations: (n, n), shown above the diagonal, the scale ending
    at the 99.5th percentile.  pairs: (E, 2) coupled sites from 0, shown below it.  letters: of the
    states, "" for numbers.
    """
    single = np.asarray(site_frequencies, dtype=np.float64)
    correlations = np.asarray(pair_correlations, dtype=np.float64)
    n, q = single.shape
    figure = new_figure(9.4)  # twenty letters of the house size fill 3.5 inches
    upper, lower = figure.subplots(2, 1, height_ratios=(1, 1.15))
    image = upper.imshow(
        single.T,
        cmap="viridis",
        vmin=0.0,
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, n + 0.5, q - 0.5, -0.5),
    )
    upper.set_xlabel("site")
    upper.set_ylabel("state")
    if letters and q <= 21:
        upper.set_yticks(range(q), list(letters))
    figure.colorbar(image, ax=upper, label="frequency")

    above = np.arange(n)[:, None] < np.arange(n)
    extent = (0.5, n + 0.5, n + 0.5, 0.5)
    image = lower.imshow(
        np.where(above, correlations, np.nan),
        cmap="viridis",
        vmin=0.0,
        vmax=float(np.percentile(correlations[above], 99.5)),
        extent=extent,
        interpolation="nearest",
    )
    black = np.zeros((n, n, 4))
    i, j = np.asarray(pairs).T
    black[j, i] = to_rgba("black")
    lower.imshow(black, extent=extent, interpolation="nearest")
    lower.set_xlabel("site")
    lower.set_ylabel("site")
    figure.colorbar(image, ax=lower, label="|f(a,b) − f(a) f(b)|", extend="max")
    for axes in (upper, lower):
        axes.grid(False)
    return figure
