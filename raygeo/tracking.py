"""MLflow: one parent run a study, one child a trial (and one for the base), written by the driver alone.

The database is created here, before anything else could open it, and workers never touch it. Runs are found again by
tag, so that a study that goes on, or runs again over a finished store, adds to its own runs.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from ray import tune
from rich.markup import escape

from raygeo.errors import ConfigError
from raygeo.progress import Bar
from raygeo.store import Store

KEY_TAG = "raygeo.key"
_BATCH = 1000  # MLflow's limit of metrics in one request


def tracking_uri(store: Store) -> str:
    """The tracking URI: ``MLFLOW_TRACKING_URI`` if set, else a sqlite file in a local store.

    Raises:
        ConfigError: the store is remote and no tracking server is named.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    if not store.is_local:
        raise ConfigError(
            f"the store {store.location} is remote, and sqlite cannot live there; "
            "set MLFLOW_TRACKING_URI to an MLflow server."
        )
    return f"sqlite:///{store.path('mlflow.db')}"


class Tracking:
    """The study's experiment and parent run, created or found again.

    ``study`` names the experiment and the parent; ``params`` are shown on the parent.
    """

    def __init__(self, store: Store, study: str, params: Mapping[str, Any]):
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.uri = tracking_uri(store)
        self.client = MlflowClient(self.uri)
        found = self.client.get_experiment_by_name(study)
        location = f"file://{store.path('mlartifacts')}" if self.uri.startswith("sqlite") else None
        self.experiment = found.experiment_id if found else self.client.create_experiment(study, location)
        self.children: dict[str, str] = {}
        self.parent = self._run(f"study:{store.location}", study, None, params)

    def child(self, key: str, name: str, params: Mapping[str, Any]) -> str:
        """Id of the child run with content key ``key``, created if there is none yet."""
        if key not in self.children:
            self.children[key] = self._run(key, name, self.parent, params)
        return self.children[key]

    def _run(self, key: str, name: str, parent: str | None, params: Mapping[str, Any]) -> str:
        query = f"tags.`{KEY_TAG}` = '{key}'"
        if parent is not None:
            query += f" and tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'"
        found = self.client.search_runs([self.experiment], query, max_results=1)
        if found:
            run_id = found[0].info.run_id
            self.client.update_run(run_id, status="RUNNING", name=name)
            return run_id
        tags = {KEY_TAG: key, MLFLOW_RUN_NAME: name}
        if parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        run_id = self.client.create_run(self.experiment, tags=tags, run_name=name).info.run_id
        self.client.log_batch(run_id, params=[Param(k, str(v)[:6000]) for k, v in params.items()])
        return run_id

    def metrics(self, run_id: str, values: Mapping[str, float | None], step: int = 0) -> None:
        """Log finite-or-not numbers of one step; None is left out."""
        now = int(time.time() * 1000)
        entries = [Metric(name, float(v), now, step) for name, v in values.items() if v is not None]
        for start in range(0, len(entries), _BATCH):
            self.client.log_batch(run_id, metrics=entries[start : start + _BATCH])

    def curves(self, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log training curves from rows of the ``curves`` table, unless the run has them already."""
        if "nll" in self.client.get_run(run_id).data.metrics:
            return
        now = int(time.time() * 1000)
        entries = [Metric(row["metric"], row["value"], now, row["step"]) for row in rows]
        for start in range(0, len(entries), _BATCH):
            self.client.log_batch(run_id, metrics=entries[start : start + _BATCH])

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        """Set tags."""
        self.client.log_batch(run_id, tags=[RunTag(name, value[:5000]) for name, value in values.items()])

    def text(self, name: str, content: str) -> None:
        """Attach a text file to the study's run."""
        self.client.log_text(self.parent, content, name)

    def figure(self, name: str, figure: Any) -> None:
        """Attach a matplotlib figure to the study's run as ``figures/<name>.png``."""
        self.client.log_figure(self.parent, figure, f"figures/{name}.png")

    def end(self, run_id: str, *, failed: bool = False) -> None:
        """Mark a run finished or failed."""
        status = RunStatus.FAILED if failed else RunStatus.FINISHED
        self.client.set_terminated(run_id, RunStatus.to_string(status))


class TrialLogger(tune.Callback):
    """Tune's side of the tracking: opens a child as a trial starts, logs each report in one request, closes it.

    ``params`` gives each run's parameters by content key. Trouble with MLflow never stops a trial: it is logged, and
    the curves are written again from the store when training is over.
    """

    def __init__(
        self, tracking: Tracking, params: Mapping[str, Mapping[str, Any]], bar: Bar, say: Callable[[str], None]
    ):
        self.tracking, self.params, self.bar, self.say = tracking, params, bar, say
        self.steps: dict[str, int] = {}

    def __reduce__(self) -> Any:
        # Tune pickles its callbacks for `Tuner.restore`; a study goes on by content keys and never restores one.
        return (tune.Callback, ())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's child run."""
        choice = trial.config["choice"]
        self._guard(self.tracking.child, choice["key"], choice["run"], self.params[choice["key"]])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any) -> None:
        """Log the report's curves and move the bar."""
        choice = trial.config["choice"]
        if "text" in result:
            self.say(f"  [yellow]{choice['run']}[/yellow]: {escape(result['text'])}")
        if result["step"] <= self.steps.get(choice["key"], 0):
            return  # a run that went on from a checkpoint takes some steps again, to the same numbers
        self.steps[choice["key"]] = result["step"]
        self.bar.update(sum(self.steps.values()), choice["run"])
        if "curves" in result and choice["key"] in self.tracking.children:
            self._guard(self.tracking.metrics, self.tracking.children[choice["key"]], result["curves"], result["step"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the child as failed."""
        key = trial.config["choice"]["key"]
        if key in self.tracking.children:
            self._guard(self.tracking.end, self.tracking.children[key], failed=True)

    def _guard(self, call: Any, *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except (MlflowException, OSError) as error:
            logging.getLogger(__name__).warning("MLflow: %s", error)
