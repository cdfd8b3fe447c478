"""What can be spread over a cluster: a workload is a list of tasks, a state built once, and a pure computation.

Workloads are ordinary picklable objects that know nothing of Ray. ``raygeo.cluster.fanout`` runs them over actors;
tests and small jobs run the very same object in-process.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One unit of work and of resumption.

    ``key`` is the unit's content key (settings and inputs). ``cost`` is an estimate in any unit that is constant within
    the workload (say, tokens times passes). ``payload`` is what ``compute`` receives; ``label`` is shown to the user.
    """

    key: str
    cost: float
    payload: Any
    label: str


class Workload(ABC):
    """A computation whose tasks are independent of each other and deterministic.

    ``name`` is shown in progress bars. ``tables`` names every table the rows of a task go to (see ``raygeo.tables``).
    """

    name: ClassVar[str]
    tables: ClassVar[tuple[str, ...]]

    @abstractmethod
    def tasks(self) -> list[Task]:
        """List the tasks; equal settings and inputs give equal keys."""

    @abstractmethod
    def setup(self) -> Any:
        """Build what every task needs (the resident base model, say); called once per actor."""

    @abstractmethod
    def compute(self, state: Any, payload: Any) -> dict[str, Rows]:
        """Compute one task: rows for each table in ``tables``. Leaves ``state`` as it found it."""

    def widen(self, processes: int) -> bool:
        """Hear that so many processes fit for every task, and say whether ``compute`` will use them; it does not here.

        Called before the tasks run, with a number that depends on the cluster and on all tasks, done or not, so that a
        workload that is taken up again divides its tasks as before.
        """
        return False

    def settle(self, task: Task) -> None:
        """Drop what ``compute`` kept to go on from after an interruption; called once the rows are stored."""
        return None

    def conclude(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Rows that need the rows of all tasks, which are ``tables``: totals, say. By default there are none.

        It is called where the workload was started, each time it has run, so it must cost little.
        """
        return {}
