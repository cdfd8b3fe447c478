"""The NLL and the accuracy along the straight line between the weights of every two runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from raygeo.analyses.between import AccuracySettings, Asked, LikelihoodSettings
from raygeo.analyses.pairs import Pairs, paired
from raygeo.data.exam import Exam
from raygeo.data.probes import Probe
from raygeo.errors import DataError
from raygeo.geometry.bootstrap import Array
from raygeo.geometry.connectivity.barriers import REVISION, barrier, barrier_intervals
from raygeo.geometry.connectivity.measures import PROBLEMS, Measure, ProbeNLL
from raygeo.geometry.connectivity.mixtures import mixture
from raygeo.geometry.connectivity.paths import trace_paths
from raygeo.models.resident import Measured, ResidentStudent
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

POINTS = "run_a, run_b, probe, metric: text; alpha, nll, accuracy: float; n: int"
"""Columns of points of paths."""
BARRIERS = (
    "run_a, run_b, probe, metric: text; chord, chord_alpha, chord_low, chord_high, mean, mean_alpha, mean_low, "
    "mean_high: float; n: int"
)
"""Columns of barriers."""


class GridSettings(LikelihoodSettings):
    """How finely likelihoods are measured along paths."""

    points: int = Field(11, ge=3)
    """Evenly spaced values of alpha from 0 to 1, both included, where the NLL is measured."""
    beyond: int = Field(0, ge=0)
    """How many more, at the same spacing, on either side of the ends; they have no part in barriers."""
    refine: int = Field(8, ge=0)
    """At most so many further values of alpha, each where the barrier might still rise most."""
    tolerance: float = Field(1e-3, gt=0)
    """Stop refining when, as far as the curve's bends tell, no barrier can rise by more than this (nats)."""

    def grid(self) -> list[float]:
        """The values of alpha that are always measured, in order."""
        step = 1 / (self.points - 1)
        before = [-k * step for k in range(self.beyond, 0, -1)]
        after = [1 + k * step for k in range(1, self.beyond + 1)]
        return [*before, *np.linspace(0, 1, self.points).tolist(), *after]


class PathSettings(AccuracySettings, GridSettings):
    """How finely paths are measured."""

    accuracy_points: int = Field(5, ge=3)
    """Evenly spaced values of alpha from 0 to 1 for the accuracy, which costs a generation each."""

    def mixed(self, runs: int) -> int:
        """Two, the ends of a path."""
        return min(runs, 2)


class PathsSettings(PathSettings):
    """Which pairs are joined, and how finely their paths are measured."""

    include_base: bool = True
    """Whether the base student is an end of paths."""
    pairs: Literal["default", "all", "base"] = "default"
    """``all`` joins every two runs; ``base`` joins each run with the base only. ``default`` joins every two of up to 12
    runs; of more, all with the base and with the reference run, runs that differ in seeds alone, and one run of each
    configuration with each other (beyond 24 configurations one of each loss)."""

    def mixed(self, runs: int) -> int:
        """Two, but for paths from the base."""
        return min(runs, 1) if self.pairs == "base" else super().mixed(runs)


@dataclass(frozen=True)
class _State:
    student: ResidentStudent
    measures: list[Measure]
    ends: Measured[list[Array]]


