"""One run on one worker: data, engine, loop, and what is kept of it."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from raygeo.paths import without_credentials
from raygeo.records import FINISHED, RunRecord
from raygeo.store import Store
from raygeo.training.base import ResidentBase
from raygeo.training.checkpoints import Checkpoints
from raygeo.training.data import open_data
from raygeo.training.engine import build_engine, rank
from raygeo.training.export import keep_delta
from raygeo.training.inputs import RunInputs
from raygeo.training.loop import Command, Hooks, TrainingState, optimise
from raygeo.training.settings import RunSpec

DELTAS = "deltas"
SNAPSHOTS = "snapshots"
TABLES = ("runs", "training_curves")
"""The tables of a run's unit, which it has once it has ended for good."""


@dataclass(frozen=True)
class Job:
    """One run to be trained: its specification, its content key, and where it reads and writes."""

    spec: RunSpec
    key: str
    inputs: RunInputs
    store: Store


def run_record(spec: RunSpec, key: str, status: str, **known: Any) -> RunRecord:
    """The record of a run by its settings, and whatever else of it is ``known`` (``RunRecord``)."""
    loss, training = (settings.model_dump(mode="json") for settings in (spec.loss, spec.training))
    return RunRecord(spec.name, key, status, loss, training, **known)


def now() -> str:
    """The time, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def delta_folder(store: Store, key: str) -> str:
    """Path or URI of the folder in which a run's delta is kept, as it may be shown."""
    return without_credentials(store.uri(DELTAS, key))


def finished_before(job: Job) -> RunRecord | None:
    """The record of the run if an earlier attempt at it has finished: what came behind it was lost."""
    store, key = job.store, job.key
    if not store.has_folder(DELTAS, key) or key not in store.finished(TABLES):
        return None
    record = RunRecord.of(store.read_unit("runs", key).to_pylist()[0])
    return record if record.status == FINISHED else None


def train(
    job: Job,
    report: Callable[[int, dict[str, float]], None],
    command: Callable[[], Command | None] = lambda: None,
    base: ResidentBase | None = None,
) -> RunRecord:
    """Train one run from where its last checkpoint left it, and return its record, on all ranks the same but for times.

    Every rank asks ``command()`` before each step; rank 0 calls ``report(step, metrics)``, exports the delta and stores
    the run's record and curves, so that a finished run survives the driver. A run whose loss stops being finite ends
    with status "diverged", one that was stopped with "stopped", each with a reason; nothing is exported for them.
    One that was interrupted leaves its checkpoint and nothing else. ``base`` is what the worker keeps loaded.
    """
    spec, store, inputs = job.spec, job.store, job.inputs
    started, began = time.perf_counter(), now()
    torch.set_num_threads(max(1, int(spec.training.cpus)))
    data = open_data(spec.loss, store, inputs, spec.needs)
    engine, adapter_init = build_engine(spec, len(data.examples), inputs.student, base)
    checkpoints = Checkpoints(store, job.key)
    resumed = checkpoints.resume(engine)
    state = TrainingState(**resumed["state"]) if resumed else TrainingState()
    earlier, began = (resumed["seconds"], resumed.get("began", began)) if resumed else (0.0, began)

    def seconds() -> float:
        return earlier + time.perf_counter() - started

    def keep(step: int, last: bool) -> str | None:
        kind, key = (DELTAS, job.key) if last else (SNAPSHOTS, f"{job.key}/step-{step:06d}")
        return keep_delta(engine, inputs.student, store, kind, key, moved=last)

    optimise(
        engine,
        spec,
        data,
        state,
        Hooks(
            report=report if rank() == 0 else lambda step, metrics: None,
            checkpoint=lambda s: checkpoints.save(
                engine, s.step, {"state": asdict(s), "seconds": seconds(), "began": began}
            ),
            keep=keep,
            command=command,
        ),
    )
    record = run_record(
        spec,
        job.key,
        state.status,
        reason=state.reason or None,
        steps=state.step,
        examples=len(data.examples),
        tokens=state.tokens,
        seconds=seconds(),
        started=began,
        ended=now(),
        delta=delta_folder(store, job.key) if state.status == FINISHED else None,
        student=inputs.student_key,
        adapter_init=adapter_init,
    )
    if rank() == 0 and record.status != "interrupted":
        if store.folders(f"{SNAPSHOTS}/{job.key}"):
            store.complete_folder(SNAPSHOTS, job.key)
        curves = [{"run": spec.name, **row} for row in state.curves]
        store.write_unit(job.key, {"training_curves": curves, "runs": [record.row()]})
        checkpoints.clear()
    student = engine.module.student
    engine.destroy()
    if base is not None:
        del engine
        base.release(student)
    return record
