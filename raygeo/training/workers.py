"""Ray Train workers that stay: one group trains one run after the other, and only the first pays for starting it.

A group is one Ray Train job. Its workers ask the trial's desk for the next run until there is none; when one of them is
lost, Ray Train starts the group again and the run goes on from its last checkpoint.
"""

import gc
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raygeo.errors import RaygeoError
from raygeo.store import Store
from raygeo.training.desk import Desk
from raygeo.training.inputs import RunInputs

_FINAL = (RaygeoError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError)


@dataclass(frozen=True)
class Shape:
    """How many workers a run has, and the resources of each."""

    workers: int
    cpus: float
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """Ray resources of one worker."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus > 0 else {})


Measure = Callable[[str, str], Mapping[str, float]]
"""Measures a finished run, given its content key and its name."""


@dataclass(frozen=True)
class Common:
    """What all runs share: what they read, where they write, and what is measured of those that finish, if anything."""

    inputs: RunInputs
    store: Store
    measure: Measure | None = None


class Workers:
    """A running group of workers of one shape."""

    def __init__(self, shape: Shape, common: Common, storage: str):
        self.shape = shape
        self.busy = False
        self.desk: Any = ray.remote(num_cpus=0)(Desk).remote()
        self.trainer = TorchTrainer(
            _serve,
            train_loop_config={"desk": self.desk, "common": common},
            scaling_config=ScalingConfig(
                num_workers=shape.workers, use_gpu=shape.gpus > 0, resources_per_worker=shape.resources
            ),
            run_config=RunConfig(
                name=f"workers-{uuid.uuid4().hex[:8]}",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=-1),  # the desk counts, run by run
            ),
        )
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether the group can take another run."""
        return self.thread.is_alive()

    def begin(self, job: dict[str, Any]) -> None:
        """Lay down the next run; one that is not over is given up."""
        self.give_up()
        ray.get(self.desk.submit.remote(job))
        self.busy = True

    def message(self) -> dict[str, Any]:
        """Wait for the desk's next message about the run; one of kind done or failed is the last."""
        message = ray.get(self.desk.message.remote())
        self.busy = message["kind"] not in ("done", "failed")
        return message

    def give_up(self) -> None:
        """Ask for the end of a run that is not over, at its next step."""
        if self.busy:
            self.desk.cancel.remote()
            self.busy = False

    def close(self) -> None:
        """Let the workers go, and wait until their resources are free."""
        self.give_up()
        self.desk.close.remote()
        self.thread.join()

    def _fit(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:
            self.desk.abort.remote(f"Ray Train gave up: {error}")


def _serve(config: dict[str, Any]) -> None:
    """Do jobs from the desk until there are none (on every worker; what training needs is imported here alone)."""
    import torch

    from raygeo.training.engine import rank, shared
    from raygeo.training.settings import RunSpec
    from raygeo.training.worker import Job, train

    desk, common = config["desk"], config["common"]
    group, number = shared(uuid.uuid4().hex), 0
    while (given := ray.get(desk.take.remote(group, number))) is not None:
        spec = RunSpec.model_validate_json(given["spec"])
        spec = spec.model_copy(
            update={"training": spec.training.model_copy(update={"micro_batch": given["micro_batch"]})}
        )
        cancelled = desk.until_cancelled.remote()
        try:
            summary = train(
                Job(spec, given["key"], common.inputs, common.store),
                lambda step, metrics: ray.get(desk.report.remote(step, metrics)),
                lambda: bool(ray.wait([cancelled], timeout=0)[0]),  # noqa: B023
            )
            _free_memory()
            if common.measure is not None and summary["status"] == "finished" and rank() == 0:
                summary["measured"] = dict(common.measure(given["key"], spec.name))
        except Exception as error:
            text = f"{type(error).__name__}: {error}".strip()
            memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
            final = isinstance(error, _FINAL)
            ray.get(desk.hit.remote(given["attempt"], text, out_of_memory=memory, final=final))
            raise
        if rank() == 0:
            ray.get(desk.done.remote(summary))
        number += 1


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
