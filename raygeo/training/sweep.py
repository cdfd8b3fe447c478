"""All runs of a study as Ray Tune trials, as many at once as the cluster holds, on workers that stay."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray import tune

from raygeo.cluster.preflight import check_fits, count_fitting, is_autoscaled
from raygeo.errors import FullStoreError
from raygeo.interrupts import asked, deferred
from raygeo.search.loop import Search
from raygeo.search.settings import Asha
from raygeo.store import Store
from raygeo.training.fitted import Fitted
from raygeo.training.halving import HalvingByLoss
from raygeo.training.inputs import RunInputs
from raygeo.training.queue import RunQueue
from raygeo.training.settings import RunSpec
from raygeo.training.workers import Common, Coordinators, Measure, Shape, Workers

# A trial's driver only waits for its workers. Any share of a CPU would keep the last worker from being placed on a full
# cluster, and Tune refuses to place a trial on nothing, so drivers take a sliver of the head node instead.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}


GRACE_SECONDS = 60.0
"""How long runs in progress may take to write a checkpoint once the process was asked to stop."""


class Interruption(tune.Callback):
    """Interrupts the runs of a sweep once the process has been asked to stop, and leaves Tune when that is done."""

    def __init__(self, coordinators: Coordinators, say: Callable[[str], None]):
        self.coordinators, self.say = coordinators, say
        self.began: float | None = None

    def __reduce__(self) -> Any:
        return (tune.Callback, ())  # Tune pickles its callbacks for `Tuner.restore`, which is not used

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Raise KeyboardInterrupt when no run is in progress any more, or none will be in time.

        The command is given at every step, because a run may begin after it was given first.
        """
        if asked() is None:
            return
        if self.began is None:
            self.began = time.monotonic()
            self.say(f"  stopping: runs write checkpoints (at most {GRACE_SECONDS:.0f} s; Ctrl-C again ends at once)")
        if time.monotonic() - self.began > GRACE_SECONDS or not any(trial.status == "RUNNING" for trial in trials):
            raise KeyboardInterrupt
        self.coordinators.interrupt()


