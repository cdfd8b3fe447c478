"""Stage 5: answers of the base and every run, their accuracy, pass@k, and exact paired tests between all pairs."""

from collections.abc import Mapping, Sequence

from rich.markup import escape

from raygeo.data.readers import Prompt
from raygeo.errors import FullStoreError
from raygeo.evaluation.answers import Answers
from raygeo.evaluation.statistics import FEW, accuracy_rows, drop_rows, mcnemar_rows, pass_rows
from raygeo.models.run import Run
from raygeo.pipeline.config import HELDOUT, Study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.monitor import monitor_runs
from raygeo.pipeline.problems import benchmark_problems
from raygeo.pipeline.rollouts import Rollouts, heldout_problems
from raygeo.pipeline.student import Student
from raygeo.report.results import shifted
from raygeo.store import Store
from raygeo.tables import to_arrow
from raygeo.workload import Task


def evaluate_runs(
    context: StudyContext, student: Student, rollouts: Rollouts, runs: list[Run]
) -> dict[str, list[Prompt]]:
    """Publish ``answers``, ``benchmarks``, ``accuracy``, ``drops``, ``pass_at_k`` and ``mcnemar``, and
    what is measured on the way; return the problems that were asked, by benchmark.

    Problems whose prompt is trained on are left out, and reported; so are answers that could not be judged.
    """
    settings, store = context.study.evaluation, context.store
    for table in ("answers", "benchmarks", "accuracy", "drops", "pass_at_k", "mcnemar", "monitor", "partings"):
        store.publish(table, [])  # an earlier study's are not this one's, whatever becomes of these
    benchmarks, left_out = asked_problems(context.study, rollouts)
    for name, count in left_out.items():
        context.progress.say(f"  {name}: {count} problems are trained on; left out")
    shifts = {HELDOUT: "none"} | {b.name: b.shift for b in settings.benchmarks}
    shifts = {name: shifts[name] for name in benchmarks}
    rows = [{"benchmark": name, "shift": shift, "problems": len(benchmarks[name])} for name, shift in shifts.items()]
    store.publish_rows("benchmarks", to_arrow("benchmarks", rows))
    for name, shift in shifts.items():
        if shift != "none":
            context.progress.say(f"  {escape(shifted(name, shift))}: {len(benchmarks[name])} problems")
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
        _publish(context, workload, _complete(workload, store), shifts)
        raise
    _publish(context, workload, keys, shifts)
    with context.surviving("accuracy while training"):
        monitor_runs(context, student, rollouts, runs, benchmarks)
    return benchmarks


def asked_problems(study: Study, rollouts: Rollouts) -> tuple[dict[str, list[Prompt]], dict[str, int]]:
    """The problems of each benchmark that has any, and how many of each are left out as their prompt is trained on."""
    settings, trained = study.evaluation, rollouts.train_prompts
    every = {HELDOUT: heldout_problems(rollouts)} if settings.heldout else {}
    every |= {benchmark.name: benchmark_problems(study, benchmark) for benchmark in settings.benchmarks}
    kept = {name: [p for p in problems if p.prompt not in trained] for name, problems in every.items()}
    left_out = {name: len(problems) - len(kept[name]) for name, problems in every.items()}
    return {name: problems for name, problems in kept.items() if problems}, {n: c for n, c in left_out.items() if c}


def _complete(workload: Answers, store: Store) -> list[str]:
    """Keys of the answers of each run to each benchmark of which it has them all."""
    tasks, finished = workload.tasks(), store.finished(workload.tables)
    lacking = {_asked(task) for task in tasks if task.key not in finished}
    return [task.key for task in tasks if _asked(task) not in lacking]


def _asked(task: Task) -> tuple[str, str]:
    run, benchmark, _ = task.payload
    return run.name, benchmark


def _publish(context: StudyContext, workload: Answers, keys: Sequence[str], shifts: Mapping[str, str]) -> None:
    """Publish the answers with these keys, which ``workload`` has made, and what follows from them."""
    store = context.store
    answers = store.publish("answers", keys, revisions=workload.revisions)
    accuracy = accuracy_rows(answers)
    made = {"mcnemar": mcnemar_rows(answers), "pass_at_k": pass_rows(answers), "accuracy": accuracy}
    for table, rows in (made | {"drops": drop_rows(accuracy, shifts)}).items():
        store.publish_rows(table, to_arrow(table, rows), workload.revisions)
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
