"""What is shown of straight paths between runs."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.plots import figure, legend, lines, make_panels
from raygeo.report.sheets import Cell, Sheet, against_reference, nats, section
from raygeo.report.style import GRID
from raygeo.report.verdict import Finding
from raygeo.report.view import View
from raygeo.tables import BASE

_METRICS = {"nll": "the NLL", "accuracy": "accuracy"}


def barrier_cells(view: View) -> Mapping[str, Cell]:
    """The barrier of each run's straight path to the reference run, on the first probe."""
    nlls = view.frame("barriers", metric="nll")
    if nlls.empty:
        return {}
    rows = against_reference(view, "barriers", metric="nll", probe=nlls.probe.iloc[0])
    return {row.Index: barrier_cell(row, "chord") for row in rows.itertuples()}


def barrier_cell(row: pd.Series, kind: str) -> Cell:
    """A barrier of one kind, its interval below it."""
    value, low, high = (getattr(row, column) for column in (kind, f"{kind}_low", f"{kind}_high"))
    written = _small if low > 0 and value < 1e-3 else nats
    spread = typeset.interval(low, high, written)
    return (written(value), spread) if spread else written(value)


def _small(value: float | None) -> str:
    """Write a barrier that is told from 0 and must not read 0.000."""
    return typeset.significant(value, 2)


def path_figure(view: View, origin: str, partners: str, table: str = "paths") -> Figure | None:
    """Draw NLL and accuracy along lines from ``origin``, a panel a probe."""
    frame = view.against(origin, table)
    frame = frame[frame.run != BASE] if origin != BASE else frame
    panels = [
        (probe, column)
        for probe in frame.probe.unique()
        for column in ("nll", "accuracy")
        if frame.loc[frame.probe == probe, column].notna().any()
    ]
    if not panels:
        return None
    fig, axes = make_panels(len(panels), 3 if len(panels) != 4 else 2, 3.4)
    for ax, (probe, column) in zip(axes, panels, strict=True):
        rows = frame[(frame.probe == probe) & frame[column].notna()]
        scale = 100 if column == "accuracy" else 1
        lines(ax, view, rows.assign(shown=scale * rows[column]), "alpha", "shown", markersize=3.2)
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
    """Draw NLL and accuracy along the line from the reference run to every other run."""
    return path_figure(view, view.reference_run, "the other run")


@figure(
    "base-paths",
    "Straight lines from the base to each run",
    """The same along base + α · delta: how the probes change as a delta is switched on (α = 1 is the trained
    run). A minimum before α = 1 says that the run overshot this probe.""",
)
def base_paths(view: View) -> Figure | None:
    """Draw NLL and accuracy along the line from the base to every run."""
    return path_figure(view, BASE, "the run")


@section("Barriers, path by path: {rows}", folded=True)
def barriers(view: View) -> Sheet:
    """Both barriers of every path that was measured."""
    return barrier_sheet(view.frame("barriers"))


def barrier_sheet(frame: pd.DataFrame) -> Sheet:
    """Both barriers, one path a row."""
    rows = [
        [
            row.run_a,
            row.run_b,
            row.probe if row.metric == "nll" else f"{row.probe}, error rate",
            barrier_cell(row, "chord"),
            typeset.fixed(row.chord_alpha),
            barrier_cell(row, "mean"),
            typeset.count(row.n),
        ]
        for row in frame.itertuples()
    ]
    columns = ["a", "b", "probe", "above the chord", "at α", "above the mean of the ends", "examples"]
    return Sheet(columns, rows, frozenset({"a", "b", "probe"}))


def barriers_found(view: View) -> Iterator[Finding]:
    """Whether straight paths from the reference run to the others have barriers, by their intervals, on one probe."""
    nlls = view.frame("barriers", metric="nll")
    if nlls.empty:
        return
    probe = nlls.probe.iloc[0]
    found = against_reference(view, "barriers", metric="nll", probe=probe)
    found = found[found.index != BASE].dropna(subset="chord").sort_values("chord", ascending=False)
    if found.empty:
        return
    shown = found[found.chord_low > 0]
    top = (found if shown.empty else shown).iloc[0]
    written = nats if shown.empty else _small
    spread = typeset.interval(top.chord_low, top.chord_high, written)
    largest = f"the largest: {top.name}, {written(top.chord)} {spread} nats a token"
    if shown.empty:
        yield Finding(
            f"No straight path from {view.reference_run} to another run has a barrier that can be told from 0 on "
            f"{probe} ({typeset.counted(len(found), 'path')}, {typeset.counted(int(top.n), 'text')}; "
            f"{largest if top.chord > 0 else 'all are 0'}). "
            "Small deltas alone would give that too.",
            "figure-paths",
        )
        return
    others = len(found) - len(shown)
    rest = {0: "", 1: "; the other's is not told from 0"}.get(
        others, f"; those of the other {others} are not told from 0"
    )
    have = "has" if len(shown) == 1 else "have"
    yield Finding(
        f"{len(shown)} of {typeset.counted(len(found), 'straight path')} from {view.reference_run} to another run "
        f"{have} a barrier on {probe} ({largest}), by a 95 % interval each, not corrected for their number"
        f"{rest}.",
        "figure-paths",
    )


def sampled(view: View) -> list[str]:
    """How finely paths were sampled, and what a barrier over a grid can and cannot show."""
    frame = view.frame("paths")
    if frame.empty:
        return []
    inside = frame[(frame.alpha >= 0) & (frame.alpha <= 1)]
    sizes = inside.groupby(["metric", "probe", "run_a", "run_b"], sort=False).size().groupby("metric", sort=False)
    grids = " and ".join(
        f"{' to '.join(typeset.count(n) for n in sorted({least, most}))} values of α for {_METRICS.get(metric, metric)}"
        for metric, least, most in zip(sizes.min().index, sizes.min(), sizes.max(), strict=True)
    )
    return [
        f"Paths were sampled at {grids}. A barrier is a maximum over the grid with the ends included: it cannot be "
        "negative by construction, noise biases it upwards, and a hump between grid points that leaves no trace on "
        "them is not seen. Its 95 % interval allows for that bias: on a flat path it excludes 0 in at most one case of "
        "twenty."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Each run's own NLL on every probe, and the barrier over the chord to the reference run."""
    for row in view.rows("paths", metric="nll"):
        for end, run in ((0.0, row["run_a"]), (1.0, row["run_b"])):
            if row["alpha"] == end:
                yield run, f"nll/{row['probe']}", row["nll"]
    for other, row in facing(view, "barriers"):
        yield other, f"barrier_to_reference/{row['probe']}", row["chord"]


def facing(view: View, table: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a table of pairs in which the reference run takes part, each with its partner's name before it."""
    for row in view.rows(table):
        pair = {row["run_a"], row["run_b"]}
        if view.reference_run in pair and len(pair) == 2:
            [other] = pair - {view.reference_run}
            yield other, row
