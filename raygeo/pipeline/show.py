"""What a store holds, one of its runs, or one of its tables, on the console or as JSON: ``raygeo show``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pyarrow as pa
import yaml
from rich.console import Console
from rich.text import Text

from raygeo import plain
from raygeo.errors import ConfigError
from raygeo.nearest import nearest
from raygeo.pipeline.missing import missing_parts
from raygeo.pipeline.results import Results
from raygeo.pipeline.standing import known_about
from raygeo.records import RunRecord
from raygeo.report.console import summary
from raygeo.report.missing import gap
from raygeo.store import Store
from raygeo.tables import BASE

_SHOWN = 60
"""Characters of a cell on the console."""


class Shown(Protocol):
    """Something that can be printed and written as JSON."""

    def plain(self) -> dict[str, Any]:
        """It as plain data."""

    def say(self, out: Console) -> None:
        """Print it."""


def show(store: Store, name: str | None = None, *, rows: int = 20, as_json: bool = False, out: Console) -> None:
    """Print what the store holds; with a ``name`` the run of that name, or else the first ``rows`` of that table.

    JSON is one object, in which numbers that are not finite are null.

    Raises:
        StoreError: the store holds neither a study nor a comparison, or a table cannot be read.
        ConfigError: it has no run and no table of that name.
    """
    shown = _find(store, name, rows)
    if as_json:
        out.print(plain.as_json(shown.plain()), markup=False, highlight=False, soft_wrap=True)
    else:
        shown.say(out)


def _find(store: Store, name: str | None, rows: int) -> Shown:
    results = Results(store)
    if name is None:
        return _study(results)
    if name in results.tables:
        first, count = store.first_rows(name, rows)
        return ShownTable(name, count, first)
    if name not in (BASE, *results.seen.names):
        near = nearest(name, [*results.seen.names, *results.tables])
        hint = f"did you mean {near!r}?" if near else f"its runs are {', '.join(results.seen.names) or 'none'}."
        raise ConfigError(f"{store.shown} has no run and no table {name!r}; {hint}")
    run = results.run(name)
    accuracy = [{key: value for key, value in row.items() if key != "run"} for row in run.accuracy.values()]
    return ShownRun(run.record, name, accuracy, run.metrics)


@dataclass(frozen=True)
class ShownRun:
    """A run: its row in the table ``runs`` with its settings, its accuracies, and its metrics as MLflow has them."""

    record: RunRecord | None
    name: str
    accuracy: list[dict[str, Any]]
    metrics: Mapping[str, float]

    def plain(self) -> dict[str, Any]:
        """It as plain data."""
        record = {"run": self.name} if self.record is None else asdict(self.record)
        return record | {"accuracy": self.accuracy, "metrics": dict(self.metrics)}

    def say(self, out: Console) -> None:
        """Print it."""
        record = {"run": self.name} if self.record is None else asdict(self.record)
        settings = {key: record.pop(key, None) for key in ("loss", "training", "stages")}
        _say_pairs(out, {key: value for key, value in record.items() if value is not None})
        for key, value in settings.items():
            if value is not None:
                _say(out, f"\n{key}", "bold")
                _say(out, yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip())
        if self.metrics or self.accuracy:
            _say(out, "\nmetrics", "bold")
            _say_pairs(out, {name: f"{value:.6g}" for name, value in sorted(self.metrics.items())})
            _say_table(out, self.accuracy)


@dataclass(frozen=True)
class ShownTable:
    """The first rows of a table of ``count`` rows."""

    name: str
    count: int
    rows: pa.Table

    def plain(self) -> dict[str, Any]:
        """It as plain data."""
        return {"table": self.name, "count": self.count, "rows": self.rows.to_pylist()}

    def say(self, out: Console) -> None:
        """Print it."""
        _say_table(out, self.rows.to_pylist(), self.rows.column_names)
        _say(out, f"{self.name}: {self.rows.num_rows} of {self.count:,} rows")


@dataclass(frozen=True)
class ShownStudy:
    """A study or comparison: how far it is, its runs with status and accuracies, and the verdict of its page."""

    title: str
    student: str
    store: str
    stages: list[dict[str, Any]]
    lacking: list[str]
    runs: list[dict[str, Any]]
    verdict: list[str]
    missing: list[str]
    tables: list[str]
    summary: list[str]

    def plain(self) -> dict[str, Any]:
        """It as plain data."""
        plain = asdict(self)
        del plain["summary"]
        return plain

    def say(self, out: Console) -> None:
        """Print it."""
        _say(out, self.title, "bold")
        _say(out, f"{self.student}\n")
        done = ", ".join(f"{stage['stage']} ({stage['seconds']:.0f} s)" for stage in self.stages)
        _say(out, f"stages done: {done or 'none known'}")
        if self.lacking:
            _say(out, f"not done: {', '.join(self.lacking)}", "yellow")
        states = [run["status"] for run in self.runs if run["run"] != BASE]
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        _say(out, f"runs: {counted or 'none'}")
        for run in self.runs:
            if run["reason"]:
                _say(out, f"  {run['run']}: {run['reason']}", "yellow")
        for said in self.summary:
            _say(out, f"\n{said}" if said is self.summary[0] else said)
        for said in self.missing:
            _say(out, said, "yellow")
        _say(out, f"\ntables: {', '.join(self.tables) or 'none'}")
        _say(out, "raygeo show STORE RUN shows a run, and with the name of a table its rows.", "dim")


def _study(results: Results) -> ShownStudy:
    about, seen, store = known_about(results.store), results.seen, results.store
    ended = {stage for stage, *_ in about.timings}
    runs = []
    for name in (BASE, *seen.names):
        record = seen.records.get(name)
        runs.append(
            {
                "run": name,
                "loss": record.label if record else None,
                "status": record.status if record else "base" if name == BASE else "unknown",
                "reason": record.reason if record else None,
                "accuracy": {row["benchmark"]: row["accuracy"] for row in seen.rows("accuracy", run=name)},
            }
        )
    verdict = results.verdict
    return ShownStudy(
        title=about.title,
        student=about.student,
        store=store.shown,
        stages=[
            {"stage": stage, "seconds": seconds, "made": units, "from_store": reused}
            for stage, seconds, units, reused in about.timings
        ],
        lacking=[stage for stage in about.stages if stage not in ended],
        runs=runs,
        verdict=verdict,
        missing=[
            *(gap(row["part"], row["reason"]) for row in missing_parts(store)),
            *results.failures.sentences(),
        ],
        tables=list(results.tables),
        summary=list(summary(seen, results.parts)),
    )


def _say(out: Console, text: str, style: str = "") -> None:
    out.print(Text(text, style), soft_wrap=True)


def _say_pairs(out: Console, pairs: Mapping[str, Any]) -> None:
    width = max(map(len, pairs), default=0)
    for key, value in pairs.items():
        _say(out, f"{key.ljust(width)}  {value}")


def _say_table(out: Console, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Print rows in aligned columns, a line each however long."""
    names = list(columns or (rows[0] if rows else ()))
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, line in enumerate(cells):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        _say(out, text, "bold" if number == 0 else "")


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
