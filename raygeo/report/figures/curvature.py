"""The loss around runs."""

import math

import matplotlib
import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from raygeo.report import typeset
from raygeo.report.figures.parts import (
    PLAIN,
    WIDE,
    WIDTH,
    by_layer,
    figure,
    heatmap,
    legend,
    log,
    make_panels,
    name_rows,
)
from raygeo.report.style import GRID, MUTED
from raygeo.report.view import View
from raygeo.tables import BASE

_DENSITY_DECADES = 7
MEASURES = {
    "sam": ("SAM: one step", "ρ"),
    "ball": ("worst of several steps", "ρ"),
    "asam": ("ASAM: one relative step", "ρ"),
    "noise": ("mean under noise", "σ"),
    "layer noise": ("mean under relative noise", "σ / RMS of the parameter"),
}
"""What each measure of sharpness is called, and its radius."""
_POWERS = FuncFormatter(lambda value, _: typeset.significant(value, 1).removeprefix("1 × "))


@figure(
    "spectra",
    "Spectral density of the curvature",
    """Density of eigenvalues at each run by stochastic Lanczos quadrature (log scale), the base in grey
    behind each. Mass to the left of zero is negative curvature; isolated bumps to the right are the sharp
    directions. The width of a bump is the smoothing kernel's, not the spectrum's. The curve is that of one
    probe loss common to all runs, not of any run's own training loss. Where runs differ much, the axis is
    linear near zero and logarithmic beyond.""",
)
def spectra(view: View) -> Figure | None:
    """Draw the spectral density of each run in its own panel, the base behind it."""
    frame, what = view.curvature("density")
    frame = frame[frame.value > 0]
    if frame.empty:
        return None
    names = view.order(frame.run)
    shown = [name for name in names if name != BASE] or names
    fig, axes = make_panels(len(shown), 4, 2.05, sharex=True, sharey=True)
    for ax, name in zip(axes, shown, strict=True):
        for run in dict.fromkeys((BASE, name)):
            rows = frame[frame.run == run].sort_values("x")
            front = run == name
            colour = view.styles[run].colour if front else MUTED
            ax.plot(rows.x, rows.value, color=colour, linewidth=1.5 if front else 0.9, alpha=1 if front else 0.8)
        ax.axvline(0, color=GRID, linewidth=1.2, zorder=0)
        ax.set_title(name)
    peak = frame.value.max()
    axes[0].set_yscale("log")
    floor = peak * 10**-_DENSITY_DECADES
    axes[0].set_ylim(floor, peak * 3)
    axes[0].yaxis.set_major_formatter(_POWERS)
    reach = frame[frame.value > floor].groupby("run").x.max()
    if reach.min() > 0 and reach.max() > WIDE * reach.min():
        axes[0].set_xscale("symlog", linthresh=10 ** math.floor(math.log10(reach.min() / 3)))
        axes[0].xaxis.set_major_formatter(PLAIN)
    fig.supxlabel(f"eigenvalue ({what})", size=9)
    fig.supylabel("density", size=9)
    return fig


@figure(
    "eigenvalues",
    "Largest eigenvalues",
    """The top eigenvalues of the same operator at each run by Lanczos, the largest written out. Larger means
    sharper: the probe loss rises faster along some direction.""",
)
def top_eigenvalues(view: View) -> Figure | None:
    """Draw the top eigenvalues, one row a run."""
    frame, what = view.curvature("eigenvalue")
    if frame.empty:
        return None
    names = view.order(frame.run)
    fig, (ax,) = make_panels(1, 1, 0.9 + 0.27 * len(names))
    for y, name in enumerate(names):
        values = frame[frame.run == name].value.sort_values(ascending=False).to_numpy()
        line = view.styles[name].line(linestyle="none")
        ax.plot(values[1:], np.full(len(values) - 1, y), **line | {"alpha": 0.55})
        ax.plot(values[0], y, **line | {"markersize": 7})
        ax.annotate(
            typeset.significant(values[0]), (1.01, y), xycoords=("axes fraction", "data"), va="center", size=8.5
        )
    name_rows(ax, names)
    low, high = frame.value.min(), frame.value.max()
    if low > 0 and high > WIDE * low:
        log(ax, "x")
    elif low > 0:
        ax.set_xlim(left=0)
    ax.set_title(f"eigenvalues ({what})")
    return fig


@figure(
    "directional",
    "Curvature along each delta",
    """Each cell is u·Hu / u·u at the run of its row, with u the delta named by its column: how sharply the
    probe loss bends along the direction that training took. Where row and column agree it is a run's own
    direction; negative (purple) bends down. The colour scale is logarithmic away from zero.""",
)
def directional(view: View) -> Figure | None:
    """Draw the curvature along every delta at every run."""
    frame, what = view.curvature("directional")
    if frame.empty:
        return None
    cells = frame.pivot_table(index="run", columns="name", values="value", aggfunc="first", sort=False)
    known = view.order(cells.columns)
    cells = cells.loc[view.order(cells.index), known + [name for name in cells.columns if name not in known]]
    largest = float(np.nanmax(np.abs(cells.to_numpy()))) or 1.0
    fig = Figure(figsize=(min(WIDTH, 2.6 + 0.72 * cells.shape[1]), 1.9 + 0.4 * cells.shape[0]), layout="constrained")
    ax = fig.subplots()
    norm = SymLogNorm(largest / 100, vmin=-largest, vmax=largest)
    heatmap(ax, cells, norm, matplotlib.colormaps["PuOr_r"], lambda value: typeset.significant(value, 2))
    ax.set_title(f"curvature ({what}) along a delta")
    ax.set_xlabel("along the delta of")
    ax.set_ylabel("at the weights of")
    return fig


