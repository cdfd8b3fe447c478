"""What figures are made of: the decorator that makes a function one, and drawing shared between them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from raygeo.report.style import PAPER
from raygeo.report.view import View

WIDTH = 10.0
WIDE = 5
PLAIN = FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−"))


@dataclass(frozen=True)
class Plot:
    """A figure of the report: its name, its heading, how to read it, and the function that draws it, if it has data."""

    name: str
    title: str
    caption: str
    draw: Callable[[View], Figure | None]


def figure(name: str, title: str, caption: str) -> Callable[[Callable[[View], Figure | None]], Plot]:
    """Make a drawing function a ``Plot``."""
    return lambda draw: Plot(name, title, " ".join(caption.split()), draw)


def make_panels(count: int, columns: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make ``count`` axes in rows of at most ``columns``, ``height`` inches a row."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    fig = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    grid = fig.subplots(rows, columns, squeeze=False, **options).ravel()
    for ax in grid[count:]:
        ax.remove()
    return fig, list(grid[:count])


def legend(fig: Figure, view: View, names: Iterable[str], extra: Iterable[Line2D] = ()) -> None:
    """Put one legend for the whole figure below it."""
    handles = [Line2D([], [], label=name, **view.styles[name].line()) for name in view.order(set(names))]
    handles += extra
    fig.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), columnspacing=1.6)


def integer_x(ax: Axes, label: str) -> None:
    """Label the x axis and tick it at whole numbers alone."""
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def log(ax: Axes, which: str) -> None:
    """Make one axis logarithmic, with round numbers written out."""
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(PLAIN)
    axis.set_minor_formatter(NullFormatter())


def name_rows(ax: Axes, names: list[str]) -> None:
    """Name one row per run, top to bottom."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")


def heatmap(ax: Axes, cells: pd.DataFrame, norm: Normalize, colours: Colormap, write: Callable) -> None:
    """Draw ``cells`` with each value written in it; missing cells stay empty."""
    values = cells.to_numpy(float)
    rows, columns = values.shape
    ax.pcolormesh(np.ma.masked_invalid(values), norm=norm, cmap=colours, edgecolors=PAPER, linewidth=1.2)
    size = float(np.clip(80 / columns, 5, 9))
    for i, j in np.ndindex(rows, columns):
        if np.isfinite(values[i, j]):
            red, green, blue, _ = colours(float(norm(values[i, j])))
            ink = "#0a0a0a" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.55 else "#fdfdfd"
            ax.text(j + 0.5, i + 0.5, write(values[i, j]), ha="center", va="center", size=size, color=ink)
    ax.set_xticks(np.arange(columns) + 0.5, cells.columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(np.arange(rows) + 0.5, cells.index)
    ax.invert_yaxis()
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def by_layer(ax: Axes, view: View, frame: pd.DataFrame, value: str) -> None:
    """Draw ``value`` against ``layer``, one line a run."""
    for name in view.order(frame.run):
        rows = frame[frame.run == name].sort_values("layer")
        ax.plot(rows.layer, rows[value], **view.styles[name].line())
    integer_x(ax, "layer")
