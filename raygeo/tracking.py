"""MLflow: one parent run a study, one child a trial (and one for the base), written by the driver alone.

The database is created here, before anything else could open it, and workers never touch it. Runs are found again by
tag, so that a study that resumes, or runs again over a finished store, adds to its own runs.

Once a study has begun, trouble with MLflow is noted and never raised: what could not be logged is in the store, and the
same study, run again, logs it.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from ray import tune
from rich.markup import escape

from raygeo.errors import ConfigError, TrackingError
from raygeo.progress import Bar
from raygeo.store import Store

KEY_TAG = "raygeo.key"
_BATCH = 1000  # MLflow's limit of metrics in one request
_PAUSE = 10
"""After a call that failed, MLflow is left alone so many times as long as the call took: its client tries for minutes
to reach a server that is gone, and a study must not wait for it at every step."""
P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


def _harmless(call: Callable[Concatenate["Tracking", P], T]) -> Callable[Concatenate["Tracking", P], T | None]:
    """Let a method return None where MLflow fails, or is left alone because it just did, and note why."""

    @wraps(call)
    def attempt(self: "Tracking", *args: P.args, **kwargs: P.kwargs) -> T | None:
        started = time.monotonic()
        if started < self.paused_until:
            self.lacking |= set(args[:1])
            return None
        try:
            return call(self, *args, **kwargs)
        except Exception as error:
            self.lacking |= set(args[:1])
            ended = time.monotonic()
            self.paused_until = ended + _PAUSE * (ended - started)
            self.trouble = TrackingError(
                f"{_plain(error)}. What it lacks is in the store; the same study, run again, logs it."
            )
            log.warning("MLflow: %s", _plain(error))
            return None

    return attempt


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


def _plain(text: object) -> str:
    """A text that names a server, without user and password."""
    return re.sub(r"//[^/@\s]*@", "//", str(text)).strip().rstrip(".")


class Tracking:
    """The study's experiment and parent run, created or found again.

    ``study`` names the experiment and the parent; ``params`` are shown on the parent. ``trouble`` is the last failure
    that nothing has made good, None if there is none.

    Raises:
        ConfigError: MLflow cannot be used as things stand.
    """

    def __init__(self, store: Store, study: str, params: Mapping[str, Any]):
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.uri = tracking_uri(store)
        self.children: dict[str, str] = {}
        self.running: set[str] = set()
        self.trouble: TrackingError | None = None
        self.lacking: set[Any] = set()
        self.paused_until = 0.0
        local = self.uri.startswith("sqlite")
        database = Path(self.uri.removeprefix("sqlite:///")).resolve()
        location = f"file://{database.parent / 'mlartifacts'}" if local else None
        try:
            self.client = MlflowClient(self.uri)
            found = self.client.get_experiment_by_name(study)
            self.experiment = found.experiment_id if found else self.client.create_experiment(study, location)
            self.parent = self._run(f"study:{store.location}", study, None, params)
        except Exception as error:
            remedy = (
                "If another process holds the file, end it; if the file is damaged, move it away: everything is then "
                "logged anew."
                if local
                else "Start the server, or unset MLFLOW_TRACKING_URI to log to a file in the store."
            )
            raise ConfigError(f"MLflow at {_plain(self.uri)} cannot be used: {_plain(error)}. {remedy}") from error

    def again(self, *, forgive: bool = False) -> None:
        """Leave MLflow alone no longer; ``forgive`` forgets the trouble there was, because all is logged once more."""
        self.paused_until = 0.0
        if forgive:
            self.trouble = None

    @_harmless
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
            self.running.add(run_id)
            self._params(run_id, {k: v for k, v in params.items() if k not in found[0].data.params})
            return run_id
        tags = {KEY_TAG: key, MLFLOW_RUN_NAME: name}
        if parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        run_id = self.client.create_run(self.experiment, tags=tags, run_name=name).info.run_id
        self.running.add(run_id)
        self._params(run_id, params)
        return run_id

    def _params(self, run_id: str, params: Mapping[str, Any]) -> None:
        if params:
            self.client.log_batch(run_id, params=[Param(k, str(v)[:6000]) for k, v in params.items()])

    @_harmless
    def metrics(self, run_id: str | None, values: Mapping[str, float | None], step: int = 0) -> None:
        """Log finite-or-not numbers of one step; None is left out. A run without an id has none to log to."""
        if run_id is not None:
            self._log(run_id, ((name, step, v) for name, v in values.items() if v is not None))

    @_harmless
    def curves(self, run_id: str | None, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log training curves from rows of the table ``training_curves``, unless the run has them already.

        It has them if the last step is there and MLflow took all that was logged of the run while it was trained.
        """
        if run_id is None:
            return
        points = [(row["metric"], row["step"], row["value"]) for row in rows]
        last = max((step for name, step, _ in points if name == "nll"), default=None)
        if run_id not in self.lacking and last in self._steps(run_id, "nll"):
            return
        known = {name: self._steps(run_id, name) for name in dict.fromkeys(name for name, *_ in points)}
        self._log(run_id, (point for point in points if point[1] not in known[point[0]]))
        self.lacking.discard(run_id)

    @_harmless
    def histories(self, run_id: str | None, points: Iterable[tuple[str, int, float]]) -> None:
        """Log points of curves as (metric, step, value); one that MLflow has already is not written again."""
        if run_id is None:
            return
        wanted = list(points)
        names = dict.fromkeys(name for name, *_ in wanted)
        logged = (m for name in names for m in self.client.get_metric_history(run_id, name))
        known = {(m.key, m.step, m.value) for m in logged}
        self._log(run_id, (point for point in wanted if point not in known))

    def _steps(self, run_id: str, name: str) -> set[int]:
        return {point.step for point in self.client.get_metric_history(run_id, name)}

    def _log(self, run_id: str, points: Iterable[tuple[str, int, float]]) -> None:
        now = int(time.time() * 1000)
        entries = [Metric(name, float(value), now, step) for name, step, value in points]
        for start in range(0, len(entries), _BATCH):
            self.client.log_batch(run_id, metrics=entries[start : start + _BATCH])

    @_harmless
    def tags(self, run_id: str | None, values: Mapping[str, str]) -> None:
        """Set tags."""
        if run_id is None:
            return
        self.client.log_batch(run_id, tags=[RunTag(name, value[:5000]) for name, value in values.items()])

    @_harmless
    def text(self, name: str, content: str) -> None:
        """Attach a text file to the study's run."""
        self.client.log_text(self.parent, content, name)

    @_harmless
    def figure(self, name: str, figure: Any) -> None:
        """Attach a matplotlib figure to the study's run as ``figures/<name>.png``."""
        self.client.log_figure(self.parent, figure, f"figures/{name}.png")

    @_harmless
    def end(self, run_id: str | None, *, failed: bool = False) -> None:
        """Mark a run finished or failed."""
        if run_id is None:
            return
        status = RunStatus.FAILED if failed else RunStatus.FINISHED
        self.client.set_terminated(run_id, RunStatus.to_string(status))
        self.running.discard(run_id)

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Mark every run that this process has opened and not ended."""
        while self.running:
            self._close(self.running.pop(), status)

    @_harmless
    def _close(self, run_id: str, status: str) -> None:
        self.client.set_terminated(run_id, status)


class TrialLogger(tune.Callback):
    """Tune's side of the tracking: opens a child as a trial starts, logs each report in one request, closes it.

    ``params`` gives each run's parameters by content key. What MLflow did not take while runs were trained is logged
    from the store when training is over.
    """

    def __init__(
        self, tracking: Tracking, params: Mapping[str, Mapping[str, Any]], bar: Bar, say: Callable[[str], None]
    ):
        self.tracking, self.params, self.bar, self.say = tracking, params, bar, say
        self.steps: dict[str, int] = {}

    def __reduce__(self) -> Any:
        # Tune pickles its callbacks for `Tuner.restore`; a study resumes by content keys and never restores one.
        return (tune.Callback, ())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's child run."""
        choice = trial.config["choice"]
        self.tracking.child(choice["key"], choice["run"], self.params[choice["key"]])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any) -> None:
        """Log the report's metrics and move the bar."""
        choice = trial.config["choice"]
        if "text" in result:
            self.say(f"  [yellow]{choice['run']}[/yellow]: {escape(result['text'])}")
        if result["step"] <= self.steps.get(choice["key"], 0):
            return  # a run that resumes from a checkpoint takes some steps again, to the same numbers
        self.steps[choice["key"]] = result["step"]
        self.bar.update(sum(self.steps.values()), choice["run"])
        if "metrics" in result and choice["key"] in self.tracking.children:
            self.tracking.metrics(self.tracking.children[choice["key"]], result["metrics"], result["step"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the child, unless its run was interrupted."""
        key, status = trial.config["choice"]["key"], (trial.last_result or {}).get("status")
        if key in self.tracking.children and status is not None and status != "interrupted":
            self.tracking.end(self.tracking.children[key], failed=status != "finished")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the child as failed."""
        key = trial.config["choice"]["key"]
        if key in self.tracking.children:
            self.tracking.end(self.tracking.children[key], failed=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Begin anew: all of it is logged from the store now."""
        self.tracking.again(forgive=True)
