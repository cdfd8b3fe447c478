"""Ray Train workers that stay: one group trains one run after the other, and only the first pays for starting it.

A group is one Ray Train job. Its workers ask the trial's coordinator for the next run until there is none; when one of
them is lost, Ray Train starts the group again and the run resumes from its last checkpoint.
"""

import gc
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raygeo.records import FINISHED
from raygeo.store import Store
from raygeo.training.coordinator import Coordinator
from raygeo.training.inputs import RunInputs


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


class Coordinators:
    """The coordinators of one sweep, which can be found by their names from every process of it."""

    def __init__(self) -> None:
        self.prefix = f"coordinator-{uuid.uuid4().hex[:8]}-"

    def start(self) -> Any:
        """Start one; it ends with the process that asked for it."""
        return ray.remote(num_cpus=0)(Coordinator).options(name=self.prefix + uuid.uuid4().hex[:8]).remote()

    def stop(self, key: str) -> None:
        """Stop the run with this key for good; once this returns, no other command can come before."""
        ray.get([coordinator.stop.remote(key) for coordinator in self._all()])

    def interrupt(self) -> None:
        """Interrupt all runs."""
        for coordinator in self._all():
            coordinator.interrupt.remote()

    def _all(self) -> list[Any]:
        found = []
        for name in ray.util.list_named_actors():
            if name.startswith(self.prefix):
                with suppress(ValueError):  # it has ended just now
                    found.append(ray.get_actor(name))
        return found


Measure = Callable[[str, str], Mapping[str, float]]
"""Measures a finished run, given its content key and its name."""


@dataclass(frozen=True)
class Common:
    """What all runs share: what they read, where they write, their coordinators, and what is measured of those that
    finish, if anything: a pickled ``Measure``, because whoever unpickles it imports the analyses.
    """

    inputs: RunInputs
    store: Store
    coordinators: Coordinators
    measure: bytes | None = None


class Workers:
    """A running group of workers of one shape."""

    def __init__(self, shape: Shape, common: Common, storage: str):
        self.shape = shape
        self.busy = False
        self.coordinator: Any = common.coordinators.start()
        self.trainer = TorchTrainer(
            _serve,
            train_loop_config={"coordinator": self.coordinator, "common": common},
            scaling_config=ScalingConfig(
                num_workers=shape.workers, use_gpu=shape.gpus > 0, resources_per_worker=shape.resources
            ),
            run_config=RunConfig(
                name=f"workers-{uuid.uuid4().hex[:8]}",
                storage_path=storage,
                failure_config=FailureConfig(max_failures=-1),  # the coordinator counts, run by run
            ),
        )
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether the group can take another run."""
        return self.thread.is_alive()

    def begin(self, job: dict[str, Any]) -> None:
        """Submit the next run; one that has not ended is interrupted."""
        self.interrupt()
        ray.get(self.coordinator.submit.remote(job))
        self.busy = True

    def message(self) -> dict[str, Any]:
        """Wait for the coordinator's next message about the run; one of kind done or failed is the last."""
        message = ray.get(self.coordinator.message.remote())
        self.busy = message["kind"] not in ("done", "failed")
        return message

    def interrupt(self) -> None:
        """Let a run that has not ended write a checkpoint and end at its next step.

        One that the scheduler has stopped ends as stopped: that command came before.
        """
        if self.busy:
            self.coordinator.interrupt.remote()
            self.busy = False

    def close(self) -> None:
        """Let the workers go, and wait until their resources are free."""
        self.interrupt()
        self.coordinator.close.remote()
        self.thread.join()

    def _fit(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:
            self.coordinator.abort.remote(f"Ray Train gave up: {error}")


def _serve(config: dict[str, Any]) -> None:
    """Do the coordinator's jobs until there are none (on every worker; what training needs is imported here alone)."""
    from raygeo.training.base import ResidentBase
    from raygeo.training.engine import broadcast, rank
    from raygeo.training.failures import diagnose
    from raygeo.training.settings import RunSpec
    from raygeo.training.worker import Job, train

    coordinator, common = config["coordinator"], config["common"]
    base = ResidentBase()
    group, number = broadcast(uuid.uuid4().hex), 0
    while (given := ray.get(coordinator.take.remote(group, number))) is not None:
        spec = RunSpec.model_validate_json(given["spec"])
        spec = spec.model_copy(update={"training": spec.training.halved(given["micro_batch_size"])})
        command = coordinator.wait_for_command.remote()
        try:
            with common.store.writing():
                record = train(
                    Job(spec, given["key"], common.inputs, common.store),
                    lambda step, metrics: ray.get(coordinator.report.remote(step, metrics)),
                    lambda: ray.get(command) if ray.wait([command], timeout=0)[0] else None,  # noqa: B023
                    base,
                )
            measured = common.measure is not None and record.status == FINISHED and rank() == 0
            if measured:
                base.drop()  # what measures loads a student of its own
            _free_memory()
            result: dict[str, Any] = {"status": record.status, "reason": record.reason, "steps": record.steps}
            if measured:
                measure: Measure = ray.cloudpickle.loads(common.measure)
                result["measured"] = dict(measure(record.key, record.run))
        except Exception as error:
            ray.get(coordinator.failed.remote(given["attempt"], diagnose(error)))
            raise
        if rank() == 0:
            ray.get(coordinator.done.remote(result))
        number += 1


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
