"""What is measured between runs: likelihoods of probes and answers to problems, example by example."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
import torch

from raygeo.data.exam import Exam
from raygeo.data.probes import Probe, sequence_nlls
from raygeo.errors import DataError
from raygeo.geometry.bootstrap import Array
from raygeo.models.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Metric = Literal["nll", "accuracy"]
PROBLEMS = "problems"
"""The ``probe`` of the accuracy rows."""


class Measure(Protocol):
    """What is followed between runs; its loss is the sum of ``sums`` over the sum of ``counts`` [N]."""

    metric: ClassVar[Metric]
    probe: str
    counts: Array

    def sums(self, model: PreTrainedModel) -> Array:
        """Loss of each example [N] at the model's weights, summed over what ``counts`` counts."""
        ...


class ProbeNLL:
    """Negative log-likelihood of a probe, in nats; ``counts`` [N] are completion tokens.

    Args:
        probe: the texts.
        batch_size: sequences per forward pass.
        pad_id: what batches are padded with.
        name: what the probe is called in tables, by default its own name.
    """

    metric: ClassVar[Metric] = "nll"

    def __init__(self, probe: Probe, batch_size: int, pad_id: int, name: str | None = None):
        self.probe = probe.name if name is None else name
        self.order = probe.order(batch_size)
        self.batches: list[Batch] = probe.batches(pad_id, batch_size)
        self.counts = np.array([s.completion_length for s in probe.sequences], dtype=np.float64)

    def sums(self, model: PreTrainedModel) -> Array:
        """Summed NLL of each sequence, [N] fp64."""
        with torch.inference_mode():
            return sequence_nlls(model, self.batches, self.order)[0].numpy()

    def mean(self, model: PreTrainedModel) -> float:
        """Token mean of the NLL."""
        return float(self.sums(model).sum() / self.counts.sum())


class AnswerErrors:
    """Wrong greedy answers to the problems of an exam; ``counts`` [N] are ones, so the loss is the error rate.

    Args:
        exam: the problems, and how they are asked and judged.
        max_new_tokens: length at which an answer is cut off.
        batch_size: problems answered together.
    """

    metric: ClassVar[Metric] = "accuracy"
    probe = PROBLEMS

    def __init__(self, exam: Exam, *, max_new_tokens: int, batch_size: int):
        self.exam = exam
        self.options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        self.counts = np.ones(len(exam.problems))

    def sums(self, model: PreTrainedModel) -> Array:
        """0 where the answer is right and was not cut off, 1 where it is not, [N]."""
        answers = self.exam.answers(model, **self.options)
        right = [verdict.correct and not answer.truncated for answer, verdict in answers]
        return np.array([not each for each in right], dtype=np.float64)


def halves(probe: Probe) -> tuple[Probe, Probe]:
    """Split a probe's sequences in turn: one half to choose or train with, the other to measure on.

    Probes hold one text a prompt, so no prompt is in both halves.

    Raises:
        DataError: there are fewer than two sequences.
    """
    if len(probe.sequences) < 2:
        raise DataError(f"probe {probe.name!r} has one sequence and cannot be halved; raise probes.sequences.")
    return Probe(probe.name, probe.sequences[0::2]), Probe(probe.name, probe.sequences[1::2])
