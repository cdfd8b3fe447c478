"""Nonlinear mode connectivity: curves of low NLL trained between runs that a straight line does not join."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from raygeo.analyses.between import LikelihoodSettings, find_runs
from raygeo.data.probes import Probe
from raygeo.geometry.bootstrap import Array, percentile_interval, resampled_means
from raygeo.geometry.connectivity.barriers import REVISION, barrier, barrier_intervals, maximum_interval
from raygeo.geometry.connectivity.curves import Shape, curve_mixture, train_bend
from raygeo.geometry.connectivity.measures import ProbeNLL, halves
from raygeo.geometry.connectivity.mixtures import Entries, delta_gram, distance
from raygeo.models.delta import Entry
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

LINE = "line"


class CurveSettings(LikelihoodSettings):
    """How curves are trained and measured."""

    shape: Shape = "bezier"
    """``bezier``, quadratic, or ``chain``, two straight pieces; each has one bend."""
    points: int = Field(21, ge=3)
    """Evenly spaced values of t from 0 to 1 where curve and line are measured."""
    steps: int = Field(200, ge=1)
    """Steps of Adam, each on ``batch_size`` texts at one t drawn evenly from [0, 1]."""
    lr: float = Field(0.01, gt=0)
    """First step of Adam, relative to the distance of the two runs (a root mean square over parameters); it falls
    linearly to zero."""


class CurvesSettings(CurveSettings):
    """Between which runs curves are trained, and how."""

    pairs: Literal["barrier", "all"] | tuple[tuple[str, str], ...] = "barrier"
    """Pairs whose straight line has a barrier on the probe ``solutions`` by ``geometry.paths`` (none without it), all
    pairs, or these pairs of run names."""
    threshold: float = Field(0.01, ge=0)
    """For ``barrier``: least value (nats) of the lower end of the interval of the barrier over the chord."""


@dataclass(frozen=True)
class _State:
    student: ResidentStudent
    train: Probe
    measured: ProbeNLL


class Curves(Workload):
    """Train a curve between each chosen pair and measure it beside the straight line; one task a pair.

    The probe is halved: one half trains the bend (``geometry.connectivity.curves``), the other measures, on the same t
    for curve and line.

    Args:
        settings: pairs, shape and effort.
        runs: the runs that may be ends, the base among them.
        base: folder of the base student.
        probe: probe file.
        barriers: lower ends of the intervals of straight-line barriers over the chord, by names of pairs.

    Raises:
        ConfigError: ``settings.pairs`` names an unknown run.
    """

    name = "curves"
    revision = REVISION
    tables: ClassVar = {
        "curve_paths": schema(
            """The NLL (nats a token) at points `t` of a pair's straight line (shape "line") and of the curve trained
            between its ends ("bezier" or "chain"), both on texts that had no part in training it.""",
            "run_a, run_b, shape: text; t, nll: float; n: int",
        ),
        "curve_barriers": schema(
            """The largest NLL and the barrier over the chord of lines and curves, for a curve also by how much its
            largest NLL lies `below` the line's, with 95 % paired bootstrap intervals from the same resamples; `bend` is
            how far the bend lies from the midpoint, in distances of the two runs.""",
            "run_a, run_b, shape: text; max_nll, max_t, max_nll_low, max_nll_high, chord, chord_t, chord_low, "
            "chord_high, below, below_low, below_high, bend: float; n: int",
        ),
    }

    def __init__(
        self,
        settings: CurvesSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probe: AnyPath,
        barriers: Mapping[tuple[str, str], float],
    ):
        ordered = sorted(runs, key=lambda run: run.delta is not None)
        every = [(a.name, b.name) for i, a in enumerate(ordered) for b in ordered[i + 1 :]]
        chosen: Sequence[tuple[str, str]]
        if settings.pairs == "barrier":
            chosen = [pair for pair in every if barriers.get(pair, -math.inf) > settings.threshold]
        else:
            chosen = every if settings.pairs == "all" else settings.pairs
        self.settings = settings
        self.pairs = find_runs(ordered, chosen, "geometry.curves.pairs")
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """One task a pair; a pair's key does not depend on why it was chosen."""
        recipe, probe = CurveSettings.of(self.settings), Probe.load(self.probe).key
        return [
            Task(
                self.key(recipe, probe, [[run.name, run.key] for run in pair]),
                1.0,
                pair,
                f"curve from {pair[0].name} to {pair[1].name}",
            )
            for pair in self.pairs
        ]

    def setup(self) -> _State:
        """Load the base student once and halve the probe."""
        runs = list(dict.fromkeys(run for pair in self.pairs for run in pair))
        student = ResidentStudent.load(self.base, runs, dtype=torch.float32)  # small steps would round away
        train, measured = halves(Probe.load(self.probe))
        return _State(student, train, ProbeNLL(measured, self.settings.batch_size, student.pad_id))

    def compute(self, state: _State, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Train and measure one curve.

        Raises:
            DeltaError: the two runs are equal, or the loss of a step is not finite.
        """
        a, b = payload
        bend, size = self.train(state, a, b)
        ts = np.linspace(0, 1, self.settings.points)
        counts = state.measured.counts
        measured = {LINE: self._measure(state, a, b, ts, {}), self.settings.shape: self._measure(state, a, b, ts, bend)}
        options = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
        resampled = {kind: resampled_means(sums.T, counts, **options) for kind, sums in measured.items()}
        rows: dict[str, Rows] = {"curve_paths": [], "curve_barriers": []}
        for kind, sums in measured.items():
            labels: dict[str, Any] = {"run_a": a.name, "run_b": b.name, "shape": kind}
            nlls = sums.sum(1) / counts.sum()
            rows["curve_paths"] += [
                {**labels, "t": t, "nll": nll, "n": len(counts)}
                for t, nll in zip(ts.tolist(), nlls.tolist(), strict=True)
            ]
            found = barrier(ts, nlls)
            spread = barrier_intervals(ts, sums, counts, **options)
            low, high = maximum_interval(nlls, resampled[kind], len(counts))
            row = labels | {
                "max_nll": float(nlls.max()),
                "max_t": float(ts[nlls.argmax()]),
                "max_nll_low": low,
                "max_nll_high": high,
                "chord": found.chord,
                "chord_t": found.chord_alpha,
                "chord_low": spread.chord[0],
                "chord_high": spread.chord[1],
                "n": len(counts),
            }
            if kind != LINE:
                less = resampled[LINE].max(1) - resampled[kind].max(1)
                row |= dict(zip(("below_low", "below_high"), percentile_interval(less), strict=True))
                row |= {"below": rows["curve_barriers"][0]["max_nll"] - row["max_nll"], "bend": size}
            rows["curve_barriers"].append(row)
        return rows

    def train(self, state: _State, a: Run, b: Run) -> tuple[dict[str, Entry], float]:
        """The trained bend between two runs, and its norm relative to their distance.

        Raises:
            DeltaError: the two runs are equal, or the loss of a step is not finite.
        """
        settings, deltas = self.settings, (a.open(), b.open())
        apart = distance(delta_gram(deltas), 0, 1)
        bend = train_bend(
            state.student,
            state.train.sequences,
            *deltas,
            apart=apart,
            shape=settings.shape,
            steps=settings.steps,
            lr=settings.lr,
            batch_size=settings.batch_size,
            seed=settings.seed,
        )
        return bend, math.sqrt(delta_gram([Entries(bend)])[0, 0]) / apart

    def _measure(self, state: _State, a: Run, b: Run, ts: Array, bend: Mapping[str, Entry]) -> Array:
        """NLL sums [T, N] at each t."""
        deltas = a.open(), b.open()
        sums = []
        for t in ts.tolist():
            with state.student.weights.mixed(curve_mixture(self.settings.shape, t, *deltas, bend)):
                sums.append(state.measured.sums(state.student.model))
        return np.stack(sums)
