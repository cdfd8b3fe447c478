"""A study's runs in MLflow. Every call may be made again, after a failure or by another process, and logs once."""

import base64
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_MODEL_IS_EXTERNAL,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
)

from raygeo.errors import TrackingError
from raygeo.naming import SCHEME, benchmark_of, training_metric
from raygeo.store import Store
from raygeo.store.location import tracked_as
from raygeo.tracking.outbox import Entry
from raygeo.tracking.pages import ABOUT
from raygeo.tracking.server import NO_ENDPOINT, open_client

KEY_TAG, SCHEME_TAG, REPLACED_TAG = "raygeo.key", "raygeo.names", "raygeo.replaced_by"
POINTS_TAG = "raygeo.points"
"""How many points the training curves have once all of them are there."""
_BATCH = 1000  # MLflow's limit of metrics in one request
_LONGEST_PARAM, _LONGEST_TAG = 6000, 5000
_NO_MODEL_NAME = str.maketrans(dict.fromkeys("/:.%\"'", "_"))  # what MLflow takes in no name of a model
_GONE = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
Point = tuple[str, int, float]
"""Metric, step, value."""


@dataclass
class _Run:
    """What is known of a run in MLflow; ``reached`` is the last step of its training curves, None if not known.

    ``ended`` is in ms; ``model`` is the id of its weights as a model, ``data`` the digests of its inputs by
    what they were to it and name.
    """

    id: str
    name: str
    status: str = "RUNNING"
    ended: int | None = None
    model: str | None = None
    data: dict[tuple[str, str], str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    reached: int | None = None


class Remote:
    """The experiment ``study`` at ``uri``: the study's own run and its children, by content key, found or created.

    ``identity`` of the store tells it from one that lies at the same path on another machine. ``note`` describes the
    study, in Markdown, where nobody has described it otherwise. ``say`` is told once of runs under names of an earlier
    version.
    """

    def __init__(self, uri: str, store: Store, study: str, identity: str, say: Callable[[str], None], note: str = ""):
        self.client = open_client(uri)
        self.store, self.study = copy(store), study  # one of its own for the thread that sends
        database = Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite") else None
        self.artifacts = None if database is None else (database.parent / "mlartifacts").as_uri()
        self.parent = tracked_as(store.shown)
        if store.is_local and self.artifacts is None:
            self.parent += f"#{identity}"
        self.note, self.say = note, say
        self.experiment = ""
        self.runs: dict[str, _Run] = {}
        self.begun: dict[str, int] = {}

    def ping(self) -> None:
        """See that MLflow answers and has the experiment, which is created if need be.

        Raises:
            TrackingError: the experiment was deleted.
        """
        found = self.client.get_experiment_by_name(self.study)
        if found is not None and found.lifecycle_stage != LifecycleStage.ACTIVE:
            raise TrackingError(
                f"the experiment {self.study!r} was deleted there; restore it (`mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`) or give the study another name"
            )
        about = ABOUT | ({MLFLOW_RUN_NOTE: self.note} if self.note else {})
        if found is None:
            experiment = self.client.create_experiment(self.study, self.artifacts, about)
        else:
            experiment = found.experiment_id
            for name in about.keys() - found.tags.keys():
                self.client.set_experiment_tag(experiment, name, about[name])
        if experiment != self.experiment:
            self.experiment, self.runs = experiment, {}

    def do(self, entry: Entry) -> None:
        """Make the call that an entry describes.

        Raises:
            TrackingError: there is no such call.
        """
        arguments = dict(entry)
        name = arguments.pop("call", None)
        if name not in _CALLS:
            raise TrackingError(f"there is no call {name!r}")
        try:
            _CALLS[name](self, **arguments)
        except MlflowException as error:
            if error.error_code != _GONE:
                raise
            self.experiment = ""  # the server has another database than before
            self.ping()
            _CALLS[name](self, **arguments)

    # -- calls ------------------------------------------------------------------------------------------------------

    def open(self, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str], time: int) -> None:
        """Find a run or create one that began at ``time``, and let it have this name, these tags, and those of these
        parameters that it lacks.
        """
        self.begun.setdefault(key, time)
        run = self._run(key, name)
        if run.name != name:
            self.client.update_run(run.id, name=name)
            run.name = name
        lacking = {k: str(v)[:_LONGEST_PARAM] for k, v in params.items() if k not in run.params}
        if lacking:
            self.client.log_batch(run.id, params=[Param(k, v) for k, v in lacking.items()])
            run.params |= lacking
        self._tag(run, tags)

    def begin(self, key: str) -> None:
        """Mark a run as running; when the study's own begins, those that still are were left by a process that died."""
        run = self._run(key)
        if key == self.parent:
            self._end_all("KILLED", _now(), but=run.id)
        if run.status != "RUNNING":
            self.client.update_run(run.id, status="RUNNING")
            run.status = "RUNNING"

    def steps(self, key: str, points: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
        """Log what a run reported of its training, as (step, time in ms, metrics as it named them) in order.

        Steps that are not beyond those MLflow has, because a run that resumed took them again, are left out.
        """
        run = self._run(key)
        points = [(step, at, {training_metric(name): v for name, v in found.items()}) for step, at, found in points]
        if run.reached is None:
            run.reached = max((m.step for name in points[0][2] for m in self._history(run, name)), default=-1)
        for batch in _batches([point for point in points if point[0] > run.reached]):
            self.client.log_batch(
                run.id, metrics=[Metric(k, float(v), at, step) for step, at, found in batch for k, v in found.items()]
            )
            run.reached = batch[-1][0]

    def curves(self, key: str) -> None:
        """Complete a run's training curves from its unit in the store: exactly the steps that MLflow lacks."""
        run = self._run(key)
        rows = self.store.read_unit("training_curves", key).select(["metric", "step", "value"]).to_pylist()
        if run.tags.get(POINTS_TAG) == str(len(rows)):
            return
        named = [(training_metric(row["metric"]), row["step"], row["value"]) for row in rows]
        known = {name: {m.step for m in self._history(run, name)} for name in {name for name, *_ in named}}
        self._log(run, (point for point in named if point[1] not in known[point[0]]), _now())
        self._tag(run, {POINTS_TAG: str(len(rows))})

    def metrics(self, key: str, values: Mapping[str, float], time: int) -> None:
        """Log numbers of step 0, but for those that the run has; those of its answers with what was asked."""
        run = self._run(key)
        latest = self.client.get_run(run.id).data.metrics
        new = ((k, 0, v) for k, v in values.items() if k not in latest or repr(float(v)) != repr(float(latest[k])))
        self._log(run, new, time, asked=True)

    def histories(self, key: str, points: Sequence[Point], time: int) -> None:
        """Log points of curves, but for those that the run has."""
        run = self._run(key)
        names = dict.fromkeys(name for name, *_ in points)
        known = {(m.key, m.step, repr(float(m.value))) for name in names for m in self._history(run, name)}
        self._log(run, (p for p in points if (p[0], p[1], repr(float(p[2]))) not in known), time)

    def tags(self, key: str, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._tag(self._run(key), values)

    def file(self, name: str, content: str, key: str | None = None) -> None:
        """Attach a file, its content in base64, to a run, by default the study's; one of that name is replaced."""
        path = PurePosixPath(name)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / path.name
            file.write_bytes(base64.b64decode(content))
            self.client.log_artifact(
                self._run(key or self.parent).id, str(file), str(path.parent) if path.parent.name else None
            )

    def inputs(self, key: str, context: str, data: Sequence[Mapping[str, Any]]) -> None:
        """Say what a run was trained on or asked: data by name, each with its digest, where it is, and its profile."""
        run = self._run(key)
        new = [each for each in data if run.data.get((context, each["name"])) != each["digest"]]
        if new:
            tags = [InputTag(MLFLOW_DATASET_CONTEXT, context)]
            self.client.log_inputs(run.id, [DatasetInput(Dataset(**each), tags) for each in new])
            run.data |= {(context, each["name"]): each["digest"] for each in new}

    def model(self, key: str, weights: str) -> None:
        """Name the weights of a run, which stay where they are, as a model; numbers that follow are its too."""
        run = self._run(key)
        if run.model is not None:
            return
        try:
            found = self.client.search_logged_models([self.experiment], f"source_run_id = '{run.id}'")
        except MlflowException as error:
            if error.error_code == NO_ENDPOINT:
                return  # a server before MLflow 3, which knows no models of runs
            raise
        tags = {KEY_TAG: key, "raygeo.weights": weights, MLFLOW_MODEL_IS_EXTERNAL: "true"}
        name = run.name.translate(_NO_MODEL_NAME)
        model = found[0] if found else self.client.create_logged_model(self.experiment, name, run.id, tags, run.params)
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if _known(self.client.get_run(run.id)).model is None:
            self.client.log_outputs(run.id, [LoggedModelOutput(model.model_id, 0)])
        run.model = model.model_id

    def end(self, key: str, status: str, time: int, known: bool) -> None:
        """Mark a run as ended at ``time``; where that is ``known``, in place of when it was seen to end."""
        run = self._run(key)
        if run.status != status or (known and run.ended != time):
            self._end(run, status, time)

    def close(self, status: str, time: int) -> None:
        """Mark every run of the study that is running as ended, those under names of an earlier version too."""
        self._end_all(status, time)

    # ---------------------------------------------------------------------------------------------------------------

    def _run(self, key: str, name: str = "") -> _Run:
        if key not in self.runs:
            default = self.study if key == self.parent else key
            self.runs[key] = self._find(key) or self._create(key, name or default)
        return self.runs[key]

    def _find(self, key: str) -> _Run | None:
        if key == self.parent:
            found = [run for run in self._parents() if _is_named_alike(run)]
        else:
            below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self._run(self.parent).id}'"
            found = self._search(f"tags.`{KEY_TAG}` = '{key}' and {below}")
        # a server that stood still when it was asked to create the run has done so twice: once for nothing
        found.sort(key=_is_empty)
        for twin in filter(_is_empty, found[1:]):
            with suppress(MlflowException):  # not everybody may delete
                self.client.delete_run(twin.info.run_id)
        return _known(found[0]) if found else None

    def _parents(self) -> list[MlflowRun]:
        """The study's own run, and those that it has under names of an earlier version."""
        return self._search(f"tags.`{KEY_TAG}` = '{self.parent}'")

    def _search(self, query: str) -> list[MlflowRun]:
        found: list[MlflowRun] = []
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment], query, order_by=["attributes.start_time ASC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def _create(self, key: str, name: str) -> _Run:
        tags = {KEY_TAG: key, SCHEME_TAG: SCHEME, MLFLOW_RUN_NAME: name}
        if key != self.parent:
            tags[MLFLOW_PARENT_RUN_ID] = self._run(self.parent).id
        elif self.note:
            tags[MLFLOW_RUN_NOTE] = self.note
        run = self.client.create_run(self.experiment, self.begun.get(key), tags, name)
        if key == self.parent:
            self._replace_older(run.info.run_id)
        return _Run(run.info.run_id, name, tags=tags, reached=-1)

    def _replace_older(self, new: str) -> None:
        """Leave runs under names of an earlier version as they are, and say what replaces them: MLflow renames none."""
        older = [run for run in self._parents() if not _is_named_alike(run)]
        for run in older:
            with suppress(MlflowException):
                self.client.set_tag(run.info.run_id, REPLACED_TAG, new)
        if older:
            self.say(
                "  MLflow has runs of this study under names of an earlier version: they stay beside the new ones, and "
                "can be deleted there"
            )

    def _tag(self, run: _Run, values: Mapping[str, str]) -> None:
        new = {k: v[:_LONGEST_TAG] for k, v in values.items() if run.tags.get(k) != v[:_LONGEST_TAG]}
        if new:
            self.client.log_batch(run.id, tags=[RunTag(k, v) for k, v in new.items()])
            run.tags |= new

    def _end(self, run: _Run, status: str, time: int) -> None:
        self.client.set_terminated(run.id, status, time)
        run.status, run.ended = status, time

    def _end_all(self, status: str, time: int, but: str = "") -> None:
        known = {run.id: run for run in self.runs.values()}
        for parent in self._parents():
            below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'"
            children = self._search(f"{below} and attributes.status = 'RUNNING'")
            for found in (*children, parent):
                run = known.get(found.info.run_id) or _known(found)
                if found.info.status == "RUNNING" and run.id != but and KEY_TAG in found.data.tags:
                    self._end(run, status, time)

    def _history(self, run: _Run, name: str) -> list[Metric]:
        return self.client.get_metric_history(run.id, name)

    def _log(self, run: _Run, points: Iterable[Point], at: int, asked: bool = False) -> None:
        entries = [
            Metric(name, float(value), at, step, run.model, *(_asked(run, name) if asked else ()))
            for name, step, value in points
        ]
        for start in range(0, len(entries), _BATCH):
            self.client.log_batch(run.id, metrics=entries[start : start + _BATCH])


_CALLS = {
    call.__name__: call
    for call in (
        Remote.open, Remote.begin, Remote.steps, Remote.curves, Remote.metrics, Remote.histories, Remote.tags,
        Remote.file, Remote.inputs, Remote.model, Remote.end, Remote.close,
    )
}  # fmt: skip


def _is_named_alike(parent: MlflowRun) -> bool:
    """Whether a study's metrics and parameters have the names of this version."""
    return parent.data.tags.get(SCHEME_TAG) == SCHEME


def _is_empty(run: MlflowRun) -> bool:
    return not (run.data.metrics or run.data.params)


def _known(run: MlflowRun) -> _Run:
    info, models = run.info, run.outputs.model_outputs if run.outputs else []
    return _Run(
        info.run_id,
        info.run_name,
        info.status,
        info.end_time,
        models[0].model_id if models else None,
        {
            (tag.value, each.dataset.name): each.dataset.digest
            for each in (run.inputs.dataset_inputs if run.inputs else ())
            for tag in each.tags
            if tag.key == MLFLOW_DATASET_CONTEXT
        },
        dict(run.data.params),
        dict(run.data.tags),
    )


def _asked(run: _Run, metric: str) -> tuple[str, str] | tuple[None, None]:
    """Name and digest of the benchmark whose answers a metric is of, if that is known."""
    name = benchmark_of(metric) if metric.startswith("eval/") else ""
    digest = run.data.get(("evaluation", name))
    return (None, None) if digest is None else (name, digest)


def _batches(points: Sequence[tuple[int, int, Mapping[str, float]]]) -> Iterator[list[Any]]:
    """Whole steps, as many at a time as one request takes."""
    batch: list[Any] = []
    size = 0
    for point in points:
        if batch and size + len(point[2]) > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(point)
        size += len(point[2])
    if batch:
        yield batch


def _now() -> int:
    return int(time.time() * 1000)
