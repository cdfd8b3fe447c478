"""What is shown of critical sharpness."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.analyses.critical_sharpness.workload import DELTA, GRADIENT, OWN, RANDOM
from raygeo.report import typeset
from raygeo.report.plots import figure, legend, log, make_panels, name_rows, rows_height, run_rows
from raygeo.report.sheets import Cell, Sheet, section, with_interval
from raygeo.report.view import View

_TITLES = {
    GRADIENT: "against the gradient, at base and run",
    DELTA: "along the run's delta, at the base",
}


@figure(
    "critical-sharpness",
    "Critical sharpness",
    """2 / η, where η is the smallest step at which the probe's NLL rises above its start: against its gradient, where
    η is the largest learning rate that does not raise it; and from the base along each run's delta, in units of that
    delta, so that below 2 the whole delta lowers the NLL. Crosses are random directions of equal norm, in the sense
    that goes down. A direction along which the NLL rises at once has no point: crosses are of those random directions
    that can be walked at all, and the table says how many these are.""",
)
def critical(view: View) -> Figure | None:
    """Draw critical sharpness, one row a run and one panel a direction."""
    frame = view.frame("critical_sharpness").dropna(subset="sharpness")
    if frame.empty:
        return None
    directions = [direction for direction in _TITLES if (frame.direction == direction).any()]
    labels, places = run_rows(view, frame.run)
    fig, axes = make_panels(len(directions), 2, rows_height(len(labels)) + 0.6, sharey=True)
    for ax, direction in zip(axes, directions, strict=True):
        for row in frame[frame.direction == direction].itertuples():
            colour, y = view.styles[row.run].colour, places[row.run]
            if row.kind == RANDOM:
                ax.plot(row.sharpness, y, color=colour, marker="x", markersize=4.5, alpha=0.7)
                continue
            ax.plot([row.sharpness_low, row.sharpness_high], [y, y], color=colour, linewidth=1.2)
            ax.plot(row.sharpness, y, **view.styles[row.run].line(linestyle="none", markersize=6))
        log(ax, "x")
        ax.set_title(_TITLES[direction])
        ax.set_xlabel("critical sharpness, 2 / η")
        name_rows(ax, labels)
    null = Line2D([], [], color="0.4", marker="x", linestyle="none", label="random direction of equal norm")
    legend(fig, view, (), [null])
    return fig


@section(
    "Critical sharpness of every run",
    """2 / η with the interval that the step was bracketed in; beside it what slope and curvature near the start
    say it is (equal where the loss is quadratic), the distance walked until the NLL rises, the lowest NLL on the way
    less that of the start. Of random directions of equal norm there is the geometric mean, and how many of those drawn
    it is of, as the others have no critical step. u'Hu is the curvature along the unit direction, over the first step
    that shows it beyond rounding; beside it is its mean over all random directions. A dash where the NLL rises at once,
    or not at all, and where a curvature is not known, its mean included.""",
    folded=True,
)
def steps(view: View) -> Sheet:
    """One row a run and direction."""
    frame = view.frame("critical_sharpness")
    nulls = _nulls(view)
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        rows += [
            [
                name,
                row.direction,
                row.outcome,
                with_interval(row.sharpness, row.sharpness_low, row.sharpness_high),
                *map(typeset.significant, (row.quadratic, row.distance, row.dip)),
                _of_random(null := nulls.get((name, row.direction))),
                typeset.significant(row.curvature),
                typeset.MISSING if null is None else typeset.significant(null.curvature),
            ]
            for row in frame[(frame.run == name) & (frame.kind == OWN)].itertuples()
        ]
    columns = ["run", "direction", "outcome", "critical sharpness", "of the quadratic", "distance", "lowest rise"]
    columns += ["random directions", "u'Hu", "u'Hu of random directions"]
    return Sheet(columns, rows, frozenset({"run", "direction", "outcome"}))


class _Null(NamedTuple):
    """Of the random directions beside one: the geometric mean of the ``known`` critical sharpnesses among those
    ``drawn``, None if there is none, and the mean curvature of all, None if one is not known: a mean of the others
    would leave out the flattest.
    """

    sharpness: float | None
    known: int
    drawn: int
    curvature: float | None


def _nulls(view: View) -> dict[tuple[str, str], _Null]:
    """The null of each run and direction."""
    grouped = view.frame("critical_sharpness", kind=RANDOM).groupby(["run", "direction"])
    return {(str(run), str(direction)): _null(rows) for (run, direction), rows in grouped}


def _null(rows: pd.DataFrame) -> _Null:
    found = rows.sharpness.dropna()
    mean = float(np.exp(np.log(found).mean())) if len(found) else None
    bends = rows.curvature
    return _Null(mean, len(found), len(rows), float(bends.mean()) if bends.notna().all() else None)


def _of_random(null: _Null | None) -> Cell:
    if null is None:
        return typeset.MISSING
    return typeset.significant(null.sharpness), f"{typeset.count(null.known)} of {typeset.count(null.drawn)}"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def limits(view: View) -> list[str]:
    """What a critical step does not show."""
    frame = view.frame("critical_sharpness")
    if frame.empty:
        return []
    sentences = [
        "Critical sharpness looks along one line and at one probe, in the unit of the step: it changes when the "
        "direction is scaled, and against the gradient when layers are rescaled. Steps are doubled or halved before "
        "they are bisected, so a rise that is over between two of them is not seen."
    ]
    lost = frame[frame.sharpness.isna()]
    if not lost.empty:
        told = ", ".join(
            f"{typeset.count(len(rows))} along the {direction} ({kind}, {outcome})"
            for (direction, kind, outcome), rows in lost.groupby(["direction", "kind", "outcome"])
        )
        sentences.append(
            f"{typeset.count(len(lost))} of {typeset.counted(len(frame), 'line')} {_have(len(lost))} no critical step: "
            f"{told}. Falls of the NLL below 10⁻⁶ of it, which is what fp32 resolves, count as none."
        )
    random = frame[frame.kind == RANDOM]
    known = random.sharpness.notna().sum()
    if known < len(random):
        sentences.append(
            f"Critical sharpness of random directions is that of the {typeset.count(known)} "
            f"of {typeset.count(len(random))} that {_have(known)} a critical step, and not of a random direction: "
            "hold runs against u'Hu of random directions, which is of all."
        )
    return sentences


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Critical sharpness against the gradient and along the delta, the distances walked, the curvature u'Hu, and those
    of random directions of equal norm: `_curvature_random` is the mean of all of them, `_random` the geometric mean of
    those along which there is a critical step.
    """
    for row in view.rows("critical_sharpness", kind=OWN):
        yield row["run"], f"critical_sharpness/{row['direction']}", row["sharpness"]
        yield row["run"], f"critical_sharpness/{row['direction']}_distance", row["distance"]
        yield row["run"], f"critical_sharpness/{row['direction']}_curvature", row["curvature"]
    for (run, direction), null in _nulls(view).items():
        yield run, f"critical_sharpness/{direction}_random", null.sharpness
        yield run, f"critical_sharpness/{direction}_curvature_random", null.curvature
