"""One student on which mixtures of runs are evaluated: likelihood, calibration, and answers to problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raygeo.errors import DeltaError
from raygeo.geometry.connectivity.barriers import Array, percentiles, resampled_losses
from raygeo.geometry.connectivity.confidence import Calibration, calibration
from raygeo.geometry.connectivity.measures import AccuracySettings, Errors, Likelihood, halves
from raygeo.geometry.connectivity.mixtures import Mixture, load_mixable
from raygeo.geometry.probes import Probe
from raygeo.rollouts.grading import Grading
from raygeo.store import AnyPath
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Evaluation(NamedTuple):
    """A model on the measured half of the probe and on the problems; ``wrong`` is None where there are none."""

    sums: Array
    calibration: Calibration
    wrong: Array | None


@dataclass
class Evaluator:
    """A student that mixtures are measured on: ``chosen`` and ``measured`` are the two halves of one probe."""

    model: PreTrainedModel
    weights: MixedWeights
    chosen: Likelihood
    measured: Likelihood
    errors: Errors | None
    known: dict[Run, Evaluation] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        settings: AccuracySettings,
        base: AnyPath,
        runs: Sequence[Run],
        probe: Probe,
        problems: Sequence[tuple[str, str]],
        grading: Grading,
    ) -> Evaluator:
        """Load the base student once, halve the probe and tokenise what is measured."""
        model, tokenizer, weights = load_mixable(base, runs)
        chosen, measured = (Likelihood(probe.name, half, tokenizer, settings.batch_size) for half in halves(probe))
        errors = Errors(problems, grading, tokenizer, settings) if problems else None
        return cls(model, weights, chosen, measured, errors)

    def evaluate(self, terms: Mixture) -> Evaluation:
        """Measure a mixture.

        Raises:
            DeltaError: its likelihood is not finite.
        """
        with self.weights.mixed(terms):
            sums = self.measured.sums(self.model)
            if not np.isfinite(sums).all():
                raise DeltaError("the loss of a mixture of runs is not finite; a run has diverged, leave it out.")
            wrong = None if self.errors is None else self.errors.sums(self.model)
            return Evaluation(sums, calibration(self.model, self.measured.batches), wrong)

    def evaluate_run(self, run: Run) -> Evaluation:
        """Measure a run as it was trained, once."""
        if run not in self.known:
            self.known[run] = self.evaluate(run.mixture())
        return self.known[run]

    def choose_by(self, terms: Mixture) -> float:
        """Token-mean NLL of a mixture on the half that choices are made with."""
        with self.weights.mixed(terms):
            return float(self.chosen.sums(self.model).sum() / self.chosen.counts.sum())

    def columns(self, found: Evaluation, settings: AccuracySettings) -> dict[str, Any]:
        """What tables hold of an evaluation: loss with its interval, calibration, accuracy."""
        counts = self.measured.counts
        resampled = resampled_losses(found.sums[None], counts, resamples=settings.bootstrap, seed=settings.seed)
        low, high = percentiles(resampled)
        row: dict[str, Any] = {"loss": float(found.sums.sum() / counts.sum()), "loss_low": low, "loss_high": high}
        row |= {**found.calibration._asdict(), "n": len(counts), "tokens": int(counts.sum())}
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
