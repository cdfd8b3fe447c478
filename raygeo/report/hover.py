"""What the page tells of a figure under the pointer: where points and cells are, and their names and numbers."""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from raygeo.report.style import run_of

_MOST_POINTS = 60
"""About as many points of a line answer; of longer ones, evenly spaced ones do."""
_MOST_CELLS = 40_000
"""Cells up to which a heatmap answers; those of more would be most of a page's text."""
_NAMED: WeakKeyDictionary[QuadMesh, tuple[pd.DataFrame, str]] = WeakKeyDictionary()
"""Values of meshes with the names of their rows and columns, for which matplotlib has no place."""


def name_cells(mesh: QuadMesh, cells: pd.DataFrame, told: str = "") -> None:
    """Let the cells of ``mesh`` answer by their names in ``cells``, whether it is drawn or not.

    ``told`` is what their values are, by default the title of the panel.
    """
    _NAMED[mesh] = cells, told


def points(fig: Figure) -> dict[str, Any]:
    """The points of all lines of ``fig`` that belong to a run or have a name, and its cells, once it has been drawn.

    ``size`` is the width and height of the figure in points; ``axes`` what is told along x and y of each panel, but
    for axes of names; ``lines`` a name, a panel and the points of its lines there: x and y from the upper left corner
    in points of the figure, then the values that are told. ``cells`` has of each heatmap its title, what its rows and
    columns are, the places of the first cell's first and the last one's last corner, names of rows and of columns, and
    the values row by row, None where there is none.
    """
    axes = [ax for ax in fig.axes if ax.lines]
    told = [[_told(axis, ax.get_title(loc="left")) for axis in (ax.xaxis, ax.yaxis)] for ax in axes]
    lines: dict[tuple[str, int], list[list[float]]] = {}
    for panel, ax in enumerate(axes):
        for line in ax.lines:
            if (name := _name(line)) and (found := _points(ax, line, fig, told[panel])):
                lines.setdefault((name, panel), []).extend(found)
    return {
        "size": [round(72 * inches, 1) for inches in fig.get_size_inches()],
        "axes": [[name for name in names if name] for names in told],
        "lines": [[*key, found] for key, found in lines.items()],
        "cells": [
            _cells(ax, mesh, fig)
            for ax in fig.axes
            for mesh in ax.collections
            if isinstance(mesh, QuadMesh) and mesh in _NAMED and _NAMED[mesh][0].size <= _MOST_CELLS
        ],
    }


def _cells(ax: Axes, mesh: QuadMesh, fig: Figure) -> list[Any]:
    cells, told = _NAMED[mesh]
    edges = np.asarray(mesh.get_coordinates())
    corners = [_place(x, y, fig) for x, y in ax.transData.transform([edges[0, 0], edges[-1, -1]])]
    down, across = ax.get_ylabel() or fig.get_supylabel(), ax.get_xlabel() or fig.get_supxlabel()
    values = [None if not np.isfinite(value) else _short(value) for value in cells.to_numpy(float).ravel()]
    names = [[str(name) for name in axis] for axis in (cells.index, cells.columns)]
    return [told or ax.get_title(loc="left"), down, across, *corners, *names, values]


def _told(axis: Axis, otherwise: str) -> str:
    """What is told along an axis: its label, or the title of its panel; nothing where its ticks are names."""
    return "" if isinstance(axis.get_major_locator(), FixedLocator) else axis.get_label_text() or otherwise


def _name(line: Line2D) -> str:
    label = str(line.get_label())
    return run_of(line.get_gid()) or ("" if label.startswith("_") else label)


def _points(ax: Axes, line: Line2D, fig: Figure, told: list[str]) -> list[list[float]]:
    """Points of a line that lie within its panel; none of bars, and of lines in other units than its axes'."""
    values = np.asarray(line.get_xydata(), float)
    if line.get_transform() != ax.transData or _is_bar(line, values):
        return []
    values = values[np.isfinite(values).all(axis=1)][:: len(values) // _MOST_POINTS + 1]
    return [
        [*_place(x, y, fig), *(_short(number) for number, name in zip(value, told, strict=True) if name)]
        for value, (x, y) in zip(values, ax.transData.transform(values), strict=True)
        if ax.bbox.padded(1).contains(x, y)
    ]


def _is_bar(line: Line2D, values: np.ndarray) -> bool:
    """Whether it is the interval of a point, which stands for both."""
    return len(values) == 2 and line.get_marker() == "None" and bool((values[0] == values[1]).any())


def _place(x: float, y: float, fig: Figure) -> tuple[float, float]:
    """From the upper left corner of the figure, in points."""
    return round(72 / fig.dpi * x, 1), round(72 / fig.dpi * (fig.bbox.height - y), 1)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
