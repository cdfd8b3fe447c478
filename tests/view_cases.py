"""Views of a few rows of some tables, and rows of sheets by name."""

from typing import Any

from raygeo.analyses import registry
from raygeo.report.plots import Plot
from raygeo.report.sheets import Cell, Section, Sheet
from raygeo.report.view import View
from raygeo.tables import to_arrow


def view_of(reference: str = "sft", **rows: list[dict[str, Any]]) -> View:
    """A view of these rows by table, all other tables being empty."""
    columns = registry.schemas()
    return registry.view({name: to_arrow(name, found, columns[name]) for name, found in rows.items()}, reference)


def finished(*names: str) -> list[dict[str, Any]]:
    """Rows of the table ``runs``, each with the loss it is named after."""
    return [{"run": name, "key": name, "loss": name.split("-")[0], "status": "finished"} for name in names]


def sheet_of(section: Section, view: View) -> Sheet:
    """The one table of a section."""
    [(_, _, sheet)] = section.sheets(view)
    return sheet


def row_of(sheet: Sheet, *heads: str) -> dict[str, Cell]:
    """The first row that begins with ``heads``, by column."""
    row = next(row for row in sheet.rows if tuple(row[: len(heads)]) == heads)
    return dict(zip(sheet.columns, row, strict=True))


def axes_of(plot: Plot, view: View) -> list[Any]:
    """The panels of a figure."""
    fig = plot.draw(view)
    assert fig is not None
    return fig.axes


def titles(axes: list[Any]) -> list[str]:
    """What stands above each panel."""
    return [ax.get_title() for ax in axes]
