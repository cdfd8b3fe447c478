"""Fan any workload out over Ray actors: resident state, calls as ``Schedule`` makes them, lost actors replaced.

What an actor gave is kept while it works on its next call. Actors are kept from one workload to the next, because
starting one costs seconds.
"""

import logging
from collections.abc import Callable
from typing import Any, Self

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from raygeo.cluster.execution import Outcome, Worker
from raygeo.cluster.fitting import listed
from raygeo.cluster.preflight import check_fits, count_fitting
from raygeo.cluster.schedule import Schedule
from raygeo.cluster.settings import ActorSettings
from raygeo.errors import FullStoreError, RaygeoError, WorkloadError
from raygeo.store import Store
from raygeo.workload import Task, Workload

log = logging.getLogger(__name__)

MAX_LOSSES = 3


@ray.remote(max_restarts=0)
class _Actor:
    """Holds the state of the workload it worked on last."""

    def __init__(self, threads: int):
        torch.set_num_threads(threads)
        self.held: ray.ObjectRef | None = None
        self.worker: Worker | None = None

    def compute(self, workload: list[ray.ObjectRef], store: Store, tasks: list[Task]) -> list[Outcome]:
        if self.worker is None or self.held != workload[0]:
            self.held = self.worker = None
            self.worker = Worker(ray.get(workload[0]))
            self.held = workload[0]
        return self.worker.compute(tasks, store)


class _Given:
    """A workload as an actor is given it."""

    def __init__(self, workload: Workload):
        self.workload, self.shared = workload, ray.put(workload)

    def halved(self) -> Self:
        """The same for the actor that follows one that died, most often for want of memory: with smaller batches."""
        smaller = self.workload.smaller()
        return self if smaller is None else type(self)(self.workload.with_batches(smaller))


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

    def __call__(
        self, workload: Workload, store: Store, todo: list[Task], keep: Callable[[list[Outcome]], None], total: int
    ) -> None:
        """Run the tasks over the pool's actors; see ``run_workload``.

        Where the cluster holds several processes for each of all ``total`` tasks, the workload is told, and actors
        that have no task give their place to them.
        """
        demand = {"CPU": self.settings.cpus, "GPU": self.settings.gpus}
        check_fits(f"an actor for {workload.name}", demand)
        most = count_fitting(demand)
        most = min(most, self.settings.max_actors or most)
        count = min(len(todo), most)
        if most // total > 1 and workload.set_parallelism(most // total):
            while len(self.idle) > count:
                ray.kill(self.idle.pop())
        schedule = Schedule(todo, count)
        losses: dict[str, int] = {}
        running: dict[ray.ObjectRef, tuple[Any, _Given, list[Task]]] = {}

        def submit(actor: Any, given: _Given) -> None:
            batch = schedule.take()
            running[actor.compute.remote([given.shared], store, batch)] = (actor, given, batch)

        try:
            given = _Given(workload)
            for _ in range(count):
                submit(self._take(), given)
            while running:
                [ready], _ = ray.wait(list(running), num_returns=1)
                actor, given, batch = running.pop(ready)
                try:
                    outcomes: list[Outcome] = ray.get(ready)
                except RayTaskError as error:
                    ray.kill(actor)
                    if isinstance(error.cause, FullStoreError):
                        raise error.cause from None
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
                    given = given.halved()
                    sizes = f" with {listed(given.workload.batches)}" if given.workload.batches else ""
                    log.warning("%s: an actor died; its %d tasks go to a new one%s", workload.name, len(batch), sizes)
                    schedule.put_back(batch)
                    submit(self._take(), given)
                    continue
                schedule.learn(batch, sum(outcome.seconds for outcome in outcomes))
                if len(schedule):
                    submit(actor, given)
                else:
                    self.idle.append(actor)
                keep(outcomes)
        finally:
            for actor, *_ in running.values():
                ray.kill(actor)
