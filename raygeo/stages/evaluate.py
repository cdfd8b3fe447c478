"""Stage 5: greedy answers of the base and every run, their accuracy, and exact McNemar tests between all pairs."""

import logging

from raygeo.evaluation.answers import Answers
from raygeo.evaluation.statistics import accuracy_rows, mcnemar_rows
from raygeo.rollouts.readers import Prompt
from raygeo.settings import content_key
from raygeo.stages.context import Context
from raygeo.stages.rollouts import Rollouts, benchmark_problems
from raygeo.stages.student import Student
from raygeo.students.run import Run

HELDOUT = "heldout"
log = logging.getLogger(__name__)


def heldout_problems(rollouts: Rollouts) -> list[Prompt]:
    """The held-out prompts that have a gold answer, each once, in the order of the table."""
    rows = rollouts.heldout.select(["prompt_id", "prompt", "gold"]).to_pylist()
    first = {row["prompt_id"]: row for row in reversed(rows) if row["gold"]}
    ids = dict.fromkeys(row["prompt_id"] for row in rows)
    return [Prompt(i, first[i]["prompt"], first[i]["gold"], None) for i in ids if i in first]


def evaluate_runs(context: Context, student: Student, rollouts: Rollouts, runs: list[Run]) -> None:
    """Publish ``answers``, ``accuracy`` and ``mcnemar``; problems whose prompt is trained on are left out, and told."""
    settings, store = context.study.evaluation, context.store
    benchmarks = {HELDOUT: heldout_problems(rollouts)} if settings.heldout else {}
    benchmarks |= {b.name: benchmark_problems(context, b) for b in settings.benchmarks}
    trained = set(rollouts.train["prompt"].to_pylist())
    for name, problems in benchmarks.items():
        benchmarks[name] = [p for p in problems if p.prompt not in trained]
        if len(benchmarks[name]) < len(problems):
            context.progress.say(f"  {name}: {len(problems) - len(benchmarks[name])} problems are trained on; left out")
    benchmarks = {name: problems for name, problems in benchmarks.items() if problems}
    workload = Answers(settings.answers, runs, student.folder, student.key, benchmarks, context.study.rollouts.grading)
    result = context.run(workload)
    answers = store.publish("answers", result.keys)
    key = content_key("accuracy", result.keys)
    if key not in store.finished(("accuracy", "mcnemar")):
        store.write_unit(key, {"accuracy": accuracy_rows(answers), "mcnemar": mcnemar_rows(answers)})
    store.publish("accuracy", [key])
    store.publish("mcnemar", [key])
