"""The loss between runs."""

from raygeo.report import typeset
from raygeo.report.sections.parts import Sheet, barrier_cell, section
from raygeo.report.view import View


@section("Barriers, path by path: {rows} rows", folded=True)
def barriers(view: View) -> Sheet:
    """Both barriers of every path that was measured."""
    rows = [
        [
            row.run_a,
            row.run_b,
            row.probe if row.metric == "nll" else f"{row.probe}, error rate",
            barrier_cell(row, "chord"),
            typeset.fixed(row.chord_alpha),
            barrier_cell(row, "mean"),
            typeset.count(row.n),
        ]
        for row in view.frame("barriers").itertuples()
    ]
    columns = ["a", "b", "probe", "above the chord", "at α", "above the mean of the ends", "examples"]
    return Sheet(columns, rows, frozenset({"a", "b", "probe"}))
