"""Linear mode connectivity: the loss and the accuracy along the straight line between the weights of two runs.

A point of the path is ``base + (1 - alpha) delta_a + alpha delta_b``, taken on merged weights (LoRA factors are
multiplied out first: mixing ``A`` and ``B`` apart would add cross terms). The base is an end like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from raygeo.errors import DataError, DeltaError
from raygeo.geometry.connectivity.barriers import Array, barrier, barrier_intervals, headroom
from raygeo.geometry.connectivity.measures import PROBLEMS, AccuracySettings, Errors, Likelihood, Measure
from raygeo.geometry.connectivity.mixtures import delta_gram, load_mixable, mixture
from raygeo.geometry.probes import Probe
from raygeo.rollouts.grading import Grading
from raygeo.settings import content_key
from raygeo.store import AnyPath
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Scales = tuple[float, float]


class GridSettings(AccuracySettings):
    """How finely paths are measured."""

    points: int = Field(11, ge=3)
    """Evenly spaced values of alpha from 0 to 1, both included, where the loss is measured."""
    beyond: int = Field(0, ge=0)
    """How many more, at the same spacing, on either side of the ends; they have no part in barriers."""
    refine: int = Field(8, ge=0)
    """At most so many further values of alpha, each where the barrier might still rise most."""
    tolerance: float = Field(1e-3, gt=0)
    """Stop refining when, as far as the curve's bends tell, no barrier can rise by more than this (nats)."""
    accuracy_points: int = Field(5, ge=3)
    """Evenly spaced values of alpha from 0 to 1 for the accuracy, which costs a generation each."""

    def grid(self) -> list[float]:
        """The values of alpha that are always measured, in order."""
        step = 1 / (self.points - 1)
        before = [-k * step for k in range(self.beyond, 0, -1)]
        after = [1 + k * step for k in range(1, self.beyond + 1)]
        return [*before, *np.linspace(0, 1, self.points).tolist(), *after]


class PathsSettings(GridSettings):
    """Which pairs are joined, and how finely their paths are measured."""

    include_base: bool = True
    """Whether the base student is an end of paths."""
    pairs: Literal["all", "base"] = "all"
    """``all`` joins every two runs; ``base`` joins each run with the base only."""


class MatchedPathsSettings(GridSettings):
    """How finely the paths between runs of equal norm are measured."""


@dataclass
class _State:
    model: PreTrainedModel
    weights: MixedWeights
    measures: list[Measure]
    ends: dict[tuple[Run, float], list[Array]] = field(default_factory=dict)


