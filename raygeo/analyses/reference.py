"""The reference page of all analyses (``docs/analyses.md``), made of what they declare."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from raygeo.analyses.analysis import Analysis, Need
from raygeo.analyses.registry import analyses
from raygeo.options import as_table, options
from raygeo.tables import SCHEMAS, about

NEEDS: dict[Need, str] = {
    "solutions": "correct held-out solutions",
    "problems": "held-out problems with gold answers, where accuracies are measured too",
    "training": "what the runs were trained with and on",
}
"""In words."""

_HEAD = """# Analyses

Everything that `geometry` in a study file can ask for, in the order in which it runs and stands on the page. Set an
analysis to `null` to leave it out. This page is made of what the analyses declare: `raygeo analyses --page
docs/analyses.md`; with a name, `raygeo analyses NAME` prints one of them.
"""


def reference_page() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *(entry(analysis) for analysis in analyses().values()), *_tables()])


def _tables() -> Iterator[str]:
    yield "## Tables of every study\n"
    yield from (_table(name, columns) for name, columns in SCHEMAS.items())


def _table(name: str, columns: pa.Schema) -> str:
    return f"Table `{name}`: {', '.join(f'`{column}`' for column in columns.names)}. {about(columns)}\n"


def entry(analysis: Analysis) -> str:
    """One analysis as Markdown."""
    return "\n".join(_lines(analysis))


def plain_entry(analysis: Analysis) -> dict[str, Any]:
    """One analysis as plain data."""
    return {
        "name": analysis.name,
        "question": analysis.question,
        "default": analysis.default,
        "needs": sorted(analysis.needs),
        "after": list(analysis.after),
        "options": [asdict(option) for option in options(analysis.settings)],
        "tables": {
            name: {"about": about(columns), "columns": columns.names} for name, columns in analysis.tables.items()
        },
        "figures": [plot.name for plot in analysis.report.figures],
        "metrics": [metric.name for metric in analysis.report.declared],
    }


def _lines(analysis: Analysis) -> Iterator[str]:
    yield f"## {analysis.name}\n"
    yield f"{analysis.question}\n"
    needs = [text for need, text in NEEDS.items() if need in analysis.needs]
    needs += [f"what `{earlier}` finds" for earlier in analysis.after]
    off = "" if analysis.default else " Off unless asked for."
    yield f"Needs {'; '.join(needs) or 'trained weights alone'}.{off}\n"
    yield from as_table(options(analysis.settings))
    for name, columns in analysis.tables.items():
        yield _table(name, columns)
    report = analysis.report
    if report.figures:
        yield f"Figures: {'; '.join(plot.title for plot in report.figures)}\n"
    if report.columns:
        yield f"In the table of results: {', '.join(f'`{column.title}`' for column in report.columns)}\n"
    names = {
        alone: [f"`{one.name}`" for one in report.declared if (one.among != "study") is alone]
        for alone in (True, False)
    }
    ways = {True: "of a run by itself", False: "once all runs are known"}
    judging = [f"{', '.join(names[alone])} {way}" for alone, way in ways.items() if names[alone]]
    if judging:
        yield f"Metrics that a sweep can be judged by: {'; '.join(judging)}\n"
    for logged in (*report.metrics, *report.histories):
        yield f"In MLflow: {' '.join((logged.__doc__ or '').split())}\n"
