"""What the training stage publishes of runs that were trained before, and of those that come to nothing."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from study_cases import draw_rollouts

from raygeo.generation.renderer import PlainRenderer
from raygeo.pipeline import train as stage
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.rollouts import Rollouts
from raygeo.pipeline.student import Student
from raygeo.pipeline.train import References, provide_references, train_runs
from raygeo.progress import Progress
from raygeo.records import FINISHED, RunRecord
from raygeo.settings import split_key
from raygeo.tables import to_arrow
from raygeo.toy.word_problems import word_tokenizer
from raygeo.training.worker import run_record

pytestmark = pytest.mark.cluster

STUDENT = Student("student", "unused", None, "a student that nobody loads")


class Tracked:
    """The side of ``Tracking`` that the stage sees; remembers what it is told."""

    def __init__(self):
        self.names, self.completed, self.ended, self.models, self.learned, self.moments = {}, [], {}, {}, {}, {}

    def child(self, key, name, params, started=None):
        self.names[key], self.moments[name] = name, [started]
        return key

    def run_id(self, key):
        return f"id of {self.names[key]}"

    def flush(self):
        pass

    def curves(self, key):
        self.completed.append(self.names[key])

    def tags(self, key, values):
        pass

    def inputs(self, key, context, data):
        self.learned[self.names[key]] = [context, *((each.name, each.digest) for each in data)]

    def model(self, key, weights):
        self.models[self.names[key]] = weights

    def end(self, key, status, ended=None):
        self.ended[self.names[key]] = status
        self.moments[self.names[key]].append(ended)


class Bench:
    """A study of three runs of a loss in ``store``, never really trained: ``train`` says what becomes of them.

    ``begun`` holds the keys of the runs that were to be trained, ``said`` what the user was told.
    """

    def __init__(self, store, monkeypatch, *losses):
        self.store, self.begun, self.failures, self._said = store, [], {}, io.StringIO()
        self.study = parse_study({
            "name": "s",
            "rollouts": {"read": [{"type": "jsonl", "path": "rollouts.jsonl"}]},
            "training": {"steps": 2, "batch_size": 4, "seed": [0, 1, 2]},
            "runs": [{"loss": {"type": loss}} for loss in losses or ["sft"]],
        })  # fmt: skip
        counts = to_arrow("counts", [{"stage": "rollouts", "name": "rows", "value": 24}])
        store.write_unit("rollouts", {"rollouts": draw_rollouts(6)})
        renderer = PlainRenderer(word_tokenizer())
        self.rollouts = Rollouts("rollouts", store, "tokens", "unused", renderer, "exact", counts)
        self.specs = {run.name: run.spec for run in self.study.plan.trials()}
        self.keys = {name: spec.key(STUDENT.key, "rollouts") for name, spec in self.specs.items()}
        monkeypatch.setattr(stage, "run_sweep", self._sweep)

    def _sweep(self, specs, *args, **options):
        self.begun += specs
        return self.failures

    def keep(self, name, status, *, key=None, **known):
        """Store what a worker leaves of a run, under the name it had in another study, and return its record."""
        key = key or self.keys[name]
        record = replace(run_record(self.specs[name], key, status, student=STUDENT.key, **known), run="elsewhere")
        curves = [{"run": "elsewhere", "step": 1, "metric": "nll", "value": float(name[-1])}]
        self.store.write_unit(key, {"runs": [record.row()], "training_curves": curves})
        if status == FINISHED:
            self.store.complete_folder("deltas", key)
        return record

    def train(self, *, referring=False):
        """Run the stage: the runs that finished, the table of runs as records by name, and what the tracker saw.

        ``referring`` runs that of the base's log-probabilities before it.
        """
        self.context = StudyContext(
            self.store, SimpleNamespace(close=lambda: None), Progress(Console(file=self._said, width=200)),
            study=self.study,
        )  # fmt: skip
        tracked = Tracked()
        references = provide_references(self.context, STUDENT, self.rollouts) if referring else References()
        runs = train_runs(self.context, STUDENT, self.rollouts, references, tracked).runs
        published = [RunRecord.of(row) for row in self.store.table("runs").to_pylist()]
        return runs, {record.run: record for record in published}, tracked

    @property
    def said(self):
        return self._said.getvalue()


@pytest.fixture
def bench(store, monkeypatch):
    return Bench(store, monkeypatch)


def test_what_is_published_is_what_the_worker_wrote_but_for_name_and_tracking(bench):
    first, second, third = bench.keys
    began, ended = "2026-01-01T10:00:00.000+00:00", "2026-01-01T10:00:01.500+00:00"
    finished = bench.keep(
        first, FINISHED, steps=2, tokens=80, seconds=1.5, started=began, ended=ended, delta="where it was",
        adapter_init="f",
    )  # fmt: skip
    diverged = bench.keep(second, "diverged", steps=1, reason="objective became nan")
    bench.failures = {bench.keys[third]: "RuntimeError: the loss fell over"}
    runs, published, tracked = bench.train()
    assert list(published) == [first, second, third]
    here = bench.store.folder("deltas", bench.keys[first])
    assert published[first] == replace(finished, run=first, mlflow_run_id=f"id of {first}", delta=here)
    assert published[second] == replace(diverged, run=second, mlflow_run_id=f"id of {second}")
    assert published[third] == run_record(
        bench.specs[third], bench.keys[third], "failed", student=STUDENT.key, reason="RuntimeError: the loss fell over",
        mlflow_run_id=f"id of {third}",
    )  # fmt: skip
    assert [(run.name, run.delta) for run in runs] == [("base", None), (first, here)]
    assert bench.begun == [bench.keys[third]]
    assert list(bench.context.missing) == [f"run {third}"]
    assert f"{second} diverged: objective became nan" in bench.said
    assert [tracked.ended[name] for name in bench.keys] == ["FINISHED", "FAILED", "FAILED"]
    assert [tracked.moments[name] for name in bench.keys] == [[began, ended], [None, None], [None, None]]
    assert tracked.models == {first: here}
    assert tracked.learned == {name: ["training", ("rollouts", "rollouts")] for name in bench.keys}


def test_curves_are_published_under_the_names_of_the_study(bench):
    first, second, _ = bench.keys
    for name, status in ((first, FINISHED), (second, "diverged")):
        bench.keep(name, status)
    _, _, tracked = bench.train()
    curves = bench.store.table("training_curves").to_pylist()
    assert [(row["run"], row["value"]) for row in curves] == [(first, 0.0), (second, 1.0)]
    assert tracked.completed == [first, second]


def test_published_tables_are_not_units(bench):
    for name in bench.keys:
        bench.keep(name, FINISHED)
    before = {table: bench.store.units(table) for table in ("runs", "training_curves", "counts")}
    bench.train()
    assert {table: bench.store.units(table) for table in before} == before
    counted = bench.store.table("counts").to_pylist()
    assert counted[0] == {"stage": "rollouts", "name": "rows", "value": 24}
    assert {row["stage"] for row in counted[1:]} == set(bench.keys)


def test_runs_of_an_older_revision_are_trained_anew_and_told(bench):
    first, second, third = bench.keys
    bench.keep(first, FINISHED)
    for name in (second, third):
        bench.keep(name, FINISHED, key=f"{split_key(bench.keys[name])[0]}-r0")
    bench.train()
    assert bench.begun == [bench.keys[second], bench.keys[third]]
    assert "training: 2 units of revision 0 made anew by revision" in bench.said


def test_nothing_is_told_of_revisions_where_no_run_is_outdated(bench):
    first, second, _ = bench.keys
    bench.keep(first, FINISHED)
    bench.keep(first, FINISHED, key=f"{split_key(bench.keys[first])[0]}-r0")
    bench.keep(second, FINISHED)
    bench.store.delete_folder("deltas", bench.keys[second])  # trained anew for another reason
    bench.train()
    assert bench.begun[0] == bench.keys[second]
    assert "revision" not in bench.said


def test_if_no_run_finished_the_training_is_left_out_with_every_reason(bench):
    first, second, third = bench.keys
    bench.keep(first, "diverged", reason="objective became nan")
    bench.failures = {bench.keys[second]: "one", bench.keys[third]: "two"}
    runs, _, _ = bench.train()
    assert [run.name for run in runs] == ["base"]
    said = str(bench.context.missing["training"])
    for name, reason in ((first, "objective became nan"), (second, "one"), (third, "two")):
        assert f"{name}: {reason}" in said


def test_what_the_base_cannot_say_costs_only_the_runs_that_need_it(store, monkeypatch):
    bench = Bench(store, monkeypatch, "sft", "dpo")
    for name in list(bench.keys)[:3]:
        bench.keep(name, FINISHED)
    runs, published, _ = bench.train(referring=True)  # there are no tokens to score
    assert [run.name for run in runs] == ["base", *list(bench.keys)[:3]]
    for name in list(bench.keys)[3:]:
        assert published[name].status == "failed"
        assert "needs the base's log-probabilities, which could not be made" in published[name].reason
    assert bench.begun == []
    assert list(bench.context.missing) == ["the base's log-probabilities", *(f"run {n}" for n in list(bench.keys)[3:])]
