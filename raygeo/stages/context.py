"""What every stage is given."""

from dataclasses import dataclass, field

from raygeo.cluster.fanout import ActorPool, FanoutResult, run_workload
from raygeo.config import Study
from raygeo.progress import Progress
from raygeo.settings import content_key
from raygeo.store import Store
from raygeo.workload import Workload


@dataclass
class Context:
    """The study, its store, the pool its workloads run on, and counts of the units of the stage that is running."""

    study: Study
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
        """Fan a workload out and publish all its tables, with what is assembled from the rows of all tasks."""
        keys = self.run(workload).keys
        assembled = workload.assemble({table: self.store.publish(table, keys) for table in workload.tables})
        if assembled:
            key = content_key(workload.name, "assembled", assembled)
            if key not in self.store.finished(assembled):
                self.store.write_unit(key, assembled)
            for table in assembled:
                self.store.publish(table, [*keys, key])