@figure(
    "block-curvature",
    "Curvature of each transformer block",
    """The largest eigenvalue and the mean eigenvalue (trace over dimension) of the Hessian of each block by itself, the
    other weights held fixed. Blocks of a model share no curvature here: what bends only when two of them move together
    is not seen. The bars are standard errors between random vectors.""",
)
def blocks(view: View) -> Figure | None:
    """Draw the top eigenvalue and the mean eigenvalue of every block, one line a run."""
    frame = view.frame("curvature").dropna(subset="value")
    frame = frame[frame.space.fillna("").str.startswith("block ")]
    tops = frame[(frame.quantity == "eigenvalue") & (frame["index"] == 0)]
    if tops.empty:
        return None
    operator = tops.operator.iloc[0]
    frame = frame[frame.operator == operator].assign(layer=lambda rows: rows.space.str.split().str[1].astype(int))
    tops = frame[(frame.quantity == "eigenvalue") & (frame["index"] == 0)]
    traces = frame[frame.quantity == "trace"]
    traces = traces.assign(mean=traces.value / traces.parameters, spread=traces.error / traces.parameters)
    fig, (left, right) = make_panels(2, 2, 3.2)
    by_layer(left, view, tops, "value")
    left.set_title(f"largest eigenvalue ({operator})")
    by_layer(right, view, traces, "mean")
    for name in view.order(traces.run):
        rows = traces[traces.run == name]
        right.errorbar(
            rows.layer, rows["mean"], rows.spread, fmt="none", ecolor=view.styles[name].colour, elinewidth=0.9
        )
    right.set_title(f"mean eigenvalue ({operator})")
    legend(fig, view, frame.run)
    return fig


@figure(
    "expansions",
    "Paths from the base, predicted and measured",
    """The probe loss along base + α · delta (points), and what gradient and Hessian in the span of all deltas predict
    for it: from the base (dashed) and from the run (dotted). Where a prediction leaves the points, the loss is no
    quadratic over that distance and curvature at that end says little about the other. Predictions are cut off at the
    panel's edge.""",
)
def expansions(view: View) -> Figure | None:
    """Draw measured and predicted losses from the base to every run."""
    frame = view.against(BASE, "expansions")
    measured = frame[frame["at"].isna()]
    if measured.empty:
        return None
    predicted = frame[frame.operator == "hessian"]
    names = [name for name in view.order(measured.run) if name != BASE]
    fig, axes = make_panels(len(names), 4, 2.2, sharex=True)
    for ax, name in zip(axes, names, strict=True):
        rows = measured[measured.run == name].sort_values("alpha")
        ax.plot(rows.alpha, rows.loss, **view.styles[name].line(linestyle="none"))
        low, high = rows.loss.min(), rows.loss.max()
        margin = 0.35 * (high - low) or 0.1
        for at, colour, dashes in ((BASE, MUTED, "--"), (name, view.styles[name].colour, ":")):
            line = predicted[(predicted.run == name) & (predicted["at"] == at)].sort_values("alpha")
            ax.plot(line.alpha, line.loss, color=colour, linestyle=dashes, linewidth=1.4)
        ax.set_ylim(low - margin, high + margin)
        ax.set_title(name)
    fig.supxlabel("α (0 = base, 1 = the run)", size=9)
    fig.supylabel("NLL, nats a token", size=9)
    handles = [
        Line2D([], [], color=MUTED, linestyle="none", marker="o", label="measured"),
        Line2D([], [], color=MUTED, linestyle="--", label="predicted from the base"),
        Line2D([], [], color=MUTED, linestyle=":", label="predicted from the run"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    return fig


@figure(
    "sharpness",
    "Sharpness",
    """How much the probe loss rises near each run: at the end of one ascent step of length ρ (SAM), at most along
    several within that ball, one step of relative length ρ (ASAM, blind to rescaled weights), and on average under
    noise of standard deviation σ on every weight or, layer by layer, relative to the weights; bars are standard errors
    over draws. Steps are lower bounds of the worst rise. The measures have units of their own: compare runs within a
    panel, not panels.""",
)
def sharpness(view: View) -> Figure | None:
    """Draw every measure against its radius, one line a run."""
    frame = view.frame("sharpness").dropna(subset="value")
    if frame.empty:
        return None
    measures = list(frame.measure.unique())
    fig, axes = make_panels(len(measures), 3, 2.8)
    for ax, measure in zip(axes, measures, strict=True):
        part = frame[frame.measure == measure]
        for name in view.order(part.run):
            rows = part[part.run == name].sort_values("radius")
            ax.plot(rows.radius, rows.value, **view.styles[name].line())
            if rows.error.notna().any():
                colour = view.styles[name].colour
                ax.errorbar(rows.radius, rows.value, rows.error, fmt="none", ecolor=colour, elinewidth=0.9)
        if part.radius.nunique() > 1:
            log(ax, "x")
        if part.value.min() > 0 and part.value.max() > WIDE * part.value.min():
            log(ax, "y")
        label, symbol = MEASURES.get(measure, (measure, "radius"))
        ax.set_title(label)
        ax.set_xlabel(symbol)
    axes[0].set_ylabel("rise of the NLL, nats a token")
    legend(fig, view, frame.run)
    return fig
