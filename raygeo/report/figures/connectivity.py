"""The loss between runs."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.report import typeset
from raygeo.report.figures.parts import WIDTH, figure, heatmap, legend, make_panels
from raygeo.report.style import GRID, INK, MUTED, PAPER
from raygeo.report.view import View
from raygeo.tables import BASE

_MOST_PANELS = 12


def _path_figure(view: View, origin: str, partners: str, table: str = "paths") -> Figure | None:
    frame = view.against(origin, table)
    frame = frame[frame.run != BASE] if origin != BASE else frame
    panels = [
        (probe, column)
        for probe in frame.probe.unique()
        for column in ("loss", "accuracy")
        if frame.loc[frame.probe == probe, column].notna().any()
    ]
    if not panels:
        return None
    fig, axes = make_panels(len(panels), 3 if len(panels) != 4 else 2, 3.4)
    for ax, (probe, column) in zip(axes, panels, strict=True):
        rows = frame[(frame.probe == probe) & frame[column].notna()].sort_values("alpha")
        for name in view.order(rows.run):
            path = rows[rows.run == name]
            scale = 100 if column == "accuracy" else 1
            ax.plot(path.alpha, scale * path[column], **view.styles[name].line(markersize=3.2))
        for end in (0, 1):
            ax.axvline(end, color=GRID, linewidth=1.4, zorder=0)
        ax.set_title(f"{probe}: {'accuracy, %' if column == 'accuracy' else 'NLL, nats a token'}")
        ax.set_xlabel(f"α (0 = {origin}, 1 = {partners})")
    legend(fig, view, frame.run)
    return fig


@figure(
    "paths",
    "Straight lines between the reference run and the others",
    """Each probe along (1 − α) · reference + α · other, in the space of merged weights. A barrier is a
    stretch of curve above the straight line between its two ends; a smooth curve without a bump means that
    the two runs lie in one basin as far as this grid shows. Small deltas make flat paths: absence of a
    barrier is not evidence of similarity.""",
)
def paths(view: View) -> Figure | None:
    """Draw loss and accuracy along the line from the reference run to every other run."""
    return _path_figure(view, view.reference_run, "the other run")


@figure(
    "base-paths",
    "Straight lines from the base to each run",
    """The same along base + α · delta: how the probes change as a delta is switched on (α = 1 is the trained
    run). A minimum before α = 1 says that the run overshot this probe.""",
)
def base_paths(view: View) -> Figure | None:
    """Draw loss and accuracy along the line from the base to every run."""
    return _path_figure(view, BASE, "the run")


@figure(
    "matched-paths",
    "Straight lines between deltas of equal length",
    """The same between the reference run and each other one after the longer delta of the two was scaled down to the
    length of the shorter, so that neither end outweighs the other. The ends are points on the runs' own lines from the
    base, in general not trained runs; the reference's end differs from line to line.""",
)
def matched_paths(view: View) -> Figure | None:
    """Draw loss and accuracy along the lines between deltas of equal norm."""
    return _path_figure(view, view.reference_run, "the other run", "matched_paths")


@figure(
    "curves",
    "Curves beside straight lines",
    """For pairs whose straight line has a barrier: the loss along the line (grey) and along a curve with the same ends
    whose one bend was trained to keep the loss low. Both are measured on held-out texts that had no part in training
    the bend. A low curve shows that the two runs are joined by a valley that is not straight; a high one shows only
    that this search found none.""",
)
def curves(view: View) -> Figure | None:
    """Draw the loss along line and curve, one panel a pair, the highest lines first."""
    frame = view.frame("curve_paths").dropna(subset="loss")
    if frame.empty:
        return None
    heights = frame[frame["shape"] == "line"].groupby(["run_a", "run_b"], sort=False).loss.max()
    pairs = list(heights.sort_values(ascending=False, kind="stable").index[:_MOST_PANELS])
    fig, axes = make_panels(len(pairs), 3, 2.9)
    for ax, (a, b) in zip(axes, pairs, strict=True):
        rows = frame[(frame.run_a == a) & (frame.run_b == b)].sort_values("t")
        for shape, curve in rows.groupby("shape", sort=False):
            colour = MUTED if shape == "line" else view.styles[b].colour
            ax.plot(curve.t, curve.loss, color=colour, linewidth=1.2 if shape == "line" else 1.8)
        ax.set_title(f"{a} to {b}", fontsize=8)
        ax.set_xlabel("t (0 = the first run, 1 = the second)")
    axes[0].set_ylabel("NLL, nats a token")
    handles = [Line2D([], [], color=MUTED, label="straight line"), Line2D([], [], color=INK, label="trained curve")]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig


