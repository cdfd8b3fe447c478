"""What can be spread over a cluster: a workload is a list of tasks, a state built once, and a pure computation.

Workloads are ordinary picklable objects that know nothing of Ray. ``raygeo.cluster`` runs them over actors;
tests and small jobs run the very same object in-process.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

import pyarrow as pa

from raygeo.settings import unit_key

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One unit of work and of resumption.

    ``key`` is the unit's content key (settings, inputs and revision). ``cost`` is an estimate in any unit that is
    constant within the workload (say, tokens times passes). ``payload`` is what ``compute`` receives; ``label`` is
    shown to the user.
    """

    key: str
    cost: float
    payload: Any
    label: str


class Workload(ABC):
    """A computation whose tasks are independent of each other and deterministic.

    ``name`` is shown in progress bars and begins every key. ``tables`` holds the schema of every table that the rows of
    a task go to. ``revision`` counts the ways these numbers have been computed: whoever changes a number raises it, and
    stores make the units of an earlier one anew. ``uses`` holds, by name, the revisions of other code that its keys
    depend on. ``batch_settings`` names those of its ``settings`` that say how much is held in memory at once, with no
    effect on the numbers beyond rounding: they are halved where memory runs out.
    """

    name: ClassVar[str]
    tables: ClassVar[Mapping[str, pa.Schema]]
    revision: ClassVar[int] = 1
    uses: Mapping[str, int] = MappingProxyType({})
    batch_settings: ClassVar[tuple[str, ...]] = ()
    settings: Any = None
    base: Any = None
    """The folder of the student that its tasks hold, if they hold one."""

    @abstractmethod
    def tasks(self) -> list[Task]:
        """List the tasks; equal settings and inputs give equal keys (``key``)."""

    @abstractmethod
    def setup(self) -> Any:
        """Build what every task needs (the resident base model, say); called once per actor."""

    @abstractmethod
    def compute(self, state: Any, payload: Any) -> Mapping[str, Rows | pa.Table]:
        """Compute one task: rows for each table in ``tables``, as an Arrow table where they are very many.

        Leaves ``state`` as it found it.
        """

    @property
    def revisions(self) -> dict[str, int]:
        """Its own revision and those of what it uses, by name."""
        return {self.name: self.revision, **self.uses}

    def key(self, *parts: Any) -> str:
        """The content key of a task made of ``parts``: its settings, and the keys of its inputs."""
        return unit_key((self.revision, *self.uses.values()), self.name, *parts)

    def set_parallelism(self, processes: int) -> bool:
        """Hear that so many processes fit for every task, and say whether ``compute`` will use them; it does not here.

        Called before the tasks run, with a number that depends on the cluster and on all tasks, done or not, so that a
        workload that is taken up again divides its tasks as before.
        """
        return False

    @property
    def batches(self) -> dict[str, int]:
        """The settings that are made smaller where memory runs out, and what they are."""
        return {name: getattr(self.settings, name) for name in self.batch_settings}

    def smaller(self) -> dict[str, int] | None:
        """The batches to try where memory ran out; None where they are as small as they can be."""
        halved = {name: max(1, size // 2) for name, size in self.batches.items()}
        return halved if halved != self.batches else None

    def with_batches(self, batches: Mapping[str, int]) -> Self:
        """The same workload, with the same keys, where those settings are what ``batches`` says."""
        other = copy(self)
        other.settings = self.settings.model_copy(update=dict(batches))
        return other

    def on_stored(self, task: Task) -> None:
        """Drop what ``compute`` kept to resume from after an interruption; called once the rows are stored."""
        return None

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Rows that need the rows of all tasks: totals, say. By default there are none.

        ``tables`` are those of the analysis, with the rows of all its workloads' tasks. Called where the workload was
        started, each time it has run, so it must cost little.
        """
        return {}
