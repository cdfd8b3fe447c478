"""Where the runs lie, all at once."""

import numpy as np
from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.figures.parts import figure, legend, make_panels
from raygeo.report.style import MUTED
from raygeo.report.view import View
from raygeo.tables import BASE


@figure(
    "map",
    "A map of the runs",
    """The base and every run in the plane in which their distances are kept best (classical multidimensional
    scaling), turned so that the base is at the crossing of the axes and the reference run on the right. Left: the
    deltas as they are, in units of their norm. Right: each scaled to unit length, so that direction alone counts;
    a run on the dotted circle lies wholly in this plane, one inside it points out of it by as much. The titles say
    what share of all variance the plane holds and how far off its distances are (stress; 0 is exact). Distances
    between runs of the plane are lower bounds, and many runs of one kind pull the plane towards themselves.""",
)
def run_map(view: View) -> Figure | None:
    """Draw the map of the deltas as they are and, if there is one, of those at unit length."""
    frame, axes_frame = view.frame("maps"), view.frame("map_axes")
    kinds = [kind for kind in _SCALINGS if len(frame[frame.scaling == kind]) > 1]
    if not kinds:
        return None
    fig, axes = make_panels(len(kinds), 2, 4.9)
    for ax, kind in zip(axes, kinds, strict=True):
        rows = frame[frame.scaling == kind].set_index("run")
        for name in view.order(set(rows.index)):
            x, y = rows.x[name], rows.y[name]
            ax.plot([0, x], [0, y], color=view.styles[name].colour, linewidth=0.8, alpha=0.6)
            ax.plot([x], [y], **view.styles[name].line(linestyle="none"))
        if kind == "matched":
            turn = np.linspace(0, 2 * np.pi, 181)
            ax.plot(np.cos(turn), np.sin(turn), color=MUTED, linewidth=0.8, linestyle=":")
        plane = axes_frame[(axes_frame.scaling == kind) & (axes_frame.axis <= 2)].sort_values("axis")
        held = f"{typeset.percent(plane.share.sum())} of the variance" if len(plane) else "share not known"
        off = f", stress {typeset.fixed(plane.stress.iloc[-1])}" if len(plane) else ""
        ax.set_title(f"{_SCALINGS[kind]}: {held}{off}")
        ax.set_aspect("equal", adjustable="datalim")
    legend(fig, view, {*frame.run, BASE})
    return fig


_SCALINGS = {"raw": "deltas as they are", "matched": "at unit length"}
