"""Runs at equal distance from the base: each delta scaled to one norm, and to one divergence of predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field
from torch import Tensor

from raygeo.analyses.between import AccuracySettings, LikelihoodSettings, ProbeWorkload
from raygeo.analyses.soups.workload import EVALUATION
from raygeo.data.exam import Exam
from raygeo.data.probes import Probe
from raygeo.errors import ConfigError, DeltaError
from raygeo.evaluation.statistics import holm, mcnemar
from raygeo.geometry.bootstrap import percentile_interval, resampled_means
from raygeo.geometry.connectivity.confidence import REVISION
from raygeo.geometry.connectivity.evaluator import Evaluation, Evaluator, flips
from raygeo.geometry.connectivity.matching import Unreachable, scale_for
from raygeo.geometry.connectivity.mixtures import delta_gram
from raygeo.geometry.representation.predictions import Predicted, comparison, text_sums
from raygeo.models.batches import Batch
from raygeo.models.resident import Measured, ResidentStudent
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import BASE, schema
from raygeo.workload import Rows, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINED, NORM, KL = "none", "norm", "kl"
"""What runs are matched in: nothing, as they were trained; the norm of the delta; the divergence from the base."""


class DistanceSettings(LikelihoodSettings):
    """At which distance from the base runs are measured."""

    norm: float | None = Field(None, gt=0)
    """Frobenius norm that every delta is scaled to; that of the reference run where none is given."""
    kl: float | None = Field(None, gt=0)
    """KL(base || run), in nats a token of held-out solutions, that every delta is scaled to; that of the reference run
    where none is given."""
    max_scale: float = Field(2.0, ge=1)
    """Largest multiple of a delta; a run that would need a larger one has no point."""
    tolerance: float = Field(0.02, gt=0, lt=1)
    """How far the divergence may be from the one wanted, as a share of it."""


class MatchedSettings(AccuracySettings, DistanceSettings):
    """At which distance from the base runs are measured, and whether accuracy is."""

    accuracy_problems: int = Field(0, ge=0)
    """How many problems (the first ones) the accuracy is measured on, a generation each point; 0 turns it off."""


@dataclass
class _State:
    evaluator: Evaluator
    batches: list[Batch]
    tokens: int
    base: Predicted | None = None
    norms: dict[Run, float] = field(default_factory=dict)

    @property
    def student(self) -> ResidentStudent:
        return self.evaluator.student

    @cached_property
    def divergence(self) -> Measured[float]:
        return Measured(self.student, self._divergence)

    def _divergence(self, model: PreTrainedModel) -> float:
        def forward(part: dict[str, Tensor]) -> Tensor:
            return part["kl_ab"].sum(-1, keepdim=True)

        return float(text_sums(model, self.batches, comparison, forward, self.base).sum() / self.tokens)

    def norm(self, run: Run) -> float:
        if run not in self.norms:
            self.norms[run] = math.sqrt(delta_gram([run.open()])[0, 0])
        return self.norms[run]


class Matched(ProbeWorkload):
    """Every run as it was trained, at one norm of the delta and at one divergence from the base; one task a run.

    KL(base || run) is that of ``outputs``: over the whole vocabulary, token mean over the whole probe; of the base an
    actor keeps final hidden states, ``4 tokens d`` bytes, and the head. The scale for a norm is exact, that for a
    divergence is searched (``matching.scale_for``). What is measured there is measured on half of the probe and on the
    problems, as in ``soups`` and ``wise``.

    Args:
        settings: distances and sizes.
        runs: the runs, the base among them or not.
        base: folder of the base student.
        probe: probe file.
        exam: problems for the accuracy; None where there are none.
        reference: name of the run whose distances are those of all, and that others are compared with.

    Raises:
        ConfigError: no distance is given, and the reference has none.
    """

    name = "matched"
    revision = REVISION
    tables: ClassVar = {
        "matched": schema(
            """Base + `scale` delta, at the wanted distance `target` in `quantity`: "norm", the Frobenius norm of
            scale delta; "kl", KL(base || run) in nats a token; "none", where `scale` is 1, for the run as it was
            trained. `norm` and `kl` are those of the point. The evaluation is as in `soups`; false_false_true is the
            share of problems that the base gets wrong and the point right, true_true_false the reverse. `reason` says
            why there is no point.""",
            f"run, quantity: text; target, scale, norm, kl: float; {EVALUATION}; reason: text",
        ),
        "matched_examples": schema(
            """What `matched_tests` are made of: summed NLL (nats) and tokens of each text, and of each problem whether
            it was answered wrongly.""",
            "run, quantity: text; sums, tokens: doubles; wrong: ints",
        ),
        "matched_tests": schema(
            """Each run less the reference run, both matched in `quantity`: NLL on `n` texts and accuracy on `problems`
            problems, with 95 % paired bootstrap intervals, and how many problems only one of them solves with
            McNemar's exact p. `p_holm` is adjusted over the runs of a quantity.""",
            "run, quantity: text; nll, nll_low, nll_high: float; n: int; accuracy, accuracy_low, accuracy_high: float; "
            "problems, only_run, only_reference: int; p_exact, p_holm: float",
        ),
    }
    settings: MatchedSettings
    in_keys = DistanceSettings

    def __init__(
        self,
        settings: MatchedSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probe: AnyPath,
        exam: Exam | None,
        reference: str,
    ):
        super().__init__(settings, runs, base, probe, exam)
        self.reference = reference
        self._base = next((run for run in runs if run.delta is None), Run(BASE, "", None))
        self._aim = next((run for run in runs if run.name == reference and run.delta is not None), None)
        if self._aim is None and None in (settings.norm, settings.kl):
            raise ConfigError(
                f"geometry.matched brings all runs to the norm and the divergence of {reference!r}, which is not among "
                "the trained runs here; give geometry.matched.norm and geometry.matched.kl, or another reference."
            )

    def tasks(self) -> list[Task]:
        """One task a run; all cost about the same."""
        aim, given = self._aim, None not in (self.settings.norm, self.settings.kl)
        inputs = *self.inputs, None if given or aim is None else aim.key
        return [
            Task(self.key(*inputs, run.name, run.key), 1.0, run, f"{run.name} at equal distance") for run in self.runs
        ]

    def setup(self) -> _State:
        """Load the base student and tokenised texts once."""
        evaluator, probe = super().setup(), Probe.load(self.probe)
        student = evaluator.student
        batches = probe.batches(student.pad_id, self.settings.batch_size)
        return _State(evaluator, [batch.to(student.model.device) for batch in batches], probe.tokens)

    def compute(self, state: _State, payload: Run) -> dict[str, Rows]:
        """Find and measure the points of one run.

        Raises:
            DeltaError: the reference run is at no distance from the base, or at one that is not finite.
        """
        if state.base is None:
            state.base = Predicted.by(state.student.model, state.batches)
        rows, examples = [], []
        for quantity in (TRAINED, NORM, KL) if payload.delta is not None else (TRAINED,):
            label = {"run": payload.name, "quantity": quantity}
            row: dict[str, Any] = label | {"target": self._target(state, quantity)}
            try:
                row |= self._point(state, payload, quantity, row["target"])
            except Unreachable as reason:
                rows.append(row | {"reason": str(reason)})
                continue
            found = state.evaluator.evaluations.at_run(payload, row["scale"])
            rows.append(row | self._columns(state, found))
            wrong = None if found.wrong is None else found.wrong.astype(int).tolist()
            examples.append(
                label | {"sums": found.sums.tolist(), "tokens": state.evaluator.counts.tolist(), "wrong": wrong}
            )
        return {"matched": rows, "matched_examples": examples}

    def _target(self, state: _State, quantity: str) -> float | None:
        """The distance of all runs; None where they are left as they are."""
        given = {TRAINED: None, NORM: self.settings.norm, KL: self.settings.kl}[quantity]
        if quantity == TRAINED or given is not None:
            return given
        assert self._aim is not None
        found = state.divergence.at_run(self._aim)
        if quantity == NORM and math.isfinite(found):
            found = state.norm(self._aim)
        if not 0 < found < math.inf:
            raise DeltaError(
                f"{self.reference}, the reference run, is at a distance of {found:.3g} from the base, to which no run "
                f"can be scaled; give geometry.matched.{quantity}, or another reference."
            )
        return found

    def _point(self, state: _State, run: Run, quantity: str, target: float | None) -> dict[str, float]:
        """Scale, norm and divergence of a run's point.

        Raises:
            Unreachable: it has none.
        """
        if not math.isfinite(state.divergence.at_run(run)):
            raise Unreachable("it has diverged: its predictions are not finite")
        norm, scale = state.norm(run), 1.0
        if target is not None:
            if norm == 0:
                raise Unreachable("its delta is zero")
            most = self.settings.max_scale
            if quantity == NORM and target / norm > most:
                raise Unreachable(f"it needs scale {target / norm:.3g}, and {most:g} is the largest")
            scale = target / norm if quantity == NORM else self._search(state, run, target)
        kl = state.divergence.at_run(run, scale)
        if not math.isfinite(kl):
            raise Unreachable(f"its predictions are not finite at scale {scale:.3g}")
        return {"scale": scale, "norm": scale * norm, "kl": kl}

    def _search(self, state: _State, run: Run, target: float) -> float:
        def divergence(scale: float) -> float:
            return state.divergence.at_run(run, scale)

        return scale_for(divergence, target, most=self.settings.max_scale, tolerance=self.settings.tolerance)

    def _columns(self, state: _State, found: Evaluation) -> dict[str, Any]:
        row = state.evaluator.columns(found, resamples=self.settings.bootstrap, seed=self.settings.seed)
        if found.wrong is not None:
            base = state.evaluator.evaluations.at_run(self._base)
            assert base.wrong is not None
            row |= flips(found.wrong, [base.wrong])
        return row

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Every run against the reference at the same distance, text by text and problem by problem."""
        examples = tables["matched_examples"].to_pylist()
        rows = []
        for quantity in (TRAINED, NORM, KL):
            found = {row["run"]: row for row in examples if row["quantity"] == quantity and row["run"] != BASE}
            other = found.pop(self.reference, None)
            if other is None:
                continue
            tests = [{"run": run, "quantity": quantity} | self._against(row, other) for run, row in found.items()]
            adjusted = holm([test["p_exact"] for test in tests if "p_exact" in test])
            rows += [test | {"p_holm": p} for test, p in zip(tests, adjusted, strict=True)] if adjusted else tests
        return {"matched_tests": rows}

    def _against(self, row: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
        found = self._difference("nll", np.subtract(row["sums"], other["sums"]), np.array(row["tokens"]))
        found["n"] = len(row["sums"])
        if row["wrong"] is not None:
            gained = np.subtract(other["wrong"], row["wrong"])
            found |= self._difference("accuracy", gained, np.ones(len(gained)))
            verdicts = ({str(i): not wrong for i, wrong in enumerate(each["wrong"])} for each in (row, other))
            test = mcnemar(*verdicts)
            found |= {"problems": test.n, "only_run": test.only_a, "only_reference": test.only_b}
            found["p_exact"] = test.p_exact
        return found

    def _difference(self, name: str, sums: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
        options = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
        low, high = percentile_interval(resampled_means(sums, counts, **options))
        return {name: float(sums.sum() / counts.sum()), f"{name}_low": low, f"{name}_high": high}
