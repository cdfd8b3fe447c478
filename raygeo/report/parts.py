"""What a page and the tracker can show of tables: one bundle for the study itself, and one for each analysis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from itertools import chain
from typing import Any

from raygeo.naming import Group, full_name
from raygeo.report.metric import Metric
from raygeo.report.plots import Plot
from raygeo.report.sheets import Cell, Section
from raygeo.report.verdict import Finding
from raygeo.report.view import View

Verdict = Callable[[View], Iterable[Finding]]
"""Makes sentences of the verdict, each with what it rests on; none if nothing can be said."""
Caveat = Callable[[View], Iterable[str]]
"""Makes the sentences, on what the numbers do not show, that apply to a study; none if none does."""
Metrics = Callable[[View], Iterable[tuple[str, str, float | None]]]
"""Makes (run, metric, value): what the tracker shows of each run; None is left out. An analysis names its metrics
without their group."""
Histories = Callable[[View], Iterable[tuple[str, str, int, float | None]]]
"""Makes (run, metric, step, value): what the tracker draws as curves."""


@dataclass(frozen=True)
class Column:
    """A column of the table of results: its heading, a sentence on how to read it, and the cells by run."""

    title: str
    note: str
    cells: Callable[[View], Mapping[str, Cell]]


@dataclass(frozen=True)
class Parts:
    """Everything that is shown of some tables, in reading order.

    ``name`` and ``question`` stand above them on the page; ``chapters`` are the bundles that others were joined from.
    """

    name: str = "other"
    question: str = ""
    verdicts: tuple[Verdict, ...] = ()
    columns: tuple[Column, ...] = ()
    figures: tuple[Plot, ...] = ()
    sections: tuple[Section, ...] = ()
    caveats: tuple[Caveat, ...] = ()
    metrics: tuple[Metrics, ...] = ()
    declared: tuple[Metric, ...] = ()
    """All that ``metrics`` make: what a sweep may be judged by, and the pre-screen correlates."""
    histories: tuple[Histories, ...] = ()
    singles: tuple[Plot, ...] = ()
    """Figures that are drawn of each run alone, the base behind it, for its own page in the tracker."""
    chapters: tuple[Parts, ...] = ()

    def under(self, group: Group) -> Parts:
        """The same with its metrics and curves, which name themselves without one, in a group."""

        def grouped(make: Callable[[View], Iterable[tuple[Any, ...]]]) -> Callable[[View], Iterator[Any]]:
            @wraps(make)
            def rows(view: View) -> Iterator[Any]:
                return ((run, full_name(group, name), *rest) for run, name, *rest in make(view))

            return rows

        return replace(
            self,
            metrics=tuple(grouped(make) for make in self.metrics),
            declared=tuple(replace(one, name=full_name(group, one.name)) for one in self.declared),
            histories=tuple(grouped(make) for make in self.histories),
        )

    @classmethod
    def joined(cls, bundles: Iterable[Parts]) -> Parts:
        """All parts of several bundles, one bundle after the other."""
        bundles = list(chain(*(bundle.chapters or (bundle,) for bundle in bundles)))
        kinds = [f.name for f in fields(cls) if f.name not in ("name", "question", "chapters")]
        parts: dict[str, Any] = {kind: tuple(chain(*(getattr(bundle, kind) for bundle in bundles))) for kind in kinds}
        return cls(**parts, chapters=tuple(bundles))
