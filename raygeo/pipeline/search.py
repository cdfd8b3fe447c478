"""The search of a sweep that chooses its runs as results come in: what it may choose, and what it keeps of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.markup import escape

from raygeo.cluster.execution import run_workload
from raygeo.errors import FullStoreError, RaygeoError
from raygeo.models.run import Run
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.objectives import Objectives
from raygeo.pipeline.plan import PlannedRun
from raygeo.pipeline.rollouts import Rollouts
from raygeo.pipeline.student import Student
from raygeo.records import FINISHED
from raygeo.search.configurations import Configuration
from raygeo.search.history import read_history, write_history
from raygeo.search.loop import Search
from raygeo.search.optimizer import Optimizer
from raygeo.search.settings import Asha
from raygeo.settings import Settings, content_key
from raygeo.store import Store
from raygeo.training.worker import DELTAS, TABLES


def start_search(
    context: StudyContext,
    student: Student,
    rollouts: Rollouts,
    objectives: Objectives,
    on_planned: Callable[[PlannedRun], None],
) -> Search[PlannedRun]:
    """Begin or resume the study's search; ``on_planned`` is called with every run it chooses.

    What has been suggested is kept in the store under a key of all that can be chosen, so that a search that was
    interrupted, or is given a larger budget, goes the same way again as far as it had come.
    """
    study, store, judged = context.study, context.store, context.study.judged
    plan, sweep = study.plan, study.plan.sweep
    entries = plan.open_entries()
    spaces = [plan.searched(index) for index in entries]
    rules = sweep.model_dump(mode="json", include={"seed", "scheduler"})
    rules |= {"objectives": _plain(judged.objectives), "constraints": _plain(judged.constraints)}
    choosable = [study.training, *(study.runs[index] for index in entries)]
    taught = [] if rollouts.teacher is None else [rollouts.teacher]
    name = f"search/{content_key('search', student.key, rollouts.key, rules, *choosable, *taught)}.json"
    past = read_history(store.read_bytes(name), spaces)

    def runs_of(space: int, values: Configuration) -> list[PlannedRun]:
        runs = plan.runs_of(entries[space], values)
        for run in runs:
            on_planned(run)
        return runs

    def measured(run: PlannedRun) -> Mapping[str, float] | None:
        key = run.spec.key(student.key, rollouts.key, rollouts.teacher)
        if not is_settled(store, key, sweep.scheduler):
            return None
        try:
            return measure_run(objectives, store, key, run.name)
        except FullStoreError:
            raise
        except RaygeoError as error:
            context.progress.say(f"  [red]{escape(run.name)} could not be measured[/red]: {escape(str(error))}")
            return {}

    return Search(
        Optimizer(spaces, judged.modes, sweep.seed, past, judged.constraints),
        budget=sweep.samples * len(entries),
        metrics=judged.metrics,
        runs_of=runs_of,
        measured=measured,
        save=lambda asked: store.write_bytes(name, write_history([*asked, *past[len(asked) :]])),
    )


def is_settled(store: Store, key: str, scheduler: Asha | None) -> bool:
    """Whether the run with this key need not be trained.

    One that another study stopped early is trained again, and so is one whose weights somebody has deleted.
    """
    if key not in store.finished(TABLES):
        return False
    [status] = store.read_unit("runs", key)["status"].to_pylist()
    if status == FINISHED:
        return store.has_folder(DELTAS, key)
    return status != "stopped" or scheduler is not None


def measure_run(objectives: Objectives, store: Store, key: str, name: str) -> dict[str, float]:
    """Measure one run in this process; nothing if it did not finish."""
    if not store.has_folder(DELTAS, key):
        return {}
    loading = objectives.loading
    run = Run(name, content_key(key, name, *loading.keyed), store.stored(DELTAS, key), loading=loading)
    return objectives.measure(run, key, store, lambda workload: run_workload(workload, store))


def _plain(given: Sequence[Settings]) -> list[dict[str, Any]]:
    return [one.model_dump(mode="json") for one in given]
