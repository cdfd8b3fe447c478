"""The study's page: one self-contained HTML file, the same text for the same tables and context.

What it does under the reader's hand is in ``page.js`` and in the table library, both of which it carries: tables sort,
filter and are saved as CSV, figures tell the points under the pointer. Without scripts everything is there to be read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from raygeo.records import RunRecord
from raygeo.report import made, typeset
from raygeo.report.embed import PAGE_COLOURS, embed
from raygeo.report.missing import Failures, gaps, named, unreached
from raygeo.report.parts import Caveat, Column, Parts, Verdict
from raygeo.report.plots import Plot
from raygeo.report.results import configurations, results
from raygeo.report.sheets import Cell, Section, Sheet
from raygeo.report.style import RC
from raygeo.report.tablelib import table_library
from raygeo.report.verdict import Finding
from raygeo.report.view import View
from raygeo.tables import BASE


@dataclass(frozen=True)
class PageContext:
    """What the tables do not hold. All text is escaped on the page.

    ``student`` says in a sentence what learned; ``purpose`` what was done with it and to what end; ``reference_run``
    names the run the others are compared with, "" where it is not known yet; ``settings_yaml`` is the study as it ran,
    with defaults; ``timings`` are (stage, seconds, units done, units reused) of the stages that have ended, and
    ``stages`` all whose results the page shows; ``caveats`` are sentences put first under "What these numbers do not
    show"; ``created`` is an ISO 8601 time, given so that the page can be made again to the letter.
    """

    title: str
    student: str
    reference_run: str
    created: str
    settings_yaml: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    timings: list[tuple[str, float, int, int]] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    purpose: str = (
        "Which offline loss should one use to distil reasoning into a small model, and what does it do to the weights? "
        "One student was trained with each loss on the same graded rollouts, from the same initial weights; then the "
        "weights were compared."
    )


@dataclass(frozen=True)
class _Shown:
    name: str
    title: str
    caption: str
    body: Markup


@dataclass(frozen=True)
class _Table:
    """One table of a section; the first has the id that links lead to. ``folded`` ones are opened by the reader."""

    id: str
    title: str
    prose: str
    sheet: Sheet
    folded: bool


@dataclass(frozen=True)
class _Chapter:
    """What the page shows of one bundle of parts, the first figure and table open."""

    name: str
    question: str
    figures: list[_Shown]
    tables: list[_Table]

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize().replace("Cka", "CKA").replace("cka", "CKA")


def draw_figures(view: View, parts: Parts, failures: Failures | None = None) -> dict[str, Figure]:
    """Draw every figure whose tables hold data, in reading order, by name.

    One that fails is left out, and joins the ``failures``.
    """
    failures = failures or Failures()
    with matplotlib.rc_context(RC):
        drawn = {plot.name: failures.attempt(_figure(plot.name), partial(plot.draw, view)) for plot in parts.figures}
    return {name: fig for name, fig in drawn.items() if fig is not None}


def render_page(
    view: View, context: PageContext, figures: Mapping[str, Figure], parts: Parts, failures: Failures | None = None
) -> str:
    """Return the page of the tables of ``view`` as HTML; ``figures`` come from ``draw_figures``.

    Figures of ``parts`` that are not given are named as not drawn. A part that fails is left out, and joins the
    ``failures`` there were before: the page names them all.
    """
    failures = failures or Failures()
    attempt = failures.attempt
    filled = (attempt(f"the column {one.title!r}", partial(_filled, one, view)) for one in parts.columns)
    columns = [column for column in filled if column is not None]
    chapters = [_chapter(one, view, figures, failures) for one in parts.chapters or (parts,)]
    leading = [one for one in parts.sections if one.leading]
    parts_of_page = {
        "facts": attempt("the facts at the head", lambda: made.facts(view)) or [],
        "counts": attempt("the counts", lambda: _sound(made.counts(view))) or _NONE,
        "set_aside": attempt("the rows set aside", lambda: _sound(made.set_aside(view))) or _NONE,
        "timings": attempt("the times of stages", lambda: _sound(made.timings(context.timings))) or _NONE,
        "files": attempt("the list of tables", lambda: _sound(made.files(view))) or _NONE,
        "results": attempt("the table of results", lambda: _sound(results(view, columns))) or _NONE,
        "configurations": attempt("the table of configurations", lambda: _sound(configurations(view))) or _NONE,
        "failed": attempt("the list of runs without a result", lambda: _unfinished(view, stopped=False)) or [],
        "stopped": attempt("the list of runs that were stopped", lambda: _unfinished(view, stopped=True)) or [],
        "table_library": Markup(attempt("the table library", table_library) or ""),
        "leading": [table for one in leading for table in _tables(one, view, failures)],
        "chapters": [chapter for chapter in chapters if chapter.figures or chapter.tables],
        "verdict": [
            finding
            for one in parts.verdicts
            for finding in attempt(f"the verdict {named(one)}", partial(_findings, one, view)) or []
        ],
        "limits": [
            sentence
            for one in parts.caveats
            for sentence in attempt(f"the caveat {named(one)}", partial(_sentences, one, view)) or []
        ],
    }
    missing = attempt("the list of what is missing", lambda: gaps(view)) or []
    return _ENVIRONMENT.get_template("page.html").render(
        parts_of_page,
        context=context,
        view=view,
        numbers={name: number for number, name in enumerate(view.styles)},
        base=BASE,
        notes=[column.note for column in columns if column.note],
        not_drawn=[
            plot.title
            for plot in parts.figures
            if plot.name not in figures and _figure(plot.name) not in failures.reasons
        ],
        style=Markup(_STYLE),
        script=Markup(_SCRIPT),
        missing=[
            *unreached(context.stages, {stage for stage, *_ in context.timings}),
            *missing,
            *failures.sentences(),
        ],
    )


_NONE = Sheet([], [])
_LONG = 24
"""Tables of more rows are opened by the reader."""


def _figure(name: str) -> str:
    return f"the figure {name}"


def _unfinished(view: View, *, stopped: bool) -> list[RunRecord]:
    """Runs without a result: those that a scheduler stopped, or all others."""
    return [view.records[name] for name in view.order(view.failed) if (name in view.stopped) is stopped]


def _chapter(bundle: Parts, view: View, figures: Mapping[str, Figure], failures: Failures) -> _Chapter:
    drawn = (
        failures.attempt(_figure(plot.name), partial(_shown, plot, figures[plot.name]))
        for plot in bundle.figures
        if plot.name in figures
    )
    tables = [table for one in bundle.sections if not one.leading for table in _tables(one, view, failures)]
    opened = next((place for place, table in enumerate(tables) if not table.folded), None)
    return _Chapter(
        bundle.name,
        bundle.question,
        [figure for figure in drawn if figure is not None],
        [replace(table, folded=place != opened) for place, table in enumerate(tables)],
    )


def _tables(section: Section, view: View, failures: Failures) -> list[_Table]:
    sheets = failures.attempt(f"the section {section.title!r}", partial(_sheets, section, view)) or []
    return [
        _Table(
            f"table-{section.name}" if place == 0 else "",
            title,
            prose,
            sheet,
            section.folded or len(sheet.rows) > _LONG,
        )
        for place, (title, prose, sheet) in enumerate(sheets)
    ]


def _filled(column: Column, view: View) -> Column | None:
    """The column with its cells made, if there are any."""
    cells = column.cells(view)
    for cell in cells.values():
        _check(cell)
    return replace(column, cells=lambda view: cells) if cells else None


def _sheets(section: Section, view: View) -> list[tuple[str, str, Sheet]]:
    return [(title, prose, _sound(sheet)) for title, prose, sheet in section.sheets(view)]


def _sound(sheet: Sheet) -> Sheet:
    """The table, seen to be one.

    Raises:
        TypeError: a cell is not text.
        ValueError: a row has not one cell a column.
    """
    for row in sheet.rows:
        if len(row) != len(sheet.columns):
            raise ValueError(f"a row has {len(row)} cells, and there are {len(sheet.columns)} columns")
        for cell in row:
            _check(cell)
    return sheet


def _check(cell: Cell) -> None:
    texts = cell if isinstance(cell, tuple) and len(cell) == 2 else (cell,)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a cell is {cell!r}, neither text nor a pair of texts")


def _sentences(caveat: Caveat, view: View) -> list[str]:
    sentences = list(caveat(view))
    if not all(isinstance(sentence, str) and len(sentence) > 1 for sentence in sentences):
        raise TypeError("it did not give a list of sentences")
    return sentences


def _findings(verdict: Verdict, view: View) -> list[Finding]:
    findings = list(verdict(view))
    if not all(isinstance(finding, Finding) for finding in findings):
        raise TypeError("it did not give findings")
    return findings


def _shown(plot: Plot, fig: Figure) -> _Shown:
    return _Shown(plot.name, plot.title, plot.caption, embed(fig, plot.name, f"{plot.title}. {plot.caption}".strip()))


_HERE = Path(__file__).parent
_STYLE, _SCRIPT = (_HERE.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _order(sheet: Sheet) -> str:
    """What rows are sorted by in columns of numbers, "2:0.5,,12|3:7,8,9": the column's place, and a number a row or
    nothing.
    """
    texts = [[cell if isinstance(cell, str) else cell[0] for cell in row] for row in sheet.rows]
    columns = []
    for place, (name, column) in enumerate(zip(sheet.columns, zip(*texts, strict=True), strict=False)):
        numbers = [typeset.number(text) for text in column]
        words = any(n is None and text not in ("", typeset.MISSING) for n, text in zip(numbers, column, strict=True))
        if not words and name not in sheet.prose:
            columns.append(f"{place}:{','.join('' if n is None else f'{n:.12g}' for n in numbers)}")
    return "|".join(columns)


_ENVIRONMENT.filters["order"] = _order
_ENVIRONMENT.filters["themed"] = lambda colour: PAGE_COLOURS.get(colour, colour)
