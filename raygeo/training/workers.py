"""Ray Train workers that stay: one group trains one run after the other, and only the first pays for starting it.

A group is one Ray Train job. Its workers ask the trial's coordinator for the next run until there is none; when one of
them is lost, Ray Train starts the group again and the run resumes from its last checkpoint.
"""

import gc
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from raygeo.cluster.placement import beside_me
from raygeo.cluster.settings import demand
from raygeo.cluster.waiting import Waiting
from raygeo.logs import about, name_lines
from raygeo.records import FINISHED
from raygeo.store import Store
from raygeo.training.coordinator import Coordinator
from raygeo.training.inputs import RunInputs
from raygeo.training.rendezvous import meeting

LOOK_SECONDS = 2.0
"""How often a trial that hears nothing looks whether its run waits for workers."""
_LONGEST = 500


@dataclass(frozen=True)
class Shape:
    """How many workers a run has, and the resources of each."""

    workers: int
    cpus: float
    gpus: float
    gpu_type: str | None = None

    @property
    def resources(self) -> dict[str, float]:
        """Ray resources of one worker."""
        return demand(self.cpus, self.gpus, self.gpu_type)


class Coordinators:
    """The coordinators of one sweep of a ``study``, which can be found by their names from every process of it."""

    def __init__(self, study: str = "raygeo"):
        self.prefix = f"{study}: coordinator {uuid.uuid4().hex[:8]}-"

    def start(self) -> Any:
        """Start one; it ends with the process that asked for it."""
        return ray.remote(**beside_me())(Coordinator).options(name=self.prefix + uuid.uuid4().hex[:8]).remote()

    def stop(self, key: str) -> None:
        """Stop the run with this key for good; once this returns, no other command can come before."""
        for told in [coordinator.stop.remote(key) for coordinator in self._all()]:
            with suppress(RayActorError):  # it is being started anew, and its run begins again
                ray.get(told)

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
    """What all runs share: what they read, where they write, their coordinators, what is measured of those that finish,
    if anything (a pickled ``Measure``, because whoever unpickles it imports the analyses), and the study's name.
    ``own`` says by key what runs read that do not learn from the student and the rollouts of all others.
    """

    inputs: RunInputs
    store: Store
    coordinators: Coordinators
    measure: bytes | None = None
    study: str = ""
    own: Mapping[str, RunInputs] = field(default_factory=dict)

    def inputs_of(self, key: str) -> RunInputs:
        """What the run with this key reads."""
        return self.own.get(key, self.inputs)


class Watch(UserCallback):
    """Tells the coordinator, from Ray Train's side, that workers were lost."""

    def __init__(self, coordinator: Any):
        self.coordinator = coordinator

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Some workers have failed, and Ray Train ends the others."""
        self.coordinator.lost.remote()


class Workers:
    """A running group of workers of one shape."""

    def __init__(self, shape: Shape, common: Common, storage: str):
        self.shape, self.common, self.storage = shape, common, storage
        self.busy = False
        self.job: dict[str, Any] = {}
        self.restarts = 0
        self.answer: Any = None
        self.waiting = Waiting(shape.resources)
        self.coordinator: Any = common.coordinators.start()
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether the group can take another run."""
        return self.thread.is_alive()

    def begin(self, job: dict[str, Any]) -> None:
        """Submit the next run; one that has not ended is interrupted."""
        self.interrupt()
        self.job, self.restarts = job, 0
        self._submit()

    def message(self) -> dict[str, Any]:
        """Wait for the coordinator's next message about the run; one of kind done or failed is the last.

        A coordinator that was lost is given the run again, which resumes from its last checkpoint.
        """
        try:
            while not ray.wait([self.answer], timeout=LOOK_SECONDS)[0]:
                if not ray.get(self.coordinator.waits.remote()):
                    self.waiting.over()
                elif said := self.waiting.note(self.shape.workers):
                    return {"kind": "note", "text": said}
            message = ray.get(self.answer)
        except RayActorError:
            self.restarts += 1
            if self.restarts > self.job["restarts"]:
                self.busy = False
                return {"kind": "failed", "reason": f"its coordinator was lost ({self.restarts} times)"}
            self._submit()
            return {"kind": "note", "text": "its coordinator was lost; resumes from its last checkpoint"}
        self.busy = message["kind"] not in ("done", "failed")
        if self.busy:
            self.answer = self.coordinator.message.remote()
        return message

    def _submit(self) -> None:
        self._tell("submit", self.job)
        self.busy, self.answer = True, self.coordinator.message.remote()

    def _tell(self, what: str, *arguments: Any) -> Any:
        """Tell the coordinator something, as soon as it can be reached, and return its answer."""
        while True:
            try:
                return ray.get(getattr(self.coordinator, what).remote(*arguments))
            except ActorUnavailableError:
                time.sleep(1)

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
        self._tell("close")
        self.thread.join()

    def _trainer(self) -> TorchTrainer:
        shape = self.shape
        return TorchTrainer(
            _serve,
            train_loop_config={"coordinator": self.coordinator, "common": self.common},
            torch_config=meeting(shape.gpus, self.coordinator),
            scaling_config=ScalingConfig(
                num_workers=shape.workers, use_gpu=shape.gpus > 0, resources_per_worker=shape.resources
            ),
            run_config=RunConfig(
                name=f"{self.common.study or 'raygeo'}-{uuid.uuid4().hex[:8]}",
                storage_path=self.storage,
                # The coordinator counts, run by run; a group that could not be started is started again by `_fit`.
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=0),  # type: ignore[call-arg]
                callbacks=[Watch(self.coordinator)],  # type: ignore[list-item]
            ),
        )

    def _fit(self) -> None:
        again = True
        while again:
            try:
                self._trainer().fit()
                again = False
            except Exception as error:  # of starting the group: those of its runs are counted run by run
                if (place := self._tell("place_of_last")) is not None:
                    ray.util.remove_placement_group(place)
                again = self._tell("unstarted", "" if _lacked_room(error) else _reason(error))


def _lacked_room(error: Exception) -> bool:
    return isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split())[-_LONGEST:]  # a traceback says at its end what went wrong
    return f"workers could not be started: {said}"


def _serve(config: dict[str, Any]) -> None:
    """Do the coordinator's jobs until there are none (on every worker; what training needs is imported here alone)."""
    from raygeo.training.base import ResidentBase
    from raygeo.training.engine import broadcast, rank
    from raygeo.training.failures import diagnose
    from raygeo.training.settings import RunSpec
    from raygeo.training.worker import Job, finished_before, train

    name_lines()
    coordinator, common = config["coordinator"], config["common"]
    base = ResidentBase()
    group, number = broadcast(uuid.uuid4().hex), 0
    while (given := ray.get(coordinator.take.remote(group, number))) is not None:
        spec = RunSpec.model_validate_json(given["spec"])
        spec = spec.model_copy(update={"training": spec.training.halved(given["micro_batch_size"])})
        command = coordinator.wait_for_command.remote()
        try:
            with about(common.study, spec.name), common.store.writing():
                job = Job(spec, given["key"], common.inputs_of(given["key"]), common.store)
                before = broadcast(finished_before(job)) if given["attempt"] > 1 else None
                record = before or train(
                    job,
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
            ray.get(coordinator.failed.remote(given["key"], given["attempt"], diagnose(error)))
            raise
        if rank() == 0:
            ray.get(coordinator.done.remote(result))
        number += 1


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
