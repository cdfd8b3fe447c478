"""Stage 7: the summary of every run in MLflow, the figures, and one self-contained page."""

import json
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from raygeo.config import WORD_PROBLEMS, Study, parse_study, study_yaml
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

ENGINEERED = (
    "The built-in student and its rollouts are made for demonstration. The teacher writes in a style of its own in "
    "order to raise the cosine between SFT and RFT (a shift that right and wrong rollouts share), so the cosine table "
    "is not independent evidence for any claim about real models.",
    "Problems are short templates with results from 0 to 99; accuracies say how well a loss fixes two planted errors.",
)


def study_params(study: Study) -> dict[str, Any]:
    """What MLflow shows on the study's own run."""
    return {
        "student": study.student.model,
        "runs": len(study.specs()),
        "losses": ", ".join(dict.fromkeys(spec.loss.type for spec in study.specs())),
        "reference_run": reference_run(study),
    }


def reference_run(study: Study) -> str:
    """The run that the others are compared with."""
    return study.reference_run or study.specs()[0].name


def write_report(context: Context, student: Student, tracking: Tracking, times: list[StageTime]) -> str:
    """Log summaries and figures to MLflow and write ``report.html``; returns its path."""
    study, store = context.study, context.store
    tables = store.tables()
    reference = reference_run(study)
    children = {row["run"]: row["mlflow_run_id"] for row in tables["runs"].to_pylist()}
    children[BASE] = tracking.child(f"{student.key}:base", BASE, {})
    for run, summary in run_summaries(tables, reference).items():
        if run in children:
            tracking.metrics(children[run], summary)
    about = {
        "student": student.description,
        "timings": [[t.stage, t.seconds, t.made, t.reused] for t in times],
        "versions": {package: version(package) for package in PACKAGES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.write_bytes(ABOUT, json.dumps(about, indent=1).encode())
    page, figures = _render(study, tables, about)
    for name, figure in figures.items():
        tracking.figure(name, figure)
    path = store.write_bytes(PAGE, page.encode())
    tracking.text("study.yaml", study_yaml(study))
    tracking.text(PAGE, page)
    tracking.end(tracking.parent)
    context.count(1, 0)
    return path


def rewrite_report(store: Store) -> str:
    """Write ``report.html`` anew from the tables of a finished study; returns its path.

    Raises:
        StoreError: the store holds no finished study.
    """
    settings, about = store.read_bytes("study.yaml"), store.read_bytes(ABOUT)
    if settings is None or about is None:
        raise StoreError(f"{store.location} holds no finished study; run it with `raygeo run`.")
    import yaml

    study = parse_study(yaml.safe_load(settings), f"{store.location}/study.yaml")
    page, _ = _render(study, store.tables(), json.loads(about))
    return store.write_bytes(PAGE, page.encode())


def _render(study: Study, tables: dict[str, pa.Table], about: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    reference = reference_run(study)
    figures = draw_figures(tables, reference)
    built_in = study.student.model == WORD_PROBLEMS
    page = PageContext(
        title=study.name,
        student=about["student"],
        reference_run=reference,
        created=about["created"],
        settings_yaml=study_yaml(study),
        versions=about["versions"],
        timings=[(stage, seconds, made, reused) for stage, seconds, made, reused in about["timings"]],
        caveats=[*study.caveats, *(ENGINEERED if built_in else ())],
    )
    return render_page(tables, page, figures), figures
