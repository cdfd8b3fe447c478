"""Figures of the curvature around runs."""

import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from raygeo.analyses.curvature.report import first_space
from raygeo.geometry.curvature.quadrature import single
from raygeo.report import typeset
from raygeo.report.plots import (
    PLAIN,
    WIDE,
    by_layer,
    clustered,
    figure,
    heatmap,
    heatmap_figure,
    legend,
    log,
    make_panels,
    name_rows,
    rows_height,
    run_rows,
)
from raygeo.report.style import GRID, INK, MUTED
from raygeo.report.view import View
from raygeo.tables import BASE

_DENSITY_DECADES = 7
_POWERS = FuncFormatter(lambda value, _: typeset.significant(value, 1).removeprefix("1 × "))


@figure(
    "spectra",
    "Spectral density of the curvature",
    """Density of eigenvalues at each run (log scale), the base in grey behind each; mass to the left of zero is
    negative curvature. Ticks at the bottom are the eigenvalues that were found one by one, the largest and the
    smallest; each stands in the curve as a bell of its own. All others are estimated from random vectors (stochastic
    Lanczos quadrature) and smoothed to bells of the standard deviation σ written in each panel, which is what the
    quadrature resolves: nothing narrower is seen, nor what is lower than the dotted line, the height of a single
    eigenvalue. The band is a pointwise 95 % one for the density so smoothed. The curvature is that of one probe's NLL,
    common to all runs, not of any run's own training loss. Where runs differ much, the axis is linear near zero and
    logarithmic beyond.""",
)
def spectra(view: View) -> Figure | None:
    """Draw the spectral density of each run in its own panel, the base behind it."""
    frame, what = first_space(view, "density")
    if not (frame.value > 0).any():
        return None
    known, widths = (_alike(view, frame, *quantities) for quantities in (_FOUND, ("density_width",)))
    widths = widths.set_index("run")
    names = view.examples(frame.run)
    shown = [name for name in names if name != BASE] or names
    fig, axes = make_panels(len(shown), 4, 2.05, sharex=True, sharey=True)
    for ax, name in zip(axes, shown, strict=True):
        for run in dict.fromkeys((BASE, name)):
            rows = frame[frame.run == run].sort_values("x")
            front = run == name
            colour = view.styles[run].colour if front else MUTED
            value = rows.value.where(rows.value > 0)
            ax.plot(rows.x, value, color=colour, linewidth=1.5 if front else 0.9, alpha=1 if front else 0.8)
            if front:
                ax.fill_between(rows.x, rows.low, rows.high, color=colour, alpha=0.2, linewidth=0)
        ticks = known[known.run == name].value
        ax.plot(ticks, [0.03] * len(ticks), "|", color=INK, markersize=7, transform=ax.get_xaxis_transform())
        ax.axvline(0, color=GRID, linewidth=1.2, zorder=0)
        ax.set_title(name)
        if name in widths.index:
            width, n = widths.value[name], widths.parameters[name]
            ax.axhline(single(n, width), color=MUTED, linewidth=0.9, linestyle=":")
            ax.annotate(
                f"σ = {typeset.significant(width, 2)}", (0.97, 0.9), xycoords="axes fraction", ha="right", size=8
            )
    peak = frame.value.max()
    axes[0].set_yscale("log")
    floor = peak * 10**-_DENSITY_DECADES
    if len(widths):  # nothing is known below
        floor = min(single(n, width) for n, width in zip(widths.parameters, widths.value, strict=True)) / 3
    axes[0].set_ylim(floor, peak * 3)
    axes[0].yaxis.set_major_formatter(_POWERS)
    reach = frame[frame.value > floor].groupby("run").x.max()
    if reach.min() > 0 and reach.max() > WIDE * reach.min():
        axes[0].set_xscale("symlog", linthresh=10 ** math.floor(math.log10(reach.min() / 3)))
        axes[0].xaxis.set_major_formatter(PLAIN)
    fig.supxlabel(f"eigenvalue ({what})", size=9)
    fig.supylabel("density", size=9)
    return fig


@figure("spectra", spectra.title, spectra.caption)
def run_spectrum(view: View) -> Figure | None:
    """Draw it for a view of one run, if it was measured there."""
    frame, _ = first_space(view, "density")
    return spectra.draw(view) if set(view.names or [BASE]) & set(frame.run) else None


_FOUND = ("eigenvalue", "min_eigenvalue")


