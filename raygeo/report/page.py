"""The study's page: one self-contained HTML file without scripts, the same text for the same tables and context."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pyarrow as pa
from markupsafe import Markup
from matplotlib.figure import Figure

from raygeo.report.embed import PAGE_COLOURS, embed
from raygeo.report.figures import FIGURES
from raygeo.report.limits import limits
from raygeo.report.sections import SECTIONS, results, study
from raygeo.report.view import View
from raygeo.tables import BASE


@dataclass(frozen=True)
class PageContext:
    """What the tables do not hold. All text is escaped on the page.

    ``student`` says in a sentence what learned; ``purpose`` what was done with it and to what end; ``reference_run``
    names the run the others are compared with; ``settings_yaml`` is the study as it ran, with defaults; ``timings`` are
    (stage, seconds, units done, units reused); ``caveats`` are sentences put first under "What these numbers do not
    show"; ``created`` is an ISO 8601 time, given so that the page can be made again to the letter.
    """

    title: str
    student: str
    reference_run: str
    created: str
    settings_yaml: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    timings: list[tuple[str, float, int, int]] = field(default_factory=list)
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


def render_page(tables: Mapping[str, pa.Table], context: PageContext, figures: Mapping[str, Figure]) -> str:
    """Return the page as HTML. ``tables`` are any of ``raygeo.tables.SCHEMAS``; ``figures`` come from ``draw_figures``.

    Figures stand in the order given, with the caption of their name in ``FIGURES``; those of ``FIGURES`` that are not
    given are named as not drawn.
    """
    view = View(tables, context.reference_run)
    return _ENVIRONMENT.get_template("page.html").render(
        context=context,
        view=view,
        base=BASE,
        study=study,
        results_of=results.results,
        trials_of=results.trials,
        sections=SECTIONS,
        limits=limits(view),
        figures=[_shown(name, fig) for name, fig in figures.items()],
        not_drawn=[plot.title for name, plot in FIGURES.items() if name not in figures],
        failed=view.runs[view.runs.run.isin(view.failed)].to_dict("records"),
    )


def _shown(name: str, fig: Figure) -> _Shown:
    plot = FIGURES.get(name)
    title, caption = (plot.title, plot.caption) if plot else (name, "")
    return _Shown(name, title, caption, embed(fig, name, f"{title}. {caption}".strip()))


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["themed"] = lambda colour: PAGE_COLOURS.get(colour, colour)
