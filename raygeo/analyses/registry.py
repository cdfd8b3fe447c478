"""Every analysis there is: the folders beside this file, and those that other packages bring.

A folder has a module ``analysis`` with an ``ANALYSIS``. Another package names one as an entry point of the group
``raygeo.analyses``; it must be installed wherever actors run. A study may name one that is in no package by a key
``module:name`` under ``geometry``; it is known while that study is the one at hand.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NamedTuple

import pyarrow as pa

import raygeo.analyses as package
from raygeo.analyses.analysis import Analysis
from raygeo.errors import ConfigError
from raygeo.plugins import installed, named
from raygeo.report.metric import Metric
from raygeo.report.parts import Parts
from raygeo.report.study import CLOSING, STUDY
from raygeo.report.view import View
from raygeo.tables import SCHEMAS

GROUP = "raygeo.analyses"
_own: tuple[str, ...] = ()
"""What the study at hand names as ``module:name``."""


class Known(NamedTuple):
    """A metric, and the analysis that makes it; None for the study's own."""

    metric: Metric
    analysis: Analysis | None


def know(paths: Iterable[str]) -> None:
    """Let the study at hand be one that names these analyses as ``module:name``, and no others."""
    global _own
    _own = tuple(paths)


def analyses(own: tuple[str, ...] | None = None) -> Mapping[str, Analysis]:
    """Every analysis by name, in order; ``own`` in place of what the study at hand names.

    Raises:
        ConfigError: one from outside cannot be loaded or does not fit the others.
    """
    return analyses_with(_own if own is None else own)


@cache
def analyses_with(own: tuple[str, ...]) -> Mapping[str, Analysis]:
    """``analyses`` where a study names ``own``."""
    found = [analysis for analysis, _ in _found(own)]
    for what, names in (
        ("analysis", [analysis.name for analysis in found]),
        ("table", [*SCHEMAS, *(table for analysis in found for table in analysis.tables)]),
        ("figure", [plot.name for analysis in found for plot in analysis.report.figures]),
        ("figure of a run", [plot.name for part in (STUDY, *(a.report for a in found)) for plot in part.singles]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ConfigError(f"two analyses bring the {what} {twice[0]!r}; rename one, or uninstall its package.")
    ordered = {analysis.name: analysis for analysis in sorted(found, key=lambda a: (a.order, a.name))}
    places = {name: place for place, name in enumerate(ordered)}
    for analysis in found:
        for earlier in analysis.after:
            if places.get(earlier, len(places)) >= places[analysis.name]:
                raise ConfigError(f"the analysis {analysis.name!r} must come after {earlier!r}: raise its order.")
    return ordered


@cache
def own_analysis(path: str) -> Analysis:
    """The analysis that a study names as ``module:name``.

    Raises:
        ConfigError: it cannot be loaded, or is no analysis.
    """
    return _checked(named(path, "analysis"), path)


def origins() -> dict[str, str]:
    """Where each analysis comes from: the package, or the distribution that names it."""
    return {analysis.name: origin for analysis, origin in _found(_own)}


def schemas() -> dict[str, pa.Schema]:
    """The schemas of all tables, the study's own first."""
    return {**SCHEMAS, **{name: columns for a in analyses().values() for name, columns in a.tables.items()}}


def parts() -> Parts:
    """All that pages and the tracker show: of the study itself, then of each analysis."""
    reports = (replace(one.report, name=one.name, question=one.question) for one in analyses().values())
    return Parts.joined([STUDY, *reports, CLOSING])


def metrics(own: tuple[str, ...] | None = None) -> dict[str, Known]:
    """Every metric that is declared, by its name there, with its analysis; ``own`` in place of what the study at hand
    names.

    Raises:
        ConfigError: two analyses declare one.
    """
    found: dict[str, Known] = {}
    for analysis, report in ((None, STUDY), *((one, one.report) for one in analyses(own).values())):
        for metric in report.declared:
            if metric.name in found:
                raise ConfigError(
                    f"two analyses bring the metric {metric.name!r}; uninstall the package of one of them."
                )
            found[metric.name] = Known(metric, analysis)
    return found


def view(tables: Mapping[str, pa.Table], reference_run: str) -> View:
    """A view of ``tables``, those that are missing being empty."""
    empty = {name: columns.empty_table() for name, columns in schemas().items()}
    return View({**empty, **tables}, reference_run)


def published_view(table: Callable[[str], pa.Table], reference_run: str) -> View:
    """A view of tables that are read when they are first looked at, by name."""
    return View(_Read(table), reference_run)


class _Read(Mapping[str, pa.Table]):
    """Tables by name, each read once."""

    def __init__(self, table: Callable[[str], pa.Table]):
        self._table = cache(table)

    def __getitem__(self, name: str) -> pa.Table:
        if name not in schemas():
            raise KeyError(name)
        return self._table(name)

    def __iter__(self) -> Iterator[str]:
        return iter(schemas())

    def __len__(self) -> int:
        return len(schemas())


def _found(own: Iterable[str]) -> Iterator[tuple[Analysis, str]]:
    for module in iter_modules(package.__path__):
        if module.ispkg:
            yield _grouped(import_module(f"{package.__name__}.{module.name}.analysis").ANALYSIS), "raygeo"
    for value, analysis, origin in installed(GROUP, "analysis"):
        yield _grouped(_checked(analysis, f"{value} of {origin}")), origin
    yield from ((_grouped(_checked(named(path, "analysis"), path)), path) for path in own)


def _grouped(analysis: Analysis) -> Analysis:
    return replace(analysis, report=analysis.report.under("geometry"))


def _checked(analysis: Any, called: str) -> Analysis:
    if not isinstance(analysis, Analysis):
        raise ConfigError(f"{called} is {type(analysis).__name__}, not an Analysis.")
    try:
        analysis.settings()
    except ValueError as error:
        raise ConfigError(f"the analysis {called} has an option without a default: {error}") from error
    return analysis
