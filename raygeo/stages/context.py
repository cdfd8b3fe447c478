"""What every stage is given."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from raygeo.cluster.fanout import ActorPool, FanoutResult, run_workload
from raygeo.config import Study
from raygeo.progress import Progress, StageTime
from raygeo.settings import content_key
from raygeo.store import Store
from raygeo.workload import Workload


@dataclass
class Workbench:
    """A store, the pool that workloads run on, and counts of the units of the stage that is running."""

    store: Store
    pool: ActorPool
    progress: Progress = field(default_factory=Progress)
    made: int = 0
    reused: int = 0

    def count(self, made: int, reused: int) -> None:
        """Count units of the running stage."""
        self.made += made
        self.reused += reused

    def run(self, workload: Workload) -> FanoutResult:
        """Fan a workload out, count its units, and publish nothing yet."""
        result = run_workload(workload, self.store, self.pool, self.progress)
        self.count(result.made, result.reused)
        return result

    def publish(self, workload: Workload) -> None:
        """Fan a workload out and publish all its tables, with what it concludes from them."""
        keys = self.run(workload).keys
        last = workload.conclude({table: self.store.publish(table, keys) for table in workload.tables})
        if last:
            key = content_key(workload.name, "conclusion", last)
            if key not in self.store.finished(workload.tables):
                self.store.write_unit(key, {table: last.get(table, []) for table in workload.tables})
            for table in last:
                self.store.publish(table, [*keys, key])


@dataclass
class Context(Workbench):
    """The workbench of a study."""

    study: Study = field(kw_only=True)


@contextmanager
def timed_stage(name: str, times: list[StageTime], progress: Progress, bench: Workbench | None) -> Iterator[None]:
    """Announce a stage, and note in ``times`` how long it took and what it counted on ``bench``."""
    if bench is not None:
        bench.made = bench.reused = 0
    progress.say(f"[bold]{name}[/bold]")
    started = time.perf_counter()
    yield
    made, reused = (bench.made, bench.reused) if bench is not None else (0, 0)
    times.append(StageTime(name, time.perf_counter() - started, made, reused))