@figure(
    "layerwise",
    "Which part of the network does the difference lie in?",
    """Rise of the NLL (nats a token) when one part of a run is replaced by that of another and the rest stays; the last
    column replaces everything and ends at the other run. Parts that add up to the last column act on their own; where
    they do not, it is their interplay that counts. Negative (blue) means that the run gains by the other's part.""",
)
def layerwise(view: View) -> Figure | None:
    """Draw the rise for every pair and part at the largest alpha measured."""
    frame = view.frame("layerwise").dropna(subset="rise")
    if frame.empty:
        return None
    alpha = frame.alpha.max()
    frame = frame[frame.alpha == alpha]
    pairs = frame.run_a + " ← " + frame.run_b
    cells = pd.crosstab(pairs, frame.part, frame.rise, aggfunc="first")
    cells = cells.loc[pairs.unique(), frame.part.unique()].rename_axis(index=None, columns=None)
    largest = float(np.nanmax(np.abs(cells.to_numpy()))) or 1.0
    size = (min(WIDTH, 4.2 + 0.62 * cells.shape[1]), 1.7 + 0.36 * cells.shape[0])
    fig = Figure(figsize=size, layout="constrained")
    ax = fig.subplots()
    write = lambda value: typeset.fixed(value, 3)  # noqa: E731
    heatmap(ax, cells, Normalize(-largest, largest), matplotlib.colormaps["RdBu_r"], write)
    ax.set_title(f"rise of the NLL, part moved by {alpha:g}")
    ax.set_ylabel("run ← the part's run")
    ax.set_xlabel(str(frame["kind"].iloc[0]))
    return fig


@figure(
    "wise",
    "From the base through each run and beyond",
    """Base + α · delta on held-out solutions and problems: α = 1 is the trained run. The calibration error says how far
    the model's certainty of the next token is from how often it is right; averages with an over-confident end can
    be worse than both ends. An α picked here for its accuracy is flattered by the picking.""",
)
def wise(view: View) -> Figure | None:
    """Draw loss, accuracy and calibration against alpha, one line a run."""
    frame = view.frame("wise").sort_values("alpha")
    shown = [column for column in _WISE if frame[column].notna().any()]
    if not shown:
        return None
    fig, axes = make_panels(len(shown), 4, 3.2)
    for ax, column in zip(axes, shown, strict=True):
        title, scale = _WISE[column]
        for name in view.order(frame.run):
            rows = frame[(frame.run == name) & frame[column].notna()]
            ax.plot(rows.alpha, scale * rows[column], **view.styles[name].line(markersize=3.2))
        for end in (0, 1):
            ax.axvline(end, color=GRID, linewidth=1.4, zorder=0)
        ax.set_title(title)
        ax.set_xlabel("α")
    legend(fig, view, frame.run)
    return fig


_WISE = {
    "loss": ("NLL, nats a token", 1),
    "accuracy": ("accuracy, %", 100),
    "confidence": ("largest probability, mean", 1),
    "ece": ("calibration error", 1),
}


_PALE = LinearSegmentedColormap.from_list("pale", matplotlib.colormaps["Blues"](np.linspace(0, 0.5, 64)))
"""Light enough for marks and numbers upon it."""


@figure(
    "planes",
    "The loss on planes through three runs",
    """NLL of held-out solutions on the plane through three runs (filled marks, where the plane holds the run itself).
    Other runs (open marks) are drawn at their projections, which may lie far from them: the number beside each is its
    distance from the plane, in the unit of the axes. Darker is worse. Levels are spaced by area, so steep walls and
    flat floors show alike: read the numbers.""",
)
def planes(view: View) -> Figure | None:
    """Draw one contour map a plane with all runs marked."""
    frame = view.frame("planes")
    groups = list(frame.groupby(["run_a", "run_b", "run_c"], sort=False))[:_MOST_PANELS]
    groups = [(corners, rows) for corners, rows in groups if rows.loss.nunique() > 1]
    if not groups:
        return None
    fig, axes = make_panels(len(groups), 2, 4.3)
    runs = view.frame("plane_runs")
    for ax, (corners, rows) in zip(axes, groups, strict=True):
        grid = rows.pivot_table(index="y", columns="x", values="loss", dropna=False)
        levels = np.unique(np.quantile(rows.loss.dropna(), np.linspace(0, 1, 13)))
        values = np.ma.masked_invalid(grid.to_numpy())
        ax.contourf(grid.columns, grid.index, values, levels=levels, cmap=_PALE)
        lines = ax.contour(grid.columns, grid.index, values, levels=levels[1:-1], colors=MUTED, linewidths=0.5)
        ax.clabel(lines, fontsize=6, fmt=lambda value: typeset.significant(value, 3))
        here = runs[(runs[["run_a", "run_b", "run_c"]] == corners).all(axis=1)]
        _mark(ax, view, here, corners)
        ax.set_title(", ".join(corners), fontsize=8)
        ax.set_xlabel("distance along the first two")
        ax.set_aspect("equal")
        ax.grid(False)
    legend(fig, view, set(runs.run))
    return fig


def _mark(ax: Axes, view: View, runs: pd.DataFrame, corners: tuple[str, ...]) -> None:
    """Mark runs on a plane: its corners filled, others open with their distance from it."""
    for row in runs.itertuples():
        style = view.styles[row.run]
        corner = row.run in corners
        face, edge = (style.colour, PAPER) if corner else (PAPER, style.colour)
        size = 9 if corner else 6
        ax.plot(
            row.x, row.y, linestyle="none", marker=style.marker, markerfacecolor=face, markeredgecolor=edge,
            markersize=size, zorder=3,
        )  # fmt: skip
        if not corner:
            text = typeset.significant(row.residual, 2)
            ax.annotate(text, (row.x, row.y), xytext=(4, 3), textcoords="offset points", fontsize=7)
