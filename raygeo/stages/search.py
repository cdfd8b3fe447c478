"""The search of a sweep whose runs are chosen while it goes on: what it may choose, and what it remembers."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raygeo.cluster.fanout import run_workload
from raygeo.plan import PlannedRun
from raygeo.search.configurations import Configuration
from raygeo.search.loop import Search
from raygeo.search.optimizer import Optimizer
from raygeo.search.settings import Asha
from raygeo.search.space import Choice, Domain, Place
from raygeo.settings import content_key
from raygeo.stages.context import Context
from raygeo.stages.objectives import Objectives
from raygeo.stages.rollouts import Rollouts
from raygeo.stages.student import Student
from raygeo.store import Store
from raygeo.students.run import Run


def start_search(
    context: Context,
    student: Student,
    rollouts: Rollouts,
    objectives: Objectives,
    meet: Callable[[PlannedRun], None],
) -> Search[PlannedRun]:
    """Begin, or go on with, the study's search; ``meet`` is called with every run it chooses.

    What has been suggested is kept in the store under a key of all that can be chosen, so that a search that was
    interrupted, or is given a larger budget, goes the same way again as far as it had come.
    """
    study, store = context.study, context.store
    plan, sweep = study.plan, study.plan.sweep
    entries = plan.open_entries()
    spaces = [plan.searched(index) for index in entries]
    rules = sweep.model_dump(mode="json", include={"objectives", "seed", "scheduler"})
    choosable = [study.training, *(study.runs[index] for index in entries)]
    name = f"search/{content_key('search', student.key, rollouts.key, rules, *choosable)}.json"

    past = _read(store.read_bytes(name), spaces)

    def runs_of(space: int, values: Configuration) -> list[PlannedRun]:
        runs = plan.runs_of(entries[space], values)
        for run in runs:
            meet(run)
        return runs

    def recall(run: PlannedRun) -> Mapping[str, float] | None:
        key = run.spec.key(student.key, rollouts.key)
        if not is_settled(store, key, sweep.scheduler):
            return None
        return measure_run(objectives, store, key, run.name)

    return Search(
        Optimizer(spaces, [objective.mode for objective in sweep.objectives], sweep.seed, past),
        budget=sweep.samples * len(entries),
        metrics=objectives.metrics,
        runs_of=runs_of,
        recall=recall,
        note=lambda asked: store.write_bytes(name, _written(asked)),
    )


def is_settled(store: Store, key: str, scheduler: Asha | None) -> bool:
    """Whether the run with this key need not be trained; one that another study stopped early is trained again."""
    if key not in store.finished(("runs", "curves")):
        return False
    [status] = store.read_unit("runs", key)["status"].to_pylist()
    return status != "stopped" or scheduler is not None


def measure_run(objectives: Objectives, store: Store, key: str, name: str) -> dict[str, float]:
    """Measure one run in this process; nothing if it did not finish."""
    if not store.has_folder("deltas", key):
        return {}
    run = Run(name, content_key(key, name), store.stored("deltas", key))
    measured = objectives.measure({key: run}, store, lambda workload: run_workload(workload, store))[key]
    return {str(metric): value for metric, value in measured.items()}


def _written(asked: Sequence[tuple[int, Configuration]]) -> bytes:
    plain = [[space, {".".join(place): value for place, value in values.items()}] for space, values in asked]
    return json.dumps(plain).encode()


def _read(data: bytes | None, spaces: Sequence[Mapping[Place, Domain]]) -> list[tuple[int, Configuration]]:
    return [
        (space, {place: _as_listed(domain, values[".".join(place)]) for place, domain in spaces[space].items()})
        for space, values in json.loads(data or b"[]")
    ]


def _as_listed(domain: Domain, value: Any) -> Any:
    """The value of a choice that JSON made ``value`` of."""
    if isinstance(domain, Choice):
        return next(listed for listed in domain.values if json.dumps(listed) == json.dumps(value))
    return value
