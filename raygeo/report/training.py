"""Accuracy, and how training went."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.plots import figure, integer_x, legend, lines, make_panels, name_rows, rows_height, run_rows
from raygeo.report.results import shifted
from raygeo.report.style import MUTED
from raygeo.report.view import View
from raygeo.tables import BASE

_SMOOTHING = 25
_MARKERS_A_CURVE = 8


@figure(
    "accuracy",
    "Accuracy on held-out problems",
    """The line is the 95 % interval: Wilson's where each problem was answered once; where several times, and the mean
    of all answers is drawn, clustered by problem. The dashed line is the untrained base. Intervals of two runs on the
    same problems may overlap although the runs differ: for pairs, read the McNemar table.""",
)
def accuracy(view: View) -> Figure | None:
    """Draw accuracy with its intervals, one row a run, one panel a benchmark."""
    frame = view.frame("accuracy")
    if frame.empty:
        return None
    benchmarks = list(frame.benchmark.unique())
    labels, place = run_rows(view, frame.run)
    fig, axes = make_panels(len(benchmarks), 2, rows_height(len(labels)))
    for ax, benchmark in zip(axes, benchmarks, strict=True):
        rows = frame[frame.benchmark == benchmark].set_index("run")
        if BASE in rows.index:
            ax.axvline(100 * rows.accuracy[BASE], color=MUTED, linestyle=(0, (4, 3)), linewidth=0.9)
        for name, y in place.items():
            if name in rows.index:
                row, line = rows.loc[name], view.styles[name].line(linestyle="none", markersize=6)
                ax.plot(
                    [100 * row.low, 100 * row.high],
                    [y, y],
                    color=line["color"],
                    linewidth=2.2,
                    alpha=0.75,
                    gid=line["gid"],
                )
                ax.plot(100 * row.accuracy, y, **line)
                if not view.many:
                    ax.annotate(
                        typeset.percent(row.accuracy), (1.01, y), xycoords=("axes fraction", "data"), va="center",
                        size=8.5,
                    )  # fmt: skip
        name_rows(ax, labels)
        ax.set_xlim(0, 100)
        ax.set_xlabel("accuracy, %")
        ax.set_title(f"{shifted(benchmark, view.shifts.get(benchmark, 'none'))}, {_asked(rows)}")
    return fig


def _asked(rows: pd.DataFrame) -> str:
    """How many problems, and how many answers each where they are several."""
    samples = int(rows.samples.fillna(1).max())
    problems = int(rows.problems.fillna(rows.n).max())
    return f"{problems} problems" + (f", {samples} answers each" if samples > 1 else "")


def _curve_panels(fig: Figure, axes: list[Axes], view: View, groups: list[list[str]], frame: pd.DataFrame) -> None:
    for ax, names in zip(axes, groups, strict=True):
        _curves(ax, view, names, frame)
    legend(fig, view, [name for names in groups for name in names])


def _curves(ax: Axes, view: View, names: list[str], frame: pd.DataFrame) -> None:
    if view.many:
        here = frame[frame.run.isin(names)].sort_values(["run", "step"])
        steps = sorted(here.step.unique())
        window = max(1, len(steps) // _SMOOTHING)
        smooth = here.groupby("run", sort=False).value.rolling(window, center=True, min_periods=1).mean()
        apart = {*steps[:: max(1, window // 2)], steps[-1]}
        lines(ax, view, here.assign(value=smooth.to_numpy())[here.step.isin(apart)], "step", "value")
    for name in [] if view.many else names:
        rows = frame[frame.run == name].sort_values("step")
        line = view.styles[name].line()
        window = max(1, len(rows) // _SMOOTHING)
        if window > 1:
            ax.plot(rows.step, rows.value, color=line["color"], linewidth=0.6, alpha=0.25, gid=line["gid"])
        smooth = rows.value.rolling(window, center=True, min_periods=1).mean()
        first = view.names.index(name) * len(rows) // (_MARKERS_A_CURVE * len(view.names))
        ax.plot(rows.step, smooth, markevery=(first, max(1, len(rows) // _MARKERS_A_CURVE)), **line)
    steady = frame.value[frame.run.isin(set(names) - view.failed)]
    if len(steady) and view.failed & set(names):
        margin = 0.05 * (steady.max() - steady.min()) or 1.0
        ax.set_ylim(steady.min() - margin, steady.max() + margin)
    integer_x(ax, "optimiser step")


@figure(
    "nll",
    "Training: plain negative log-likelihood",
    """Token-mean NLL of each run's own training batches, the one curve that all losses share. Faint: every
    step; bold: a running mean. A loss that never asks for likelihood (DPO, GRPO) need not lower it, and each
    loss sees its own selection of rows, so levels differ by data as well as by loss. A run that diverged leaves
    the panel.""",
)
def nll_curves(view: View) -> Figure | None:
    """Draw the plain token-mean NLL of all runs against the step."""
    frame = view.frame("training_curves", metric="nll").dropna(subset="value")
    if frame.empty:
        return None
    fig, axes = make_panels(1, 1, 3.9)
    _curve_panels(fig, axes, view, [view.order(frame.run)], frame)
    axes[0].set_title("NLL of the training batch, nats a token")
    return fig


@figure(
    "objective",
    "Training: each loss's own objective",
    """One panel a loss, each in its own unit, so levels must not be compared between panels: what to look for
    is that a curve falls and settles. A run that diverged leaves the panel.""",
)
def objective_curves(view: View) -> Figure | None:
    """Draw the objective against the step, one panel a loss."""
    frame = view.frame("training_curves", metric="objective").dropna(subset="value")
    if frame.empty:
        return None
    groups = view.by_loss(frame.run)
    fig, axes = make_panels(len(groups), 3, 2.4)
    _curve_panels(fig, axes, view, list(groups.values()), frame)
    for ax, loss in zip(axes, groups, strict=True):
        ax.set_title(loss)
    return fig


_TOLD = {
    "objective": "the loss's own objective",
    "nll": "NLL of the batch, nats a token",
    "heldout_nll": "NLL of held-out solutions, nats a token",
    "grad_norm": "norm of the gradient, before clipping",
}


@figure(
    "training",
    "Training of this run",
    "The run's own objective, plain NLL and gradient norm against the step; faint: every step; bold: a running mean.",
)
def run_curves(view: View) -> Figure | None:
    """Draw what runs told of their training, a panel a quantity."""
    frame = view.frame("training_curves").dropna(subset="value")
    told = {metric: rows for metric, rows in frame.groupby("metric") if metric in _TOLD}
    if not told:
        return None
    fig, axes = make_panels(len(told), 2, 2.6)
    for ax, metric in zip(axes, (metric for metric in _TOLD if metric in told), strict=True):
        _curves(ax, view, view.order(told[metric].run), told[metric])
        ax.set_title(_TOLD[metric])
    return fig
