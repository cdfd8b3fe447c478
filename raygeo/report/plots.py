"""What figures are made of: the decorator that makes a function one, and drawing shared between them."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from raygeo.report import typeset
from raygeo.report.hover import name_cells
from raygeo.report.style import PAPER, RC
from raygeo.report.view import LEGEND, View

WIDTH = 10.0
WIDE = 5
ROWS = 60
"""Most rows of a figure."""
_ROW = 0.16
"""Inches that the name of a row takes."""
WRITTEN = 32
"""Most rows and columns of a heatmap whose values are written out, and most that are named."""
_SPACING, _PAD = 1.6, 1.0
"""Between columns of a legend, and around its lines and words, in heights of a letter."""
_DECADES = 1000
"""Above this ratio of its ends, a logarithmic axis has no room for 2 and 5 between powers of ten."""
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
    """Put one legend for the whole figure below it: of many runs, of at most fifteen configurations or losses."""
    groups = view.groups(set(names))
    if not view.many:
        handles = [Line2D([], [], label=name, **view.styles[name].line()) for name in groups]
    else:
        handles = [
            Line2D([], [], label=label, **(look or {"linestyle": "none"}))
            for look, label in _legend_entries(view, groups)
        ]
    handles += extra
    fig.legend(handles=handles, loc="outside lower center", ncols=_legend_columns(handles), columnspacing=_SPACING)


def _legend_columns(handles: list[Line2D]) -> int:
    """How many columns of a legend stand side by side, at most five."""
    size = RC["legend.fontsize"]
    widest = max((_width(str(handle.get_label()), size) for handle in handles), default=0.0)
    column = widest + size * (RC["legend.handlelength"] + _PAD + _SPACING)
    return max(1, min(len(handles), 5, int((72 * WIDTH + _SPACING * size) / column)))


@cache
def _width(label: str, size: float) -> float:
    """How many points wide a label is; the figures of a page have the same labels, and measuring one takes a while."""
    return TextPath((0, 0), label, size).get_extents().width


def _legend_entries(view: View, groups: Mapping[str, list[str]]) -> list[tuple[dict[str, Any], str]]:
    """How the line of an entry looks, if it has one, and its words."""
    if len(groups) <= LEGEND:
        more = {first: f" and {typeset.counted(len(of) - 1, 'seed')}" for first, of in groups.items() if len(of) > 1}
        return [(view.group_lines[first], first + more.get(first, "")) for first in groups]
    losses = view.by_loss(set(groups))
    shown = list(losses.items())[: LEGEND if len(losses) <= LEGEND else LEGEND - 1]
    entries = [
        (view.styles[of[0]].loss_line(), loss if len(of) == 1 else f"{loss}, {len(of)} configurations")
        for loss, of in shown
    ]
    rest = sum(len(of) for of in losses.values()) - sum(len(of) for _, of in shown)
    return [*entries, ({}, f"and {rest} more configurations")] if rest else entries


def lines(ax: Axes, view: View, frame: pd.DataFrame, x: str, y: str, **look: Any) -> None:
    """Draw ``y`` against ``x``, one line a run; of many runs one a configuration, the mean and range of its runs.

    The more configurations there are, the fainter their ranges.
    """
    by_run = dict(iter(frame.groupby("run", sort=False)))
    groups = view.groups(frame.run)
    faint = min(1.0, LEGEND / max(1, len(groups)))
    for first, members in groups.items():
        style = view.styles[first]
        if not view.many:
            rows = by_run[first].sort_values(x)
            ax.plot(rows[x], rows[y], **style.line(**look))
            continue
        rows = pd.concat([by_run[name] for name in members]).groupby(x)[y].agg(["mean", "min", "max"])
        ax.plot(rows.index, rows["mean"], linewidth=1.1, alpha=0.85, gid=style.gid, **view.group_lines[first])
        if len(members) > 1:
            ax.fill_between(rows.index, rows["min"], rows["max"], color=style.colour, alpha=0.12 * faint, linewidth=0)


def run_rows(view: View, names: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Labels of the rows of a figure, and the row of every run: of many runs, those of one configuration share one."""
    groups = view.groups(set(names))
    return list(groups), {name: y for y, members in enumerate(groups.values()) for name in members}


def rows_height(rows: int, each: float = 0.27) -> float:
    """Inches for so many rows, as many as a screen holds at most."""
    return min(0.9 + each * rows, 14.0)


