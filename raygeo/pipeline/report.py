"""Stage 7: the summary of every run in MLflow, the figures, and one self-contained page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from rich.markup import escape

from raygeo.analyses.registry import parts, view
from raygeo.pipeline.config import GYM, RolloutsSettings, Study, study_yaml
from raygeo.pipeline.context import StageContext, StudyContext, reason
from raygeo.pipeline.published import curves, measured, published_tables, run_records
from raygeo.pipeline.reference_run import reference_run
from raygeo.pipeline.revisions import outdated_tables
from raygeo.pipeline.standing import Standing, known_about, now
from raygeo.pipeline.student import Student
from raygeo.pipeline.tracked_data import base_key
from raygeo.progress import Progress
from raygeo.report.console import summary
from raygeo.report.missing import Failures, gap
from raygeo.report.page import PageContext, draw_figures, render_page
from raygeo.report.parts import Parts
from raygeo.report.view import View
from raygeo.store import Store
from raygeo.tables import BASE
from raygeo.tracking import Tracking
from raygeo.versions import versions

PAGE = "report.html"
MOST_DRAWN = 100
"""Runs up to which each is drawn alone, too: of more, drawing would take longer than all else of a report."""

ENGINEERED = (
    "The built-in student and its rollouts are made for demonstration. The teacher writes in a style of its own in "
    "order to raise the cosine between SFT and RFT (a shift that right and wrong rollouts share), so the cosine table "
    "is not independent evidence for any claim about real models.",
    "Problems are short templates with results from 0 to 99; accuracies say how well a loss fixes two planted errors.",
)


SLIPPING = (
    "The built-in student of reasoning-gym's problems is made for demonstration. Its base learned solutions with "
    "planted slips (student.gym.slips), so accuracies say how well a loss undoes habits of calculating.",
    "The base has learned the harder level and all families, and slips in the held-out ones too: out of distribution "
    "is what the rollouts do not hold, not what the base has never seen.",
)


def study_params(study: Study) -> dict[str, Any]:
    """What MLflow shows on the study's own run."""
    return {
        "student": study.student.from_run or study.student.model,
        "search": study.plan.sweep.search,
        "losses": ", ".join(dict.fromkeys(loss.type for entry in study.runs for loss in entry.losses)),
    }


def study_note(study: Study) -> str:
    """What MLflow's pages say of the study, in Markdown."""
    params = study_params(study)
    return (
        f"What offline losses do to the weights of one student, {params['student']}: {params['losses']}.\n\n"
        f"The parent run has the page, `{PAGE}`, and `figures/` among its artifacts; its children are the trained runs "
        "and the base, with figures of their own where there are any. The view `raygeo`, under *Views*, has them by "
        "configuration, with means over seeds."
    )


@dataclass(frozen=True)
class Page:
    """A page that is written: its path and text, and for the tracker its figures, metrics by run, and points of curves
    by run as (metric, step, value). ``summary`` is what the console says of it; ``failures`` are the parts that were
    left out; ``seen`` are the tables it is of.
    """

    path: str
    text: str
    figures: Mapping[str, Figure]
    metrics: Mapping[str, Mapping[str, float]]
    histories: Mapping[str, Sequence[tuple[str, int, float]]]
    summary: Sequence[str]
    failures: Failures
    seen: View


def about_study(study: Study, stages: Iterable[str]) -> PageContext:
    """What a page says of a study before anything is made."""
    return PageContext(
        title=study.name,
        student=study.student.from_run or study.student.model,
        reference_run=study.reference_run or "",
        created=now(),
        settings_yaml=study_yaml(study),
        versions=versions(),
        caveats=[
            *study.caveats,
            *_interventions(study.rollouts),
            *_engineered(study),
        ],
        stages=list(stages),
    )


def write_report(context: StudyContext, student: Student, tracking: Tracking, standing: Standing) -> str:
    """Write ``report.html``, say what it concludes, and log it with metrics and figures to MLflow; returns its path.

    What cannot be shown or logged is left out.

    Raises:
        StoreError: the page cannot be written.
    """
    page = save_page(context.store, standing.about)
    for part, error in page.failures.reasons.items():
        context.leave_out(part, error)
    say_summary(page, context.progress)
    context.count(1, 0)
    children = {name: record.key for name, record in run_records(context.store).items()}
    children[BASE] = tracking.child(base_key(student), BASE, {})
    log_metrics(tracking, children, page.metrics)
    log_histories(tracking, children, page.histories)
    for name, figure in page.figures.items():
        tracking.figure(name, figure)
    log_singles(context, tracking, children, page.seen)
    tracking.text("study.yaml", study_yaml(context.study))
    tracking.text(PAGE, page.text)
    tracking.tags(tracking.parent, {"missing": "\n".join(gaps(context.missing))})
    tracking.flush()
    if tracking.trouble is not None:
        context.leave_out("MLflow", tracking.trouble)
    tracking.end(tracking.parent, "FAILED" if context.missing else "FINISHED")
    return page.path


