"""Fan any workload out over Ray actors: resident state, calls as ``Schedule`` makes them, lost actors replaced.

Only actors that are there are given tasks; those that are asked for and have no place yet hold nothing up. Nodes that
come and go are followed. What an actor gave is kept while it works on its next call. Actors are kept from one workload
to the next, because starting one costs seconds.
"""

import logging
import sys
import time
from collections.abc import Callable, Collection
from typing import Any, ClassVar, NamedTuple, Self
from uuid import uuid4
from weakref import WeakSet

import ray
import torch
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from raygeo.cluster.execution import Outcome, Worker
from raygeo.cluster.fitting import listed
from raygeo.cluster.nodes import marked, sees, unseen
from raygeo.cluster.preflight import check_fits, count_fitting, is_autoscaled
from raygeo.cluster.schedule import Schedule
from raygeo.cluster.settings import ActorSettings, options
from raygeo.cluster.waiting import Waiting
from raygeo.errors import FullStoreError, RaygeoError, WorkloadError
from raygeo.logs import about, name_lines
from raygeo.store import Store
from raygeo.workload import Task, Workload

log = logging.getLogger(__name__)

MAX_LOSSES = 3
LOOK_SECONDS = 5.0
"""How often it is looked at what the cluster holds, and how long kept actors may take to answer."""
_BETWEEN_LOOKS = 64
"""Most calls that are handed out before it is seen which have ended."""
_FIRST_ASKED = 32
"""How many actors an autoscaler is asked for at first; later, for twice as many as there is room for."""


@ray.remote(max_restarts=0)
class _Actor:
    """Holds the state of the workload it worked on last."""

    def __init__(self, threads: int, study: str):
        torch.set_num_threads(threads)
        name_lines()
        self.study = study
        self.held: ray.ObjectRef | None = None
        self.worker: Worker | None = None

    def place(self, store: str, token: str) -> tuple[str, bool]:
        return ray.get_runtime_context().get_node_id(), sees(store, token)

    def compute(self, workload: list[ray.ObjectRef], store: Store, tasks: list[Task]) -> list[Outcome]:
        if self.worker is None or self.held != workload[0]:
            self.held = self.worker = None
            self.worker = Worker(ray.get(workload[0]))
            self.held = workload[0]
        with about(self.study):
            return self.worker.compute(tasks, store)


class _Placed(NamedTuple):
    """An actor that is there, and the id of its node."""

    actor: Any
    node: str


class _Given:
    """A workload as an actor is given it."""

    def __init__(self, workload: Workload):
        self.workload, self.shared = workload, ray.put(workload)

    def halved(self) -> Self:
        """The same for the actor that follows one that died, most often for want of memory: with smaller batches."""
        smaller = self.workload.smaller()
        return self if smaller is None else type(self)(self.workload.with_batches(smaller))