def integer_x(ax: Axes, label: str) -> None:
    """Label the x axis and tick it at whole numbers alone."""
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def log(ax: Axes, which: str) -> None:
    """Make one axis logarithmic, with round numbers written out."""
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, at: _tick(value, *axis.get_view_interval())))
    axis.set_minor_formatter(NullFormatter())


def _tick(value: float, low: float, high: float) -> str:
    """A number on a logarithmic axis; nothing where only powers of ten have room."""
    power = f"{value:.0e}".startswith("1")
    return PLAIN(value) if power or max(low, high) <= _DECADES * min(low, high) else ""


def name_rows(ax: Axes, names: list[str]) -> None:
    """Name the rows, top to bottom, as many as there is room for."""
    room = ax.get_window_extent().height / ax.figure.dpi if ax.figure is not None else math.inf
    step = math.ceil(len(names) * _ROW / room)
    ax.set_yticks(range(0, len(names), step), names[::step])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")


def band(ax: Axes, view: View, frame: pd.DataFrame, low: str, high: str) -> None:
    """Shade an interval against ``layer`` for every run; not of many, where the spread of seeds is drawn."""
    if view.many:
        return
    for name, rows in frame.sort_values("layer").groupby("run"):
        ax.fill_between(rows.layer, rows[low], rows[high], color=view.styles[name].colour, alpha=0.1, linewidth=0)


def interval(ax: Axes, view: View, name: str, y: float, value: float, low: float, high: float, **look: Any) -> None:
    """Draw one value of a run at height ``y``, with the bar of its interval; ``look`` changes the marker."""
    style = view.styles[name]
    ax.plot([low, high], [y, y], color=style.colour, linewidth=1.2, gid=style.gid)
    ax.plot(value, y, **style.line(linestyle="none", markersize=6) | look)


def heatmap_figure(
    cells: pd.DataFrame, column: float = 0.62, row: float = 0.4, left: float = 2.6, top: float = 1.9
) -> tuple[Figure, Axes]:
    """A figure for a heatmap of ``cells``, in inches: the size of a cell, and what stands left of and above all."""
    rows, columns = cells.shape
    size = min(WIDTH, left + column * columns), min(top + row * rows, 11.0)
    fig = Figure(figsize=size, layout="constrained")
    return fig, fig.subplots()


def clustered(cells: pd.DataFrame) -> pd.DataFrame:
    """A complete square of likenesses from -1 to 1, both sides in one order in which like runs stand together.

    That is the order of leaves of average linkage of 1 - likeness, neighbours as like as the tree allows.
    """
    distance = squareform((1 - cells.to_numpy()).clip(min=0), checks=False)
    leaves = leaves_list(linkage(distance, "average", optimal_ordering=True))
    return cells.iloc[leaves, leaves]


def heatmap(ax: Axes, cells: pd.DataFrame, norm: Normalize, colours: Colormap, write: Callable) -> None:
    """Draw ``cells``, missing ones empty: each value written in it and every row and column named, if there is room.

    Where there is none, a bar of colours says what the values are, and as many names stand as fit.
    """
    values = cells.to_numpy(float)
    rows, columns = values.shape
    spacious = max(rows, columns) <= WRITTEN
    edges: dict[str, Any] = {"edgecolors": PAPER, "linewidth": 1.2} if spacious else {"rasterized": True}
    mesh = ax.pcolormesh(np.ma.masked_invalid(values), norm=norm, cmap=colours, **edges)
    name_cells(mesh, cells)
    size = float(np.clip(80 / columns, 5, 9))
    for i, j in np.ndindex(rows, columns) if spacious else ():
        if np.isfinite(values[i, j]):
            red, green, blue, _ = colours(float(norm(values[i, j])))
            ink = "#0a0a0a" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.55 else "#fdfdfd"
            ax.text(j + 0.5, i + 0.5, write(values[i, j]), ha="center", va="center", size=size, color=ink)
    across, down = (1, 1) if spacious else (math.ceil(n / WRITTEN) for n in (columns, rows))
    ax.set_xticks(
        np.arange(0, columns, across) + 0.5, cells.columns[::across], rotation=40, ha="right", rotation_mode="anchor"
    )
    ax.set_yticks(np.arange(0, rows, down) + 0.5, cells.index[::down])
    if not spacious and ax.figure is not None:
        ax.figure.colorbar(mesh, ax=ax, shrink=0.6)
    ax.invert_yaxis()
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def by_layer(ax: Axes, view: View, frame: pd.DataFrame, value: str) -> None:
    """Draw ``value`` against ``layer``, one line a run."""
    lines(ax, view, frame, "layer", value)
    integer_x(ax, "layer")
