"""The page of a study that was ended at any stage, of old and damaged stores, and of one that MLflow fails."""

import io
import json
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from view_cases import finished

from raygeo.analyses.norms.workload import Norms
from raygeo.cluster.execution import in_process
from raygeo.errors import DataError, StoreError
from raygeo.pipeline.config import parse_study, study_yaml
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.missing import missing_parts, note_missing
from raygeo.pipeline.report import about_study, rewrite_report, write_report
from raygeo.pipeline.standing import ABOUT, COMPARED, Standing, made_page
from raygeo.pipeline.student import Student
from raygeo.pipeline.study import STAGES
from raygeo.progress import Progress
from raygeo.report.parts import Parts
from raygeo.store import Store
from raygeo.tables import to_arrow
from raygeo.tracking import Tracking

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("no_figures")]

SHOWN = ("start", *STAGES[:-1])
STUDY = parse_study({"name": "ending", "rollouts": {"sample": {}}, "runs": [{"loss": {"type": "sft"}}]})
STUDENT = Student("student", "unused", None, "a student that nobody loads")
TABLES = {
    "rollouts": ("rollouts", [{"prompt_id": "p", "prompt": "1+1?", "correct": True, "split": "train"}]),
    "train": ("runs", finished("sft")),
    "evaluate": ("accuracy", [{"run": "sft", "benchmark": "heldout", "n": 4, "correct": 1, "accuracy": 0.25}]),
}


class Call:
    """One call of a study: the stages that it begins, without what they do."""

    def __init__(self, store, study=STUDY):
        self.said = io.StringIO()
        progress = Progress(Console(file=self.said, width=200))
        self.context = StudyContext(store, in_process, progress, study=study)
        self.standing = Standing(store, about_study(study, SHOWN), [], progress)

    def run(self, *stages):
        for name in stages:
            with self.standing.stage(name, self.context):
                if name in TABLES:
                    table, rows = TABLES[name]
                    self.context.store.publish_rows(table, to_arrow(table, rows))
        return self


def page(store):
    return unescape(rewrite_report(store).text)


@pytest.mark.parametrize("ended", range(len(SHOWN) + 1))
def test_a_study_killed_in_any_stage_has_a_page_that_says_so(store, ended):
    call = Call(store).run(*SHOWN[:ended])
    if ended < len(SHOWN):
        with pytest.raises(KeyboardInterrupt), call.standing.stage(SHOWN[ended], call.context):
            raise KeyboardInterrupt
    text = page(store)
    lacking = ", ".join(SHOWN[ended:])
    assert not lacking or f" {lacking} ha" in text
    assert ("What is missing here" in text) == (ended < len(SHOWN))
    assert ("reference run <strong>sft</strong>" in text) == (ended > SHOWN.index("train"))
    assert ('<th scope="col">accuracy</th>' in text) == (ended > SHOWN.index("evaluate"))
    assert (made_page(store) == study_yaml(STUDY)) == (ended == len(SHOWN))


def test_why_a_stage_failed_and_what_was_left_out_are_remembered_until_they_are_made(store):
    call = Call(store).run(*SHOWN[:4])
    with call.standing.stage("train", call.context):
        call.context.leave_out("the base's final states", ValueError("boom"))
    with pytest.raises(DataError), call.standing.stage("evaluate", call.context):
        raise DataError("the benchmark cannot be read.\nIt is empty.")
    for text in (page(store), page(Store(store.location))):
        assert (
            "the base's final states failed, so that its part of this page is missing or incomplete: ValueErr" in text
        )
        assert "the stage evaluate failed" in text
        assert "the benchmark cannot be read. It is empty." in text
        assert "The stages evaluate, geometry have not" in text
    assert [(row["stage"], row["part"]) for row in missing_parts(store)] == [
        ("train", "the base's final states"), ("evaluate", "the stage evaluate"),
    ]  # fmt: skip
    again = Call(store).run("start", "student")
    assert "The stages evaluate, geometry have not" in page(store)  # what ended before is still there
    assert len(missing_parts(store)) == 2
    again.run(*SHOWN[2:])
    assert missing_parts(store) == []
    assert "What is missing here" not in page(store)


def test_another_study_in_the_store_begins_anew(store):
    call = Call(store).run(*SHOWN)
    call.context.leave_out("geometry.norms", ValueError("boom"))
    other = STUDY.model_copy(update={"name": "other"})
    Call(store, other)
    assert missing_parts(store) == []
    assert "have not come to an end" in page(store)
    assert made_page(store) is None


def test_tables_that_cannot_be_read_are_named_and_the_others_shown(store):
    Call(store).run(*SHOWN)
    rows = [{"run": "sft", "scope": "global", "norm": 2.5}]
    store.publish_rows("deltas", to_arrow("deltas", rows, Norms.tables["deltas"]))
    Path(store.path("tables", "accuracy.parquet")).write_bytes(b"PAR1 no more")
    wrong = pa.table({name: ["x"] for name in to_arrow("trials", []).column_names})
    pq.write_table(wrong, store.path("tables", "trials.parquet"))
    Path(store.path("tables", "missing.parquet")).write_bytes(b"")
    text = page(store)
    for table in ("accuracy", "trials", "missing"):
        assert (
            f"the table {table} failed and was left out: {store.path('tables', table)}.parquet cannot be read" in text
        )
    assert "2.5" in text
    note_missing(store, "geometry", "geometry.cka", "it broke")
    assert [row["part"] for row in missing_parts(store)] == ["geometry.cka"]