class ActorPool:
    """Up to ``settings.max_actors`` actors, started when first needed and kept until ``close``.

    ``say`` is told what is waited for; actors are named after the ``study``. Whichever pool of a process works, the
    others give their actors' places to it.
    """

    _all: ClassVar[WeakSet["ActorPool"]] = WeakSet()

    def __init__(
        self, settings: ActorSettings | None = None, say: Callable[[str], None] = log.warning, study: str = "raygeo"
    ):
        self.settings = settings or ActorSettings()
        self.study = study
        self.demand = self.settings.demand
        self.say = say
        self.idle: list[_Placed] = []
        self._all.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors and free what they hold."""
        for placed in self.idle:
            ray.kill(placed.actor)
        self.idle = []

    def fitting(self, without: Collection[str] = ()) -> int:
        """How many actors there may be at once on the cluster as it is, ``without`` some nodes."""
        fitting = count_fitting(self.demand, without)
        return min(fitting, self.settings.max_actors or fitting)

    def start(self, without: Collection[str] = ()) -> Any:
        """Ask Ray for one more actor."""
        actor: Any = _Actor
        where = {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(without))})"}} if without else {}
        name = f"{self.study}: actor {uuid4().hex[:6]}"
        actor = actor.options(**options(self.demand), **where, name=name)
        return actor.remote(max(1, int(self.settings.cpus)), self.study)

    def muster(self) -> None:
        """Keep those of the idle actors that answer: some may have gone with their nodes."""
        asked = {placed.actor.__ray_ready__.remote(): placed for placed in self.idle}
        self.idle = []
        if asked:
            ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_SECONDS)
        for answer, placed in asked.items():
            try:
                ray.get(answer, timeout=0)
                self.idle.append(placed)
            except RayError:
                ray.kill(placed.actor)

    def __call__(
        self, workload: Workload, store: Store, todo: list[Task], keep: Callable[[list[Outcome]], None], total: int
    ) -> None:
        """Run the tasks over the pool's actors; see ``run_workload``.

        Where the cluster holds several processes for each of all ``total`` tasks, the workload is told, and actors
        that have no task give their place to them.
        """
        check_fits(f"an actor for {workload.name}", self.demand)
        for other in self._all - {self}:
            other.close()
        self.muster()
        processes = self.fitting() // total
        if processes > 1 and workload.set_parallelism(processes):
            while len(self.idle) > len(todo):
                ray.kill(self.idle.pop().actor)
        Fanout(self, workload, store, todo, keep).run()


class _Asked(NamedTuple):
    """An actor that has been asked for, and how many had died before they began when it was."""

    actor: Any
    stillborn: int


class Fanout:
    """One workload's way over the actors of a pool."""

    def __init__(
        self,
        pool: ActorPool,
        workload: Workload,
        store: Store,
        todo: list[Task],
        keep: Callable[[list[Outcome]], None],
    ):
        self.pool, self.store, self.keep = pool, store, keep
        self.name, self.given = workload.name, _Given(workload)
        self.schedule = Schedule(todo)
        self.asked: dict[ray.ObjectRef, _Asked] = {}
        self.running: dict[ray.ObjectRef, tuple[_Placed, list[Task]]] = {}
        self.losses: dict[str, int] = {}
        self.blind: set[str] = set()
        self.stillborn = self.calls = 0
        self.waiting = Waiting(pool.demand)
        self.looked = float("-inf")

    def run(self) -> None:
        """Run all tasks."""
        with marked(self.store) as self.token:
            self._run()

    def _run(self) -> None:
        spent, handled = 0.0, 0
        woken = time.perf_counter()
        try:
            while self.schedule or self.running:
                self._look()
                for _ in range(_BETWEEN_LOOKS):
                    if self.schedule and self.pool.idle:
                        self._submit(self.pool.idle.pop())
                spent += time.perf_counter() - woken
                self.schedule.handling = spent / handled if handled else 0.0
                awaited = [*self.running, *self.asked]
                more = self.schedule and self.pool.idle  # whose calls are larger once it is known what tasks cost
                some, _ = ray.wait(awaited, timeout=0 if more else LOOK_SECONDS)
                woken = time.perf_counter()
                ended = ray.wait(awaited, num_returns=len(awaited), timeout=0)[0] if some else []
                for ready in ended:
                    if ready in self.asked:
                        self._arrive(ready)
                    else:
                        self._take_back(ready)
                handled += len(ended)
        finally:
            self._ask(0)
            for placed, _ in self.running.values():
                ray.kill(placed.actor)

    def _look(self) -> None:
        """Ask for as many actors as there are tasks for and the cluster holds now, and say what is waited for."""
        there = len(self.running) + len(self.pool.idle)
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self.looked = time.monotonic()
            most = self.pool.fitting(self.blind)
            if is_autoscaled():
                most = min(max(2 * most, _FIRST_ASKED), self.pool.settings.max_actors or sys.maxsize)
            self.most = max(1, most)
        self._ask(min(len(self.schedule) + len(self.running), self.most) - there)
        self.schedule.actors = max(1, there)
        if not self.asked or not self.schedule:
            self.waiting.over()
            return
        working = f"; {len(self.running)} at work" if self.running else ""
        if said := self.waiting.note(len(self.asked), working, self.blind):
            self.pool.say(f"  {self.name}: {said}")

    def _ask(self, count: int) -> None:
        """Have so many actors asked for: take back the requests made last, or make more."""
        while len(self.asked) > max(0, count):
            ray.kill(self.asked.popitem()[1].actor)
        while len(self.asked) < count:
            actor = self.pool.start(self.blind)
            self.asked[actor.place.remote(self.store.location, self.token)] = _Asked(actor, self.stillborn)

    def _submit(self, placed: _Placed) -> None:
        batch = self.schedule.take()
        self.calls += 1
        also = f" and {len(batch) - 1} more" if len(batch) > 1 else ""
        call = placed.actor.compute.options(name=f"{self.pool.study}: {self.name}: {batch[0].label}{also}")
        self.running[call.remote([self.given.shared], self.store, batch)] = (placed, batch)

    def _arrive(self, ready: ray.ObjectRef) -> None:
        """An actor that was asked for is there, or died before it was, or is of no use as it sees another store."""
        asked = self.asked.pop(ready)
        try:
            node, useful = ray.get(ready)
            self.stillborn = 0
            if useful:
                self.pool.idle.append(_Placed(asked.actor, node))
                return
            ray.kill(asked.actor)
            if node not in self.blind:
                self.blind.add(node)
                self.looked = float("-inf")
                self.pool.say(f"  {self.name}: {unseen(node, self.store)} Nothing is given to it.")
        except RayActorError as error:
            ray.kill(asked.actor)
            if asked.stillborn == self.stillborn:  # asked for since the last one that died so
                self.stillborn += 1
            if self.stillborn > MAX_LOSSES:
                raise WorkloadError(
                    f"{self.name}: {self.stillborn} actors after one another died before they had begun ({error}). See "
                    "that raygeo is installed on every node in this version, and that the nodes have memory left."
                ) from None

    def _take_back(self, ready: ray.ObjectRef) -> None:
        """A call has ended: with outcomes, with an error, or with its actor."""
        placed, batch = self.running.pop(ready)
        try:
            outcomes: list[Outcome] = ray.get(ready)
        except RayTaskError as error:
            ray.kill(placed.actor)
            if isinstance(error.cause, FullStoreError):
                raise error.cause from None
            cause = error.cause if isinstance(error.cause, RaygeoError) else error
            raise WorkloadError(f"{self.name} could not be set up on an actor: {cause}") from None
        except RayActorError as error:
            ray.kill(placed.actor)
            self._lose(placed, batch, error)
            return
        outcomes = self._kept(batch, outcomes)
        self.schedule.learn(batch, sum(outcome.seconds for outcome in outcomes))
        if self.schedule:
            self._submit(placed)
        else:
            self.pool.idle.append(placed)
        self.keep(outcomes)

    def _kept(self, batch: list[Task], outcomes: list[Outcome]) -> list[Outcome]:
        """The outcomes to keep: tasks that lost a process they had asked others of are tried again a few times."""
        again = []
        for task, outcome in zip(batch, outcomes, strict=True):
            if outcome.lost and self.losses.get(task.key, 0) < MAX_LOSSES:
                self.losses[task.key] = self.losses.get(task.key, 0) + 1
                self.pool.say(f"  {self.name}: {task.label} begins again: {outcome.error}")
                again.append(task)
        self.schedule.put_back(again)
        return [outcome for outcome in outcomes if outcome.key not in {task.key for task in again}]

    def _lose(self, placed: _Placed, batch: list[Task], error: RayActorError) -> None:
        """The tasks of a lost actor wait for the next that is idle; with smaller batches, unless its node has gone."""
        for task in batch:
            self.losses[task.key] = self.losses.get(task.key, 0) + 1
            if self.losses[task.key] > MAX_LOSSES:
                raise WorkloadError(
                    f"{self.name}: {task.label} was lost {MAX_LOSSES + 1} times with its actor ({error}). It probably "
                    "needs more memory: use fewer actors or a smaller batch."
                ) from None
        self.schedule.put_back(batch)
        if isinstance(error, ActorUnavailableError) or not _lives(placed.node):
            self.pool.say(f"  {self.name}: an actor was lost with its node; its {len(batch)} tasks go to others")
            return
        self.given = self.given.halved()
        sizes = f" with {listed(self.given.workload.batches)}" if self.given.workload.batches else ""
        log.warning("%s: an actor died; its %d tasks go to others%s", self.name, len(batch), sizes)


def _lives(node: str) -> bool:
    return any(known["NodeID"] == node and known["Alive"] for known in ray.nodes())
