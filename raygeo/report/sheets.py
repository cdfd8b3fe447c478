"""What sections are made of: tables of ready text, and cells shared between them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from raygeo.report import typeset
from raygeo.report.view import View
from raygeo.tables import BASE

Cell = str | tuple[str, str]

MOST_ROWS, FIRST_ROWS = 500, 100
"""Most rows of a table that stand on the page whole, and how many do of a longer one."""


@dataclass(frozen=True)
class Sheet:
    """A table to be shown; ``prose`` names the columns that are not numbers, and the first column heads its row.

    A cell is text, or text and a smaller detail below it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    prose: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Section:
    """A table of a chapter of the page: what is said above it, and the function that makes it.

    ``title`` and ``prose`` may name ``{reference}``, the run others are compared with, and the title ``{rows}``, how
    many there are ("1 row", "28 rows"), and ``{name}`` where there are several tables. ``folded`` tables are opened by
    the reader; one that is ``leading`` stands behind the results, before all chapters; ``empty`` is said where there
    are runs and no rows, and without it nothing is. Of more than ``MOST_ROWS`` the first ``FIRST_ROWS`` stand there,
    and the prose says so.
    """

    title: str
    prose: str
    folded: bool
    leading: bool
    empty: str
    make: Callable[[View], Sheet | Mapping[str, Sheet]]

    @property
    def name(self) -> str:
        """What it is called in links to it: the folder of its analysis, and the function that makes it."""
        return f"{self.make.__module__.split('.')[-2:][0]}-{self.make.__name__}"

    def sheets(self, view: View) -> list[tuple[str, str, Sheet]]:
        """Its tables for ``view``, each with its title and what is said above it; those without rows only if
        something is said then.
        """
        made = self.make(view)
        given = made.items() if isinstance(made, Mapping) else [("", made)]
        return [
            (
                self.title.format(
                    reference=view.reference_run, rows=typeset.counted(len(sheet.rows), "row"), name=name
                ),
                (self.prose if sheet.rows else self.empty).format(reference=view.reference_run) + _cut(sheet),
                replace(sheet, rows=_shown(sheet)),
            )
            for name, sheet in given
            if sheet.rows or (self.empty and view.names)
        ]


def _shown(sheet: Sheet) -> Sequence[Sequence[Cell]]:
    return sheet.rows if len(sheet.rows) <= MOST_ROWS else sheet.rows[:FIRST_ROWS]


def _cut(sheet: Sheet) -> str:
    if len(sheet.rows) <= MOST_ROWS:
        return ""
    rows = typeset.count(len(sheet.rows))
    return f" The first {FIRST_ROWS} of {rows} rows are shown; the tables in the store have all."


def section(
    title: str, prose: str = "", *, folded: bool = False, leading: bool = False, empty: str = ""
) -> Callable[[Callable[[View], Sheet | Mapping[str, Sheet]]], Section]:
    """Make a function of the view a ``Section``."""
    return lambda make: Section(title, " ".join(prose.split()), folded, leading, " ".join(empty.split()), make)


@dataclass(frozen=True)
class Fact:
    """One number at the head of the page, and what it counts."""

    value: str
    label: str


def known(value: float | None) -> bool:
    """Whether there is a number: neither None nor NaN."""
    return value is not None and not pd.isna(value)


def at(frame: pd.DataFrame, name: str, column: str) -> float | None:
    """The number at (``name``, ``column``), None when the row is missing."""
    return frame[column].get(name)


def share(value: float | None) -> str:
    """Write a fraction as per cent, two digits."""
    return typeset.MISSING if not known(value) else f"{typeset.significant(100 * value, 2)} %"  # type: ignore[operator]


def with_interval(value: float | None, low: float | None, high: float | None) -> Cell:
    """A number with its interval below it, if that is known."""
    text, spread = typeset.significant(value), typeset.interval(low, high, typeset.significant)
    return (text, spread) if known(value) and spread else text


def against_reference(view: View, table: str, **equal: str) -> pd.DataFrame:
    """One row a partner of the reference run, rows with the reference first preferred over turned ones."""
    frame = view.against(view.reference_run, table, **equal)
    return frame.sort_values("flipped", kind="stable").drop_duplicates("run").set_index("run")


def nats(value: float | None) -> str:
    """Write an NLL in nats, three decimals."""
    return typeset.fixed(value, 3)


def unordered(view: View, frame: pd.DataFrame) -> Iterable[tuple]:
    """Rows of a pair table, each pair once, with its runs in the study's order."""
    place = {name: i for i, name in enumerate((BASE, *view.names))}
    seen = set()
    for row in frame.itertuples():
        a, b = sorted((row.run_a, row.run_b), key=lambda name: place.get(name, len(place)))
        if a != b and (a, b) not in seen:
            seen.add((a, b))
            yield row, a, b
