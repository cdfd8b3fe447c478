"""What is shown of curves trained between runs."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.analyses.paths.report import facing
from raygeo.report import typeset
from raygeo.report.plots import figure, make_panels
from raygeo.report.sheets import Cell, Sheet, nats, section
from raygeo.report.style import INK, MUTED
from raygeo.report.view import View

_MOST_PANELS = 12


@figure(
    "curves",
    "Curves beside straight lines",
    """For pairs whose straight line has a barrier: the NLL along the line (grey) and along a curve with the same ends
    whose one bend was trained to keep the NLL low. Both are measured on held-out texts that had no part in training
    the bend. A low curve shows that the two runs are joined by a valley that is not straight; a high one shows only
    that this search found none.""",
)
def curves(view: View) -> Figure | None:
    """Draw the NLL along line and curve, one panel a pair, the highest lines first."""
    frame = view.frame("curve_paths").dropna(subset="nll")
    if frame.empty:
        return None
    heights = frame[frame["shape"] == "line"].groupby(["run_a", "run_b"], sort=False).nll.max()
    pairs = list(heights.sort_values(ascending=False, kind="stable").index[:_MOST_PANELS])
    fig, axes = make_panels(len(pairs), 3, 2.9)
    for ax, (a, b) in zip(axes, pairs, strict=True):
        rows = frame[(frame.run_a == a) & (frame.run_b == b)].sort_values("t")
        for shape, curve in rows.groupby("shape", sort=False):
            colour = MUTED if shape == "line" else view.styles[b].colour
            ax.plot(curve.t, curve.nll, color=colour, linewidth=1.2 if shape == "line" else 1.8)
        ax.set_title(f"{a} to {b}", fontsize=8)
        ax.set_xlabel("t (0 = the first run, 1 = the second)")
    axes[0].set_ylabel("NLL, nats a token")
    handles = [Line2D([], [], color=MUTED, label="straight line"), Line2D([], [], color=INK, label="trained curve")]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig


@section(
    "Curves beside straight lines",
    """Pairs for which a curve with one bend was trained. All numbers are of held-out texts that had no part in training
    it. “Below the line” is how much lower the largest NLL of the curve is than that of the line, with an interval from
    the same resampled texts; the bend is how far its free point lies from the midpoint, in distances of the two runs.
    """,
)
def barriers(view: View) -> Sheet:
    """Largest NLL and barrier of every trained curve beside its line's."""
    frame = view.frame("curve_barriers")
    lines = frame[frame["shape"] == "line"].set_index(["run_a", "run_b"])
    rows: list[list[Cell]] = []
    for row in frame[frame["shape"] != "line"].rename(columns={"shape": "curve"}).itertuples():
        line = lines.loc[(row.run_a, row.run_b)]
        cells = [_interval_cell(of, column) for of in (line, row) for column in ("max_nll", "chord")]
        below, bend = _interval_cell(row, "below"), typeset.fixed(row.bend)
        rows.append([row.run_a, row.run_b, row.curve, *cells, below, bend, typeset.count(row.n)])
    columns = ["a", "b", "curve", "line: largest NLL", "line: barrier", "curve: largest NLL", "curve: barrier"]
    columns += ["below the line", "bend", "texts"]
    return Sheet(columns, rows, frozenset({"a", "b", "curve"}))


def _interval_cell(row: pd.Series, column: str) -> Cell:
    """A number of nats with its interval below it."""
    value, low, high = (getattr(row, name) for name in (column, f"{column}_low", f"{column}_high"))
    return (nats(value), typeset.interval(low, high, nats))


def effort(view: View) -> list[str]:
    """What a barrier that is left on a curve shows, and what it does not."""
    frame = view.frame("curve_barriers")
    if frame.empty:
        return []
    return [
        f"Curves were measured on {typeset.count(frame.n.max())} held-out texts, half of the probe; the other half "
        "trained their bends, with one bend and few steps: a barrier that is left says that this search found no way "
        "round, not that there is none."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """The barrier over the chord on the curve trained to the reference run."""
    for other, row in facing(view, "curve_barriers"):
        if row["shape"] != "line":
            yield other, f"curve_barrier_to_reference/{row['shape']}", row["chord"]
