"""Run what the store lacks of a workload and keep what its tasks give; an executor says where they run.

Rows are stored where they are computed, and a unit in the store is never computed again. ``in_process`` is the executor
that needs nothing else; ``fanout.ActorPool`` is Ray's.
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from raygeo.cluster.fitting import Fitting, listed
from raygeo.errors import FullStoreError, LostProcessError, RaygeoError, WorkloadError
from raygeo.logs import about, detail
from raygeo.memory import free_memory, lacks_memory
from raygeo.progress import Progress
from raygeo.store import Store, is_full, outdated_units
from raygeo.tables import to_arrow
from raygeo.workload import Rows, Task, Workload

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """That the rows of a task are stored, or the text of its ``error``, and the seconds it took.

    ``full`` says that a disk was full, which the next task would find too; ``lost`` that another process was lost, and
    the task may be tried again; ``shrunk`` holds the workload's batch settings where they had to be made smaller for
    this task or an earlier one of its process.
    """

    key: str
    error: str | None
    seconds: float
    full: bool = False
    lost: bool = False
    shrunk: Mapping[str, int] = field(default_factory=dict)


@dataclass
class FanoutResult:
    """All keys in task order, how many were computed now and how many found in the store, and the busy seconds."""

    keys: list[str]
    made: int = 0
    reused: int = 0
    busy_seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)


Executor = Callable[[Workload, Store, list[Task], Callable[[list[Outcome]], None], int], None]
"""Runs a workload's tasks that are to do, stores their rows, says so, and knows how many tasks there are in all."""


class Worker:
    """A workload with the state that its tasks need, in this process."""

    def __init__(self, workload: Workload):
        self.workload, self.asked = workload, workload.batches
        self.state = workload.setup()
        self.is_set_up = True
        self.hopeless = False

    def compute(self, tasks: list[Task], store: Store) -> list[Outcome]:
        """Run ``tasks`` one after the other and store their rows together; an error in one does not touch the others.

        Where memory runs out, the workload's batches are made smaller for this task and all that follow; not for these
        where the task does not fit whatever its batches.
        """
        units: dict[str, dict[str, pa.Table]] = {}
        outcomes = []
        for task in tasks:
            with about(self.workload.name, task.label):
                outcomes.append(self._outcome(task, units))
        try:
            store.write_units(units)
        except Exception as problem:
            error, full = _said(problem), is_full(problem)
            return [replace(one, error=error, full=full) if one.error is None else one for one in outcomes]
        for task in tasks:
            if task.key in units:
                try:
                    self.workload.on_stored(task)
                except Exception as problem:  # the rows are stored, which is what counts
                    log.warning("%s: %s left something behind: %s", self.workload.name, task.label, _said(problem))
        return outcomes

    def _outcome(self, task: Task, units: dict[str, dict[str, pa.Table]]) -> Outcome:
        """Put the rows of a task among the ``units``."""
        started, before = time.perf_counter(), self.workload
        while True:
            error, full, lost, lacking = None, False, False, False
            try:
                if not self.is_set_up:
                    self.state, self.is_set_up = self.workload.setup(), True
                units[task.key] = unit_tables(self.workload, self.workload.compute(self.state, task.payload))
            except Exception as problem:
                error, full, lacking = _said(problem), is_full(problem), lacks_memory(problem)
                lost = isinstance(problem, LostProcessError)
            if lacking:
                if self._shrink():
                    continue
                least = f", even with {listed(self.workload.batches)}" if self.asked else ""
                error = f"there is not enough memory{least}: {error}"
                self.hopeless = self.workload is not before
            if error is not None and self.workload is not before:
                self._become(before)
            shrunk = self.workload.batches if self.workload.batches != self.asked else {}
            return Outcome(task.key, error, time.perf_counter() - started, full, lost, shrunk)

    def _shrink(self) -> bool:
        """Take smaller batches, or the smallest once a task did not fit into any; False where they are the smallest."""
        smaller = self.workload.smaller()
        if smaller is None:
            return False
        self._become(self.workload.with_batches(smaller))
        while self.hopeless and (smaller := self.workload.smaller()) is not None:
            self._become(self.workload.with_batches(smaller))
        return True

    def _become(self, workload: Workload) -> None:
        """Do the next task as another workload, with a state of its own."""
        self.state, self.is_set_up = None, False
        free_memory()
        self.workload = workload


