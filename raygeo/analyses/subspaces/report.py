"""What is shown of principal angles."""

from collections import defaultdict
from collections.abc import Iterator
from statistics import median

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.report import typeset
from raygeo.report.plots import by_layer, figure, legend, make_panels
from raygeo.report.sheets import Cell, Sheet, section
from raygeo.report.style import MUTED
from raygeo.report.view import View
from raygeo.tables import BASE

_SIDES = {"left": "output space", "right": "input space"}


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


@section(
    "Principal angles to {reference}",
    """Angles between the leading singular subspaces of each run's delta and the reference run's: medians over modules,
    from the smallest to the largest, with what random subspaces give by chance.""",
)
def reference_angles(view: View) -> Sheet:
    """The smallest and largest angle of every run to the reference, left and right, beside chance."""
    angles = _median_angles(view)
    rows: list[list[Cell]] = [
        [name, *(_angle_cell(angles, name, side) for side in _SIDES)]
        for name in view.order(set(angles.index.get_level_values("run")) - {BASE})
    ]
    return Sheet(["run", *(f"{side} angles" for side in _SIDES)], rows, frozenset({"run"}))


def _median_angles(view: View) -> pd.DataFrame:
    """Median over modules of the smallest and largest angle to the reference and of their nulls, by (run, side)."""
    frame = view.against(view.reference_run, "subspaces").dropna(subset="angle_degrees")
    frame = frame[frame.k == frame.groupby(["run", "module", "side"]).k.transform("max")]
    extremes = frame.groupby(["run", "module", "side"])[["angle_degrees", "null_degrees"]].agg(["min", "max"])
    return extremes.groupby(["run", "side"]).median()


def _angle_cell(angles: pd.DataFrame, name: str, side: str) -> Cell:
    if (name, side) not in angles.index:
        return typeset.MISSING
    row = angles.loc[(name, side)]
    angle, null = (
        " to ".join(f"{typeset.fixed(row[(column, end)], 0)}°" for end in ("min", "max"))
        for column in ("angle_degrees", "null_degrees")
    )
    return angle, f"chance {null}"


def chance(view: View) -> list[str]:
    """What angles random subspaces have."""
    frame = view.frame("subspaces").dropna(subset="null_degrees")
    if frame.empty:
        return []
    widest = frame[frame.k == frame.k.max()].groupby(["side", "run_a", "run_b", "module"]).null_degrees
    lows, highs = widest.min().groupby("side").median(), widest.max().groupby("side").median()
    ranges = " and ".join(f"{low:.0f}° to {highs[side]:.0f}° on the {side}" for side, low in lows.items())
    return [
        f"Principal angles between random subspaces of the same size ({frame.k.max()} directions) run from {ranges} "
        "(medians, smallest to largest): angles near these show nothing shared, however far from 90° they are."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """The median over modules of the smallest left angle to the reference run, in degrees."""
    angles: defaultdict[str, list[float]] = defaultdict(list)
    for row in view.rows("subspaces", side="left", index=0):
        pair = {row["run_a"], row["run_b"]}
        if view.reference_run in pair:
            [other] = pair - {view.reference_run}
            angles[other].append(row["angle_degrees"])
    for run, values in angles.items():
        yield run, "first_left_angle_to_reference", median(values)
