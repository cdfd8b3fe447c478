"""The end of a study on the console: the table of results, and the verdict."""

from collections.abc import Iterator
from functools import partial

import pandas as pd

from raygeo.report.missing import Failures, named
from raygeo.report.parts import Parts, Verdict
from raygeo.report.results import configurations, results
from raygeo.report.sheets import Sheet
from raygeo.report.verdict import Finding
from raygeo.report.view import View

MOST_COLUMNS, MOST_ROWS = 12, 40
"""What a console shows of a table; the page has all of it."""


def summary(view: View, parts: Parts) -> Iterator[str]:
    """The results, of many runs those of configurations, and the sentences of the verdict, as plain text.

    What fails is left out here, and named where the page is made.
    """
    failures = Failures()
    sheet = failures.attempt("results", lambda: configurations(view) if view.many else results(view, parts.columns))
    if sheet is not None and sheet.rows:
        yield as_text(sheet)
    yield from (f"- {sentence}" for sentence in sentences(view, parts, failures))


def sentences(view: View, parts: Parts, failures: Failures) -> list[str]:
    """The sentences of the verdict; what fails is left out, and joins the ``failures``."""
    found = (failures.attempt(named(verdict), partial(_findings, verdict, view)) for verdict in parts.verdicts)
    return [finding.text for findings in found for finding in findings or []]


def _findings(verdict: Verdict, view: View) -> list[Finding]:
    return list(verdict(view))


def as_text(sheet: Sheet) -> str:
    """A table with aligned columns; of cells with a detail the text alone."""
    columns = list(sheet.columns[:MOST_COLUMNS])
    cells = [[cell if isinstance(cell, str) else cell[0] for cell in row[: len(columns)]] for row in sheet.rows]
    left = [max(map(len, [name, *column])) for name, column in zip(columns, zip(*cells, strict=True), strict=True)]
    shown = pd.DataFrame(cells[:MOST_ROWS], columns=columns).to_string(
        index=False,
        justify="right",
        formatters=[
            (lambda text, width=width: text.ljust(width)) if name in sheet.prose else str
            for name, width in zip(columns, left, strict=True)
        ],
    )
    omitted = len(sheet.rows) - MOST_ROWS
    return f"{shown}\n... and {omitted} more rows on the page" if omitted > 0 else shown