def _said(problem: Exception) -> str:
    return str(problem) if isinstance(problem, RaygeoError) else traceback.format_exc(limit=-6)


def in_process(
    workload: Workload, store: Store, todo: list[Task], keep: Callable[[list[Outcome]], None], total: int
) -> None:
    """Run the tasks here, one after the other, without Ray."""
    worker = Worker(workload)
    for task in todo:
        keep(worker.compute([task], store))


def until_failure(
    workload: Workload, store: Store, todo: list[Task], keep: Callable[[list[Outcome]], None], total: int
) -> None:
    """Run the tasks here, one after the other, up to the first that fails, which the others would too.

    Raises:
        WorkloadError: one failed; its error.
    """
    worker = Worker(workload)
    for task in todo:
        [outcome] = worker.compute([task], store)
        if outcome.error and not outcome.full:
            raise WorkloadError(f"{task.label}: {outcome.error.strip()}")
        keep([outcome])


def run_workload(
    workload: Workload, store: Store, execute: Executor = in_process, progress: Progress | None = None
) -> FanoutResult:
    """Compute every task of ``workload`` that the store lacks and write its rows as units of the workload's tables.

    ``execute`` is where the tasks run: ``in_process``, or an ``ActorPool``.

    Raises:
        WorkloadError: tasks failed (all others are finished and stored), or actors died too often.
        FullStoreError: a disk is full.
        ClusterError: the cluster can hold no actor of the asked size.
    """
    tasks = list({task.key: task for task in workload.tasks()}.values())
    finished = store.finished(workload.tables)
    todo = [t for t in tasks if t.key not in finished]
    progress = progress or Progress()
    if outdated := outdated_units(finished, (t.key for t in todo)):
        progress.say(f"  {workload.name}: {outdated}")
    store.refer(workload.tables, [t.key for t in tasks])
    result = FanoutResult([t.key for t in tasks], reused=len(tasks) - len(todo))
    detail.debug("%s: %d tasks, %d of them in the store", workload.name, len(tasks), result.reused)
    if not todo:
        return result
    fitting = Fitting(store, workload)
    if before := fitting.known():
        workload = workload.with_batches(before)
        progress.say(f"  {workload.name}: {listed(before)}, for which memory sufficed before")
    tasks_by_key = {t.key: t for t in todo}
    with progress.bar(workload.name, len(todo)) as bar:

        def keep(outcomes: list[Outcome]) -> None:
            for outcome in outcomes:
                result.busy_seconds += outcome.seconds
                if fitting.learn(outcome.shrunk):
                    progress.say(f"  {workload.name}: memory ran out; continues with {listed(outcome.shrunk)}")
                if outcome.full:
                    why = (outcome.error or "").strip()
                    raise FullStoreError(f"{tasks_by_key[outcome.key].label}: a disk is full. {why}")
                label, ended = tasks_by_key[outcome.key].label, "done" if outcome.error is None else "failed"
                detail.debug("%s: %s %s in %.1f s", workload.name, label, ended, outcome.seconds)
                if outcome.error is not None:
                    result.failures[outcome.key] = outcome.error
                else:
                    result.made += 1
                bar.advance(note=label)

        execute(workload, store, todo, keep, len(tasks))
    if result.failures:
        (first, whole), *others = list(result.failures.items())[:5]
        shown = {first: whole.strip()} | {key: (error.strip() or "no reason").splitlines()[-1] for key, error in others}
        named = "\n".join(f"- {tasks_by_key[key].label}: {error}" for key, error in shown.items())
        raise WorkloadError(
            f"{workload.name}: {len(result.failures)} of {len(todo)} tasks failed; the others are in the store. "
            f"Fix the cause and run the same command again.\n{named}"
        )
    return result


def unit_tables(workload: Workload, rows: Mapping[str, Rows | pa.Table]) -> dict[str, pa.Table]:
    """The rows of a unit as Arrow, one table for each of the workload's."""
    tables = {}
    for name, columns in workload.tables.items():
        found = rows.get(name, [])
        tables[name] = found if isinstance(found, pa.Table) else to_arrow(name, found, columns)
    return tables
