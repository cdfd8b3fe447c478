"""One run as a Ray Train job: workers, placement, storage."""

from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raygeo.store import Store
from raygeo.training.inputs import RunInputs
from raygeo.training.settings import RunSpec


def _train(config: dict[str, Any]) -> dict[str, Any]:
    """Import what training needs in the worker alone; the run's driver and controller start sooner without it."""
    from raygeo.training.worker import train

    return train(config)


def fit_run(
    spec: RunSpec, key: str, inputs: RunInputs, store: Store, storage: str, callbacks: list[Any]
) -> dict[str, Any]:
    """Train ``spec`` on its workers and return its summary row.

    Raises:
        ray.train.TrainingFailedError: a worker raised or was lost.
    """
    settings = spec.training
    trainer = TorchTrainer(
        _train,  # type: ignore[arg-type]
        train_loop_config={"spec": spec.model_dump_json(), "key": key, "inputs": inputs, "store": store},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=settings.gpus > 0,
            resources_per_worker=worker_resources(spec),
        ),
        run_config=RunConfig(
            name=key, storage_path=storage, callbacks=callbacks, failure_config=FailureConfig(max_failures=0)
        ),
    )
    # Reports carry no checkpoint, so only the return value of rank 0 is reliable here, not `metrics`.
    result: Any = trainer.fit()
    return result.return_value


def worker_resources(spec: RunSpec) -> dict[str, float]:
    """Ray resources of one worker of the run."""
    resources = {"CPU": spec.training.cpus}
    if spec.training.gpus > 0:
        resources["GPU"] = spec.training.gpus
    return resources
