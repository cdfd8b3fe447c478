"""What is shown of critical sharpness."""

from collections.abc import Iterator

import numpy as np
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
    that goes down. A direction along which the NLL rises at once has no point.""",
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
    """2 / η with the interval that the step was bracketed in; beside it what slope and curvature at the first short
    step say it is (equal where the loss is quadratic), the distance walked until the NLL rises, the lowest NLL on the
    way less that of the start, and the geometric mean over random directions of equal norm. A dash where the NLL rises
    at once, or not at all.""",
    folded=True,
)
def steps(view: View) -> Sheet:
    """One row a run and direction."""
    frame = view.frame("critical_sharpness")
    means = _null_means(view)
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        rows += [
            [
                name,
                row.direction,
                row.outcome,
                with_interval(row.sharpness, row.sharpness_low, row.sharpness_high),
                *map(typeset.significant, (row.quadratic, row.distance, row.dip, means.get((name, row.direction)))),
            ]
            for row in frame[(frame.run == name) & (frame.kind == OWN)].itertuples()
        ]
    columns = ["run", "direction", "outcome", "critical sharpness", "of the quadratic", "distance", "lowest rise"]
    return Sheet([*columns, "random directions"], rows, frozenset({"run", "direction", "outcome"}))


def _null_means(view: View) -> dict[tuple[str, str], float]:
    """Geometric means over random directions, by run and direction."""
    frame = view.frame("critical_sharpness", kind=RANDOM).dropna(subset="sharpness")
    grouped = frame.groupby(["run", "direction"]).sharpness
    return {(str(run), str(direction)): float(np.exp(np.log(of).mean())) for (run, direction), of in grouped}


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
            f"{typeset.count(len(lost))} of {typeset.count(len(frame))} lines have no critical step: {told}. Falls of "
            "the NLL below 10⁻⁶ of it, which is what fp32 resolves, count as none."
        )
    return sentences


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Critical sharpness against the gradient and along the delta, the distances walked, and those of random ones."""
    for row in view.rows("critical_sharpness", kind=OWN):
        yield row["run"], f"critical_sharpness.{row['direction']}", row["sharpness"]
        yield row["run"], f"critical_sharpness.{row['direction']}_distance", row["distance"]
        yield row["run"], f"critical_sharpness.{row['direction']}_curvature", row["curvature"]
    for (run, direction), mean in _null_means(view).items():
        yield run, f"critical_sharpness.{direction}_random", mean