class Trial(tune.Trainable):
    """Tune's side of one run after the other: begins them on workers it holds, and passes their messages on."""

    def __repr__(self) -> str:
        return f"{self.common.study or 'raygeo'}: trials"  # what Ray's dashboard calls the actor

    def setup(self, config: dict[str, Any], common: Common | None = None, storage: str = "") -> None:
        """Begin the first run; ``common`` is what all runs share, ``storage`` where Ray Train writes."""
        assert common is not None
        self.common, self.storage = common, storage
        self.workers: Workers | None = None
        self.said: set[str] = set()
        self.note = ""
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next run, on the same workers if they have its shape."""
        choice = new_config["choice"]
        shape = Shape(**choice["shape"])
        if self.workers is not None and (self.workers.shape != shape or not self.workers.alive):
            self.workers.close()
            self.workers = None
        self.workers = self.workers or Workers(shape, self.common, self.storage)
        job = choice["job"]
        self.fitted = Fitted(
            self.common.store, RunSpec.model_validate_json(job["spec"]), self.common.inputs_of(job["key"])
        )
        micro = self.fitted.recall()
        self.workers.begin(job | {"micro_batch_size": micro})
        self.reached = 0
        if micro < job["micro_batch_size"] and self.fitted.place not in self.said:
            self.said.add(self.fitted.place)
            asked = job["micro_batch_size"]
            self.note = f"begins at micro_batch_size {micro}: it fitted before, {asked} did not; same batch_size"
        return True

    def step(self) -> dict[str, Any]:
        """Wait for news of the run."""
        assert self.workers is not None
        if self.note:
            note, self.note = self.note, ""
            return {"step": self.reached, "text": note}
        message = self.workers.message()
        match message.pop("kind"):
            case "failed":
                return {"step": self.reached, "done": True, "status": "failed"} | message
            case "done":
                self.reached = message.pop("steps")
                return {"step": self.reached, "done": True} | message
            case "report":
                self.reached = message["step"]
                if fitted := message.pop("fitted", None):
                    self.fitted.remember(fitted)
        return {"step": self.reached} | message

    def cleanup(self) -> None:
        """Let the workers go."""
        if self.workers is not None:
            self.workers.close()


def run_sweep(
    specs: Mapping[str, RunSpec],
    inputs: RunInputs,
    store: Store,
    name: str,
    callbacks: list[tune.Callback],
    *,
    scheduler: Asha | None = None,
    search: Search[Any] | None = None,
    examples: Sequence[RunSpec] = (),
    measure: Measure | None = None,
    study: str = "",
    own: Mapping[str, RunInputs] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, str]:
    """Train every run of ``specs`` (content key to spec), then whatever ``search`` proposes, one Tune trial each.

    Finished runs are in the store. Trials reuse their drivers, and a driver its workers as long as runs have one shape.
    ``scheduler`` may stop runs early. ``examples`` show what may be proposed; workers ``measure`` the runs they finish,
    for the search to go by. ``own`` says by key what runs read that read other things than ``inputs``. ``study`` is its
    name in the lines of logs. Returns why each run that failed did so, in a line, by key; the others are not disturbed
    by it.

    Raises:
        ClusterError: the cluster can never hold the workers of one of the runs.
        FullStoreError: a disk is full; no more runs were begun.
        KeyboardInterrupt: the process was asked to stop; runs in progress have written a checkpoint, if they could in
            ``GRACE_SECONDS``.
    """
    shapes = [run_shape(spec) for spec in (*specs.values(), *examples)]
    for spec, shape in zip((*specs.values(), *examples), shapes, strict=True):
        check_fits(f"run {spec.name}", shape.resources, shape.workers)
    # It remarks on every half second spent in a callback, and on each state of its own that it could not save.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    storage = store.uri("ray", name)
    coordinators = Coordinators(study or "raygeo")
    common = Common(
        inputs, store, coordinators, None if measure is None else ray.cloudpickle.dumps(measure), study, own or {}
    )
    known = [run_choice(key, spec) for key, spec in specs.items()]

    def choice(spec: RunSpec) -> dict[str, Any]:
        return run_choice(spec.key(inputs.student_key, inputs.rollouts, inputs.teacher_key), spec)

    queue = RunQueue(known, search, choice, lambda: count_at_once(shapes))
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, common=common, storage=storage), TRIAL_RESOURCES),
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=queue,
            scheduler=None if scheduler is None else HalvingByLoss(scheduler, coordinators.stop),
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["choice"]["run"],
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=store.uri("ray"),
            callbacks=[*callbacks, Interruption(coordinators, say)],
            verbose=0,
            failure_config=tune.FailureConfig(0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    failures: dict[str, str] = {}
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own would make stopped runs of interrupted ones
    try:
        with deferred():
            results = tuner.fit()
    finally:
        with suppress(OSError):  # Ray Train may be writing there still
            store.delete_folder("ray", name)
    if queue.full:
        raise FullStoreError(queue.full.removeprefix("FullStoreError: "))
    for result in (results[i] for i in range(len(results))):
        key = (result.config or {})["choice"]["key"]
        if result.error is not None:
            failures[key] = str(result.error).strip().splitlines()[-1]
        elif result.metrics is not None and result.metrics.get("status") == "failed":
            failures[key] = result.metrics["reason"]
    return failures


def count_at_once(shapes: Sequence[Shape]) -> int:
    """How many runs the cluster holds at once, whichever of the shapes they have; one at least waits for its nodes.

    An autoscaler is asked for twice as many.
    """
    at_once = min(count_fitting(shape.resources) // shape.workers for shape in shapes)
    return max(1, 2 * at_once if is_autoscaled() else at_once)


def run_shape(spec: RunSpec) -> Shape:
    """Workers of a run."""
    training = spec.training
    return Shape(training.workers, training.cpus, training.gpus, training.gpu_type)


def run_choice(key: str, spec: RunSpec) -> dict[str, Any]:
    """A run as plain data: for the trial, its logger and its scheduler, and (``job``) for the coordinator."""
    job = {
        "key": key,
        "spec": spec.model_dump_json(),
        "micro_batch_size": spec.training.micro_batch_size,
        "restarts": spec.training.restarts,
    }
    return {"key": key, "run": spec.name, "loss": spec.loss.type, "shape": vars(run_shape(spec)), "job": job}
