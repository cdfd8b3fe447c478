"""Which number of a run's weights tells beforehand how it does where it was not trained, shrunk, or trained further.

Spearman's correlations over runs of every metric with every outcome, with the norm of the delta and the learning rate
partialled out besides. Runs that differ in seeds alone are one cluster.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from raygeo.analyses.forgetting.workload import ACCURACY
from raygeo.analyses.inputs import AnalysisInputs
from raygeo.analyses.registry import analyses, published_view
from raygeo.analyses.shifted import shifted_accuracy
from raygeo.evaluation.rank_correlation import FEWEST, Correlations, correlate, detectable, needed, spearman
from raygeo.evaluation.statistics import holm
from raygeo.settings import Settings
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

_GROUP = "geometry/"
NORM = f"{_GROUP}delta_norm"
"""The metric that is partialled out."""
SOUGHT = 0.5
"""The correlation for which the page says how many configurations it takes."""
SHIFTS = {"none": "in-distribution accuracy", "ood": "OOD accuracy", "retention": "accuracy on retention"}
"""Outcomes made of the answers to all benchmarks of one shift; that of retention only where ``forgetting``, its mirror
image, is not measured by accuracy.
"""


class PrescreenSettings(Settings):
    """Which metrics are correlated with the outcomes, and how finely."""

    predictors: tuple[str, ...] = ("*",)
    """Patterns of metrics, by their names in MLflow (``geometry/sharpness/*``). Each further metric costs power, for p
    is corrected over all: name few, before you look."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples of the configurations behind each 95 % interval."""
    permutations: int = Field(9999, ge=99)
    """Permutations of the configurations behind each p; the least p is 1 / (1 + permutations)."""
    seed: int = 0
    """Seed of both."""

    @field_validator("predictors")
    @classmethod
    def _in_the_group(cls, predictors: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in predictors:
            if not pattern.startswith(("*", _GROUP)) or re.search(r"[a-z_*]\.[a-z_*]", pattern):
                said = f"{_GROUP}{pattern.removeprefix(_GROUP).replace('.', '/')}"
                raise ValueError(f"metrics of analyses begin with {_GROUP}; write {said!r} for {pattern!r}")
        return predictors


@dataclass(frozen=True)
class Runs:
    """The trained runs of a study, those of a configuration in the order of their seeds.

    ``predictors`` and ``outcomes`` are numbers by metric and run; ``groups`` holds each run's configuration by its
    number, ``lr`` the learning rates that are known.
    """

    names: tuple[str, ...]
    groups: tuple[int, ...]
    lr: Mapping[str, float]
    predictors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    outcomes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def read_runs(of: AnalysisInputs) -> Runs:
    """What analyses and the evaluation found of every trained run."""
    conditions, trained = of.conditions, [run.name for run in of.runs if run.delta is not None]
    names = sorted(trained, key=lambda name: (conditions[name].seed_order, name))
    places = {c: i for i, c in enumerate(dict.fromkeys(conditions[name].configuration for name in names))}
    known = {name: of.records[name].lr for name in names if name in of.records}
    predictors: dict[str, dict[str, float]] = {}
    outcomes: dict[str, dict[str, float]] = {}
    seen = published_view(of.table, of.reference)
    for shift, outcome in SHIFTS.items():
        if accuracies := {run: x for run, x in shifted_accuracy(seen, shift)[1].items() if run in names}:
            outcomes[outcome] = accuracies
    if (seen.frame("forgetting").measure == ACCURACY).any():
        outcomes.pop(SHIFTS["retention"], None)  # the base's accuracy less it is ``forgetting``
    for analysis in analyses().values():
        for run, metric, value in (row for metrics in analysis.report.metrics for row in metrics(seen)):
            declared = next((one for one in analysis.report.declared if one.covers(metric)), None)
            if declared is None or declared.role is None or not declared.takes_part(seen):
                continue
            if value is not None and run in names and np.isfinite(value):
                (outcomes if declared.role == "outcome" else predictors).setdefault(metric, {})[run] = float(value)
    return Runs(
        tuple(names),
        tuple(places[conditions[name].configuration] for name in names),
        {name: float(lr) for name, lr in known.items() if lr},
        predictors,
        outcomes,
    )


class Prescreen(Workload):
    """One task over all runs.

    Args:
        settings: which metrics, and how finely.
        runs: the runs and what was found of them.
    """

    name = "prescreen"
    tables: ClassVar = {
        "prescreen": schema(
            f"""Spearman's correlation `rho` of each metric with each outcome over runs. Low and high are ends of a 95 %
            interval that draws configurations; `p` is of permutations of configurations, `p_holm` corrected over the
            metrics of an outcome. The same stands behind `partial`, with the `controls` partialled out. `detectable` is
            the correlation that so many configurations find with 80 % power after the correction, `needed` how many it
            takes for one of {SOUGHT:g}; no p is below 1 / (1 + `permutations`). Below {FEWEST} configurations nothing
            is tested.""",
            "outcome, metric: text; runs, configurations: int; rho, low, high, p, p_holm: float; controls: text; "
            "partial_rho, partial_low, partial_high, partial_p, partial_p_holm, detectable: float; needed, "
            "permutations: int",
        )
    }

    def __init__(self, settings: PrescreenSettings, runs: Runs):
        self.settings = settings
        chosen = [n for n in runs.predictors if any(fnmatchcase(n, pattern) for pattern in settings.predictors)]
        self.predictors, self.outcomes = {n: runs.predictors[n] for n in chosen}, runs.outcomes
        self.norm, self.runs = runs.predictors.get(NORM, {}), runs

    def tasks(self) -> list[Task]:
        """One task; none where there is nothing to correlate."""
        if not (self.predictors and self.outcomes):
            return []
        runs = self.runs
        key = self.key(
            self.settings,
            runs.names,
            runs.groups,
            runs.lr,
            self.norm,
            [[*self.predictors.items()], [*self.outcomes.items()]],
        )
        cost = float(len(self.predictors) * len(self.outcomes))
        return [Task(key, cost, None, f"{len(self.predictors)} metrics against {len(self.outcomes)} outcomes")]

    def setup(self) -> None:
        """Build nothing: the numbers are here."""

    def compute(self, state: None, payload: None) -> dict[str, Rows]:
        """Correlate all with all, those together that are known of the same runs."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for metrics, outcomes in product(self._alike(self.predictors), self._alike(self.outcomes)):
            for row in self._rows(metrics, outcomes):
                found[row["outcome"], row["metric"]] = row
        rows = []
        for outcome in self.outcomes:
            mine = [found[outcome, metric] for metric in self.predictors if (outcome, metric) in found]
            tested = _correct(mine, "p")
            _correct(mine, "partial_p")
            for row in mine:
                size = tested or len(mine)
                row |= {"detectable": detectable(row["configurations"], size), "needed": needed(SOUGHT, size)}
            rows += mine
        return {"prescreen": rows}

    def _alike(self, columns: Mapping[str, Mapping[str, float]]) -> list[dict[str, Mapping[str, float]]]:
        """The columns, those known of the same runs together."""
        groups: dict[tuple[bool, ...], dict[str, Mapping[str, float]]] = {}
        for name, values in columns.items():
            groups.setdefault(tuple(run in values for run in self.runs.names), {})[name] = values
        return list(groups.values())

    def _rows(self, metrics: Mapping[str, Any], outcomes: Mapping[str, Any]) -> Rows:
        """A row a metric and outcome, over the runs of which all are known; none of fewer than three."""
        [first, *_], [second, *_] = metrics.values(), outcomes.values()
        kept = [i for i, run in enumerate(self.runs.names) if run in first and run in second]
        names, groups = [self.runs.names[i] for i in kept], [self.runs.groups[i] for i in kept]
        if len(names) < 3:
            return []
        controls = self._controls(names)
        x, y = (_columns(columns.values(), names) for columns in (metrics, outcomes))
        many = len(set(groups)) >= FEWEST
        result = self._tested(x, y, groups, controls) if many else None
        rho = spearman(x, y) if result is None else result.rho
        common: dict[str, Any] = {"runs": len(names), "configurations": len(set(groups))}
        common |= {"controls": ", ".join(controls) if many and controls else None}
        return [
            {"outcome": outcome, "metric": metric, **common, "rho": _number(rho[i, k])}
            | ({} if result is None else {"permutations": self.settings.permutations})
            | ({} if result is None else {n: _number(values[i, k]) for n, values in result._asdict().items()})
            for i, metric in enumerate(metrics)
            for k, outcome in enumerate(outcomes)
        ]

    def _tested(
        self, x: NDArray[np.float64], y: NDArray[np.float64], groups: Sequence[int], controls: Mapping[str, list[float]]
    ) -> Correlations:
        settings = self.settings
        result = correlate(
            x,
            y,
            groups,
            np.array(list(controls.values())).T if controls else np.empty((len(x), 0)),
            resamples=settings.bootstrap,
            permutations=settings.permutations,
            seed=settings.seed,
        )
        if controls:
            return result
        nothing = np.full_like(result.rho, np.nan)
        return result._replace(partial_rho=nothing, partial_low=nothing, partial_high=nothing, partial_p=nothing)

    def _controls(self, names: Sequence[str]) -> dict[str, list[float]]:
        """The controls that are known of all these runs and not constant."""
        given = {NORM: self.norm, "log lr": self.runs.lr}
        known = {what: [values[n] for n in names] for what, values in given.items() if all(n in values for n in names)}
        return {what: values for what, values in known.items() if len(set(values)) > 1}


def _columns(columns: Any, names: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[values[name] for name in names] for values in columns]).T


def _correct(rows: Rows, name: str) -> int:
    """Add Holm's correction over the rows that have this p; how many they are."""
    tested = [row for row in rows if row.get(name) is not None]
    for row, adjusted in zip(tested, holm([row[name] for row in tested]), strict=True):
        row[f"{name}_holm"] = adjusted
    return len(tested)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
