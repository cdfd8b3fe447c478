"""What is shown of parts moved from one run to another."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.plots import ROWS, figure, heatmap, heatmap_figure
from raygeo.report.sheets import Cell, Sheet, nats, section
from raygeo.report.view import View


@figure(
    "layerwise",
    "Which part of the network does the difference lie in?",
    """Rise of the NLL (nats a token) when one part of a run is replaced by that of another and the rest stays; the last
    column replaces everything and ends at the other run. Parts that add up to the last column act on their own; where
    they do not, it is their interplay that counts. Negative (blue) means that the run gains by the other's part. Of
    many runs the first of each configuration are shown.""",
)
def layerwise(view: View) -> Figure | None:
    """Draw the rise for every pair and part at the largest alpha measured."""
    frame = view.frame("layerwise").dropna(subset="rise")
    if frame.empty:
        return None
    alpha = frame.alpha.max()
    frame = frame[frame.alpha == alpha]
    shown = {*view.examples({*frame.run_a, *frame.run_b}, most=ROWS), view.reference_run}
    frame = frame[frame.run_a.isin(shown) & frame.run_b.isin(shown)]
    pairs = frame.run_a + " ← " + frame.run_b
    cells = pd.crosstab(pairs, frame.part, frame.rise, aggfunc="first")
    cells = cells.loc[pairs.unique(), frame.part.unique()].rename_axis(index=None, columns=None)
    largest = float(np.nanmax(np.abs(cells.to_numpy()))) or 1.0
    fig, ax = heatmap_figure(cells, row=0.36, left=4.2, top=1.7)
    write = lambda value: typeset.fixed(value, 3)  # noqa: E731
    heatmap(ax, cells, Normalize(-largest, largest), matplotlib.colormaps["RdBu_r"], write)
    ax.set_title(f"rise of the NLL, part moved by {alpha:g}")
    ax.set_ylabel("run ← the part's run")
    ax.set_xlabel(str(frame["kind"].iloc[0]))
    return fig


@section(
    "Parts moved from one run to another: {rows}",
    """The rise of the NLL when a part of run a is replaced by run b's, at the largest step measured, with an interval
    over texts. “Parts together” is the sum of the rises of single parts: where it differs from “everything”, parts act
    on each other. “On the way” is the largest excess over the chord to the swapped part.""",
    folded=True,
)
def parts(view: View) -> Sheet:
    """For every pair: the part that raises the NLL most, the sum over parts, and the whole."""
    rows: list[list[Cell]] = []
    for (a, b), frame in view.frame("layerwise").groupby(["run_a", "run_b"], sort=False):
        far = frame[frame.alpha == frame.alpha.max()]
        single, whole = far[far.part != "all"], far[far.part == "all"].iloc[0]
        top = single.loc[single.rise.idxmax()]
        raised: tuple[Cell, Cell] = ("none", typeset.MISSING)
        if top.rise > 0:
            raised = str(top.part), (nats(top.rise), typeset.interval(top.rise_low, top.rise_high, nats))
        way = frame.loc[frame.excess.idxmax()]
        rows.append(
            [
                a,
                b,
                *raised,
                nats(single.rise.sum()),
                (nats(whole.rise), typeset.interval(whole.rise_low, whole.rise_high, nats)),
                (nats(way.excess), f"{way.part}, α = {way.alpha:g}"),
            ]
        )
    columns = ["a", "b", "part that raises it most", "its rise", "parts together", "everything", "on the way"]
    return Sheet(columns, rows, frozenset({"a", "b", "part that raises it most"}))
