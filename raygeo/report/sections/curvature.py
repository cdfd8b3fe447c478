"""The loss around runs."""

from raygeo.report import typeset
from raygeo.report.sections.parts import Cell, Sheet, at, section, with_error
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
