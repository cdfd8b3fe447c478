"""What every stage is given."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
from rich.markup import escape

from raygeo.cluster.execution import FanoutResult, run_workload, unit_tables, until_failure
from raygeo.cluster.settings import ActorSettings
from raygeo.errors import FullStoreError, RaygeoError, WorkloadError
from raygeo.logs import detail
from raygeo.paths import without_credentials
from raygeo.pipeline.budget.rates import Rate, keep_rate
from raygeo.pipeline.config import Study
from raygeo.pipeline.missing import note_missing
from raygeo.progress import Progress, StageTime
from raygeo.store import Store
from raygeo.workload import Workload

if TYPE_CHECKING:
    from raygeo.cluster.fanout import ActorPool


@dataclass
class StageContext:
    """A store, the pool that workloads run on, and counts of the units of the stage that is running."""

    store: Store
    pool: ActorPool
    progress: Progress = field(default_factory=Progress)
    made: int = 0
    reused: int = 0
    stage: str = ""
    """The stage that is running."""
    missing: dict[str, Exception] = field(default_factory=dict)
    """What failed and was left out, and why: the study continues to its page without it."""

    def leave_out(self, what: str, error: Exception) -> None:
        """Note, in the store too, and say that ``what`` is missing because of ``error``.

        Raises:
            StoreError: the store cannot be written.
        """
        self.missing[what] = error
        detail.debug("%s failed", what, exc_info=error)
        note_missing(self.store, self.stage, what, reason(error))
        self.progress.say(f"  [red]{escape(what)} failed[/red]: {escape(reason(error))}")

    @contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """Leave ``what`` out if it fails, unless nothing can be written any more.

        Raises:
            FullStoreError: the store's disk is full.
        """
        try:
            yield
        except FullStoreError:
            raise
        except Exception as error:
            self.leave_out(what, error)

    def check_whole(self) -> None:
        """See that nothing was left out.

        Raises:
            RaygeoError: something was; each part and its reason.
        """
        if not self.missing:
            return
        parts = "\n".join(f"- {what}: {reason(error)}" for what, error in self.missing.items())
        first = next(iter(self.missing.values()))
        kind = type(first) if isinstance(first, RaygeoError) else WorkloadError
        raise kind(
            f"{len(self.missing)} parts failed; everything else is in {self.store.location}. Fix the cause and run the "
            f"same command again: it makes what is missing.\n{parts}"
        )

    def count(self, made: int, reused: int) -> None:
        """Count units of the running stage."""
        self.made += made
        self.reused += reused

    def run(self, workload: Workload) -> FanoutResult:
        """Fan a workload out, count its units, and publish nothing yet."""
        result = run_workload(workload, self.store, self.pool, self.progress)
        on_gpus = getattr(self.pool, "settings", ActorSettings()).gpus > 0  # an executor in this process has none
        keep_rate(self.store, workload.name, Rate(result.made, result.busy_seconds, on_gpus))
        self.count(result.made, result.reused)
        return result

    def run_here(self, workload: Workload) -> FanoutResult:
        """Run a workload in this process, task by task, up to the first that fails; for work that waits on others."""
        result = run_workload(workload, self.store, until_failure, self.progress)
        self.count(result.made, result.reused)
        return result

    def publish(self, *workloads: Workload) -> None:
        """Fan the workloads of one analysis out and publish all their tables, with what they aggregate from them.

        If one fails, the rows of the finished tasks of all are published, and nothing is aggregated.
        """
        try:
            keys = {workload: self.run(workload).keys for workload in workloads}
        except FullStoreError:
            raise
        except Exception:
            self.publish_finished(*workloads)
            raise
        tables = self._publish(keys)
        totals = {workload: rows for workload in workloads if (rows := workload.aggregate(tables))}
        for workload, rows in totals.items():
            key = workload.key("aggregate", rows)
            if key not in self.store.finished(workload.tables):
                self.store.write_unit(key, unit_tables(workload, rows))
            keys[workload] = [*keys[workload], key]
        if totals:
            self._publish(keys)

    def publish_finished(self, *workloads: Workload) -> None:
        """Publish what the store has of the workloads' tasks: nothing of one whose tasks cannot even be listed."""
        keys: dict[Workload, list[str]] = {workload: [] for workload in workloads}
        for workload in workloads:
            with suppress(Exception):
                finished = self.store.finished(workload.tables)
                keys[workload] = list(dict.fromkeys(task.key for task in workload.tasks() if task.key in finished))
        self._publish(keys)

    def _publish(self, keys: Mapping[Workload, Sequence[str]]) -> dict[str, pa.Table]:
        """Publish every table of some workloads, made of those units of each that have rows for it."""
        schemas = {name: columns for workload in keys for name, columns in workload.tables.items()}
        published = {}
        for name, columns in schemas.items():
            makers = [workload for workload in keys if name in workload.tables]
            units = [key for workload in makers for key in keys[workload]]
            revisions = {name: number for workload in makers for name, number in workload.revisions.items()}
            published[name] = self.store.publish(name, units, columns, revisions)
        return published


def reason(error: Exception) -> str:
    """An error as the user reads it, without credentials: raygeo's own as they are, others with the end of their
    traceback.
    """
    own = isinstance(error, RaygeoError)
    return without_credentials(str(error) if own else "".join(traceback.format_exception(error, limit=-3))).strip()


@dataclass
class StudyContext(StageContext):
    """What the stages of a study are given."""

    study: Study = field(kw_only=True)


@contextmanager
def timed_stage(name: str, times: list[StageTime], progress: Progress, context: StageContext | None) -> Iterator[None]:
    """Announce a stage, and note in ``times`` how long it took and what it counted on ``context``."""
    if context is not None:
        context.stage, context.made, context.reused = name, 0, 0
    progress.say(f"[bold]{name}[/bold]")
    started = time.perf_counter()
    yield
    made, reused = (context.made, context.reused) if context is not None else (0, 0)
    times.append(StageTime(name, time.perf_counter() - started, made, reused))
