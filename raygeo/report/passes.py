"""How often one of several answers is right."""

from collections.abc import Iterable

from raygeo.report import typeset
from raygeo.report.sheets import Cell, Sheet, section
from raygeo.report.view import View


@section(
    "pass@k, {name}",
    """The probability that one of k answers is right, estimated without bias from all that were drawn, with 95 %
    intervals clustered by problem; pass@1 is the accuracy (avg@k).""",
)
def passes(view: View) -> dict[str, Sheet]:
    """One table a benchmark that was answered several times: a row a run, a column a k."""
    sheets = {}
    for benchmark, frame in view.frame("pass_at_k").groupby("benchmark", sort=False):
        sizes = sorted(frame.k.unique())
        found = {(row.run, row.k): row for row in frame.itertuples()}
        rows = [[name, *(_cell(found.get((name, k))) for k in sizes)] for name in view.order(set(frame.run))]
        sheets[benchmark] = Sheet(["run", *(f"pass@{k}" for k in sizes)], rows, frozenset({"run"}))
    return sheets


def metrics(view: View) -> Iterable[tuple[str, str, float | None]]:
    """The same by benchmark, ``eval/gsm8k/pass_at_8``."""
    for row in view.rows("pass_at_k"):
        yield row["run"], f"{row['benchmark']}/pass_at_{row['k']}", row["pass_at_k"]


def _cell(row: object) -> Cell:
    if row is None:
        return typeset.MISSING
    value, low, high = (getattr(row, name) for name in ("pass_at_k", "low", "high"))
    return typeset.percent(value), typeset.interval(low, high, typeset.percent)
