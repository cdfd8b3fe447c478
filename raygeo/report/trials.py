"""The trials of a sweep: what was chosen, how it did, and the front that none beats."""

import json
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.report import typeset
from raygeo.report.plots import figure, legend, make_panels
from raygeo.report.sheets import Cell, Sheet, section
from raygeo.report.style import INK, MUTED
from raygeo.report.view import View

_MOST_PANELS = 6
_SHARES = ("accuracy", "pass_at_")


@dataclass(frozen=True)
class _Goal:
    """What is wanted of a metric: as much or as little of it as can be, within bounds, or one of the two."""

    mode: str | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def way(self) -> str | None:
        """Which way is better; neither within two bounds."""
        if self.mode is None and (self.at_most is None) != (self.at_least is None):
            return "min" if self.at_most is not None else "max"
        return self.mode

    @property
    def bounds(self) -> list[float]:
        """The bounds there are."""
        return [bound for bound in (self.at_least, self.at_most) if bound is not None]

    def __str__(self) -> str:
        signs = {"≥": self.at_least, "≤": self.at_most}
        bounds = [f"{sign} {bound:g}" for sign, bound in signs.items() if bound is not None]
        return ", ".join([*([] if self.mode is None else [self.mode]), *bounds])


def _goals(view: View) -> dict[str, _Goal]:
    """What is wanted of each metric, those that are more than bounded first."""
    found: dict[str, _Goal] = {}
    for row in view.rows("objectives"):
        given = {name: value for name, value in row.items() if name != "metric" and value is not None}
        found[row["metric"]] = replace(found.get(row["metric"], _Goal()), **given)
    return found


@section(
    "Trials of the sweep, best configurations first",
    """What was chosen for every run, and how it did. A configuration is ranked by its means over seeds: rank 1 if no
    other is at least as good in all objectives and better in one, rank 2 if only those of rank 1 are, and so on; those
    that do not keep a bound come behind all that do. The front are all of rank 1 that keep the bounds. A dash means not
    measured.""",
)
def trials(view: View) -> Sheet:
    """The runs of a sweep, the best configurations first: what was chosen, the metrics judged by, and the rank."""
    frame = view.frame("trials").sort_values("rank", kind="stable", na_position="last")
    goals = _goals(view)
    several = sum(goal.mode is not None for goal in goals.values()) > 1
    rows: list[list[Cell]] = []
    for row in frame.rename(columns={"values": "values_"}).itertuples():
        measured = json.loads(row.measured or "{}")
        chosen = ", ".join(f"{name} {_chosen(value)}" for name, value in json.loads(row.values_).items())
        numbers = [_number(name, measured.get(name)) for name in goals]
        rows.append([row.run, chosen, *numbers, _rank(row, several), str(row.status or typeset.MISSING)])
    heads = [f"{name} ({goal})" for name, goal in goals.items()]
    return Sheet(["run", "chosen", *heads, "rank", "status"], rows, frozenset({"run", "chosen", "status"}))


@figure(
    "front",
    "The sweep: what is gained for what",
    """One point a configuration, the mean over its seeds; better is up and to the right of every panel, an axis on
    which less is better being turned round. The line joins the front: configurations that none beats in one metric
    without losing in another. Hollow points do not keep a bound, which is dashed.""",
)
def front(view: View) -> Figure | None:
    """Draw each pair of objectives, and each bound against the first objective, one point a configuration."""
    goals = _goals(view)
    aims = [name for name, goal in goals.items() if goal.mode is not None]
    pairs = [*combinations(aims, 2), *((aims[0], name) for name in goals if name not in aims)]
    points = _configurations(view, [*goals])
    pairs = [pair for pair in pairs if len(points.dropna(subset=list(pair))) > 1][:_MOST_PANELS]
    if not pairs:
        return None
    fig, axes = make_panels(len(pairs), 3 if len(pairs) > 1 else 1, 3.4)
    for ax, (x, y) in zip(axes, pairs, strict=True):
        shown = points.dropna(subset=[x, y])
        for row in shown.to_dict("records"):
            style = view.styles[row["run"]].line(linestyle="none", markersize=6)
            hollow = {"markerfacecolor": "none"} if row["keeps"] is False else {}
            ax.plot(row[x], row[y], **style | hollow)
        for name, draw in ((x, ax.axvline), (y, ax.axhline)):
            for bound in goals[name].bounds:
                draw(bound, color=MUTED, linestyle=(0, (4, 3)), linewidth=0.9)
        if y in aims and len(aims) == 2:
            _join(ax, shown[shown["rank"].eq(1) & shown["keeps"].eq(True)], x, y)
        _name_axes(ax, {x: goals[x], y: goals[y]})
    legend(
        fig,
        view,
        points.dropna(subset=aims).run,
        [Line2D([], [], color=INK, linewidth=1, label="front")] if len(aims) == 2 else [],
    )
    return fig


def _configurations(view: View, names: list[str]) -> pd.DataFrame:
    """A row a configuration: its first run, the means of its metrics, its rank, and whether it keeps the bounds."""
    rows: list[dict[str, Any]] = []
    for _, members in view.frame("trials").groupby(["entry", "values"], sort=False):
        measured = [json.loads(text or "{}") for text in members.measured]
        first = members.iloc[0]
        row = {"run": first.run, "rank": first["rank"], "keeps": None if pd.isna(first.keeps) else bool(first.keeps)}
        rows.append(row | {name: np.mean([found.get(name, np.nan) for found in measured]) for name in names})
    return pd.DataFrame(rows, columns=["run", "rank", "keeps", *names])


def _join(ax: Axes, best: pd.DataFrame, x: str, y: str) -> None:
    ordered = best.sort_values(x)
    ax.plot(ordered[x], ordered[y], color=INK, linewidth=1, zorder=0)


def _name_axes(ax: Axes, goals: dict[str, _Goal]) -> None:
    """Name the axes, and turn those round on which less is better."""
    ways = {"min": "less is better", "max": "more is better"}
    x, y = (f"{name}\n{ways.get(goal.way or '', '')}".rstrip() for name, goal in goals.items())
    ax.set(xlabel=x, ylabel=y)
    less = [goal.way == "min" for goal in goals.values()]
    if less[0]:
        ax.invert_xaxis()
    if less[1]:
        ax.invert_yaxis()


def _number(name: str, value: float | None) -> str:
    return typeset.percent(value) if name.rpartition("/")[2].startswith(_SHARES) else typeset.significant(value)


def _rank(row: Any, several: bool) -> Cell:
    rank = typeset.count(row.rank)
    if pd.isna(row.rank):
        return rank
    if not row.keeps:
        return rank, "beyond a bound"
    return (rank, "front") if several and row.rank == 1 else rank


def _chosen(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
