"""All runs of a study as Ray Tune trials, as many at once as the cluster holds."""

import logging
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from raygeo.cluster.preflight import check_fits, count_fitting
from raygeo.store import Store
from raygeo.training.inputs import RunInputs
from raygeo.training.settings import RunSpec
from raygeo.training.trainer import fit_run, worker_resources

# A trial's driver only waits for its workers. Any share of a CPU would keep the last worker from being placed on a full
# cluster, and Tune refuses to place a trial on nothing, so drivers take a sliver of the head node instead.
TRIAL_RESOURCES = {"node:__internal_head__": 0.001}


def run_sweep(
    specs: dict[str, RunSpec], inputs: RunInputs, store: Store, name: str, callbacks: list[tune.Callback]
) -> dict[str, str]:
    """Train every run of ``specs`` (content key to spec), one Tune trial each; finished runs are in the store.

    Returns the error text of every trial that failed, by key; the others are not disturbed by it.

    Raises:
        ClusterError: the cluster can never hold the workers of one of the runs.
    """
    at_once = len(specs)
    for spec in specs.values():
        demand = worker_resources(spec)
        check_fits(f"run {spec.name}", demand, spec.training.workers)
        at_once = min(at_once, count_fitting(demand) // spec.training.workers)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it remarks on every half second spent in a callback
    storage = store.path("ray") if store.is_local else f"{store.location}/ray"
    shared = ray.put((inputs, store, storage))

    def trial(config: dict[str, Any]) -> None:
        run_inputs, run_store, run_storage = ray.get(shared)
        spec = RunSpec.model_validate_json(config["spec"])
        summary = fit_run(spec, config["key"], run_inputs, run_store, run_storage, [TuneReportCallback()])
        tune.report({"status": summary["status"], "step": summary["steps"], "reason": summary["reason"]})

    choices = [{"key": key, "run": spec.name, "spec": spec.model_dump_json()} for key, spec in specs.items()]
    tuner = tune.Tuner(
        tune.with_resources(lambda config: trial(config["choice"]), TRIAL_RESOURCES),
        param_space={"choice": tune.grid_search(choices)},
        tune_config=tune.TuneConfig(max_concurrent_trials=max(1, at_once), reuse_actors=True),
        run_config=tune.RunConfig(
            name=name, storage_path=storage, callbacks=callbacks, verbose=0, failure_config=tune.FailureConfig(0)
        ),
    )
    failures: dict[str, str] = {}
    results = tuner.fit()
    for result in (results[i] for i in range(len(results))):
        if result.error is not None and result.config is not None:
            failures[result.config["choice"]["key"]] = str(result.error)
    return failures