class StraightPaths(Workload):
    """NLL on each probe and accuracy on problems along straight lines between deltas; one task a pair.

    A task costs ``points - 2 + 2 beyond`` passes over every probe, up to ``refine`` more where a hump shows, and
    ``accuracy_points - 2`` generations. The ends are shared by many pairs: an actor evaluates each run once and
    remembers its values per example. All probes of a pair share one grid, so refinement for one serves all.

    Args:
        settings: grids and sizes.
        runs: the ends of paths, by their names.
        base: folder of the base student.
        probes: probe files by name.
        exam: problems for the accuracy; None where there are none.
        chosen: the pairs that are joined unless all are asked for; None where these are all.

    Raises:
        DataError: a probe has the name that rows of accuracy have.
    """

    settings: PathSettings
    revision = REVISION
    batch_settings: ClassVar = ("batch_size",)

    def __init__(
        self,
        settings: PathSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probes: Mapping[str, AnyPath],
        exam: Exam | None = None,
        chosen: Pairs | None = None,
    ):
        if PROBLEMS in probes:
            raise DataError(f"a probe may not be called {PROBLEMS!r}, the name of the accuracy rows; rename it.")
        self.settings = settings
        self.pairs = self.join(runs, chosen)
        self.base = base
        self.probes = probes
        self.asked = Asked(settings, exam)
        self.uses = self.asked.revisions

    @abstractmethod
    def join(self, runs: Sequence[Run], chosen: Pairs | None) -> list[tuple[Run, Run]]:
        """The pairs whose paths are measured."""

    def tasks(self) -> list[Task]:
        """One task a pair; all cost the same."""
        probes = {name: Probe.load(path).key for name, path in self.probes.items()}
        answers = [self.asked.key, self.settings.accuracy_points if self.asked.problems else None]
        return [
            Task(
                self.key(GridSettings.of(self.settings), probes, answers, [[r.name, r.key] for r in pair]),
                1.0,
                pair,
                f"path from {pair[0].name} to {pair[1].name}",
            )
            for pair in self.pairs
        ]

    def setup(self) -> _State:
        """Load the base student once and tokenise what is measured."""
        student = ResidentStudent.load(self.base, list(dict.fromkeys(run for pair in self.pairs for run in pair)))
        measures: list[Measure] = [
            ProbeNLL(Probe.load(path), self.settings.batch_size, student.pad_id, name)
            for name, path in self.probes.items()
        ]
        errors = self.asked.measure()
        measures += [] if errors is None else [errors]
        return _State(student, measures, Measured(student, lambda model: [each.sums(model) for each in measures]))

    def measure(self, state: _State, a: Run, b: Run, scales: tuple[float, float] = (1.0, 1.0)) -> tuple[Rows, Rows]:
        """Rows of points and of barriers of the path between two deltas, each multiplied by its scale.

        Raises:
            DeltaError: a loss is not finite.
        """
        deltas = a.open(), b.open()

        def at(alpha: float, measures: Sequence[Measure]) -> list[Array]:
            if alpha == 0:
                return state.ends.at_run(a, scales[0])
            if alpha == 1:
                return state.ends.at_run(b, scales[1])
            terms = zip(((1 - alpha) * scales[0], alpha * scales[1]), deltas, strict=True)
            with state.student.weights.mixed(mixture(*terms)):
                return [measure.sums(state.student.model) for measure in measures]

        settings = self.settings
        traced = trace_paths(
            at,
            state.measures,
            {"nll": settings.grid(), "accuracy": np.linspace(0, 1, settings.accuracy_points).tolist()},
            refine=settings.refine,
            tolerance=settings.tolerance,
        )
        points: Rows = []
        barriers: Rows = []
        for measure, path in zip(state.measures, traced, strict=True):
            labels: dict[str, Any] = {"run_a": a.name, "run_b": b.name, "probe": measure.probe}
            labels |= {"metric": measure.metric, "n": len(path.counts)}
            for alpha, loss in zip(path.alphas.tolist(), path.means.tolist(), strict=True):
                value = {"nll": loss} if measure.metric == "nll" else {"accuracy": 1 - loss}
                points.append({**labels, "alpha": alpha, **value})
            inside = path.between()
            found = barrier(inside.alphas, inside.means)
            spread = barrier_intervals(
                inside.alphas, inside.sums, inside.counts, resamples=settings.bootstrap, seed=settings.seed
            )
            barriers.append({**labels, **found._asdict(), **spread.columns()})
        return points, barriers


class Paths(StraightPaths):
    """Paths of pairs of runs; the base (a run without delta) comes first in its pairs."""

    name = "paths"
    tables: ClassVar = {
        "paths": schema(
            """Points of straight paths: `alpha` is 0 at run a and 1 at run b; `nll` is in nats a token of the probe, or
            `accuracy` is that of `n` problems.""",
            POINTS,
        ),
        "barriers": schema(
            """Largest excess over alpha from 0 to 1 of the path over the `chord` between its ends (Entezari) or over
            the `mean` of its ends (Frankle), of the NLL or, where the metric is "accuracy", of the error rate; low and
            high are ends of a 95 % interval that holds for the whole path at once (paired bootstrap), so that a flat
            one has 0 in it.""",
            BARRIERS,
        ),
    }
    settings: PathsSettings

    def join(self, runs: Sequence[Run], chosen: Pairs | None) -> list[tuple[Run, Run]]:
        """The chosen pairs, every two runs, or each run and the base."""
        wanted = self.settings.pairs
        kept = [run for run in runs if self.settings.include_base or run.delta]
        ordered = sorted(kept, key=lambda run: run.delta is not None)
        pairs = paired(ordered, chosen if wanted == "default" else None, lambda run: run.name)
        return [(a, b) for a, b in pairs if wanted != "base" or a.delta is None]

    def compute(self, state: _State, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Measure one path."""
        paths, barriers = self.measure(state, *payload)
        return {"paths": paths, "barriers": barriers}
