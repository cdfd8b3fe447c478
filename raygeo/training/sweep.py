"""All runs of a study as Ray Tune trials, as many at once as the cluster holds, on workers that stay."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune

from raygeo.cluster.preflight import check_fits, count_fitting
from raygeo.errors import TrainingError
from raygeo.search.loop import Search
from raygeo.search.settings import Asha
from raygeo.store import Store
from raygeo.training.halving import HalvingByLoss
from raygeo.training.inputs import RunInputs
from raygeo.training.queue import RunQueue
from raygeo.training.settings import RunSpec
from raygeo.training.workers import Common, Measure, Shape, Workers

# A trial's driver only waits for its workers. Any share of a CPU would keep the last worker from being placed on a full
# cluster, and Tune refuses to place a trial on nothing, so drivers take a sliver of the head node instead.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}


class Trial(tune.Trainable):
    """Tune's side of one run after the other: begins them on workers it holds, and passes their messages on."""

    def setup(self, config: dict[str, Any], common: Common | None = None, storage: str = "") -> None:
        """Begin the first run; ``common`` is what all runs share, ``storage`` where Ray Train writes."""
        assert common is not None
        self.common, self.storage = common, storage
        self.workers: Workers | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next run, on the same workers if they have its shape."""
        choice = new_config["choice"]
        shape = Shape(**choice["shape"])
        if self.workers is not None and (self.workers.shape != shape or not self.workers.alive):
            self.workers.close()
            self.workers = None
        self.workers = self.workers or Workers(shape, self.common, self.storage)
        self.workers.begin(choice["job"])
        self.reached = 0
        return True

    def step(self) -> dict[str, Any]:
        """Wait for news of the run.

        Raises:
            TrainingError: the run failed.
        """
        assert self.workers is not None
        message = self.workers.message()
        match message.pop("kind"):
            case "failed":
                raise TrainingError(message["reason"])
            case "done":
                summary = message["summary"]
                self.reached = summary["steps"]
                news = {name: summary[name] for name in ("status", "reason", "measured") if name in summary}
                return {"step": self.reached, "done": True} | news
            case "report":
                self.reached = message["step"]
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
) -> dict[str, str]:
    """Train every run of ``specs`` (content key to spec), then whatever ``search`` proposes, one Tune trial each.

    Finished runs are in the store. Trials reuse their drivers, and a driver its workers as long as runs have one shape.
    ``scheduler`` may stop runs early. ``examples`` show what may be proposed; workers ``measure`` the runs they finish,
    for the search to go by. Returns the error text of every trial that failed, by key; the others are not disturbed by
    it.

    Raises:
        ClusterError: the cluster can never hold the workers of one of the runs.
    """
    at_once = count_at_once([*specs.values(), *examples])
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it remarks on every half second spent in a callback
    storage = store.path("ray") if store.is_local else f"{store.location}/ray"
    common = Common(inputs, store, measure)
    known = [run_choice(key, spec) for key, spec in specs.items()]

    def choice(spec: RunSpec) -> dict[str, Any]:
        return run_choice(spec.key(inputs.student_key, inputs.rollouts), spec)

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, common=common, storage=f"{storage}/{name}"), TRIAL_RESOURCES),
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=RunQueue(known, search, choice),
            scheduler=None if scheduler is None else HalvingByLoss(scheduler),
            max_concurrent_trials=at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            callbacks=callbacks,
            verbose=0,
            failure_config=tune.FailureConfig(0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    failures: dict[str, str] = {}
    results = tuner.fit()
    store.delete_folder("ray", name)
    for result in (results[i] for i in range(len(results))):
        if result.error is not None and result.config is not None:
            failures[result.config["choice"]["key"]] = str(result.error)
    return failures


def count_at_once(specs: Sequence[RunSpec]) -> int:
    """How many of the runs the cluster holds at once, whichever they are.

    Raises:
        ClusterError: it can never hold the workers of one of them.
    """
    at_once = []
    for spec in specs:
        shape = run_shape(spec)
        check_fits(f"run {spec.name}", shape.resources, shape.workers)
        at_once.append(count_fitting(shape.resources) // shape.workers)
    return min(at_once)


def run_shape(spec: RunSpec) -> Shape:
    """Workers of a run."""
    return Shape(spec.training.workers, spec.training.cpus, spec.training.gpus)


def run_choice(key: str, spec: RunSpec) -> dict[str, Any]:
    """A run as plain data: for the trial, its logger and its scheduler, and (``job``) for the desk."""
    job = {
        "key": key,
        "spec": spec.model_dump_json(),
        "micro_batch": spec.training.micro_batch,
        "restarts": spec.training.restarts,
    }
    return {"key": key, "run": spec.name, "loss": spec.loss.type, "shape": vars(run_shape(spec)), "job": job}
