"""What the page tells of a figure's points under the pointer: where they are, and their run and numbers."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from raygeo.report.style import run_of

_MOST_POINTS = 100
"""About as many points of a line answer; of longer ones, evenly spaced ones do."""


def points(fig: Figure) -> dict[str, Any]:
    """The points of all lines of ``fig`` that belong to a run or have a name, once it has been drawn.

    ``size`` is the width and height of the figure in points; ``axes`` what is told along x and y of each panel, "" of
    an axis of names; ``lines`` the name, the panel and the points of each line: x and y from the upper left corner in
    points of the figure, then both values.
    """
    axes = [ax for ax in fig.axes if ax.lines]
    return {
        "size": [round(72 * inches, 1) for inches in fig.get_size_inches()],
        "axes": [[_told(ax.xaxis, ax.get_title(loc="left")), _told(ax.yaxis, ax.get_title(loc="left"))] for ax in axes],
        "lines": [
            [name, place, found]
            for place, ax in enumerate(axes)
            for line in ax.lines
            if (name := _name(line)) and (found := _points(ax, line, fig.bbox.height))
        ],
    }


def _told(axis: Axis, otherwise: str) -> str:
    """What is told along an axis: its label, or the title of its panel; nothing where its ticks are names."""
    return "" if isinstance(axis.get_major_locator(), FixedLocator) else axis.get_label_text() or otherwise


def _name(line: Line2D) -> str:
    label = str(line.get_label())
    return run_of(line.get_gid()) or ("" if label.startswith("_") else label)


def _points(ax: Axes, line: Line2D, height: float) -> list[list[float]]:
    """Points of a line that lie within its panel; those of lines that are drawn in other units than its axes', none."""
    if line.get_transform() != ax.transData:
        return []
    values = np.asarray(line.get_xydata(), float)
    values = values[np.isfinite(values).all(axis=1)][:: len(values) // _MOST_POINTS + 1]
    found, point = [], 72 / ax.figure.dpi
    for value, (x, y) in zip(values, ax.transData.transform(values), strict=True):
        if ax.bbox.padded(1).contains(x, y):
            found.append([round(point * x, 1), round(point * (height - y), 1), *(float(f"{v:.4g}") for v in value)])
    return found
