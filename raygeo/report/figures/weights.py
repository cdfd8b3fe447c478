"""How far and where the weights moved."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from raygeo.report import typeset
from raygeo.report.figures.parts import WIDE, WIDTH, by_layer, figure, heatmap, legend, log, make_panels
from raygeo.report.style import GRID, MUTED
from raygeo.report.view import View
from raygeo.tables import BASE


@figure(
    "cosine",
    "Do the runs move the weights in the same direction?",
    """Cosine of the angle between two runs' weight deltas, all modules flattened into one vector: 1 is the
    same direction, 0 unrelated, negative (blue) opposed. Runs are ordered so that similar ones stand
    together. Judge each cell against the noise floor below: what the same loss gives when only the seed
    differs. The cosine ignores how far a run moved.""",
)
def cosine_heatmap(view: View) -> Figure | None:
    """Draw the matrix of global cosines, clustered when it is complete."""
    frame = view.frame("similarity", scope="global").dropna(subset="cosine")
    names = view.order({*frame.run_a, *frame.run_b} - {BASE})
    if len(names) < 2:
        return None
    cells = pd.DataFrame(np.eye(len(names)), index=names, columns=names).replace(0.0, np.nan)
    for row in frame.itertuples():
        if row.run_a in names and row.run_b in names and row.run_a != row.run_b:
            cells.loc[row.run_a, row.run_b] = cells.loc[row.run_b, row.run_a] = row.cosine
    if len(names) > 2 and cells.notna().to_numpy().all():
        distance = squareform((1 - cells.to_numpy()).clip(min=0), checks=False)
        leaves = leaves_list(linkage(distance, "average", optimal_ordering=True))
        cells = cells.iloc[leaves, leaves]
    fig = Figure(figsize=(min(WIDTH, 2.6 + 0.62 * len(names)), 1.9 + 0.4 * len(names)), layout="constrained")
    ax = fig.subplots()
    heatmap(ax, cells, Normalize(-1, 1), matplotlib.colormaps["RdBu_r"], typeset.fixed)
    ax.set_title("cosine of weight deltas, all modules")
    return fig


@figure(
    "norms",
    "How far did each layer move?",
    """Frobenius norm of the delta per layer, absolute and as a share of the same base weights. Runs with very
    different norms are not matched comparisons: a longer step along one direction changes accuracy, curvature
    and paths too.""",
)
def norms(view: View) -> Figure | None:
    """Draw absolute and relative delta norms by layer."""
    frame = view.frame("deltas", scope="module").dropna(subset=["layer", "norm"])
    if frame.empty:
        return None
    squares = frame.assign(norm=frame.norm**2, base_norm=frame.base_norm**2)
    layers = squares.groupby(["run", "layer"])[["norm", "base_norm"]].sum().pow(0.5).reset_index()
    layers["relative"] = 100 * layers.norm / layers.base_norm
    fig, axes = make_panels(2, 2, 3.7)
    by_layer(axes[0], view, layers, "norm")
    by_layer(axes[1], view, layers, "relative")
    axes[0].set_title("norm of the delta")
    axes[1].set_title("norm of the delta, % of the base weights")
    moved = layers.norm[layers.norm > 0]
    for ax in axes:
        if moved.max() > 2 * WIDE * moved.min():
            log(ax, "y")
    legend(fig, view, layers.run)
    return fig


@figure(
    "trajectories",
    "How did each run move while it trained?",
    """Each kept delta against the optimiser step (log scale). First a panel a loss: the norm (markers) with two
    laws fitted to it by least squares, a + b log t (a straight line here) and c t^q (dotted). Then the direction:
    the cosine to the run's own final delta, which is 1 at the end by construction, and the cosine to the
    reference run at the same step. A few points of one curve are no test between laws, and where the schedule
    ends near zero a flat end says that the learning rate fell, not that training converged.""",
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
        for name in names:
            rows = frame[frame.run == name]
            ax.plot(rows.step, rows.norm, **view.styles[name].line(linestyle="none"))
            _laws(ax, view, name, rows.step.min(), rows.step.max())
        ax.set_title(f"{loss}: norm of the delta")
    for ax, column in zip(axes[len(groups) :], shown, strict=True):
        for name in view.order(frame.run):
            rows = frame[frame.run == name].dropna(subset=column)
            ax.plot(rows.step, rows[column], **view.styles[name].line())
        ax.axhline(0, color=GRID, linewidth=1.4, zorder=0)
        ax.set_title(cosines[column])
    for ax in axes:
        log(ax, "x")
        ax.set_xlabel("optimiser step t")
    laws = [Line2D([], [], color=MUTED, linewidth=1, **look, label=law) for law, look in _LAW_STYLES.values()]
    legend(fig, view, frame.run, laws)
    return fig


def _laws(ax: Axes, view: View, run: str, first: float, last: float) -> None:
    """Draw the laws fitted to the norm of ``run`` between its first and last step."""
    t = np.geomspace(first, last, 60)
    for row in view.frame("trajectory_fits", run=run).dropna(subset=["a", "b"]).itertuples():
        norm = row.a + row.b * np.log(t) if row.law == "log" else row.a * t**row.b
        ax.plot(t, norm, color=view.styles[run].colour, linewidth=1, **_LAW_STYLES[row.law][1])


_LAW_STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "log": ("a + b log t", {"linestyle": "-", "alpha": 0.8}),
    "power": ("c t^q", {"linestyle": ":"}),
}


@figure(
    "angles",
    "Principal angles to the reference run, layer by layer",
    """Angles between the leading singular subspaces of each run's delta and the reference run's: 0° is a
    shared direction, 90° none. Top: the smallest angle (the best-shared direction); bottom: the largest; each
    the median over the modules of a layer. The dashed line is the mean angle between random subspaces of the
    same size: only angles clearly below it mean that something is shared. Left vectors live in a module's
    output space, right vectors in its input space. Under LoRA, runs that start from one adapter agree on the
    right before any training; the dashed line there allows for it.""",
)
def angle_profile(view: View) -> Figure | None:
    """Draw the smallest and largest principal angle to the reference run by layer, left and right."""
    frame = view.against(view.reference_run, "subspaces").dropna(subset=["layer", "angle_degrees"])
    if frame.empty:
        return None
    widest = frame.groupby(["run", "module", "side"]).k.transform("max")
    modules = frame[frame.k == widest].groupby(["run", "layer", "module", "side"])[["angle_degrees", "null_degrees"]]
    sides = [side for side in _SIDES if side in set(frame.side)]
    cases = [(which, side) for which in ("min", "max") for side in sides]
    fig, axes = make_panels(len(cases), len(sides), 2.7, sharex=True)
    for ax, (which, side) in zip(axes, cases, strict=True):
        extreme = modules.agg(which).xs(side, level="side").groupby(["run", "layer"]).median().reset_index()
        by_layer(ax, view, extreme, "angle_degrees")
        null = extreme.groupby("layer").null_degrees.median()
        ax.plot(null.index, null, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        ax.set_title(f"{'smallest' if which == 'min' else 'largest'} angle, {side} ({_SIDES[side]}), degrees")
        ax.set_ylim(0, 93)
        ax.set_yticks([0, 15, 30, 45, 60, 75, 90])
        if which == "min":
            ax.set_xlabel("")
    chance = Line2D([], [], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label="random subspaces")
    legend(fig, view, frame.run, [chance])
    return fig


_SIDES = {"left": "output space", "right": "input space"}
