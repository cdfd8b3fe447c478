"""One run on one worker: data, engine, loop, and what is kept of it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from raygeo.store import Store
from raygeo.training.checkpoints import Checkpoints
from raygeo.training.data import open_data
from raygeo.training.engine import build_engine, rank
from raygeo.training.export import keep_delta
from raygeo.training.inputs import RunInputs
from raygeo.training.loop import Hooks, Progress, optimise
from raygeo.training.settings import RunSpec

SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class Job:
    """One run to be trained: its specification, its content key, and where it reads and writes."""

    spec: RunSpec
    key: str
    inputs: RunInputs
    store: Store


def train(
    job: Job, report: Callable[[int, dict[str, float]], None], stopped: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Train one run from where its last checkpoint left it, and return its summary, equal on all ranks.

    Every rank asks ``stopped()`` before each step; rank 0 calls ``report(step, metrics)``, exports the delta and stores
    the run's rows, so that a finished run survives the driver. A run whose loss stops being finite ends with status
    "diverged", one that was told to stop with "stopped", each with a reason; nothing is exported for them.
    """
    spec, store, inputs = job.spec, job.store, job.inputs
    started = time.perf_counter()
    torch.set_num_threads(max(1, int(spec.training.cpus)))
    data = open_data(spec.loss, store, inputs)
    engine, fingerprint = build_engine(spec, len(data.examples), inputs.student)
    checkpoints = Checkpoints(store, job.key)
    state = checkpoints.resume(engine)
    progress = Progress(**state["progress"]) if state else Progress()
    earlier = state["seconds"] if state else 0.0

    def seconds() -> float:
        return earlier + time.perf_counter() - started

    def keep(step: int, last: bool) -> str | None:
        kind, key = ("deltas", job.key) if last else (SNAPSHOTS, f"{job.key}/step-{step:06d}")
        return keep_delta(engine, inputs.student, store, kind, key, moved=last)

    optimise(
        engine,
        spec,
        data,
        progress,
        Hooks(
            report=report if rank() == 0 else lambda step, metrics: None,
            checkpoint=lambda p: checkpoints.save(engine, p.step, {"progress": p.state(), "seconds": seconds()}),
            keep=keep,
            stopped=stopped,
        ),
    )
    summary = {
        "run": spec.name,
        "loss": spec.loss.type,
        "lr": spec.training.lr,
        "seed": spec.training.seed,
        "init_seed": spec.training.init_seed,
        "student": inputs.student_key,
        "status": progress.status,
        "reason": progress.reason,
        "steps": progress.step,
        "tokens": progress.tokens,
        "examples": len(data.examples),
        "params": json.dumps({"loss": spec.loss.model_dump(), "training": spec.training.model_dump()} | fingerprint),
        "delta": store.path("deltas", job.key) if progress.status == "finished" else None,
        "key": job.key,
        "seconds": seconds(),
    }
    if rank() == 0:
        if store.folders(SNAPSHOTS, job.key):
            store.complete_folder(SNAPSHOTS, job.key)
        curves = [{"run": spec.name, **row} for row in progress.curves]
        store.write_unit(job.key, {"curves": curves, "runs": [summary]})
        checkpoints.clear()
    engine.destroy()
    return summary
