"""What is left of a run where every matrix of its delta keeps few singular directions, beside two nulls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from raygeo.analyses.between import AccuracySettings, LikelihoodSettings, ProbeWorkload
from raygeo.data.probes import Probe
from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import Array, percentile_intervals, resampled_means
from raygeo.geometry.connectivity.measures import ProbeNLL
from raygeo.geometry.connectivity.retention import Retention, retention
from raygeo.geometry.connectivity.truncation import Truncation
from raygeo.models.mix import Mixture
from raygeo.models.resident import Measured, ResidentStudent
from raygeo.models.run import Run
from raygeo.tables import schema
from raygeo.workload import Rows, Task

BASE_KIND, TRUNCATED, RANDOM, SCALED, WHOLE = "base", "truncated", "random", "scaled", "whole"


class TruncationSettings(LikelihoodSettings):
    """Which ranks are kept, and of what."""

    ranks: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4, 8, 16, 32), min_length=1)
    """Ranks that each matrix of the delta is cut to; those that cut nothing are left out, the run is there anyway."""
    keep: float = Field(0.99, gt=0, lt=1)
    """The share of the run's gain in NLL that a rank must keep to be enough."""
    subspace_seed: int = 0
    """Seed of the random directions."""


class RankTruncationSettings(AccuracySettings, TruncationSettings):
    """Which ranks are kept, and whether accuracy is measured at them."""


class Point(NamedTuple):
    """A part of a run's delta: which, of what rank, its share of the squared norm, and how it is made."""

    kind: str
    rank: int
    energy: float
    terms: Mixture


@dataclass(frozen=True)
class _State:
    student: ResidentStudent
    counts: Array
    sums: Measured[Array]
    wrong: Measured[Array] | None


