"""The pictures of docs/findings.md: one of the page's own tables, others that raygeo draws of stores of controls."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import raygeo
from raygeo.report.plots import log, make_panels
from raygeo.report.style import GRID, MUTED, RC, run_styles

SHOWN = {"full": ("cosine", "matched")}
"""The figures that are taken of the page of a control."""
_NUMBER = re.compile(r"[+−]?\d+(?:\.\d+)?")
Row = dict[str, str]


def numbers(cell: str) -> list[float]:
    """The numbers of a cell as ``raygeo.report.typeset`` writes them: a value, and the ends of its range if any."""
    return [float(found.replace("−", "-")) for found in _NUMBER.findall(cell)]


def rows_of(page: str, name: str) -> list[Row]:
    """The table of a block of the page: a mapping from column to cell for each row.

    Raises:
        ValueError: the page has no such block.
    """
    block = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    if block is None:
        raise ValueError(f"the page has no block {name!r}.")
    head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in block[1].splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def by_rate(page: str) -> Figure:
    """Draw, of the study of record's tables, cosines to SFT and accuracies less SFT's against the learning rate."""
    compared = [row for row in rows_of(page, "comparisons") if row["rates"].startswith("both ")]
    compared = [row | {"lr": row["rates"].removeprefix("both ")} for row in compared]
    panels = (
        ("cosine to SFT, same order of the rows", rows_of(page, "cosines"), "cosine to SFT, same order"),
        ("heldout less SFT, points, equal steps", compared, "heldout, points"),
        ("heldout less SFT, points, equal KL", rows_of(page, "matched"), "less SFT, equal KL"),
    )
    fig, axes = make_panels(len(panels), len(panels), 3.6)
    for ax, (title, rows, column) in zip(axes, panels, strict=True):
        losses = _against_rate(ax, rows, column)
        ax.set_title(title)
    floor = "SFT with SFT, other order"
    _line(axes[0], [row for row in rows_of(page, "cosines") if row["loss"] == "rft"], floor, _FLOOR, 0)
    handles = [Line2D([], [], label=loss, **look) for loss, look in losses.items()]
    handles.append(Line2D([], [], label=floor, **_FLOOR))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return fig


_FLOOR: dict[str, Any] = {"color": MUTED, "linestyle": "--", "marker": "."}


def _against_rate(ax: Axes, rows: list[Row], column: str) -> dict[str, dict]:
    """Draw a column, a line a loss; how each looks."""
    losses = dict.fromkeys(row["loss"] for row in rows if row["loss"] != "sft")
    styles = run_styles({loss: loss for loss in losses}, "base")
    looks = {loss: styles[loss].line() for loss in losses}
    for place, (loss, look) in enumerate(looks.items()):
        _line(ax, [row for row in rows if row["loss"] == loss], column, look, place - len(looks) / 2)
    ax.axhline(0, color=GRID, linewidth=1.4, zorder=0)
    log(ax, "x")
    ax.set_xticks(sorted({float(row["lr"]) for row in rows}))
    ax.set_xlabel("learning rate")
    return looks


def _line(ax: Axes, rows: list[Row], column: str, look: dict, aside: float) -> None:
    """Draw a column of these rows with the range of each value, moved aside so that ranges do not hide each other."""
    points = [(float(row["lr"]), *numbers(row[column])) for row in rows if numbers(row[column])]
    x, y, low, high = np.array(points).T
    x = x * 1.03**aside
    ax.plot(x, y, **look)
    ax.vlines(x, low, high, color=look["color"], linewidth=1.2)


def draw(folder: Path, page: str, stores: dict[str, str]) -> list[Path]:
    """Draw into a folder the picture of the page's tables, and those of the controls that are given; their files."""
    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context(RC):
        figures = {"by-rate": by_rate(page)}
    for study, store in stores.items():
        opened = raygeo.open(store)
        figures |= {f"{study}-{name}": opened.figure(name) for name in SHOWN.get(study, ())}
    files = []
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        with matplotlib.rc_context(RC):
            figure.savefig(files[-1], dpi=100)
    return files
