"""What is shown of trajectories."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.records import RunRecord
from raygeo.report import typeset
from raygeo.report.plots import figure, legend, lines, log, make_panels
from raygeo.report.sheets import Cell, Sheet, known, section
from raygeo.report.style import GRID, MUTED
from raygeo.report.view import View

_CURVES = ("norm", "cosine_final", "cosine_reference")
_FITTED = ("a", "b", "rss", "aic")
_MOST_LEFT = 0.05
"""Most of the norms' variance that a law which is drawn may leave."""


@figure(
    "trajectories",
    "How did each run move while it trained?",
    """Each kept delta against the optimiser step (log scale). First a panel a loss: the norm (markers) with the
    one of two laws that fits it better (lower AIC), a + b log t (a straight line here) or c t^q (dotted); none
    where both leave more than a twentieth of the variance: the table has them all. Then the direction: the
    cosine to the run's own final delta, which is 1 at the end by construction, and the cosine to the reference
    run at the same step. A few points of one curve are not a test between laws, and where the schedule ends near
    zero a flat end says that the learning rate fell, not that training converged.""",
)
def trajectories(view: View) -> Figure | None:
    """Draw norms with their fitted laws, one panel a loss, then cosines to the final delta and the reference run."""
    frame = view.frame("trajectories").sort_values("step")
    if frame.empty:
        return None
    groups = view.by_loss(frame.run)
    cosines = {"cosine_final": "cosine to the final delta", "cosine_reference": f"cosine to {view.reference_run}"}
    shown = [column for column in cosines if frame[column].notna().any()]
    fig, axes = make_panels(len(groups) + len(shown), 3, 2.6)
    for ax, (loss, names) in zip(axes, groups.items(), strict=False):
        if view.many:
            lines(ax, view, frame[frame.run.isin(names)], "step", "norm")
        for name in [] if view.many else names:
            rows = frame[frame.run == name]
            ax.plot(rows.step, rows.norm, **view.styles[name].line(linestyle="none"))
            _law_drawn(ax, view, name, rows)
        ax.set_title(f"{loss}: norm of the delta")
    for ax, column in zip(axes[len(groups) :], shown, strict=True):
        lines(ax, view, frame.dropna(subset=column), "step", column)
        ax.axhline(0, color=GRID, linewidth=1.4, zorder=0)
        ax.set_title(cosines[column])
    for ax in axes:
        log(ax, "x")
        ax.set_xlabel("optimiser step t")
    laws = [Line2D([], [], color=MUTED, linewidth=1, **look, label=law) for law, look in _LAW_STYLES.values()]
    legend(fig, view, frame.run, [] if view.many else laws)
    return fig


def _law_drawn(ax: Axes, view: View, run: str, rows: pd.DataFrame) -> None:
    """Draw the law that fits the norms of ``run`` better, between its first and last step, if it fits them at all."""
    fits = view.frame("trajectory_fits", run=run).dropna(subset=["a", "b", "rss", "aic"])
    fits = fits[fits.rss <= _MOST_LEFT * ((rows.norm - rows.norm.mean()) ** 2).sum()]
    if fits.empty:
        return
    best = fits.loc[fits.aic.idxmin()]
    t = np.geomspace(rows.step.min(), rows.step.max(), 60)
    norm = best.a + best.b * np.log(t) if best.law == "log" else best.a * t**best.b
    ax.plot(t, norm, color=view.styles[run].colour, linewidth=1, **_LAW_STYLES[best.law][1])


_LAW_STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "log": ("a + b log t", {"linestyle": "-", "alpha": 0.8}),
    "power": ("c t^q", {"linestyle": ":"}),
}


@section(
    "Trajectories",
    """How the norm of each delta grew with the optimiser step t, over the steps that were kept: two laws of two
    parameters each, fitted to the norms by least squares. A negative difference of AIC favours the logarithm.
    Norm over path length is 1 for a straight way; the path is the sum of straight lines between kept steps, a
    lower bound, so the true ratio is no larger. The sharpest turn is the least cosine between two moves in a
    row.""",
)
def laws(view: View) -> Sheet:
    """How every run's norm grew with the step: both fitted laws, which has the lower AIC, and how straight the way was.

    The last two columns need no law: norm over path length at the end, and the least cosine of two moves in a row.
    """
    frame = view.frame("trajectories").sort_values("step")
    fits = view.frame("trajectory_fits").set_index(["run", "law"])
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        way = frame[frame.run == name]
        log, power = (fits.loc[(name, law)] if (name, law) in fits.index else _NO_FIT for law in ("log", "power"))
        rows.append(
            [
                name,
                typeset.count(len(way)),
                _law(log, "{} + {} log t"),
                _law(power, "{} t^{}"),
                typeset.fixed(log.aic - power.aic, 1),
                typeset.fixed(way.straightness.iloc[-1]),
                typeset.fixed(way.cosine_previous.min()),
            ]
        )
    columns = ["run", "points", "a + b log t", "c t^q", "AIC, log − power", "‖Δ‖ / path", "sharpest turn, cosine"]
    return Sheet(columns, rows, frozenset({"run"}))


_NO_FIT = pd.Series(dict.fromkeys(("a", "b", "rss", "aic"), math.nan))


def _law(fit: pd.Series, text: str) -> Cell:
    if not known(fit.a):
        return typeset.MISSING
    return text.format(*(typeset.significant(fit[name]) for name in "ab")), f"RSS {typeset.significant(fit.rss, 2)}"


def kept_steps(view: View) -> list[str]:
    """How few points a trajectory has, and what schedules and adapters do to it."""
    frame = view.frame("trajectories")
    if frame.empty:
        return []
    points = frame.groupby("run").size()
    *fewest, most = sorted({points.min(), points.max()})
    kept = " to ".join([*map(typeset.count, fewest), typeset.counted(most, "kept step")])
    sentences = [
        f"Trajectories have {kept} a run. They are points of one curve, not independent, so a difference "
        "of AIC between two laws of growth is a description and no test; nothing is known of the way between them, "
        "which is why path lengths are lower bounds. AdamW's first steps have the learning rate's size whatever the "
        "gradient, so early norms follow the warm-up as much as the loss."
    ]
    records = [record for run, record in view.records.items() if run in points.index]
    if any(map(_slows, records)):
        sentences.append(
            "Learning rates fell towards the end: late norms that stay flat and late deltas that point where the final "
            "one does are the schedule's doing at least in part, and no sign that training had converged."
        )
    if any((record.training or {}).get("lora") for record in records):
        sentences.append(
            "LoRA starts with B at zero, so at first only B moves, within the few input directions of the initial A: "
            "early cosines between runs of one adapter initialisation are raised by what they share from the start."
        )
    return sentences


def _slows(record: RunRecord) -> bool:
    """Whether the learning rate ends below its highest, by the schedule of ``raygeo.training.schedule``."""
    training = record.training or {}
    if training.get("lr_scheduler_type", "constant") == "constant" or training.get("final_lr") == 1:
        return False
    steps = training.get("schedule_steps") or record.steps
    return not (steps and record.steps) or record.steps - 1 > round(training.get("warmup_ratio", 0) * steps)


def histories(view: View) -> Iterator[tuple[str, str, int, float | None]]:
    """Norms and cosines at the kept steps, and the laws fitted to the norms, at step 0."""
    for row in view.rows("trajectories"):
        for name in _CURVES:
            yield row["run"], f"trajectory/{name}", row["step"], row[name]
    for row in view.rows("trajectory_fits"):
        for name in _FITTED:
            yield row["run"], f"trajectory/{row['law']}_{name}", 0, row[name]