def test_runs_that_cannot_be_read_leave_the_rest(store):
    Call(store).run(*SHOWN)
    Path(store.path("tables", "runs.parquet")).write_bytes(b"PAR1")
    assert "the table runs failed and was left out" in page(store)
    store.publish_rows("runs", to_arrow("runs", [{**finished("sft")[0], "run": None}]))
    assert "1 of its 1 rows name no run" in page(store)


@pytest.mark.parametrize("written", [None, b"{", b"[]", b'{"title": "half"}'])
def test_a_store_that_does_not_say_how_far_it_came_is_shown_by_its_tables(store, written):
    Call(store).run(*SHOWN[:5])
    if written is None:
        Path(store.path(ABOUT)).unlink()
    else:
        store.write_bytes(ABOUT, written)
    text = page(store)
    assert "report.json of the store is missing or damaged" in text
    assert "<h1>store</h1>" in text
    assert "sft" in text
    store.write_bytes("study.yaml", study_yaml(STUDY).encode())
    text = page(store)
    assert "<h1>ending</h1>" in text
    assert "model: builtin:word-problems" in text
    Path(store.path("study.yaml")).unlink()
    store.write_bytes("comparison.yaml", b"base: some/base\nreference_run: sft\nstudent: {}\n")
    text = page(store)
    assert COMPARED in text
    assert "Base: some/base" in text


def test_what_another_version_noted_is_taken_as_far_as_it_is_known(store):
    Call(store).run(*SHOWN)
    noted = json.loads(store.read_bytes(ABOUT))
    del noted["stages"]
    store.write_bytes(ABOUT, json.dumps(noted | {"later": 1}).encode())
    text = page(store)
    assert "<h1>ending</h1>" in text
    assert "What is missing here" not in text
    assert made_page(store) == study_yaml(STUDY)


def test_an_empty_folder_holds_nothing(store):
    with pytest.raises(StoreError, match="holds neither a study nor a comparison"):
        rewrite_report(store)
    store.write_unit("left", {"counts": []})
    with pytest.raises(StoreError, match="holds neither a study nor a comparison"):
        rewrite_report(store)


@pytest.fixture
def logged(store):
    """A study all of whose stages but the last have ended, with its tracker."""
    call, tracking = Call(store).run(*SHOWN), Tracking(store, "ending", {})
    row = finished("sft")[0]
    child = tracking.child(row["key"], "sft", {"loss": "sft"})
    store.publish_rows("runs", to_arrow("runs", [row]))
    return call, tracking, child


def logged_run(tracking, key):
    """What MLflow has of a run."""
    tracking.flush()
    return tracking.remote.client.get_run(tracking.run_id(key))


def report(call, tracking):
    with call.standing.stage("report", call.context):
        return Path(write_report(call.context, STUDENT, tracking, call.standing)).read_text()


def test_mlflow_that_cannot_keep_files_takes_nothing_with_it_and_is_given_them_by_the_next_call(store, logged):
    call, tracking, child = logged
    folder = Path(store.path("mlartifacts"))
    folder.write_text("in the way")
    assert "ending" in report(call, tracking)
    assert list(call.context.missing) == ["MLflow"]
    assert "MLflow failed" in call.said.getvalue()
    assert missing_parts(store)[0]["stage"] == "report"
    assert "What is missing here" not in page(store)
    assert logged_run(tracking, child).data.metrics["eval/heldout/accuracy"] == 0.25
    with pytest.raises(Exception, match="1 parts failed"):
        call.context.check_whole()
    folder.unlink()
    again, tracking = Call(store).run(*SHOWN), Tracking(store, "ending", {})
    report(again, tracking)
    assert again.context.missing == {}
    assert missing_parts(store) == []
    parent = logged_run(tracking, tracking.parent).info.run_id
    assert "report.html" in {item.path for item in tracking.remote.client.list_artifacts(parent)}


def test_the_page_is_there_before_anything_is_logged(store, logged, monkeypatch):
    call, tracking, _ = logged
    seen = []
    log = Tracking.metrics
    monkeypatch.setattr(
        Tracking, "metrics", lambda *given: seen.append(Path(store.path("report.html")).exists()) or log(*given)
    )
    report(call, tracking)
    assert seen == [True]


def test_parts_that_fail_are_left_out_of_page_and_mlflow(store, logged, monkeypatch):
    def fails(view):
        yield from ()
        raise ValueError("no such thing")

    def counts(view):
        yield "sft", "counted", 3

    call, tracking, child = logged
    bundle = Parts(metrics=(fails, counts), histories=(fails,), caveats=(fails,))
    monkeypatch.setattr("raygeo.pipeline.report.parts", lambda: bundle)
    text = report(call, tracking)
    where = f"test_standing.{fails.__qualname__}"
    assert list(call.context.missing) == [f"the metrics {where}", f"the curves {where}", f"the caveat {where}"]
    for part in call.context.missing:
        assert f"{part} failed and was left out: ValueError: no such thing." in unescape(text)
    assert logged_run(tracking, child).data.metrics == {"counted": 3}
    parent = logged_run(tracking, tracking.parent)
    assert parent.data.tags["missing"].count("no such thing") == 3
    assert parent.info.status == "FAILED"
