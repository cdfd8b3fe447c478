"""Accuracy while training: of the weights kept on the way, on training problems, held-out ones and benchmarks."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raygeo.data.readers import Prompt
from raygeo.evaluation.answers import Answers
from raygeo.evaluation.partings import Accuracy, parting
from raygeo.evaluation.statistics import accuracy_rows
from raygeo.models.run import Run
from raygeo.pipeline.config import HELDOUT, TRAIN
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.rollouts import Rollouts
from raygeo.pipeline.student import Student
from raygeo.records import RunRecord
from raygeo.settings import content_key
from raygeo.tables import BASE, to_arrow
from raygeo.workload import Rows


@dataclass(frozen=True)
class _Point:
    """Weights that are asked: those of run ``of`` after ``step``; the base's are of every run, after step 0."""

    of: str
    step: int
    weights: Run


def monitor_runs(
    context: StudyContext,
    student: Student,
    rollouts: Rollouts,
    runs: Sequence[Run],
    benchmarks: Mapping[str, Sequence[Prompt]],
) -> None:
    """Publish ``monitor`` and ``partings``: of all runs where the study asks for it, and of those in stages or rounds,
    on held-out problems, in any case.

    ``benchmarks`` are the problems that finished runs are asked.
    """
    settings, store = context.study.evaluation.monitor, context.store
    records = {row["run"]: RunRecord.of(row) for row in store.table("runs").to_pylist()}
    models = [run for run in runs if run.name != BASE and not run.leg]
    chains = [run for run in models if records[run.name].stages is not None]
    asked: dict[str, list[Prompt]] = {}
    if settings is not None:
        asked = {
            name: some_problems(problems, settings.problems, settings.seed) for name, problems in benchmarks.items()
        }
        asked = {TRAIN: some_problems(rollouts.training_problems, settings.problems, settings.seed), **asked}
        asked = {name: problems for name, problems in asked.items() if problems}
    elif HELDOUT in benchmarks:
        asked, models = {HELDOUT: list(benchmarks[HELDOUT])}, chains
    rows: Rows = []
    if asked and models:
        points = [point for run in models for point in _points(run, records[run.name].steps or 0)]
        rows = _measured(context, student, rollouts, runs[0], points, asked)
    shifts = {benchmark.name: benchmark.shift for benchmark in context.study.evaluation.benchmarks}
    rows = [row | {"shift": shifts.get(row["benchmark"])} for row in rows]
    store.publish_rows("monitor", to_arrow("monitor", rows))
    store.publish_rows("partings", to_arrow("partings", _partings(rows)))


def _points(run: Run, last: int) -> list[_Point]:
    """The kept weights of a run in the order of their steps, the final ones last."""
    kept = {}
    if run.snapshots is not None:
        found = ((re.fullmatch(r"step-(\d+)", folder.name), folder) for folder in Path(run.snapshots).iterdir())
        kept = {int(match[1]): folder for match, folder in found if match and int(match[1]) < last}
    points = []
    for step, folder in sorted(kept.items()):
        weights = replace(
            run, name=f"{run.name}@{step}", key=content_key(run.key, "step", step), delta=str(folder), snapshots=None
        )
        points.append(_Point(run.name, step, weights))
    return [*points, _Point(run.name, last, run)]


def _measured(
    context: StudyContext,
    student: Student,
    rollouts: Rollouts,
    base: Run,
    points: Sequence[_Point],
    asked: Mapping[str, list[Prompt]],
) -> Rows:
    evaluation = context.study.evaluation
    workload = Answers(
        evaluation.answers,
        [base, *(point.weights for point in points)],
        student.folder,
        student.key,
        asked,
        rollouts.grading,
        rollouts.renderer,
        evaluation.engine,
    )
    keys = context.run(workload).keys
    answers = pa.concat_tables(context.store.read_units("answers", keys))
    found = {(row["run"], row["benchmark"]): row for row in accuracy_rows(answers)}
    starts = [_Point(name, 0, base) for name in dict.fromkeys(point.of for point in points)]
    columns = ("benchmark", "n", "problems", "accuracy", "low", "high", "truncated")
    return [
        {"run": point.of, "step": point.step} | {name: row[name] for name in columns}
        for point in sorted([*starts, *points], key=lambda point: point.step)
        for benchmark in asked
        if (row := found.get((point.weights.name, benchmark))) is not None
    ]


def _partings(rows: Rows) -> Rows:
    """Where each run's accuracy on training problems parts from that on others, and meets it."""
    by_run: defaultdict[str, defaultdict[str, dict[int, Accuracy]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        by_run[row["run"]][row["benchmark"]][row["step"]] = Accuracy(row["accuracy"], row["low"], row["high"])
    found = []
    for run, curves in by_run.items():
        for benchmark, curve in curves.items():
            if benchmark == TRAIN or TRAIN not in curves:
                continue
            one = parting(curves[TRAIN], curve)
            row = {"run": run, "benchmark": benchmark, "part": one.part, "meet": one.meet}
            found.append(row | {"largest_gap": one.largest, "largest_at": one.at, "steps": len(curve)})
    return found


def some_problems(problems: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """At most ``count`` of the problems, drawn by ``seed``, in their order."""
    if len(problems) <= count:
        return list(problems)
    chosen = np.random.default_rng(seed).choice(len(problems), count, replace=False)
    return [problems[i] for i in sorted(chosen.tolist())]
