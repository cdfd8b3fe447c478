"""What a study or comparison left in its store, for notebooks and programs of one's own: ``raygeo.open``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raygeo.analyses.registry import know, parts, schemas, view
from raygeo.errors import ConfigError, DeltaError
from raygeo.models.delta import Delta, open_delta
from raygeo.models.loading import load_model, load_tokenizer
from raygeo.models.merge import add_deltas
from raygeo.nearest import hint
from raygeo.pipeline.published import KIND, finished_run, measured, own_loaded, published_tables
from raygeo.pipeline.reference_run import reference_run
from raygeo.pipeline.standing import known_about
from raygeo.records import RunRecord
from raygeo.report.console import sentences
from raygeo.report.missing import Failures
from raygeo.report.page import draw_figures
from raygeo.report.parts import Parts
from raygeo.report.view import View
from raygeo.store import AnyPath, Store
from raygeo.tables import BASE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Results:
    """The tables, figures, verdict and runs of a study or comparison, finished or not.

    Everything is read when it is first asked for. Of a study that goes on meanwhile, open the store again.
    """

    def __init__(self, store: Store):
        self.store = store

    def __repr__(self) -> str:
        return f"<raygeo results in {self.store.shown}: {len(self.runs)} runs, {len(self.tables)} tables>"

    @property
    def tables(self) -> Mapping[str, pa.Table]:
        """The published tables by name, as Arrow, each read when it is looked up (``docs/analyses.md`` has them)."""
        return _Tables(self.store)

    def table(self, name: str) -> pa.Table:
        """A table as Arrow, ``.to_pandas()`` for pandas; empty if it is known and was not made.

        Raises:
            StoreError: there is no such table, or its file is damaged.
        """
        know(self._own)
        known = schemas()
        if name in known and not self.store.has_table(name):
            return known[name].empty_table()
        return self.store.table(name)

    @cached_property
    def figures(self) -> Mapping[str, Figure]:
        """All figures for which there is data, drawn, by name, in the order of the page."""
        return draw_figures(self.seen, self.parts, self.failures)

    def figure(self, name: str) -> Figure:
        """One figure, drawn (Matplotlib); ``raygeo analyses`` names those of each analysis.

        Raises:
            ConfigError: there is no such figure, or nothing to draw in it.
        """
        seen, known = self.seen, {plot.name: plot for plot in self.parts.figures}
        if name not in known:
            raise ConfigError(f"there is no figure {name!r}; {hint(name, list(known), 'the figures are')}")
        failures = Failures()
        drawn = draw_figures(seen, replace(self.parts, figures=(known[name],)), failures)
        for error in failures.reasons.values():
            raise error
        if name not in drawn:
            raise ConfigError(f"{self.store.shown} has nothing to draw in the figure {name!r}: its tables are empty.")
        return drawn[name]

    @cached_property
    def verdict(self) -> list[str]:
        """The sentences at the top of the page, none stronger than its test."""
        return sentences(self.seen, self.parts, self.failures)

    @property
    def runs(self) -> Mapping[str, Trained]:
        """The runs by name, in the study's order, without the base: finished ones, failed ones, and single stages."""
        return {name: self.run(name) for name in self.seen.names}

    def run(self, name: str) -> Trained:
        """A run by its name, or ``base``, what all runs were trained from.

        Raises:
            ConfigError: there is no run of that name.
        """
        names = self.seen.names
        if name not in (BASE, *names):
            raise ConfigError(f"{self.store.shown} has no run {name!r}; {hint(str(name), names, 'its runs are')}")
        accuracy = {row["benchmark"]: row for row in self.seen.rows("accuracy", run=name)}
        return Trained(self.store, name, self.seen.records.get(name), accuracy, self._metrics.get(name, {}))

    @cached_property
    def seen(self) -> View:
        """The tables as pages and figures see them."""
        tables = published_tables(self.store, self.failures)
        return view(tables, known_about(self.store).reference_run or reference_run(tables["runs"].to_pylist()))

    @property
    def parts(self) -> Parts:
        """What pages show: of every study, of each analysis, and of those that this one brings."""
        know(self._own)
        return parts()

    @cached_property
    def _own(self) -> tuple[str, ...]:
        return own_loaded(self.store, self.failures)

    @cached_property
    def failures(self) -> Failures:
        """What of the above could not be read or made."""
        return Failures()

    @cached_property
    def _metrics(self) -> dict[str, dict[str, float]]:
        return measured(self.seen, self.parts, self.failures)


@dataclass(frozen=True)
class Trained:
    """A run of a study, or a model of a comparison.

    ``record`` is its row in the table ``runs`` with its settings, None where it has none; ``accuracy`` its rows in the
    table of that name by benchmark; ``metrics`` those that MLflow shows.
    """

    store: Store
    name: str
    record: RunRecord | None
    accuracy: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, float]

    def __repr__(self) -> str:
        known = self.record
        said = "" if known is None else f": {', '.join(filter(None, (known.label, known.status)))}"
        return f"<raygeo run {self.name}{said}>"

    def delta(self) -> Delta:
        """What training changed, by parameter, opened lazily: ``raygeo.geometry`` takes it.

        Raises:
            ConfigError: the run did not finish, is a single stage, or its weights have been removed.
        """
        base, delta = self._folders()
        return open_delta(delta, base)

    def adapter(self) -> PeftModel:
        """The base in fp32 on the CPU with the run's LoRA adapter on it, as PEFT loads it.

        Raises:
            ConfigError: as ``delta``.
            DeltaError: the run trained all weights.
        """
        from peft import PeftModel

        base, delta = self._folders()
        if not open_delta(delta, base).low_rank:
            raise DeltaError(f"run {self.name!r} trained all weights, so there is no adapter of it; model() has them.")
        return PeftModel.from_pretrained(load_model(base), delta)

    def model(self) -> PreTrainedModel:
        """The model that was trained, base and delta added in fp32, on the CPU; the base itself for the base.

        Raises:
            ConfigError: as ``delta``.
        """
        if self.name == BASE:
            return load_model(self._base())
        base, delta = self._folders()
        return add_deltas(load_model(base), base, delta)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the base, which no run changes."""
        return load_tokenizer(self._base())

    def _folders(self) -> tuple[str, str]:
        """The folders of base and delta, on this machine."""
        row = finished_run(self.store, self.name, f"run {self.name!r}")
        return self.store.folder(KIND, row["student"]), self.store.folder("deltas", row["key"])

    def _base(self) -> AnyPath:
        students = {row["student"] for row in self.store.table("runs").to_pylist() if row["student"]}
        if len(students) != 1:
            raise ConfigError(f"{self.store.shown} has no run yet that says what it was trained from; train one.")
        return self.store.folder(KIND, *students)


class _Tables(Mapping[str, pa.Table]):
    def __init__(self, store: Store):
        self._store, self._names = store, store.names()

    def __getitem__(self, name: str) -> pa.Table:
        if name not in self._names:
            raise KeyError(name)
        return self._store.table(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<tables: {', '.join(self._names) or 'none'}>"
