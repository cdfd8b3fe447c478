"""What is shown of the lines from the base through each run."""

import math
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from raygeo.analyses.soups.report import flips
from raygeo.report import typeset
from raygeo.report.plots import figure, legend, lines, make_panels
from raygeo.report.sheets import Cell, Sheet, nats, section
from raygeo.report.style import GRID
from raygeo.report.view import View

_SHOWN = {
    "nll": ("NLL, nats a token", 1),
    "accuracy": ("accuracy, %", 100),
    "confidence": ("largest probability, mean", 1),
    "ece": ("calibration error", 1),
}


@figure(
    "wise",
    "From the base through each run and beyond",
    """Base + α · delta on held-out solutions and problems: α = 1 is the trained run. The calibration error says how far
    the model's certainty of the next token is from how often it is right; averages with an over-confident end can
    be worse than both ends. An α picked here for its accuracy is flattered by the picking.""",
)
def wise(view: View) -> Figure | None:
    """Draw NLL, accuracy and calibration against alpha, one line a run."""
    frame = view.frame("wise")
    shown = [column for column in _SHOWN if frame[column].notna().any()]
    if not shown:
        return None
    fig, axes = make_panels(len(shown), 4, 3.2)
    for ax, column in zip(axes, shown, strict=True):
        title, scale = _SHOWN[column]
        rows = frame[frame[column].notna()]
        lines(ax, view, rows.assign(shown=scale * rows[column]), "alpha", "shown", markersize=3.2)
        for end in (0, 1):
            ax.axvline(end, color=GRID, linewidth=1.4, zorder=0)
        ax.set_title(title)
        ax.set_xlabel("α")
    legend(fig, view, frame.run)
    return fig


@section(
    "From the base through each run",
    """Base + α · delta. The best α has the lowest NLL on one half of the held-out solutions; what stands beside it, and
    beside α = 1, the trained run, is of the other half. “Rescued : lost” are the shares of problems that base and run
    both get wrong and the best α right, and the reverse.""",
)
def best(view: View) -> Sheet:
    """Best alpha of every run beside the run itself."""
    frame = view.frame("wise")
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        line = frame[frame.run == name].set_index("alpha")
        chosen = line.loc[line.chosen_nll.idxmin()]
        run = line.loc[1.0] if 1.0 in line.index else None
        row: list[Cell] = [name, typeset.fixed(float(chosen.name))]
        for point in (chosen, run):
            if point is None:
                row += [typeset.MISSING] * 4
                continue
            row.append((nats(point.nll), typeset.interval(point.nll_low, point.nll_high, nats)))
            row += [typeset.percent(point.accuracy), typeset.fixed(point.confidence, 3), typeset.fixed(point.ece, 3)]
        rows.append([*row, flips(chosen)])
    measured = ["NLL", "accuracy", "largest probability", "calibration error"]
    columns = ["run", "best α", *(f"{what}, {where}" for where in ("best α", "α = 1") for what in measured)]
    return Sheet([*columns, "rescued : lost"], rows, frozenset({"run"}))


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """The multiple of each run's delta with the lowest NLL on the texts that choices are made with."""
    best: dict[str, dict[str, Any]] = {}
    for row in view.rows("wise"):
        if row["chosen_nll"] < best.get(row["run"], {"chosen_nll": math.inf})["chosen_nll"]:
            best[row["run"]] = row
    for run, row in best.items():
        yield run, "wise_best_alpha", row["alpha"]