def _alike(view: View, frame: pd.DataFrame, *quantities: str) -> pd.DataFrame:
    """Rows of other quantities for the operator and space of ``frame``."""
    rows = view.frame("curvature")
    same = (rows.operator == frame.operator.iloc[0]) & (rows.space == frame.space.iloc[0])
    return rows[same & rows.quantity.isin(quantities)]


@figure(
    "eigenvalues",
    "Largest eigenvalues",
    """The top eigenvalues of the same operator at each run by Lanczos, the largest of few runs written out. Larger
    means sharper: the probe's NLL rises faster along some direction.""",
)
def top_eigenvalues(view: View) -> Figure | None:
    """Draw the top eigenvalues, one row a run."""
    frame, what = first_space(view, "eigenvalue")
    if frame.empty:
        return None
    labels, place = run_rows(view, frame.run)
    fig, (ax,) = make_panels(1, 1, rows_height(len(labels)))
    by_run = dict(iter(frame.groupby("run", sort=False).value))
    for name, y in place.items():
        values = by_run[name].sort_values(ascending=False).to_numpy()
        line = view.styles[name].line(linestyle="none")
        ax.plot(values[1:], np.full(len(values) - 1, y), **line | {"alpha": 0.55})
        ax.plot(values[0], y, **line | {"markersize": 7})
        if not view.many:
            ax.annotate(
                typeset.significant(values[0]), (1.01, y), xycoords=("axes fraction", "data"), va="center", size=8.5
            )
    name_rows(ax, labels)
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
    probe's NLL bends along the direction that training took. Where row and column agree it is a run's own
    direction; negative (purple) bends down. The colour scale is logarithmic away from zero. Of many runs those stand
    together whose deltas are alike in this.""",
)
def directional(view: View) -> Figure | None:
    """Draw the curvature along every delta at every run."""
    frame, what = first_space(view, "directional")
    if frame.empty:
        return None
    cells = frame.pivot_table(index="run", columns="name", values="value", aggfunc="first", sort=False)
    known = view.order(cells.columns)
    cells = cells.loc[view.order(cells.index), known + [name for name in cells.columns if name not in known]]
    largest = float(np.nanmax(np.abs(cells.to_numpy()))) or 1.0
    norm = SymLogNorm(largest / 100, vmin=-largest, vmax=largest)
    if view.many and cells.notna().to_numpy().all():
        shades = pd.DataFrame(norm(cells.to_numpy()), columns=cells.columns)
        order = clustered(shades.corr().fillna(0.0)).index
        rows = [name for name in cells.index if name not in order]
        cells = cells.loc[rows + [name for name in order if name in cells.index], order]
    fig, ax = heatmap_figure(cells, 0.72)
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
    is not seen. The bars are 95 % intervals between random vectors.""",
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
    traces = traces.assign(mean=traces.value / traces.parameters)
    traces["spread"] = (traces.high - traces.low) / (2 * traces.parameters)
    fig, (left, right) = make_panels(2, 2, 3.2)
    by_layer(left, view, tops, "value")
    left.set_title(f"largest eigenvalue ({operator})")
    by_layer(right, view, traces, "mean")
    for name in [] if view.many else view.order(traces.run):
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
    """The probe's NLL along base + α · delta (points), and what gradient and Hessian in the span of all deltas predict
    for it: from the base (dashed) and from the run (dotted). Where a prediction leaves the points, the NLL is no
    quadratic over that distance and curvature at that end says little about the other. Predictions are cut off at the
    panel's edge.""",
)
def expansions(view: View) -> Figure | None:
    """Draw measured and predicted NLLs from the base to every run."""
    frame = view.against(BASE, "expansions")
    measured = frame[frame["at"].isna()]
    if measured.empty:
        return None
    predicted = frame[frame.operator == "hessian"]
    names = [name for name in view.examples(measured.run) if name != BASE]
    fig, axes = make_panels(len(names), 4, 2.2, sharex=True)
    for ax, name in zip(axes, names, strict=True):
        rows = measured[measured.run == name].sort_values("alpha")
        ax.plot(rows.alpha, rows.nll, **view.styles[name].line(linestyle="none"))
        low, high = rows.nll.min(), rows.nll.max()
        margin = 0.35 * (high - low) or 0.1
        for at, colour, dashes in ((BASE, MUTED, "--"), (name, view.styles[name].colour, ":")):
            line = predicted[(predicted.run == name) & (predicted["at"] == at)].sort_values("alpha")
            ax.plot(line.alpha, line.nll, color=colour, linestyle=dashes, linewidth=1.4)
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