class Paths(Workload):
    """Loss on each probe and accuracy on problems along the path of every pair of runs; one task a pair.

    A task costs ``points - 2 + 2 beyond`` passes over every probe, up to ``refine`` more where a hump shows, and
    ``accuracy_points - 2`` generations. The ends are shared by many pairs: an actor evaluates each run once and
    remembers its values per example. All probes of a pair share one grid, so refinement for one serves all. Rows of
    ``barriers`` whose metric is "accuracy" hold barriers of the error rate, 1 - accuracy.

    Args:
        settings: grids and sizes.
        runs: the ends of paths, by their names; the base (a run without delta) comes first in its pairs.
        base: folder of the base student.
        probes: probe files by name.
        problems: (prompt, gold answer) pairs for the accuracy; may be empty.
        grading: how a completion is judged against the gold answer.
    """

    name = "paths"
    tables = ("paths", "barriers")
    settings: GridSettings

    def __init__(
        self,
        settings: PathsSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probes: Mapping[str, AnyPath],
        problems: Sequence[tuple[str, str]] = (),
        grading: Grading = "exact",
    ):
        kept = sorted((r for r in runs if settings.include_base or r.delta), key=lambda run: run.delta is not None)
        pairs = [(a, b) for a, b in combinations(kept, 2) if settings.pairs == "all" or a.delta is None]
        self._measure(settings, kept, pairs, base, probes, problems, grading)

    def _measure(
        self,
        settings: GridSettings,
        runs: list[Run],
        pairs: list[tuple[Run, Run]],
        base: AnyPath,
        probes: Mapping[str, AnyPath],
        problems: Sequence[tuple[str, str]],
        grading: Grading,
    ) -> None:
        if PROBLEMS in probes:
            raise DataError(f"a probe may not be called {PROBLEMS!r}, the name of the accuracy rows; rename it.")
        self.settings = settings
        self.runs = runs
        self.pairs = pairs
        self.base = base
        self.probes = probes
        self.problems = list(problems[: settings.accuracy_problems])
        self.grading: Grading = grading

    def tasks(self) -> list[Task]:
        """One task a pair; all cost the same."""
        probes = {name: Probe.load(path).key for name, path in self.probes.items()}
        inputs = content_key(self.settings, probes, self.problems, self.grading)
        return [
            Task(
                content_key(self.name, inputs, [[run.name, run.key] for run in (a, b)]),
                1.0,
                (a, b),
                f"path from {a.name} to {b.name}",
            )
            for a, b in self.pairs
        ]

    def setup(self) -> _State:
        """Load the base student once and tokenise what is measured."""
        model, tokenizer, weights = load_mixable(self.base, self.runs)
        size = self.settings.batch_size
        measures: list[Measure] = [
            Likelihood(name, Probe.load(path), tokenizer, size) for name, path in self.probes.items()
        ]
        if self.problems:
            measures.append(Errors(self.problems, self.grading, tokenizer, self.settings))
        return _State(model, weights, measures)

    def compute(self, state: _State, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Measure one path."""
        paths, barriers = self._rows(state, *payload, (1.0, 1.0))
        return {"paths": paths, "barriers": barriers}

    def _rows(self, state: _State, a: Run, b: Run, scales: Scales) -> tuple[Rows, Rows]:
        """Rows of points and of barriers of the path between two deltas, each multiplied by its scale."""
        paths: Rows = []
        barriers: Rows = []
        curves = self._curves(state, a, b, scales)
        for measure, curve in zip(state.measures, curves, strict=True):
            labels = {"run_a": a.name, "run_b": b.name, "probe": measure.probe, "metric": measure.metric}
            n = len(measure.counts)
            for alpha, sums in sorted(curve.items()):
                loss = float(sums.sum() / measure.counts.sum())
                value = {"loss": loss} if measure.metric == "nll" else {"accuracy": 1 - loss}
                paths.append({**labels, "alpha": alpha, **value, "n": n})
            alphas, inner = _between(curve)
            found = barrier(alphas, inner.sum(1) / measure.counts.sum())
            spread = barrier_intervals(
                alphas, inner, measure.counts, resamples=self.settings.bootstrap, seed=self.settings.seed
            )
            barriers.append({**labels, **found._asdict(), **spread.columns(), "n": n})
        return paths, barriers

    def _curves(self, state: _State, a: Run, b: Run, scales: Scales) -> list[dict[float, Array]]:
        """Loss sums [N] of each measure by alpha along the path from ``a`` to ``b``."""
        ends = zip(self._end(state, a, scales[0]), self._end(state, b, scales[1]), strict=True)
        curves = [{0.0: first, 1.0: last} for first, last in ends]
        likelihoods = [i for i, measure in enumerate(state.measures) if measure.metric == "nll"]
        every = self.settings.grid() if likelihoods else []
        generated = np.linspace(0, 1, self.settings.accuracy_points).tolist() if self.problems else []
        deltas = a.open(), b.open()

        def measure(alpha: float, which: list[int]) -> None:
            terms = zip(((1 - alpha) * scales[0], alpha * scales[1]), deltas, strict=True)
            with state.weights.mixed(mixture(*terms)):
                for i in which:
                    curves[i][alpha] = state.measures[i].sums(state.model)

        for alpha in sorted({*every, *generated} - {0.0, 1.0}):
            kinds = [metric for metric, grid in (("nll", every), ("accuracy", generated)) if alpha in grid]
            measure(alpha, [i for i, m in enumerate(state.measures) if m.metric in kinds])
        for _ in range(self.settings.refine if likelihoods else 0):
            grids = [_between(curves[i]) for i in likelihoods]
            alphas = grids[0][0]
            means = [
                sums.sum(1) / state.measures[i].counts.sum() for i, (_, sums) in zip(likelihoods, grids, strict=True)
            ]
            room = headroom(alphas, np.stack(means))
            gap = int(room.argmax())
            if room[gap] <= self.settings.tolerance:
                break
            measure((alphas[gap] + alphas[gap + 1]) / 2, likelihoods)
        return curves

    def _end(self, state: _State, run: Run, scale: float) -> list[Array]:
        if (run, scale) not in state.ends:
            with state.weights.mixed(run.mixture(scale)):
                state.ends[run, scale] = [measure.sums(state.model) for measure in state.measures]
        return state.ends[run, scale]


class MatchedPaths(Paths):
    """The same between deltas of equal norm, for every pair of trained runs: the longer one is scaled down.

    A gap in norm makes a path trivial near the shorter end. Both ends here are points that the runs' own lines from the
    base pass through, ``base + scale delta``; none lies beyond a trained run. Rows of ``matched_barriers`` hold both
    scales and the common norm.
    """

    name = "matched-paths"
    tables = ("matched_paths", "matched_barriers")

    def __init__(
        self,
        settings: MatchedPathsSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probes: Mapping[str, AnyPath],
        problems: Sequence[tuple[str, str]] = (),
        grading: Grading = "exact",
    ):
        kept = [run for run in runs if run.delta is not None]
        self._measure(settings, kept, list(combinations(kept, 2)), base, probes, problems, grading)

    def compute(self, state: _State, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Measure one path.

        Raises:
            DeltaError: a delta is zero.
        """
        a, b = payload
        norms = np.sqrt(np.diag(delta_gram([a.open(), b.open()]))).tolist()
        if min(norms) == 0:
            raise DeltaError(f"the delta of {a.name} or of {b.name} is zero and cannot be scaled; leave it out.")
        scale_a, scale_b = (min(norms) / norm for norm in norms)
        paths, barriers = self._rows(state, a, b, (scale_a, scale_b))
        scaled = [row | {"scale_a": scale_a, "scale_b": scale_b, "norm": min(norms)} for row in barriers]
        return {"matched_paths": paths, "matched_barriers": scaled}


def _between(curve: dict[float, Array]) -> tuple[list[float], Array]:
    """The part of a curve from 0 to 1: its alphas and its sums [A, N]."""
    alphas = sorted(alpha for alpha in curve if 0 <= alpha <= 1)
    return alphas, np.stack([curve[alpha] for alpha in alphas])
