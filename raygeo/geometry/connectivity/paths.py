"""Linear mode connectivity: the loss and the accuracy along the straight line between the weights of two runs.

A point of the path is ``base + (1 - alpha) delta_a + alpha delta_b``, taken on merged weights (LoRA factors are
multiplied out first: mixing ``A`` and ``B`` apart would add cross terms). The base is an end like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from raygeo.errors import DataError, DeltaError
from raygeo.geometry.probes import Probe, sequence_nlls
from raygeo.rollouts.grading import Grading, grader
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.generation import generate
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Array = NDArray[np.float64]
PROBLEMS = "problems"
"""The ``probe`` of the accuracy rows."""


class PathsSettings(Settings):
    """Which pairs are joined, and how finely their paths are measured."""

    points: int = Field(11, ge=3)
    """Evenly spaced values of alpha from 0 to 1, both included, where the loss is measured."""
    accuracy_points: int = Field(5, ge=3)
    """The same for the accuracy, which costs a generation each."""
    accuracy_problems: int = Field(64, ge=0)
    """How many problems (the first ones) the accuracy is measured on; 0 turns it off."""
    max_new_tokens: int = Field(512, ge=1)
    """Length at which an answer is cut off."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples behind each 95 % interval."""
    seed: int = 0
    """Seed of the resampling; the same examples are drawn for all runs and all alphas."""
    batch_size: int = Field(16, ge=1)
    """Sequences per forward pass."""
    generation_batch_size: int = Field(64, ge=1)
    """Problems answered together."""
    include_base: bool = True
    """Whether the base student is an end of paths."""
    pairs: Literal["all", "base"] = "all"
    """``all`` joins every two runs; ``base`` joins each run with the base only."""


class Excess(NamedTuple):
    """Height of a path [..., A] over the chord between its ends, and over the mean of its ends."""

    chord: Array
    mean: Array


class Barrier(NamedTuple):
    """Both barriers of one path and the alphas where they are attained (the first ones, if several)."""

    chord: float
    chord_alpha: float
    mean: float
    mean_alpha: float


class Intervals(NamedTuple):
    """A (low, high) interval of each barrier."""

    chord: tuple[float, float]
    mean: tuple[float, float]


