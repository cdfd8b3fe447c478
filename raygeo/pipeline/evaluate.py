"""Stage 5: answers of the base and every run, their accuracy, pass@k, and exact paired tests between all pairs."""

from collections.abc import Sequence

from rich.markup import escape

from raygeo.errors import FullStoreError
from raygeo.evaluation.answers import Answers
from raygeo.evaluation.statistics import FEW, accuracy_rows, mcnemar_rows, pass_rows
from raygeo.models.run import Run
from raygeo.pipeline.config import HELDOUT
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.monitor import monitor_runs
from raygeo.pipeline.rollouts import Rollouts, benchmark_problems, heldout_problems
from raygeo.pipeline.student import Student
from raygeo.store import Store
from raygeo.tables import to_arrow
from raygeo.workload import Task


def evaluate_runs(context: StudyContext, student: Student, rollouts: Rollouts, runs: list[Run]) -> None:
    """Publish ``answers``, ``accuracy``, ``pass_at_k`` and ``mcnemar``, and what is measured on the way.

    Problems whose prompt is trained on are left out, and reported; so are answers that could not be judged.
    """
    settings, store = context.study.evaluation, context.store
    for table in ("answers", "accuracy", "pass_at_k", "mcnemar", "monitor", "partings"):
        store.publish(table, [])  # an earlier study's are not this one's, whatever becomes of these
    benchmarks = {HELDOUT: heldout_problems(rollouts)} if settings.heldout else {}
    benchmarks |= {b.name: benchmark_problems(context.study, b) for b in settings.benchmarks}
    trained = rollouts.train_prompts
    for name, problems in benchmarks.items():
        benchmarks[name] = [p for p in problems if p.prompt not in trained]
        if len(benchmarks[name]) < len(problems):
            context.progress.say(f"  {name}: {len(problems) - len(benchmarks[name])} problems are trained on; left out")
    benchmarks = {name: problems for name, problems in benchmarks.items() if problems}
    if not benchmarks:
        context.progress.say("  accuracy is not measured: there is no problem with a gold answer to grade against")
    workload = Answers(
        settings.answers,
        [run for run in runs if not run.leg],
        student.folder,
        student.key,
        benchmarks,
        rollouts.grading,
        rollouts.renderer,
        settings.engine,
    )
    try:
        keys = context.run(workload).keys
    except FullStoreError:
        raise
    except Exception:
        _publish(context, workload, _complete(workload, store))
        raise
    _publish(context, workload, keys)
    with context.surviving("accuracy while training"):
        monitor_runs(context, student, rollouts, runs, benchmarks)


def _complete(workload: Answers, store: Store) -> list[str]:
    """Keys of the answers of each run to each benchmark of which it has them all."""
    tasks, finished = workload.tasks(), store.finished(workload.tables)
    lacking = {_asked(task) for task in tasks if task.key not in finished}
    return [task.key for task in tasks if _asked(task) not in lacking]


def _asked(task: Task) -> tuple[str, str]:
    run, benchmark, _ = task.payload
    return run.name, benchmark


def _publish(context: StudyContext, workload: Answers, keys: Sequence[str]) -> None:
    """Publish the answers with these keys, which ``workload`` has made, and what follows from them."""
    store = context.store
    answers = store.publish("answers", keys, revisions=workload.revisions)
    store.publish_rows("mcnemar", to_arrow("mcnemar", mcnemar_rows(answers)))
    store.publish_rows("pass_at_k", to_arrow("pass_at_k", pass_rows(answers)))
    accuracy = accuracy_rows(answers)
    store.publish_rows("accuracy", to_arrow("accuracy", accuracy))
    for name, problems in {row["benchmark"]: row["problems"] for row in accuracy if row["samples"] > 1}.items():
        if problems < FEW:
            context.progress.say(
                f"  {escape(name)}: intervals are rough, for {problems} problems say little of how much problems "
                "differ, however often each is answered"
            )
    for row in accuracy:
        if row["undecided"]:
            context.progress.say(
                f"  {row['run']} on {escape(row['benchmark'])}: {row['undecided']} of {row['n']} answers could not be "
                "judged in time and count as not right; see the table answers"
            )
