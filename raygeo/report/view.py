"""A read-only view of a study's tables: pairs are found in either order, runs have an order."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raygeo.records import FINISHED, STOPPED, Condition, RunRecord
from raygeo.report.style import RunStyle, group_lines, run_styles
from raygeo.tables import BASE

MANY = 12
"""Above so many runs, figures show configurations, with their seeds as spread, and tables can be filtered."""
LEGEND = 15
"""Most entries of a legend."""


@dataclass(frozen=True)
class View:
    """``tables`` are all that figures and sections ask for, empty ones included (``raygeo.analyses.registry.view`` sees
    to that); ``reference_run`` is the run others are compared with.
    """

    tables: Mapping[str, pa.Table]
    reference_run: str

    def frame(self, table: str, **equal: Any) -> pd.DataFrame:
        """Return ``table`` as a frame, keeping rows whose columns equal ``equal``."""
        if table not in self._frames:
            self._frames[table] = self.tables[table].to_pandas()
        frame = self._frames[table]
        for column, value in equal.items():
            frame = frame[frame[column] == value]
        return frame.reset_index(drop=True)

    def of(self, run: str) -> "View":
        """What there is of one run beside the base, as it looks among all: rows that name another are left out."""
        kept = pa.array([BASE, run])
        tables = {}
        for name, table in self.tables.items():
            for column in {"run", "run_a", "run_b"} & set(table.column_names):
                table = table.filter(pc.is_in(table[column], kept))
            tables[name] = table
        alone = View(tables, self.reference_run)
        vars(alone)["styles"] = self.styles
        return alone

    def rows(self, table: str, **equal: Any) -> list[dict[str, Any]]:
        """Return ``table`` row by row, keeping those whose columns equal ``equal``."""
        rows = self.tables[table]
        for column, value in equal.items():
            rows = rows.filter(pc.equal(rows[column], value))
        return rows.to_pylist()

    @cached_property
    def _frames(self) -> dict[str, pd.DataFrame]:
        return {}

    @cached_property
    def records(self) -> dict[str, RunRecord]:
        """What is known of every run but the base, in the study's order."""
        return {row["run"]: RunRecord.of(row) for row in self.rows("runs") if row["run"] != BASE}

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """How every run was trained, where that is known."""
        return {name: known for name, record in self.records.items() if (known := record.condition) is not None}

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Rows of ``runs`` without the base, in the study's order."""
        runs = self.frame("runs")
        return runs[runs.run != BASE].drop_duplicates("run").reset_index(drop=True)

    @cached_property
    def losses(self) -> dict[str, str]:
        """Loss of every run whose loss is known."""
        known = self.runs.dropna(subset="loss")
        return dict(zip(known.run, known.loss, strict=True))

    @cached_property
    def shifts(self) -> dict[str, str]:
        """How the problems of each benchmark differ from those of the rollouts: ``none``, ``ood`` or ``retention``."""
        return {row["benchmark"]: row["shift"] for row in self.rows("benchmarks")}

    @cached_property
    def failed(self) -> set[str]:
        """Runs that did not finish."""
        return {name for name, record in self.records.items() if record.status != FINISHED}

    @cached_property
    def stopped(self) -> set[str]:
        """Runs that a scheduler stopped before their end, as it is meant to."""
        return {name for name, record in self.records.items() if record.status == STOPPED}

    @cached_property
    def legs(self) -> set[str]:
        """Runs that hold what one later stage of a run changed: they were not trained by themselves, and no model."""
        return {name for name, record in self.records.items() if record.leg is not None}

    @cached_property
    def names(self) -> list[str]:
        """Every run but the base: those of ``runs``, then any other that a table names, in the order they appear."""
        seen = dict.fromkeys(self.runs.run)
        for table in self.tables:
            columns = {"run", "run_a", "run_b"} & set(self.tables[table].column_names)
            for column in sorted(columns):
                seen |= dict.fromkeys(self.tables[table][column].drop_null().unique().to_pylist())
        seen.pop(BASE, None)
        return list(seen)

    @cached_property
    def many(self) -> bool:
        """Whether there are too many runs to show each by itself."""
        return len(self.names) > MANY

    @cached_property
    def _firsts(self) -> dict[str, str]:
        """The first run of each run's configuration, by the run; a run of unknown training is its own."""
        first: dict[tuple[str, str], str] = {}
        return {name: first.setdefault(known.configuration, name) for name, known in self.conditions.items()}

    def groups(self, present: "pd.Series[Any] | set[str]") -> dict[str, list[str]]:
        """Runs that are shown as one, by the name of the first: each by itself, of many runs those of a configuration.

        The groups and the runs in them stand in the study's order, the base first.
        """
        found: dict[str, list[str]] = {}
        for name in self.order(present):
            found.setdefault(self._firsts.get(name, name) if self.many else name, []).append(name)
        return found

    def examples(self, present: "pd.Series[Any] | set[str]", most: int = MANY) -> list[str]:
        """The runs that have a panel each: all, of many the base and the first ``most`` configurations' first runs."""
        if not self.many:
            return self.order(present)
        names = [members[0] for members in self.groups(present).values()]
        return names[: most + (BASE in names)]

    @cached_property
    def styles(self) -> dict[str, RunStyle]:
        """Colour, line and marker of the base and every run."""
        return run_styles({name: self.losses.get(name, name.split("-")[0]) for name in self.names}, BASE)

    @cached_property
    def group_lines(self) -> dict[str, dict[str, Any]]:
        """How the line of each configuration looks, by its first run: while a legend can name them all, they differ."""
        groups = self.groups({BASE, *self.names})
        return group_lines([self.styles[first] for first in groups], apart=len(groups) <= LEGEND)

    def order(self, present: "pd.Series[Any] | set[str]") -> list[str]:
        """Sort run names into the study's order, the base first."""
        wanted = set(present)
        return [name for name in (BASE, *self.names) if name in wanted]

    def by_loss(self, present: "pd.Series[Any] | set[str]") -> dict[str, list[str]]:
        """Group run names by loss, in the study's order; a run of unknown loss stands alone."""
        groups: dict[str, list[str]] = {}
        for name in self.order(present):
            groups.setdefault(self.losses.get(name, name), []).append(name)
        return groups

    def against(self, other: str, table: str, **equal: Any) -> pd.DataFrame:
        """Rows of a pair table in which ``other`` takes part, with its partner as ``run``.

        ``flipped`` is true where ``other`` stands second; ``alpha``, if there is one, is turned so that 0 is ``other``.
        """
        frame = self.frame(table, **equal)
        frame = frame[((frame.run_a == other) | (frame.run_b == other)) & (frame.run_a != frame.run_b)].copy()
        frame["flipped"] = frame.run_b == other
        frame["run"] = frame.run_a.where(frame.flipped, frame.run_b)
        if "alpha" in frame:
            frame["alpha"] = frame.alpha.where(~frame.flipped, 1 - frame.alpha)
        return frame.reset_index(drop=True)
