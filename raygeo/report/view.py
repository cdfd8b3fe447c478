"""A read-only view of a study's tables: missing ones are empty, pairs are found in either order, runs have an order."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa

from raygeo.report.style import RunStyle, run_styles
from raygeo.tables import BASE, SCHEMAS


@dataclass(frozen=True)
class View:
    """``tables`` are any of ``raygeo.tables.SCHEMAS``; ``reference_run`` is the run others are compared with."""

    tables: Mapping[str, pa.Table]
    reference_run: str

    def frame(self, table: str, **equal: Any) -> pd.DataFrame:
        """Return ``table`` as a frame, keeping rows whose columns equal ``equal``; empty when the table is missing."""
        found = self.tables.get(table)
        frame = (SCHEMAS[table].empty_table() if found is None else found).to_pandas()
        for column, value in equal.items():
            frame = frame[frame[column] == value]
        return frame.reset_index(drop=True)

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
    def failed(self) -> set[str]:
        """Runs that did not finish."""
        return set(self.runs.run[self.runs.status != "finished"])

    @cached_property
    def names(self) -> list[str]:
        """Every run but the base: those of ``runs``, then any other that a table names, in the order they appear."""
        seen = dict.fromkeys(self.runs.run)
        for table in (
            "accuracy",
            "deltas",
            "similarity",
            "subspaces",
            "paths",
            "curvature",
            "cka",
            "trajectories",
            "sharpness",
        ):
            frame = self.frame(table)
            for column in ("run", "run_a", "run_b"):
                if column in frame:
                    seen |= dict.fromkeys(frame[column].dropna().unique())
        seen.pop(BASE, None)
        return list(seen)

    @cached_property
    def styles(self) -> dict[str, RunStyle]:
        """Colour, line and marker of the base and every run."""
        return run_styles({name: self.losses.get(name, name.split("-")[0]) for name in self.names}, BASE)

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

    def curvature(self, quantity: str) -> tuple[pd.DataFrame, str]:
        """Rows of ``quantity`` for the first (operator, space) that has it, so that like meets like, and its name."""
        frame = self.frame("curvature", quantity=quantity).dropna(subset="value")
        if frame.empty:
            return frame, ""
        first = frame.iloc[0]
        same = (frame.operator == first.operator) & (frame.space == first.space)
        return frame[same].reset_index(drop=True), f"{first.operator}, {first.space}"

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