def say_summary(page: Page, progress: Progress) -> None:
    """Print the results and the verdict."""
    for text in page.summary:
        progress.say(f"\n{escape(text)}" if text is page.summary[0] else escape(text))


def gaps(missing: Mapping[str, Exception]) -> list[str]:
    """A sentence for everything that failed and was left out, and why."""
    return [gap(part, reason(error)) for part, error in missing.items()]


def log_metrics(tracking: Tracking, children: Mapping[str, str], found: Mapping[str, Mapping[str, float]]) -> None:
    """Log what is worth comparing across runs, a number a metric, for those in ``children`` (name -> content key)."""
    for run, values in found.items():
        if run in children:
            tracking.metrics(children[run], values)


def log_singles(context: StageContext, tracking: Tracking, children: Mapping[str, str], seen: View) -> None:
    """Log the figures of each run alone with it, of up to ``MOST_DRAWN`` runs; one that fails is left out."""
    if len(children) > MOST_DRAWN:
        return
    singles = Parts(figures=parts().singles)
    for run, key in children.items():
        failures = Failures()
        alone = failures.attempt("its tables", partial(seen.of, run))
        for name, figure in (draw_figures(alone, singles, failures) if alone is not None else {}).items():
            tracking.figure(name, figure, key)
        for part, error in failures.reasons.items():
            context.leave_out(f"{part} of {run} alone", error)


def log_histories(
    tracking: Tracking, children: Mapping[str, str], found: Mapping[str, Sequence[tuple[str, int, float]]]
) -> None:
    """Log what changed while runs in ``children`` were trained, as curves.

    A point that MLflow has already is not written again.
    """
    for run, points in found.items():
        if run in children:
            tracking.histories(children[run], points)


def save_page(store: Store, context: PageContext) -> Page:
    """Write the page of the store's tables; what cannot be shown is left out, and named on it.

    Raises:
        StoreError: the page cannot be written.
    """
    failures = Failures()
    tables, made = published_tables(store, failures), parts()
    context = replace(
        context,
        reference_run=context.reference_run or reference_run(tables["runs"].to_pylist()),
        caveats=[*outdated_tables(store), *context.caveats],
    )
    seen = view(tables, context.reference_run)
    metrics, histories = measured(seen, made, failures), curves(seen, made, failures)
    figures = draw_figures(seen, made, failures)
    text = render_page(seen, context, figures, made, failures)
    path = store.write_bytes(PAGE, text.encode())
    return Page(path, text, figures, metrics, histories, list(summary(seen, made)), failures, seen)


def rewrite_report(store: Store) -> Page:
    """Write ``report.html`` anew from what a study or comparison has left, finished or not.

    The page says what did not come to an end, what failed, and which tables were made by other revisions of the code.

    Raises:
        StoreError: the store holds neither, or the page cannot be written.
    """
    return save_page(store, known_about(store))


def _engineered(study: Study) -> Sequence[str]:
    """What is planted in a student that is made here, and its rollouts."""
    if not study.student.built_in:
        return ()
    return SLIPPING if study.student.model == GYM else ENGINEERED


def _interventions(rollouts: RolloutsSettings) -> list[str]:
    """What was done to the rollouts that a reader must know."""
    sentences = []
    if rollouts.negative_share is not None:
        sentences.append(
            f"Training rollouts were dropped until {100 * rollouts.negative_share:g} % of the usable ones were wrong: "
            "their share is not the teacher's, and there are fewer of them."
        )
    if rollouts.shuffle_rewards is not None:
        sentences.append(
            f"This is a control: verdicts and rewards were shuffled over the training rollouts (seed "
            f"{rollouts.shuffle_rewards}), so what losses learned from them is noise, and likeness between runs shows "
            "what the texts alone bring about."
        )
    return sentences
