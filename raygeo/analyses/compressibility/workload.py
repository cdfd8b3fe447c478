"""How well runs stand pruning and rounding to few bits: of all their weights, and of what they learned alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field
from torch import Tensor

from raygeo.analyses.between import AccuracySettings, LikelihoodSettings, ProbeWorkload
from raygeo.analyses.compressibility.compressed import Compress, Compressed, Whole, compressible
from raygeo.data.probes import Probe
from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import Array, percentile_intervals, resampled_means, token_means
from raygeo.geometry.connectivity.measures import AnswerErrors, ProbeNLL
from raygeo.geometry.weights.compression import magnitude_thresholds, prune, round_to_nearest
from raygeo.models.mix import MixedWeights
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.tables import schema
from raygeo.workload import Rows, Task

NONE, PRUNED, ROUNDED = "none", "pruned", "rounded"
MODEL, DELTA = "model", "delta"

Share = Annotated[float, Field(gt=0, lt=1)]
Bits = Annotated[int, Field(ge=2, le=8)]


class CompressionSettings(LikelihoodSettings):
    """How weights are compressed."""

    sparsities: tuple[Share, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of the entries that are pruned, those of smallest absolute value."""
    scope: Literal["global", "tensor"] = "global"
    """Whether smallest means among all entries together or within each tensor."""
    bits: tuple[Bits, ...] = (8, 4)
    """Bits that entries are rounded to, by output channel, symmetric, to nearest."""
    group_size: int = Field(0, ge=0)
    """Entries of an output channel that share a scale; 0 has one scale a channel."""


class CompressibilitySettings(AccuracySettings, CompressionSettings):
    """How weights are compressed, and whether accuracy is measured besides."""

    changes_base: ClassVar[bool] = True

    accuracy_problems: int = Field(0, ge=0)
    """How many problems (the first ones) the accuracy is measured on, a generation each point; 0 turns it off."""


class Point(NamedTuple):
    """A way to compress: ``level`` is the share pruned, or the bits kept."""

    method: str
    level: float


@dataclass
class _State:
    student: ResidentStudent
    probe: ProbeNLL
    errors: AnswerErrors | None


