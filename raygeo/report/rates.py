"""Runs against their learning rate: curves a loss, and the best rate of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from raygeo.report import typeset
from raygeo.report.plots import figure, log, make_panels
from raygeo.report.sheets import Cell, Sheet, nats, section
from raygeo.report.style import MUTED
from raygeo.report.view import View
from raygeo.tables import BASE


def by_rate(view: View, values: Mapping[str, float]) -> pd.DataFrame:
    """A row a run that has a value: ``run``, ``loss``, ``lr``, ``value``; of losses that were given several rates."""
    runs = view.runs[["run", "loss", "lr"]].dropna()
    runs = runs[~runs.run.isin(view.legs)].assign(value=runs.run.map(values)).dropna()
    return runs[runs.groupby("loss").lr.transform("nunique") > 1].reset_index(drop=True)


def draw_rates(ax: Axes, view: View, frame: pd.DataFrame) -> None:
    """Draw what ``by_rate`` gave, one line a loss: the mean over its runs at each rate, and their range."""
    faint = min(1.0, 4 / max(1, frame.loss.nunique()))
    for loss, rows in frame.groupby("loss", sort=False):
        style = view.styles[rows.run.iloc[0]]
        at = rows.groupby("lr").value.agg(["mean", "min", "max"])
        ax.plot(at.index, at["mean"], marker="o", label=loss, **style.loss_line())
        ax.fill_between(at.index, at["min"], at["max"], color=style.colour, alpha=0.12 * faint, linewidth=0)
    log(ax, "x")
    ax.set_xlabel("learning rate")


def name_losses(fig: Figure, axes: list[Axes]) -> None:
    """Put one legend of the losses below all panels."""
    known = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(known.values(), known, loc="outside lower center", ncols=min(8, len(known)))


@figure(
    "rates",
    "Against the learning rate",
    """One line a loss, the mean over its runs at each learning rate; the band reaches from the lowest to the highest of
    them, over seeds and whatever else was varied. The dashed line is the untrained base. A line that still rises at its
    end says that rates beyond it were not tried.""",
)
def curves(view: View) -> Figure | None:
    """Draw the accuracy of each benchmark and the last NLL on held-out prompts against the learning rate."""
    measures = _measures(view)
    if not measures:
        return None
    fig, axes = make_panels(len(measures), 3, 3.1)
    for ax, measure in zip(axes, measures, strict=True):
        draw_rates(ax, view, measure.frame)
        if measure.base is not None:
            ax.axhline(measure.base, color=MUTED, linestyle=(0, (4, 3)), linewidth=0.9)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _, write=measure.write: write(value)))
        ax.set_title(measure.title)
    name_losses(fig, axes)
    return fig


@dataclass(frozen=True)
class _Measure:
    """What rates are judged by: the rows of ``by_rate``, how a value is written, and which way is better."""

    title: str
    frame: pd.DataFrame
    write: Callable[[float | None], str]
    more_is_better: bool
    base: float | None = None


def _measures(view: View) -> list[_Measure]:
    """Accuracy on each benchmark, then the last NLL on held-out prompts of runs that finished; those that are known."""
    found = []
    for benchmark, rows in view.frame("accuracy").groupby("benchmark", sort=False):
        shares = rows.set_index("run").accuracy.to_dict()
        title = f"accuracy on {benchmark}"
        found.append(_Measure(title, by_rate(view, shares), typeset.percent, True, shares.get(BASE)))
    curves = view.frame("training_curves", metric="heldout_nll").dropna(subset="value").sort_values("step")
    last = curves[~curves.run.isin(view.failed)].groupby("run").value.last().to_dict()
    found.append(_Measure("held-out NLL", by_rate(view, last), nats, False))
    return [measure for measure in found if not measure.frame.empty]


@section(
    "The best learning rate of each loss",
    """By mean accuracy over its runs at that rate (lowest and highest below it), or by NLL on held-out prompts where no
    problems were answered. Chosen among those that were tried, so the best is flattered; at an end of them a better one
    may lie beyond. Runs of another seed may choose another rate where the next best is close.""",
)
def best(view: View) -> Sheet:
    """One row a loss that was given several learning rates."""
    measures = _measures(view)
    if not measures:
        return Sheet([], [])
    judge = measures[0]
    rows: list[list[Cell]] = []
    for loss, runs in judge.frame.groupby("loss", sort=False):
        at = runs.groupby("lr").value.agg(["mean", "min", "max", "count"])
        first, second, *_ = at["mean"].sort_values(kind="stable", ascending=not judge.more_is_better).index
        low, high = at.index.min(), at.index.max()
        rows.append(
            [
                str(loss),
                typeset.rate(first),
                _mean(at.loc[first], judge.write),
                typeset.rate(second),
                _mean(at.loc[second], judge.write),
                (typeset.count(len(at)), f"{typeset.rate(low)} to {typeset.rate(high)}"),
                typeset.count(len(runs)),
                {low: "the lowest tried", high: "the highest tried"}.get(first, "between others"),
            ]
        )
    columns = ["loss", "best lr", judge.title, "next best", f"its {judge.title}", "rates tried", "runs", "the best is"]
    return Sheet(columns, rows, frozenset({"loss", "the best is"}))


def _mean(row: pd.Series, write: Callable[[float | None], str]) -> Cell:
    """The mean at a rate, of several runs with the lowest and highest below it."""
    return (
        (write(row["mean"]), typeset.interval(row["min"], row["max"], write))
        if row["count"] > 1
        else write(row["mean"])
    )