class RankTruncation(ProbeWorkload):
    """Each run cut to each rank, beside random directions of equal rank and the whole of equal energy; one task a run.

    A task costs two passes, three more a rank, and answers at the base, the run and every rank.
    """

    name = "rank-truncation"
    tables: ClassVar = {
        "rank_truncation": schema(
            """Each run with its delta cut, matrix by matrix. `kind` is truncated (the leading singular directions),
            random (as many random directions of the same delta), scaled (the whole delta, each parameter at the norm
            it has when truncated), base or whole (the run). `energy` is the share of the squared norm that is kept,
            `kept` the share of the run's gain in NLL over the base, with a 95 % paired bootstrap interval; null where
            the gain is not told from 0. Accuracy is that of base, truncated and whole.""",
            "run, kind: text; rank: int; energy, nll, nll_low, nll_high, kept, kept_low, kept_high: float; n, tokens: "
            "int; accuracy: float; problems: int",
        ),
        "least_ranks": schema(
            """The least rank of each run from which on all ranks measured keep the share `keep` of its gain over the
            base (NLL of the base less that of the run, nats a token), each with a 95 % paired bootstrap interval;
            `full_rank` is that of the whole delta, null least ranks stand where the gain is not told from 0.""",
            "run: text; keep, gain, gain_low, gain_high: float; least_rank, least_low, least_high, full_rank, n: int",
        ),
    }
    settings: RankTruncationSettings
    in_keys = TruncationSettings

    def tasks(self) -> list[Task]:
        """One task a run; all cost the same."""
        return [
            Task(self.key(*self.inputs, run.name, run.key), 1.0, run, f"ranks of {run.name} cut away")
            for run in self.trained
        ]

    def setup(self) -> _State:
        """Load the base student once, and tokenise what is measured."""
        student = ResidentStudent.load(self.base, self.runs)
        measured = ProbeNLL(Probe.load(self.probe), self.settings.batch_size, student.pad_id)
        errors = self.asked.measure()
        wrong = None if errors is None else Measured(student, errors.sums)
        return _State(student, measured.counts, Measured(student, measured.sums), wrong)

    def compute(self, state: _State, payload: Run) -> dict[str, Rows]:
        """Cut one run.

        Raises:
            DeltaError: a likelihood is not finite, or the run changes no matrix.
        """
        points = list(self._points(payload, state))
        sums = [self._measure(payload, point, state) for point in points]
        between = sums[1:-1]
        found = self._kept(sums[0], between, sums[-1], state.counts)
        rows = []
        for place, (point, own) in enumerate(zip(points, sums, strict=True)):
            row = {"run": payload.name, "kind": point.kind, "rank": point.rank, "energy": point.energy}
            row |= self._likelihood(own, state.counts)
            if 0 < place < len(points) - 1 and found.shares:
                low, high = found.intervals[place - 1]
                row |= {"kept": found.shares[place - 1], "kept_low": low, "kept_high": high}
            if state.wrong is not None and point.kind in (BASE_KIND, TRUNCATED, WHOLE):
                wrong = state.wrong.at_run(_BASE) if point.kind == BASE_KIND else state.wrong.at(point.terms)
                row |= {"accuracy": float(1 - wrong.mean()), "problems": len(wrong)}
            rows.append(row)
        truncated = [own for point, own in zip(points, sums, strict=True) if point.kind == TRUNCATED]
        ranks = [point.rank for point in points if point.kind == TRUNCATED] + [points[-1].rank]
        least = self._kept(sums[0], truncated, sums[-1], state.counts)
        row = {"run": payload.name, "keep": self.settings.keep, "gain": least.gain, "full_rank": ranks[-1]}
        row |= {"gain_low": least.gain_interval.low, "gain_high": least.gain_interval.high, "n": len(state.counts)}
        if least.least is not None and least.least_interval is not None:
            low, high = least.least_interval
            row |= {"least_rank": ranks[least.least], "least_low": ranks[low], "least_high": ranks[high]}
        return {"rank_truncation": rows, "least_ranks": [row]}

    def _points(self, run: Run, state: _State) -> Iterator[Point]:
        delta = run.open()
        assert delta is not None
        most = max(self.settings.ranks)
        cut = Truncation.leading(delta, most, next(state.student.model.parameters()).device)
        if not cut.full_rank:
            raise DeltaError(f"{run.name} changes no matrix, so there is no rank to cut; leave it out.")
        chance = Truncation.random(delta, most, self.settings.subspace_seed)
        yield Point(BASE_KIND, 0, 0.0, [])
        for rank in sorted({rank for rank in self.settings.ranks if rank < cut.full_rank}):
            yield Point(TRUNCATED, rank, cut.energy(rank), cut.at(rank))
            yield Point(RANDOM, rank, chance.energy(rank), chance.at(rank))
            yield Point(SCALED, rank, cut.energy(rank), cut.scaled(rank))
        yield Point(WHOLE, cut.full_rank, 1.0, run.mixture())

    def _measure(self, run: Run, point: Point, state: _State) -> Array:
        sums = state.sums.at_run(_BASE) if point.kind == BASE_KIND else state.sums.at(point.terms)
        if not np.isfinite(sums).all():
            raise DeltaError(
                f"the NLL of {run.name} ({point.kind}, rank {point.rank}) is not finite; the run has diverged, leave "
                "it out."
            )
        return sums

    def _kept(self, base: Array, points: Sequence[Array], whole: Array, counts: Array) -> Retention:
        settings = self.settings
        resampling = {"resamples": settings.bootstrap, "seed": settings.seed}
        return retention(base, points, whole, counts, keep=settings.keep, **resampling)

    def _likelihood(self, sums: Array, counts: Array) -> dict[str, Any]:
        settings = self.settings
        drawn = resampled_means(sums[:, None], counts, resamples=settings.bootstrap, seed=settings.seed)
        [(low, high)] = percentile_intervals(drawn, len(counts))
        nll = float(sums.sum() / counts.sum())
        return {"nll": nll, "nll_low": low, "nll_high": high, "n": len(counts), "tokens": int(counts.sum())}


_BASE = Run("", "", None)
