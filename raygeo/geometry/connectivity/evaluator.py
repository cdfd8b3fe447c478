"""Mixtures of runs evaluated on one student: likelihood, calibration, and answers to problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raygeo.data.probes import Probe
from raygeo.geometry.bootstrap import Array, percentile_interval, resampled_means
from raygeo.geometry.connectivity.barriers import check_finite
from raygeo.geometry.connectivity.confidence import Calibration, calibration
from raygeo.geometry.connectivity.measures import AnswerErrors, ProbeNLL, halves
from raygeo.models.resident import Measured, ResidentStudent

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Evaluation(NamedTuple):
    """A model on the measured half of the probe and on the problems; ``wrong`` is None where there are none."""

    sums: Array
    calibration: Calibration
    wrong: Array | None


class Evaluator:
    """What mixtures are judged by, on the two halves of one probe and on problems.

    ``evaluations`` are of the second half and the problems, ``chosen`` is the token-mean NLL of the first half, which
    choices are made with; ``counts`` [N] are completion tokens of the second half.

    Args:
        student: the student that mixtures are applied to.
        probe: the texts, at least two.
        batch_size: sequences per forward pass.
        errors: what answers to problems are judged by, if there are problems.
    """

    def __init__(self, student: ResidentStudent, probe: Probe, batch_size: int, errors: AnswerErrors | None):
        self.student, self._errors = student, errors
        chosen, self._measured = (ProbeNLL(half, batch_size, student.pad_id) for half in halves(probe))
        self.counts = self._measured.counts
        self.chosen = Measured(student, chosen.mean)
        self.evaluations = Measured(student, self._evaluate)

    def _evaluate(self, model: PreTrainedModel) -> Evaluation:
        sums = self._measured.sums(model)
        check_finite(sums, "of a mixture of runs")
        wrong = None if self._errors is None else self._errors.sums(model)
        return Evaluation(sums, calibration(model, self._measured.batches), wrong)

    def columns(self, found: Evaluation, *, resamples: int, seed: int) -> dict[str, Any]:
        """What tables hold of an evaluation: NLL with its bootstrap interval, calibration, accuracy."""
        low, high = percentile_interval(resampled_means(found.sums, self.counts, resamples=resamples, seed=seed))
        nll = float(found.sums.sum() / self.counts.sum())
        row: dict[str, Any] = {"nll": nll, "nll_low": low, "nll_high": high}
        row |= {**found.calibration._asdict(), "n": len(self.counts), "tokens": int(self.counts.sum())}
        if found.wrong is not None:
            row |= {"accuracy": float(1 - found.wrong.mean()), "problems": len(found.wrong)}
        return row


def flips(wrong: Array, members: Sequence[Array]) -> dict[str, float]:
    """Share of problems all ``members`` get wrong and their average right, and the reverse; 1 is wrong, [N] each."""
    all_wrong, all_right = np.min(members, axis=0) == 1, np.max(members, axis=0) == 0
    return {
        "false_false_true": float((all_wrong & (wrong == 0)).mean()),
        "true_true_false": float((all_right & (wrong == 1)).mean()),
    }
