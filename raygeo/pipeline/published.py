"""What a store has published, read without what makes it: tables, runs, and the numbers that pages and MLflow show."""

from collections import defaultdict
from functools import partial
from typing import Any

import pyarrow as pa

from raygeo.analyses.registry import know, own_analysis, schemas
from raygeo.data.teacher import TOP_COLUMNS
from raygeo.errors import ConfigError, StoreError
from raygeo.nearest import hint
from raygeo.pipeline.config import StudentSettings
from raygeo.pipeline.standing import own_analyses
from raygeo.records import RunRecord
from raygeo.report.missing import Failures, named
from raygeo.report.parts import Histories, Metrics, Parts
from raygeo.report.view import View
from raygeo.store import AnyPath, Store

KIND = "students"
"""What folders of models are in a store."""


def run_records(store: Store) -> dict[str, RunRecord]:
    """What is known of every run, by name, in the study's order."""
    return {row["run"]: RunRecord.of(row) for row in store.table("runs").to_pylist()}


def published(store: Store, table: str) -> pa.Table:
    """A published table, empty if it was not made."""
    return store.table(table, schemas()[table])


def finished_run(store: Store, name: str, asked: str) -> dict[str, Any]:
    """The row of a finished run whose student and delta are in ``store``; ``asked`` says in errors what asks for it.

    Raises:
        ConfigError: there is none.
        StoreError: the table of runs is damaged.
    """
    runs = {row["run"]: row for row in store.table("runs").to_pylist() if row["run"] is not None}
    if name not in runs:
        said = hint(name, runs, "it has") if runs else "it has none yet; run its study first."
        raise ConfigError(f"{asked} is not a run of {store.location}; {said}")
    run = runs[name]
    if (record := RunRecord.of(run)).leg is not None:
        raise ConfigError(
            f"{asked} of {store.location} is what stage {record.leg} of {record.leg_of} changed, which is no model by "
            f"itself; give {record.leg_of}, which has all of its stages."
        )
    if record.model is not None:
        raise ConfigError(
            f"{asked} of {store.location} was compared there and not trained; what it is lies at {record.model}."
        )
    if run["status"] != "finished":
        raise ConfigError(
            f"{asked} of {store.location} has no weights to start from: {run['status']}, "
            f"{run['reason'] or 'no reason was recorded'}. Choose a finished run."
        )
    if run["student"] is None:
        raise ConfigError(
            f"{asked}: {store.location} does not say which student it was trained from; "
            "run its study again with this version of raygeo."
        )
    for kind, key in ((KIND, run["student"]), ("deltas", run["key"])):
        if not store.has_folder(kind, key):
            missing = store.path(kind, key)
            raise ConfigError(f"{asked} needs {missing}; run its study again to make it.")
    return run


def continued_from(settings: StudentSettings) -> AnyPath | None:
    """The folder of what the run was trained from that a student continues; None where it continues none.

    Raises:
        ConfigError: there is no such run.
        StoreError: there is no such store.
    """
    if settings.from_run is None or settings.from_store is None:
        return None
    earlier = Store(settings.from_store, create=False)
    run = finished_run(earlier, settings.from_run, f"student.from_run {settings.from_run!r}")
    return earlier.stored(KIND, run["student"])


_LONG = {
    "rollouts": ("prompt", "completion", "logprobs", *TOP_COLUMNS),
    "reference": ("logprobs",),
    "gradients": ("products", "projection"),
}
"""Columns of tables that no page shows, and that need not fit in memory."""


def own_loaded(store: Store, failures: Failures) -> tuple[str, ...]:
    """What the store's study asks for as ``module:name``; what cannot be loaded is left out, and joins the failures."""
    load = {path: partial(own_analysis, path) for path in own_analyses(store)}
    return tuple(path for path in load if failures.attempt(f"the analysis {path}", load[path]) is not None)


def published_tables(store: Store, failures: Failures | None = None) -> dict[str, pa.Table]:
    """Every table of the analyses that are known, the study's own too; empty where the store has none, or one whose
    columns have other names.

    The texts and log-probabilities of all rollouts are left out. A table that cannot be read is empty, and noted among
    the ``failures``.
    """
    failures = Failures() if failures is None else failures
    know(own_loaded(store, failures))
    tables = {}
    for name, columns in schemas().items():
        kept = pa.schema([field for field in columns if field.name not in _LONG.get(name, ())], columns.metadata)
        table = failures.attempt(f"the table {name}", partial(_published, store, name, columns, kept))
        tables[name] = kept.empty_table() if table is None else table
    return tables


def _published(store: Store, name: str, columns: pa.Schema, kept: pa.Schema) -> pa.Table:
    if renamed_columns(store, name, columns):
        return kept.empty_table()
    table = store.table(name, kept)
    if "run" in table.column_names and table["run"].null_count:
        raise StoreError(f"{table['run'].null_count} of its {table.num_rows} rows name no run; make it again.")
    return table


def renamed_columns(store: Store, table: str, columns: pa.Schema) -> list[str]:
    """Columns that a published table lacks while it has others instead: it was made by another version."""
    found = store.columns(table)
    lacking = [name for name in columns.names if name not in found]
    return lacking if set(found) - set(columns.names) else []


def measured(seen: View, made: Parts, failures: Failures) -> dict[str, dict[str, float]]:
    """The metrics of each run, by name."""
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for metrics in made.metrics:
        rows = failures.attempt(f"the metrics {named(metrics)}", partial(_metrics, metrics, seen))
        for run, name, value in rows or []:
            found[run][name] = value
    return found


def _metrics(make: Metrics, seen: View) -> list[tuple[str, str, float]]:
    return [(run, name, float(value)) for run, name, value in make(seen) if value is not None]


def curves(seen: View, made: Parts, failures: Failures) -> dict[str, list[tuple[str, int, float]]]:
    """The points (metric, step, value) of each run's curves besides those of training."""
    found: defaultdict[str, list[tuple[str, int, float]]] = defaultdict(list)
    for histories in made.histories:
        rows = failures.attempt(f"the curves {named(histories)}", partial(_points, histories, seen))
        for run, name, step, value in rows or []:
            found[run].append((name, step, value))
    return found


def _points(make: Histories, seen: View) -> list[tuple[str, str, int, float]]:
    return [(run, name, int(step), float(value)) for run, name, step, value in make(seen) if value is not None]