def excess(alphas: ArrayLike, losses: ArrayLike) -> Excess:
    """Subtract from ``losses`` [..., A] the chord between the first and the last, or their mean.

    Args:
        alphas: [A] strictly increasing from 0 to 1.
        losses: [..., A] in any unit.

    Raises:
        ValueError: ``alphas`` is no such grid or the shapes differ.
        DeltaError: a loss is NaN or infinite.
    """
    a, x = np.asarray(alphas, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if a.ndim != 1 or len(a) < 2 or a[0] != 0 or a[-1] != 1 or not (np.diff(a) > 0).all():
        raise ValueError(f"alphas must increase from 0 to 1, not {a}")
    if x.shape[-1:] != a.shape:
        raise ValueError(f"{x.shape} losses for {len(a)} alphas")
    if not np.isfinite(x).all():
        where = a[~np.isfinite(x).reshape(-1, len(a)).all(0)]
        raise DeltaError(
            f"the loss is not finite at alpha = {where.tolist()}; an end of the path has diverged, leave it out."
        )
    first, last = x[..., :1], x[..., -1:]
    chord = x - ((1 - a) * first + a * last)
    rounding = 4 * np.finfo(np.float64).eps * np.abs(x).max(-1, keepdims=True)
    return Excess(np.where(np.abs(chord) <= rounding, 0.0, chord), x - (first + last) / 2)


def barrier(alphas: ArrayLike, losses: ArrayLike) -> Barrier:
    """Both barriers of one path ``losses`` [A] over ``alphas`` [A], in the unit of the losses.

    * chord: max of L(alpha) - [(1 - alpha) L(0) + alpha L(1)] (Entezari et al., arXiv:2110.06296); 0 when the path
      never rises above the chord.
    * mean: max of L(alpha) - [L(0) + L(1)] / 2 (Frankle et al., arXiv:1912.05671); at least |L(0) - L(1)| / 2, because
      the ends belong to the path.

    Neither is ever negative. Raises as ``excess`` does.
    """
    chord, mean = excess(alphas, losses)
    grid = np.asarray(alphas, dtype=np.float64)
    return Barrier(float(chord.max()), float(grid[chord.argmax()]), float(mean.max()), float(grid[mean.argmax()]))


def barrier_intervals(
    alphas: ArrayLike, sums: ArrayLike, counts: ArrayLike, *, resamples: int, seed: int, level: float = 0.95
) -> Intervals:
    """Percentile intervals of both barriers by a paired bootstrap over examples.

    Each resample draws N of the N examples with replacement, the same ones for every alpha; its loss at an alpha is the
    sum of the drawn ``sums`` over the sum of the drawn ``counts`` (a token mean), and its barriers are recomputed from
    that curve, their alphas included. A maximum is convex, so resampling noise biases it upwards: on a flat path the
    interval lies above 0 and may lie above the estimate. Read an interval that stays near 0 as "no barrier seen".

    Args:
        alphas: [A], as in ``excess``.
        sums: [A, N] loss of each example at each alpha, summed over what ``counts`` counts.
        counts: [N] positive, tokens of each example (1 each for an error rate).
        resamples: number of resamples.
        seed: seed of the draws; equal seeds and N draw equal examples.
        level: coverage aimed at.
    """
    x, n = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    times_drawn = np.random.default_rng(seed).multinomial(len(n), np.full(len(n), 1 / len(n)), size=resamples)
    times = times_drawn.astype(np.float64)  # for BLAS
    chord, mean = excess(alphas, (times @ x.T) / (times @ n)[:, None])
    tails = [(1 - level) / 2, (1 + level) / 2]
    return Intervals(*(tuple(np.quantile(heights.max(-1), tails).tolist()) for heights in (chord, mean)))


@dataclass(frozen=True)
class _Measure:
    """What is followed along paths: ``evaluate`` gives the loss of each example [N], summed over its ``counts`` [N]."""

    metric: Literal["nll", "accuracy"]
    probe: str
    alphas: list[float]
    counts: Array
    evaluate: Callable[[], Array]


@dataclass
class _State:
    weights: MixedWeights
    measures: list[_Measure]
    ends: dict[Run, list[Array]] = field(default_factory=dict)


class Paths(Workload):
    """Loss on each probe and accuracy on problems along the path of every pair of runs; one task a pair.

    A task costs ``points - 2`` passes over every probe and ``accuracy_points - 2`` generations. The ends are shared by
    many pairs: an actor evaluates each run once and remembers its values per example. Rows of ``barriers``
    whose metric is "accuracy" hold barriers of the error rate, 1 - accuracy.

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

    def __init__(
        self,
        settings: PathsSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probes: Mapping[str, AnyPath],
        problems: Sequence[tuple[str, str]] = (),
        grading: Grading = "exact",
    ):
        if PROBLEMS in probes:
            raise DataError(f"a probe may not be called {PROBLEMS!r}, the name of the accuracy rows; rename it.")
        self.settings = settings
        self.runs = sorted((r for r in runs if settings.include_base or r.delta), key=lambda run: run.delta is not None)
        self.base = base
        self.probes = probes
        self.problems = [tuple(problem) for problem in problems[: settings.accuracy_problems]]
        self.grading = grading

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
            for a, b in combinations(self.runs, 2)
            if self.settings.pairs == "all" or a.delta is None
        ]

    def setup(self) -> _State:
        """Load the base student once and tokenise what is measured."""
        model, tokenizer = load_student(self.base, device=default_device())
        opened = [delta for run in self.runs if (delta := run.open()) is not None]
        weights = MixedWeights(model, {name for delta in opened for name in delta})
        measures = [self._nll(model, tokenizer, name, Probe.load(path)) for name, path in self.probes.items()]
        if self.problems:
            measures.append(self._errors(model, tokenizer))
        return _State(weights, measures)

    def _nll(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, probe: Probe) -> _Measure:
        size = self.settings.batch_size
        order, batches = probe.order(size), probe.batches(tokenizer.pad_token_id, size)
        counts = np.array([s.completion_length for s in probe.sequences], dtype=np.float64)
        alphas = np.linspace(0, 1, self.settings.points).tolist()
        return _Measure("nll", name, alphas, counts, lambda: sequence_nlls(model, batches, order)[0].numpy())

    def _errors(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> _Measure:
        prompts, golds = zip(*self.problems, strict=True)

        def evaluate() -> Array:
            answers = generate(
                model,
                tokenizer,
                list(prompts),
                max_new_tokens=self.settings.max_new_tokens,
                batch_size=self.settings.generation_batch_size,
            )
            with grader(self.grading) as judge:
                verdicts = judge.grade_many([(a.text, gold) for (a,), gold in zip(answers, golds, strict=True)])
            return np.array([not verdict.correct for verdict in verdicts], dtype=np.float64)

        alphas = np.linspace(0, 1, self.settings.accuracy_points).tolist()
        return _Measure("accuracy", PROBLEMS, alphas, np.ones(len(golds)), evaluate)

    def compute(self, state: _State, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Measure one path."""
        a, b = payload
        curves = self._curves(state, a, b)
        rows: dict[str, Rows] = {"paths": [], "barriers": []}
        for measure, sums in zip(state.measures, curves, strict=True):
            labels = {"run_a": a.name, "run_b": b.name, "probe": measure.probe, "metric": measure.metric}
            n, losses = len(measure.counts), sums.sum(1) / measure.counts.sum()
            found = barrier(measure.alphas, losses)
            spread = barrier_intervals(
                measure.alphas, sums, measure.counts, resamples=self.settings.bootstrap, seed=self.settings.seed
            )
            for alpha, loss in zip(measure.alphas, losses.tolist(), strict=True):
                value = {"loss": loss} if measure.metric == "nll" else {"accuracy": 1 - loss}
                rows["paths"].append({**labels, "alpha": alpha, **value, "n": n})
            low_high = {
                f"{kind}_{side}": value
                for kind, interval in spread._asdict().items()
                for side, value in zip(("low", "high"), interval, strict=True)
            }
            rows["barriers"].append({**labels, **found._asdict(), **low_high, "n": n})
        return rows

    def _curves(self, state: _State, a: Run, b: Run) -> list[Array]:
        """Loss sums [A, N] of each measure along the path from ``a`` to ``b``."""
        ends = zip(self._end(state, a), self._end(state, b), strict=True)
        curves = [{0.0: first, 1.0: last} for first, last in ends]
        deltas = a.open(), b.open()
        inner = sorted({alpha for measure in state.measures for alpha in measure.alphas} - {0.0, 1.0})
        for alpha in inner:
            mixture = [(c, delta) for c, delta in zip((1 - alpha, alpha), deltas, strict=True) if delta is not None]
            with state.weights.mixed(mixture), torch.inference_mode():
                for measure, curve in zip(state.measures, curves, strict=True):
                    if alpha in measure.alphas:
                        curve[alpha] = measure.evaluate()
        return [np.stack([curve[alpha] for alpha in m.alphas]) for m, curve in zip(state.measures, curves, strict=True)]

    def _end(self, state: _State, run: Run) -> list[Array]:
        if run not in state.ends:
            with state.weights.mixed(run.mixture()), torch.inference_mode():
                state.ends[run] = [measure.evaluate() for measure in state.measures]
        return state.ends[run]
