"""Stage 7: the summary of every run in MLflow, the figures, and one self-contained page."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from raygeo.config import RolloutsSettings, Study, study_yaml
from raygeo.errors import StoreError
from raygeo.evaluation.summary import run_summaries
from raygeo.progress import StageTime
from raygeo.report.figures import draw_figures
from raygeo.report.page import PageContext, render_page
from raygeo.stages.context import Context
from raygeo.stages.student import Student
from raygeo.store import Store
from raygeo.tables import BASE
from raygeo.tracking import Tracking

PAGE = "report.html"
ABOUT = "report.json"
PACKAGES = ("raygeo", "torch", "transformers", "deepspeed", "ray", "peft", "mlflow", "datasets", "pyarrow", "numpy")
CURVES = ("norm", "cosine_final", "cosine_reference")

ENGINEERED = (
    "The built-in student and its rollouts are made for demonstration. The teacher writes in a style of its own in "
    "order to raise the cosine between SFT and RFT (a shift that right and wrong rollouts share), so the cosine table "
    "is not independent evidence for any claim about real models.",
    "Problems are short templates with results from 0 to 99; accuracies say how well a loss fixes two planted errors.",
)


def study_params(study: Study) -> dict[str, Any]:
    """What MLflow shows on the study's own run."""
    return {
        "student": study.student.from_run or study.student.model,
        "search": study.plan.sweep.search,
        "losses": ", ".join(dict.fromkeys(entry.loss.type for entry in study.runs)),
    }


def reference_run(study: Study, runs: pa.Table) -> str:
    """The run that the others are compared with: the one the study names, or the first in the table ``runs``."""
    return study.reference_run or runs["run"][0].as_py()


def write_report(context: Context, student: Student, tracking: Tracking, times: list[StageTime]) -> str:
    """Log summaries and figures to MLflow and write ``report.html``; returns its path."""
    study, store = context.study, context.store
    tables = store.tables()
    reference = reference_run(study, tables["runs"])
    children = {row["run"]: row["mlflow_run_id"] for row in tables["runs"].to_pylist()}
    children[BASE] = tracking.child(f"{student.key}:base", BASE, {})
    for run, summary in run_summaries(tables, reference).items():
        if run in children:
            tracking.metrics(children[run], summary)
    log_trajectories(tracking, children, tables)
    path, page, figures = save_page(store, _page(study, student, reference, times))
    for name, figure in figures.items():
        tracking.figure(name, figure)
    tracking.text("study.yaml", study_yaml(study))
    tracking.text(PAGE, page)
    tracking.end(tracking.parent)
    context.count(1, 0)
    return path


def log_trajectories(tracking: Tracking, children: Mapping[str, str], tables: Mapping[str, pa.Table]) -> None:
    """Log the trajectories of the runs in ``children`` (name -> id) as curves, and the laws fitted to them as metrics.

    A point that MLflow has already is not written again.
    """
    points: defaultdict[str, list[tuple[str, int, float | None]]] = defaultdict(list)
    for row in tables["trajectories"].to_pylist():
        points[row["run"]] += [(f"trajectory/{name}", row["step"], row[name]) for name in CURVES]
    for row in tables["trajectory_fits"].to_pylist():
        points[row["run"]] += [(f"trajectory/{row['law']}_{name}", 0, row[name]) for name in ("a", "b", "rss", "aic")]
    for run, wanted in points.items():
        names = dict.fromkeys(name for name, *_ in wanted)
        history = [m for name in names for m in tracking.client.get_metric_history(children[run], name)]
        known = {(m.key, m.step, m.value) for m in history}
        new: defaultdict[int, dict[str, float | None]] = defaultdict(dict)
        for name, step, value in wanted:
            if (name, step, value) not in known:
                new[step][name] = value
        for step, values in new.items():
            tracking.metrics(children[run], values, step)


def save_page(store: Store, context: PageContext) -> tuple[str, str, dict[str, Any]]:
    """Write the page of the store's tables, and what it needs besides them; returns its path, text and figures."""
    store.write_bytes(ABOUT, json.dumps(asdict(context), indent=1).encode())
    tables = store.tables()
    figures = draw_figures(tables, context.reference_run)
    page = render_page(tables, context, figures)
    return store.write_bytes(PAGE, page.encode()), page, figures


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    return {package: version(package) for package in PACKAGES}


def now() -> str:
    """The time of a page."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def rewrite_report(store: Store) -> str:
    """Write ``report.html`` anew from the tables of a finished study or comparison; returns its path.

    Raises:
        StoreError: the store holds neither.
    """
    about = store.read_bytes(ABOUT)
    if about is None:
        raise StoreError(f"{store.location} holds no finished study; run it with `raygeo run`.")
    try:
        context = PageContext(**json.loads(about))
    except TypeError as error:
        raise StoreError(
            f"{store.location}/{ABOUT} was written by another version of raygeo ({error}); run the study again, which "
            "takes what is finished from the store."
        ) from error
    return save_page(store, context)[0]


def _interventions(rollouts: RolloutsSettings) -> list[str]:
    """What was done to the rollouts that a reader must know."""
    told = []
    if rollouts.negative_share is not None:
        told.append(
            f"Training rollouts were dropped until {100 * rollouts.negative_share:g} % of the usable ones were wrong: "
            "their share is not the teacher's, and there are fewer of them."
        )
    if rollouts.shuffle_rewards is not None:
        told.append(
            f"This is a control: verdicts and rewards were shuffled over the training rollouts (seed "
            f"{rollouts.shuffle_rewards}), so what losses learned from them is noise, and likeness between runs shows "
            "what the texts alone bring about."
        )
    return told


def _page(study: Study, student: Student, reference: str, times: list[StageTime]) -> PageContext:
    return PageContext(
        title=study.name,
        student=student.description,
        reference_run=reference,
        created=now(),
        settings_yaml=study_yaml(study),
        versions=versions(),
        timings=[(t.stage, t.seconds, t.made, t.reused) for t in times],
        caveats=[*study.caveats, *_interventions(study.rollouts), *(ENGINEERED if study.student.built_in else ())],
    )
