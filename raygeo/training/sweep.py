"""All runs of a study as Ray Tune trials, as many at once as the cluster holds, on workers that stay."""

import logging
from typing import Any

import ray
from ray import tune

from raygeo.cluster.preflight import check_fits, count_fitting
from raygeo.errors import TrainingError
from raygeo.store import Store
from raygeo.training.inputs import RunInputs
from raygeo.training.settings import RunSpec
from raygeo.training.workers import Shape, hold_workers

# A trial's driver only waits for its workers. Any share of a CPU would keep the last worker from being placed on a full
# cluster, and Tune refuses to place a trial on nothing, so drivers take a sliver of the head node instead.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}


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
    common = ray.put((inputs, store))

    def trial(config: dict[str, Any]) -> None:
        choice = config["choice"]
        workers = hold_workers(Shape(**choice["shape"]), ray.get(common), f"{storage}/{name}")
        for message in workers.run(choice["job"]):
            if message["kind"] == "report":
                tune.report({"step": message["step"], "curves": message["curves"]})
            elif message["kind"] == "note":
                tune.report({"note": message["text"]})
            elif message["kind"] == "failed":
                raise TrainingError(message["reason"])
            else:
                summary = message["summary"]
                tune.report({"status": summary["status"], "step": summary["steps"], "reason": summary["reason"]})

    choices = [
        {"key": key, "run": spec.name, "job": run_job(key, spec), "shape": vars(run_shape(spec))}
        for key, spec in specs.items()
    ]
    tuner = tune.Tuner(
        tune.with_resources(lambda config: trial(config), TRIAL_RESOURCES),
        param_space={"choice": tune.grid_search(choices)},
        tune_config=tune.TuneConfig(max_concurrent_trials=max(1, at_once), reuse_actors=True),
        run_config=tune.RunConfig(
            name=name, storage_path=storage, callbacks=callbacks, verbose=0, failure_config=tune.FailureConfig(0)
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
