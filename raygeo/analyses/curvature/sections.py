"""Tables of the curvature around runs."""

import pandas as pd

from raygeo.report import typeset
from raygeo.report.sheets import Cell, Sheet, at, known, nats, section, share, with_interval
from raygeo.report.view import View


@section(
    "Curvature of every run",
    """Below the eigenvalues stands the largest of their errors: within it of each lies an eigenvalue. Below a trace
    stands its 95 % interval between random vectors.""",
    folded=True,
)
def curvature(view: View) -> Sheet:
    """Top eigenvalues and trace of every run, for each operator and space that was measured."""
    frame = view.frame("curvature")
    rows: list[list[Cell]] = []
    for (operator, space), part in frame.groupby(["operator", "space"], sort=False):
        values = part[part.quantity == "eigenvalue"]
        lowest, traces = (part[part.quantity == name].set_index("run") for name in ("min_eigenvalue", "trace"))
        errors = part[part.quantity == "product_error"].set_index("run")
        for name in view.order({*values.run, *traces.index}):
            top = values[values.run == name].sort_values("value", ascending=False).head(5)
            parameters = part[part.run == name].parameters.max()
            trace, low, high = (at(traces, name, column) for column in ("value", "low", "high"))
            rows.append(
                [
                    name,
                    f"{operator}, {space}",
                    _largest(top),
                    typeset.significant(at(lowest, name, "value")),
                    with_interval(trace, low, high),
                    typeset.significant(trace / parameters if trace is not None and parameters else None),
                    typeset.count(parameters),
                    typeset.count(part[part.run == name].tokens.max()),
                    *([share(at(errors, name, "value"))] if len(errors) else []),
                ]
            )
    columns = ["run", "of", "largest eigenvalues", "smallest", "trace", "trace / parameters", "parameters", "tokens"]
    if approximate := (frame.quantity == "product_error").any():
        columns.append("error of products")
    rows = [row + [typeset.MISSING] * (len(columns) - len(row)) for row in rows] if approximate else rows
    return Sheet(columns, rows, frozenset({"run", "of"}))


def _largest(top: pd.DataFrame) -> Cell:
    """Eigenvalues, and the largest of their errors below them."""
    text = "  ".join(typeset.significant(value) for value in top.value) or typeset.MISSING
    error = top.error.max()
    return (text, f"± {typeset.significant(error, 2)}") if known(error) else text


@section(
    "Deltas in the top eigenspace",
    """The share of a delta's squared length that lies in the span of the top k eigenvectors found at the weights named
    first, beside what a random direction of that space has on average, k/n.""",
    folded=True,
)
def overlaps(view: View) -> Sheet:
    """Overlap of deltas with the top eigenvectors, for each operator and space."""
    rows: list[list[Cell]] = [
        [
            row.run,
            row.name,
            f"{row.operator}, {row.space}",
            typeset.count(row.k),
            share(row.value),
            share(row.x),
            typeset.significant(row.value / row.x, 2),
        ]
        for row in view.frame("curvature", quantity="overlap").rename(columns={"index": "k"}).itertuples(index=False)
    ]
    columns = ["at", "delta of", "of", "k", "share inside", "random", "times random"]
    return Sheet(columns, rows, frozenset({"at", "delta of", "of"}))


@section(
    "Paths predicted to second order",
    """For each path and each point of expansion: how far the NLL moves along the path (largest minus smallest of the
    measured values), and the largest distance between prediction and measurement. Only where the second is well below
    the first does the curvature at that point describe the path.""",
    folded=True,
)
def predictions(view: View) -> Sheet:
    """Errors of second-order predictions along every path."""
    frame = view.frame("expansions")
    path = ["run_a", "run_b", "alpha"]
    measured = frame[frame["at"].isna()][[*path, "nll"]]
    both = frame.dropna(subset="at").merge(measured, on=path, suffixes=("", "_measured"))
    both["error"] = (both.nll - both.nll_measured).abs()
    rows: list[list[Cell]] = [
        [a, b, at_run, operator, nats(part.nll_measured.max() - part.nll_measured.min()), nats(part.error.max())]
        for (a, b, at_run, operator), part in both.groupby(["run_a", "run_b", "at", "operator"], sort=False)
    ]
    columns = ["a", "b", "expanded at", "by", "range of the NLL", "largest error"]
    return Sheet(columns, rows, frozenset({"a", "b", "expanded at", "by"}))
