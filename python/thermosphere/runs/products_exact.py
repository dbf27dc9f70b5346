"""Whether ⟨U⟩ of the samples is right: hybrid Monte Carlo beside the samples' own sampler."""

from __future__ import annotations

from thermosphere.runs.claims import in_units_of_peak
from thermosphere.runs.exact import FILE
from thermosphere.runs.exact_table import COLUMNS, Comparison, read_comparisons
from thermosphere.runs.product import Cell, Data, Product
from thermosphere.runs.report import Table
from thermosphere.runs.store import least_loss
from thermosphere.runs.studied_run import StudiedRun


def exact(run: StudiedRun) -> Product | None:
    """⟨U⟩ against the exact one, by chain and over all; None where no check was run."""
    text: list[str] = []
    shown: list[list[str]] = []
    doubtful: list[int] = []
    rows: list[list[Cell]] = []
    for name in run.studies:
        if not (run.directory / name / FILE).is_file():
            continue
        for one in read_comparisons(run.directory / name, least_loss(run.studies[name].samples)):
            text.append(f"{name}, {one.sentence()}")
            if not one.enough:
                doubtful.append(len(shown))
            shown.append([name, in_units_of_peak(run.studies[name], one.temperature), *_shown(one)])
            rows += [[name, *row] for row in one.rows()]
    if not shown:
        return None
    columns = [
        "model", "", "chains", "gradients", "⟨U⟩ exact", "⟨U⟩ − exact", "z", "of ⟨U⟩ − U_min",
        "ESS a chain, exact", "and ours", "acceptance", "T_kin/T exact", "and ours",
    ]  # fmt: skip
    return Product(
        "exact",
        "Is it exact?",
        "",
        text=[
            "The last draws of every chain went on in two ways, with as many full-batch gradients: "
            "with full-batch hybrid Monte Carlo on the sphere, which has no bias for any step, and "
            "with the sampler of these samples. A chain is held against itself, as chains of "
            "different starts stand in basins of different U; the error is the larger of the "
            "chains' own (ESS, blocks) and of the spread of their differences.",
            *text,
        ],
        tables=[Table(columns, shown, doubtful=doubtful)],
        data=[Data("exact", ["model", *COLUMNS], rows)],
    )


def _shown(one: Comparison) -> list[str]:
    difference, error = one.difference[:2]
    chains = len(one.chains)
    return [
        str(chains),
        f"{one.gradients:,}",
        f"{one.excess + one.lowest:.4f}",
        f"{difference:+.5f} ± {error:.5f}",
        f"{one.z:+.1f}",
        f"{difference / one.excess:+.2%} ± {error / one.excess:.2%}",
        f"{sum(a.effective_draws for a in one.exact) / chains:.0f}",
        f"{sum(a.effective_draws for a in one.sampled) / chains:.0f}",
        f"{one.acceptance.mean():.2f}",
        f"{one.kinetic[0].mean():.4f}",
        f"{one.kinetic[1].mean():.4f}",
    ]
