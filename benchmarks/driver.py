"""What the fan-out's driver takes for a call, with very many calls in flight: ``python -m benchmarks.driver``.

Real Ray and the real loop of ``ActorPool``; the actors are stand-ins, hundreds in one process, that sleep as long as
their tasks would take and store nothing. The measured cost is then put into the replay of as many actors.
"""

import asyncio
import time
from collections.abc import Collection
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import ray

from benchmarks.replay import Measured, replay
from raygeo.cluster.execution import Outcome
from raygeo.cluster.fanout import ActorPool, Fanout
from raygeo.cluster.session import connect
from raygeo.store import Store
from raygeo.tables import schema
from raygeo.workload import Task, Workload

PROCESSES = 2
TASK_SECONDS = 1 / 3


@ray.remote
class _Sleepers:
    """Many actors that sleep instead of computing."""

    async def place(self, store: str, token: str) -> tuple[str, bool]:
        return ray.get_runtime_context().get_node_id(), True

    async def compute(self, workload: list[Any], store: Store, tasks: list[Task]) -> list[Outcome]:
        await asyncio.sleep(len(tasks) * TASK_SECONDS)
        return [Outcome(task.key, None, TASK_SECONDS) for task in tasks]


class _Sleep(Workload):
    """Nothing but tasks."""

    name = "sleep"
    tables: ClassVar = {"sleep": schema("Nothing.", "value: int")}

    def __init__(self, count: int):
        self.count = count

    def tasks(self) -> list[Task]:
        """So many, all alike."""
        return [Task(self.key(number), 1.0, number, f"sleep {number}") for number in range(self.count)]

    def setup(self) -> None:
        """Nothing."""

    def compute(self, state: None, payload: int) -> dict[str, Any]:
        """Nothing."""
        return {"sleep": []}


class _Pool(ActorPool):
    """A pool of so many stand-ins."""

    def __init__(self, actors: int):
        super().__init__()
        self.actors, self.started = actors, 0
        sleepers: Any = _Sleepers
        options = {"num_cpus": 0, "max_concurrency": actors}
        self.processes: list[Any] = [sleepers.options(**options).remote() for _ in range(PROCESSES)]
        ray.get([process.__ray_ready__.remote() for process in self.processes])

    def fitting(self, without: Collection[str] = ()) -> int:
        """As many as wanted."""
        return self.actors

    def start(self, without: Collection[str] = ()) -> Any:
        """The next of the processes stands in for one more."""
        self.started += 1
        return self.processes[self.started % PROCESSES]


def measure(actors: int, tasks_an_actor: int) -> dict[str, float]:
    """Run tasks over stand-ins for ``actors`` actors: seconds of wall time, its bound, calls, driver seconds a call."""
    connect(cpus=PROCESSES)
    pool, workload = _Pool(actors), _Sleep(actors * tasks_an_actor)
    with TemporaryDirectory() as folder:
        fanout = Fanout(pool, workload, Store(folder), workload.tasks(), lambda outcomes: None)
        began, busy = time.perf_counter(), time.thread_time()
        fanout.run()
        wall, busy = time.perf_counter() - began, time.thread_time() - busy
    bound = tasks_an_actor * TASK_SECONDS
    handling = busy / fanout.calls
    found = replay([Measured(1.0, TASK_SECONDS)] * (actors * tasks_an_actor), actors, driver_seconds=handling)
    return {
        "actors": actors, "tasks": actors * tasks_an_actor, "calls": fanout.calls, "wall": wall, "bound": bound,
        "driver_seconds": handling, "replayed": found.makespan, "ratio": found.makespan / found.bound,
    }  # fmt: skip


def main() -> None:
    """Print what was measured."""
    for actors in (10, 100, 1000):
        print({name: round(value, 5) for name, value in measure(actors, 20).items()})


if __name__ == "__main__":
    main()
