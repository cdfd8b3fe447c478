"""What is shown of planes through three runs."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.hover import name_cells
from raygeo.report.plots import figure, legend, make_panels
from raygeo.report.sheets import Sheet, nats, section
from raygeo.report.style import MUTED, PAPER
from raygeo.report.view import View

_MOST_PANELS = 12
_PALE = LinearSegmentedColormap.from_list("pale", matplotlib.colormaps["Blues"](np.linspace(0, 0.5, 64)))
"""Light enough for marks and numbers upon it."""


@figure(
    "planes",
    "The NLL on planes through three runs",
    """NLL of held-out solutions on the plane through three runs (filled marks, where the plane holds the run itself).
    Other runs (open marks) are drawn at their projections, which may lie far from them: the number beside each is its
    distance from the plane, in the unit of the axes. Those whose projections lie outside of what was measured are in
    the table alone. Darker is worse; under the pointer stands what was measured next to it. Levels are spaced
    by area, so steep walls and flat floors show alike: read the numbers.""",
)
def planes(view: View) -> Figure | None:
    """Draw one contour map a plane with all runs marked."""
    frame = view.frame("planes")
    groups = list(frame.groupby(["run_a", "run_b", "run_c"], sort=False))[:_MOST_PANELS]
    groups = [(corners, rows) for corners, rows in groups if rows.nll.nunique() > 1]
    if not groups:
        return None
    fig, axes = make_panels(len(groups), 2, 4.3)
    runs = view.frame("plane_runs")
    for ax, (corners, rows) in zip(axes, groups, strict=True):
        grid = rows.pivot_table(index="y", columns="x", values="nll", dropna=False)
        levels = np.unique(np.quantile(rows.nll.dropna(), np.linspace(0, 1, 13)))
        values = np.ma.masked_invalid(grid.to_numpy())
        filled = ax.contourf(grid.columns, grid.index, values, levels=levels, cmap=_PALE)
        bar = fig.colorbar(filled, ax=ax, shrink=0.8, label="NLL, nats a token")
        bar.set_ticks(levels[::3].tolist(), labels=[typeset.significant(level) for level in levels[::3]])
        ax.set(xlim=(grid.columns.min(), grid.columns.max()), ylim=(grid.index.min(), grid.index.max()))
        measured = ax.pcolormesh(grid.columns, grid.index, values, shading="nearest", visible=False)
        name_cells(measured, grid.rename(index=_short, columns=_short), "NLL, nats a token")
        lines = ax.contour(grid.columns, grid.index, values, levels=levels[1:-1], colors=MUTED, linewidths=0.5)
        ax.clabel(lines, fontsize=6, fmt=lambda value: typeset.significant(value, 3))
        here = runs[(runs[["run_a", "run_b", "run_c"]] == corners).all(axis=1)]
        _mark(ax, view, here, corners)
        ax.set_title(", ".join(corners), fontsize=8)
        ax.set_xlabel("distance along the first two")
        ax.set_ylabel("distance towards the third")
        ax.set_aspect("equal")
        ax.grid(False)
    legend(fig, view, set(runs.run))
    return fig


def _short(value: float) -> str:
    return typeset.significant(value, 3)


def _mark(ax: Axes, view: View, runs: pd.DataFrame, corners: tuple[str, ...]) -> None:
    """Mark the runs within a panel: the corners of its plane filled, others open with their distance from it."""
    within = runs.x.between(*ax.get_xlim()) & runs.y.between(*ax.get_ylim())
    for row in runs[within].itertuples():
        style = view.styles[row.run]
        corner = row.run in corners
        face, edge = (style.colour, PAPER) if corner else (PAPER, style.colour)
        size = 9 if corner else 6
        ax.plot(
            row.x, row.y, linestyle="none", marker=style.marker, markerfacecolor=face, markeredgecolor=edge,
            markersize=size, zorder=3, gid=style.gid, clip_on=False,
        )  # fmt: skip
        if not corner:
            text = typeset.significant(row.residual, 2)
            ax.annotate(text, (row.x, row.y), xytext=(4, 3), textcoords="offset points", fontsize=7)


@section(
    "Runs and planes: {rows}",
    """Distance of every run from each plane, and its own NLL: what a plane shows at a run's mark is the NLL of the
    run only where that distance is zero.""",
    folded=True,
)
def runs(view: View) -> Sheet:
    """Coordinates, distance from the plane and own NLL of every run, plane by plane."""
    rows = [
        [
            ", ".join((row.run_a, row.run_b, row.run_c)),
            row.run,
            typeset.significant(row.x),
            typeset.significant(row.y),
            typeset.significant(row.residual),
            nats(row.nll),
            typeset.count(row.n),
        ]
        for row in view.frame("plane_runs").itertuples()
    ]
    columns = ["plane through", "run", "x", "y", "distance from the plane", "its own NLL", "texts"]
    return Sheet(columns, rows, frozenset({"plane through", "run"}))


def flat(view: View) -> list[str]:
    """What a plane shows of a space of very many dimensions."""
    frame = view.frame("plane_runs")
    away = frame[frame.residual > 0]
    if frame.empty:
        return []
    said = (
        "A plane shows two directions of a space of very many: walls and valleys in it need not be those around a run."
    )
    if len(away):
        share = (away.residual / (away.residual**2 + away.x**2 + away.y**2) ** 0.5).median()
        said += (
            f" Runs that do not span it lie off it, at a median {typeset.percent(share)} of their distance from its "
            "origin, and their marks say nothing of their NLL."
        )
    return [said]
