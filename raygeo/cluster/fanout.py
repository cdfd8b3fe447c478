"""Fan any workload out over Ray actors: resident state, calls as ``Schedule`` makes them, lost actors replaced.

Rows are stored as they come, while the actor they came from works on its next call, and a unit in the store is never
computed again. Actors are kept from one workload to the next, because starting one costs seconds.
"""

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from raygeo.cluster.preflight import check_fits, count_fitting
from raygeo.cluster.schedule import Schedule
from raygeo.cluster.settings import ActorSettings
from raygeo.errors import RaygeoError, WorkloadError
from raygeo.progress import Progress
from raygeo.store import Store
from raygeo.workload import Rows, Task, Workload

log = logging.getLogger(__name__)

MAX_LOSSES = 3


@dataclass(frozen=True)
class Outcome:
    """What one task gave: its rows, or the text of its error, and the seconds it took."""

    key: str
    rows: dict[str, Rows] | None
    error: str
    seconds: float


@dataclass
class FanoutResult:
    """All keys in task order, how many were computed now and how many found in the store, and the busy seconds."""

    keys: list[str]
    made: int = 0
    reused: int = 0
    busy_seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)


Executor = Callable[[Workload, list[Task], Callable[[list[Outcome]], None], int], None]
"""Runs a workload's tasks that are to do, hands what they gave on, and knows how many tasks there are in all."""


def compute(workload: Workload, state: Any, tasks: list[Task]) -> list[Outcome]:
    """Run ``tasks`` one after the other; an error in one does not touch the others."""
    outcomes = []
    for task in tasks:
        started = time.perf_counter()
        try:
            rows, error = workload.compute(state, task.payload), ""
        except RaygeoError as problem:
            rows, error = None, str(problem)
        except Exception:
            rows, error = None, traceback.format_exc(limit=-6)
        outcomes.append(Outcome(task.key, rows, error, time.perf_counter() - started))
    return outcomes


def in_process(workload: Workload, todo: list[Task], keep: Callable[[list[Outcome]], None], total: int) -> None:
    """Run the tasks here, one after the other, without Ray."""
    state = workload.setup()
    for task in todo:
        keep(compute(workload, state, [task]))


def run_workload(
    workload: Workload, store: Store, execute: Executor = in_process, progress: Progress | None = None
) -> FanoutResult:
    """Compute every task of ``workload`` that the store lacks and write its rows as units of the workload's tables.

    ``execute`` is where the tasks run: ``in_process``, or an ``ActorPool``.

    Raises:
        WorkloadError: tasks failed (all others are finished and stored), or actors died too often.
        ClusterError: the cluster can hold no actor of the asked size.
    """
    tasks = list({task.key: task for task in workload.tasks()}.values())
    finished = store.finished(workload.tables)
    todo = [t for t in tasks if t.key not in finished]
    result = FanoutResult([t.key for t in tasks], reused=len(tasks) - len(todo))
    if not todo:
        return result
    tasks_by_key = {t.key: t for t in todo}
    with (progress or Progress()).bar(workload.name, len(todo)) as bar:

        def keep(outcomes: list[Outcome]) -> None:
            for outcome in outcomes:
                result.busy_seconds += outcome.seconds
                if outcome.rows is None:
                    result.failures[outcome.key] = outcome.error
                else:
                    store.write_unit(outcome.key, {t: outcome.rows.get(t, []) for t in workload.tables})
                    workload.settle(tasks_by_key[outcome.key])
                    result.made += 1
                bar.advance(note=tasks_by_key[outcome.key].label)

        execute(workload, todo, keep, len(tasks))
    if result.failures:
        first = list(result.failures.items())[:5]
        named = "\n".join(f"- {tasks_by_key[key].label}: {error.strip()}" for key, error in first)
        raise WorkloadError(
            f"{workload.name}: {len(result.failures)} of {len(todo)} tasks failed; the others are in the store. "
            f"Mend the cause and run the same command again.\n{named}"
        )
    return result


@ray.remote(max_restarts=0)
class _Actor:
    """Holds the state of the workload it worked on last."""

    def __init__(self, threads: int):
        torch.set_num_threads(threads)
        self.held: ray.ObjectRef | None = None
        self.workload: Any = None
        self.state: Any = None

    def compute(self, workload: list[ray.ObjectRef], tasks: list[Task]) -> list[Outcome]:
        if self.held != workload[0]:
            self.held = self.workload = self.state = None
            self.workload = ray.get(workload[0])
            self.state = self.workload.setup()
            self.held = workload[0]
        return compute(self.workload, self.state, tasks)


class ActorPool:
    """Up to ``settings.max_actors`` actors, started when first needed and kept until ``close``."""

    def __init__(self, settings: ActorSettings | None = None):
        self.settings = settings or ActorSettings()
        self.idle: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors and free what they hold."""
        for actor in self.idle:
            ray.kill(actor)
        self.idle = []

    def _take(self) -> Any:
        if self.idle:
            return self.idle.pop()
        threads = max(1, int(self.settings.cpus))
        actor: Any = _Actor
        return actor.options(num_cpus=self.settings.cpus, num_gpus=self.settings.gpus).remote(threads)

    def __call__(self, workload: Workload, todo: list[Task], keep: Callable[[list[Outcome]], None], total: int) -> None:
        """Run the tasks over the pool's actors; see ``run_workload``.

        Where the cluster holds several processes for each of all ``total`` tasks, the workload is told, and actors
        that have no task give their place to them.
        """
        demand = {"CPU": self.settings.cpus, "GPU": self.settings.gpus}
        check_fits(f"an actor for {workload.name}", demand)
        most = count_fitting(demand)
        most = min(most, self.settings.max_actors or most)
        count = min(len(todo), most)
        if most // total > 1 and workload.widen(most // total):
            while len(self.idle) > count:
                ray.kill(self.idle.pop())
        shared = ray.put(workload)
        schedule = Schedule(todo, count)
        losses: dict[str, int] = {}
        running: dict[ray.ObjectRef, tuple[Any, list[Task]]] = {}

        def submit(actor: Any) -> None:
            batch = schedule.take()
            running[actor.compute.remote([shared], batch)] = (actor, batch)

        try:
            for _ in range(count):
                submit(self._take())
            while running:
                [ready], _ = ray.wait(list(running), num_returns=1)
                actor, batch = running.pop(ready)
                try:
                    outcomes: list[Outcome] = ray.get(ready)
                except RayTaskError as error:
                    ray.kill(actor)
                    cause = error.cause if isinstance(error.cause, RaygeoError) else error
                    raise WorkloadError(f"{workload.name} could not be set up on an actor: {cause}") from None
                except RayActorError as error:
                    for task in batch:
                        losses[task.key] = losses.get(task.key, 0) + 1
                        if losses[task.key] > MAX_LOSSES:
                            raise WorkloadError(
                                f"{workload.name}: {task.label} was lost {MAX_LOSSES + 1} times with its actor "
                                f"({error}). It probably needs more memory: use fewer actors or a smaller batch."
                            ) from None
                    log.warning("%s: an actor died; its %d tasks go to a new one", workload.name, len(batch))
                    schedule.put_back(batch)
                    submit(self._take())
                    continue
                schedule.learn(batch, sum(outcome.seconds for outcome in outcomes))
                if len(schedule):
                    submit(actor)
                else:
                    self.idle.append(actor)
                keep(outcomes)
        finally:
            for actor, _ in running.values():
                ray.kill(actor)
