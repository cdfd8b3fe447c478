"""The loss around runs."""

from raygeo.report import typeset
from raygeo.report.sections.parts import Cell, Sheet, at, nats, section, share, with_error
from raygeo.report.view import View


@section("Curvature of every run", folded=True)
def curvature(view: View) -> Sheet:
    """Top eigenvalues and trace of every run, for each operator and space that was measured."""
    frame = view.frame("curvature")
    rows: list[list[Cell]] = []
    for (operator, space), part in frame.groupby(["operator", "space"], sort=False):
        values = part[part.quantity == "eigenvalue"]
        lowest, traces = (part[part.quantity == name].set_index("run") for name in ("min_eigenvalue", "trace"))
        for name in view.order({*values.run, *traces.index}):
            top = values[values.run == name].value.sort_values(ascending=False).head(5)
            parameters = part[part.run == name].parameters.max()
            trace = at(traces, name, "value")
            rows.append(
                [
                    name,
                    f"{operator}, {space}",
                    "  ".join(typeset.significant(value) for value in top) or typeset.MISSING,
                    typeset.significant(at(lowest, name, "value")),
                    with_error(trace, at(traces, name, "error")),
                    typeset.significant(trace / parameters if trace is not None and parameters else None),
                    typeset.count(parameters),
                    typeset.count(part[part.run == name].tokens.max()),
                ]
            )
    columns = ["run", "of", "largest eigenvalues", "smallest", "trace", "trace / parameters", "parameters", "tokens"]
    return Sheet(columns, rows, frozenset({"run", "of"}))


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
    """For each path and each point of expansion: how far the loss moves along the path (largest minus smallest of the
    measured values), and the largest distance between prediction and measurement. Only where the second is well below
    the first does the curvature at that point describe the path.""",
    folded=True,
)
def predictions(view: View) -> Sheet:
    """Errors of second-order predictions along every path."""
    frame = view.frame("expansions")
    path = ["run_a", "run_b", "alpha"]
    measured = frame[frame["at"].isna()][[*path, "loss"]]
    both = frame.dropna(subset="at").merge(measured, on=path, suffixes=("", "_measured"))
    both["error"] = (both.loss - both.loss_measured).abs()
    rows: list[list[Cell]] = [
        [a, b, at_run, operator, nats(part.loss_measured.max() - part.loss_measured.min()), nats(part.error.max())]
        for (a, b, at_run, operator), part in both.groupby(["run_a", "run_b", "at", "operator"], sort=False)
    ]
    columns = ["a", "b", "expanded at", "by", "range of the loss", "largest error"]
    return Sheet(columns, rows, frozenset({"a", "b", "expanded at", "by"}))


@section(
    "Sharpness of every run",
    """Rise of the probe loss in nats a token: sam, one ascent step of that length; ball, the most along several within
    it; asam, one step relative to the weights; noise, the mean under noise of that standard deviation with its standard
    error; layer noise, the same relative to each parameter.""",
    folded=True,
)
def sharpness(view: View) -> Sheet:
    """One row a run, one column a measure and radius."""
    frame = view.frame("sharpness")
    cells = {(row.run, row.measure, row.radius): with_error(row.value, row.error) for row in frame.itertuples()}
    measures = list(dict.fromkeys((measure, radius) for _, measure, radius in cells))
    rows: list[list[Cell]] = [
        [name, *(cells.get((name, *of), with_error(None, None)) for of in measures)] for name in view.order(frame.run)
    ]
    columns = ["run", *(f"{measure} {radius:g}" for measure, radius in measures)]
    return Sheet(columns, rows, frozenset({"run"}))
