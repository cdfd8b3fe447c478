"""All runs of a study as Ray Tune trials, as many at once as the cluster holds, on workers that stay."""

import logging
from typing import Any

from ray import tune

from raygeo.cluster.preflight import check_fits, count_fitting
from raygeo.errors import TrainingError
from raygeo.store import Store
from raygeo.training.inputs import RunInputs
from raygeo.training.settings import RunSpec
from raygeo.training.workers import Shape, Workers

# A trial's driver only waits for its workers. Any share of a CPU would keep the last worker from being placed on a full
# cluster, and Tune refuses to place a trial on nothing, so drivers take a sliver of the head node instead.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}


class Trial(tune.Trainable):
    """Tune's side of one run after the other: begins them on workers it holds, and passes their messages on."""

    def setup(self, config: dict[str, Any], common: Any = None, storage: str = "") -> None:
        """Begin the first run; ``common`` are inputs and store, ``storage`` where Ray Train writes."""
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
                return {"step": self.reached, "status": summary["status"], "reason": summary["reason"], "done": True}
            case "report":
                self.reached = message["step"]
        return {"step": self.reached} | message

    def cleanup(self) -> None:
        """Let the workers go."""
        if self.workers is not None:
            self.workers.close()


def run_sweep(
    specs: dict[str, RunSpec], inputs: RunInputs, store: Store, name: str, callbacks: list[tune.Callback]
) -> dict[str, str]:
    """Train every run of ``specs`` (content key to spec), one Tune trial each; finished runs are in the store.

    Trials reuse their drivers, and a driver its workers as long as runs have one shape. Returns the error text of every
    trial that failed, by key; the others are not disturbed by it.

    Raises:
        ClusterError: the cluster can never hold the workers of one of the runs.
    """
    at_once = len(specs)
    for spec in specs.values():
        shape = run_shape(spec)
        check_fits(f"run {spec.name}", shape.resources, shape.workers)
        at_once = min(at_once, count_fitting(shape.resources) // shape.workers)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it remarks on every half second spent in a callback
    storage = store.path("ray") if store.is_local else f"{store.location}/ray"
    choices = [
        {"key": key, "run": spec.name, "job": run_job(key, spec), "shape": vars(run_shape(spec))}
        for key, spec in specs.items()
    ]
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(Trial, common=(inputs, store), storage=f"{storage}/{name}"), TRIAL_RESOURCES
        ),
        param_space={"choice": tune.grid_search(choices)},
        tune_config=tune.TuneConfig(max_concurrent_trials=max(1, at_once), reuse_actors=True),
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


def run_shape(spec: RunSpec) -> Shape:
    """Workers of a run."""
    return Shape(spec.training.workers, spec.training.cpus, spec.training.gpus)


def run_job(key: str, spec: RunSpec) -> dict[str, Any]:
    """A run as plain data for the desk."""
    return {
        "key": key,
        "spec": spec.model_dump_json(),
        "micro_batch": spec.training.micro_batch,
        "restarts": spec.training.restarts,
    }