class Compressibility(ProbeWorkload):
    """NLL, and accuracy where problems are asked, of every run after each compression; one task a run, the base too.

    Compressed are parameters of transformer blocks with two dimensions or more (``compressed.compressible``), merged
    in fp32 and rounded to the student's dtype once: those of base + delta (target ``model``), or of the delta alone,
    which is then added to the exact base (``delta``). The point ``none`` is merged in the same way and not compressed.

    Memory holds a copy of these parameters besides the student, and one more at a time. Pruning across tensors merges
    all of them three times a point, twice for the threshold, which all points share.
    """

    name = "compressibility"
    tables: ClassVar = {
        "compressibility": schema(
            """A run after compression. `target` is model, base + delta, or delta, what was learned alone, added to the
            exact base; `method` is none, pruned (`level` is the share of entries asked for, `zeros` the share that is
            zero) or rounded (`level` is the bits). `lost` is the norm of what went over that of what was compressed.
            `rise` is the NLL on held-out solutions above that of `none`, nats a token, with 95 % intervals over texts
            (paired).""",
            "run, target, method: text; level, zeros, lost, nll, nll_low, nll_high, rise, rise_low, rise_high: float; "
            "n, tokens: int; accuracy: float; problems: int",
        )
    }
    settings: CompressibilitySettings
    in_keys = CompressionSettings

    @property
    def points(self) -> list[Point]:
        """Every compression."""
        settings = self.settings
        pruned = [Point(PRUNED, share) for share in sorted(set(settings.sparsities))]
        return pruned + [Point(ROUNDED, float(bits)) for bits in sorted(set(settings.bits), reverse=True)]

    def tasks(self) -> list[Task]:
        """One task a run; the base's has no delta to compress."""
        return [
            Task(
                self.key(*self.inputs, run.name, run.key),
                1.0 if run.delta is None else 2.0,
                run,
                f"compressibility of {run.name}",
            )
            for run in self.runs
        ]

    def setup(self) -> _State:
        """Load the base student once, with a copy of all that is compressed, and the tokenised texts."""
        student = ResidentStudent.load(self.base, self.runs)
        touched = {name for run in self.runs for name in run.open() or ()}
        weights = MixedWeights(student.model, {*touched, *compressible(student.model)})
        student = ResidentStudent(student.model, student.tokenizer, weights)
        probe = ProbeNLL(Probe.load(self.probe), self.settings.batch_size, student.pad_id)
        return _State(student, probe, self.asked.measure())

    def compute(self, state: _State, payload: Run) -> dict[str, Rows]:
        """Measure one run at every point.

        Raises:
            DeltaError: the NLL of the run itself is not finite.
        """
        whole = Whole(state.student.model, payload.open())
        start, row = self._measured(state, Compressed(whole, _same, alone=False))
        if not np.isfinite(start).all():
            raise DeltaError(f"the NLL of {payload.name} is not finite; it has diverged, leave it out.")
        rows = []
        for target in (MODEL, DELTA) if whole.touched else (MODEL,):
            labels = {"run": payload.name, "target": target}
            rows.append(labels | {"method": NONE} | row | self._columns(state, start, start))
            for point, compress in self._compressions(whole, target):
                compressed = Compressed(whole, compress, alone=target == DELTA)
                sums, measured = self._measured(state, compressed)
                about = {"zeros": compressed.zeros, "lost": compressed.lost}
                rows.append(labels | point._asdict() | about | measured | self._columns(state, sums, start))
        return {"compressibility": rows}

    def _compressions(self, whole: Whole, target: str) -> Iterator[tuple[Point, Compress]]:
        """Every point with how it compresses one parameter."""
        names, value = (whole.touched, whole.change) if target == DELTA else (whole.names, whole.weight)
        shares = [point.level for point in self.points if point.method == PRUNED]
        cuts: dict[str, dict[float, float]] = {}
        groups = [names] if self.settings.scope == "global" else [[name] for name in names]
        for group in groups if shares else ():
            found = magnitude_thresholds(partial(_each, value, group), shares)
            cuts |= {name: dict(zip(shares, found, strict=True)) for name in group}
        for point in self.points:
            if point.method == PRUNED:
                yield point, partial(_pruned, {name: cuts[name][point.level] for name in names})
            else:
                yield point, partial(_rounded, int(point.level), self.settings.group_size)

    def _measured(self, state: _State, compressed: Compressed) -> tuple[Array, dict[str, Any]]:
        """Summed NLL of each text [N], and the accuracy if it is measured."""
        student = state.student
        with student.weights.mixed([(1.0, compressed)]):
            sums = state.probe.sums(student.model)
            wrong = None if state.errors is None else state.errors.sums(student.model)
        return sums, {} if wrong is None else {"accuracy": float(1 - wrong.mean()), "problems": len(wrong)}

    def _columns(self, state: _State, sums: Array, start: Array) -> dict[str, Any]:
        """NLL, and its rise above the start, each with its interval; null where they are not finite."""
        counts, settings = state.probe.counts, self.settings
        row: dict[str, Any] = {"n": len(counts), "tokens": int(counts.sum())}
        if not np.isfinite(sums).all():
            return row
        both = np.stack([sums, sums - start], -1)
        resampled = resampled_means(both, counts, resamples=settings.bootstrap, seed=settings.seed)
        intervals = percentile_intervals(resampled, len(counts))
        for name, value, interval in zip(("nll", "rise"), token_means(both, counts).tolist(), intervals, strict=True):
            row |= {name: value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return row


def _each(value: Any, names: Sequence[str]) -> Iterator[Tensor]:
    return map(value, names)


def _same(name: str, weight: Tensor) -> Tensor:
    return weight


def _pruned(cuts: dict[str, float], name: str, weight: Tensor) -> Tensor:
    return prune(weight, cuts[name])


def _rounded(bits: int, group_size: int, name: str, weight: Tensor) -> Tensor:
    return round_to_nearest(weight, bits, group_size)
