"""Fan any workload out over Ray actors: resident state, calls of similar worth, lost actors replaced.

The longest tasks go first; once a task's cost has been measured, small ones are packed into calls worth about a
second, so that neither scheduling overhead nor a straggler dominates. A unit in the store is never computed again.
"""

import logging
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from raygeo.cluster.preflight import check_fits, count_fitting
from raygeo.cluster.settings import ActorSettings
from raygeo.errors import RaygeoError, WorkloadError
from raygeo.progress import Progress
from raygeo.store import Store
from raygeo.workload import Rows, Task, Workload

log = logging.getLogger(__name__)

CALL_SECONDS = 1.0
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


@ray.remote(max_restarts=0)
class _Actor:
    def __init__(self, workload: Workload, threads: int):
        import torch

        torch.set_num_threads(threads)
        self.workload = workload
        self.state: Any = None

    def compute(self, tasks: list[Task]) -> list[Outcome]:
        if self.state is None:
            self.state = self.workload.setup()
        return compute(self.workload, self.state, tasks)


def run_workload(
    workload: Workload,
    store: Store,
    *,
    actors: ActorSettings | None = None,
    progress: Progress | None = None,
    in_process: bool = False,
) -> FanoutResult:
    """Compute every task of ``workload`` that the store lacks and write its rows as units of the workload's tables.

    With ``in_process`` the same tasks run here, one after the other, without Ray.

    Raises:
        WorkloadError: tasks failed (all others are finished and stored), or actors died too often.
        ClusterError: the cluster can hold no actor of the asked size.
    """
    progress = progress or Progress()
    tasks = list({task.key: task for task in workload.tasks()}.values())
    finished = store.finished(workload.tables)
    todo = sorted((t for t in tasks if t.key not in finished), key=lambda t: -t.cost)
    result = FanoutResult([t.key for t in tasks], reused=len(tasks) - len(todo))
    if not todo:
        return result
    labels = {t.key: t.label for t in todo}
    with progress.bar(workload.name, len(todo)) as bar:

        def keep(outcomes: list[Outcome]) -> None:
            for outcome in outcomes:
                result.busy_seconds += outcome.seconds
                if outcome.rows is None:
                    result.failures[outcome.key] = outcome.error
                else:
                    store.write_unit(outcome.key, {t: outcome.rows.get(t, []) for t in workload.tables})
                    result.made += 1
                bar.advance(note=labels[outcome.key])

        if in_process:
            state = workload.setup()
            for task in todo:
                keep(compute(workload, state, [task]))
        else:
            _over_actors(workload, todo, actors or ActorSettings(), keep)
    if result.failures:
        named = "\n".join(f"- {labels[key]}: {error.strip()}" for key, error in list(result.failures.items())[:5])
        raise WorkloadError(
            f"{workload.name}: {len(result.failures)} of {len(todo)} tasks failed; the others are in the store. "
            f"Mend the cause and run the same command again.\n{named}"
        )
    return result


def _over_actors(workload: Workload, todo: list[Task], settings: ActorSettings, keep: Any) -> None:
    demand = {"CPU": settings.cpus, "GPU": settings.gpus}
    check_fits(f"an actor for {workload.name}", demand)
    count = max(1, min(len(todo), count_fitting(demand), settings.max_actors or len(todo)))
    shared = ray.put(workload)
    threads = max(1, int(settings.cpus))
    environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    options = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "runtime_env": {"env_vars": environment}}
    waiting = deque(todo)
    losses: dict[str, int] = {}
    seconds_per_cost: float | None = None
    running: dict[Any, tuple[Any, list[Task]]] = {}

    def start() -> Any:
        return _Actor.options(**options).remote(shared, threads)

    def submit(actor: Any) -> None:
        batch = [waiting.popleft()]
        if seconds_per_cost is not None:
            worth, fair = batch[0].cost * seconds_per_cost, max(1, len(waiting) // (2 * count))
            while waiting and len(batch) < fair and worth + waiting[0].cost * seconds_per_cost <= CALL_SECONDS:
                batch.append(waiting.popleft())
                worth += batch[-1].cost * seconds_per_cost
        running[actor.compute.remote(batch)] = (actor, batch)

    for _ in range(count):
        submit(start())
    try:
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            actor, batch = running.pop(ready[0])
            try:
                outcomes = ray.get(ready[0])
            except RayTaskError as error:
                cause = error.cause if isinstance(error.cause, RaygeoError) else error
                raise WorkloadError(f"{workload.name} could not be set up on an actor: {cause}") from None
            except RayActorError as error:
                for task in batch:
                    losses[task.key] = losses.get(task.key, 0) + 1
                    if losses[task.key] > MAX_LOSSES:
                        raise WorkloadError(
                            f"{workload.name}: {task.label} was lost {MAX_LOSSES + 1} times with its actor ({error}). "
                            "It probably needs more memory: give actors more CPUs or a smaller batch."
                        ) from None
                log.warning("%s: an actor died (%s); its %d tasks go to a new one", workload.name, error, len(batch))
                waiting.extendleft(reversed(batch))
                submit(start())
                continue
            keep(outcomes)
            spent, worth = sum(o.seconds for o in outcomes), sum(t.cost for t in batch)
            if worth > 0:
                measured = spent / worth
                seconds_per_cost = measured if seconds_per_cost is None else 0.7 * seconds_per_cost + 0.3 * measured
            if waiting:
                submit(actor)
            else:
                ray.kill(actor)
    finally:
        for actor, _ in running.values():
            ray.kill(actor)
