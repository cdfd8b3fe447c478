"""What is measured between runs: likelihoods of probes and answers to problems, example by example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import Field

from raygeo.errors import DataError
from raygeo.geometry.connectivity.barriers import Array
from raygeo.geometry.probes import Probe, sequence_nlls
from raygeo.rollouts.grading import Grading, grader
from raygeo.settings import Settings
from raygeo.students.encoding import Batch
from raygeo.students.generation import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROBLEMS = "problems"
"""The ``probe`` of the accuracy rows."""


class LikelihoodSettings(Settings):
    """How likelihoods between runs are measured."""

    batch_size: int = Field(16, ge=1)
    """Sequences per forward pass."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples behind each 95 % interval."""
    seed: int = 0
    """Seed of the resampling; the same examples are drawn for all runs and all points."""


class AccuracySettings(LikelihoodSettings):
    """How accuracy between runs is measured besides."""

    accuracy_problems: int = Field(64, ge=0)
    """How many problems (the first ones) the accuracy is measured on; 0 turns it off."""
    max_new_tokens: int = Field(512, ge=1)
    """Length at which an answer is cut off."""
    generation_batch_size: int = Field(64, ge=1)
    """Problems answered together."""


class Measure(Protocol):
    """What is followed between runs; its loss is the sum of ``sums`` over the sum of ``counts`` [N]."""

    metric: ClassVar[Literal["nll", "accuracy"]]
    probe: str
    counts: Array

    def sums(self, model: PreTrainedModel) -> Array:
        """Loss of each example [N] at the model's weights, summed over what ``counts`` counts."""
        ...


class Likelihood:
    """Negative log-likelihood of a probe, in nats; ``counts`` are completion tokens."""

    metric: ClassVar[Literal["nll", "accuracy"]] = "nll"

    def __init__(self, name: str, probe: Probe, tokenizer: PreTrainedTokenizerBase, batch_size: int):
        self.probe = name
        self.order = probe.order(batch_size)
        self.batches: list[Batch] = probe.batches(tokenizer.pad_token_id, batch_size)
        self.counts = np.array([s.completion_length for s in probe.sequences], dtype=np.float64)

    def sums(self, model: PreTrainedModel) -> Array:
        """Summed NLL of each sequence, [N] fp64."""
        with torch.inference_mode():
            return sequence_nlls(model, self.batches, self.order)[0].numpy()


class Errors:
    """Wrong greedy answers to problems; ``counts`` are ones, so the loss is the error rate."""

    metric: ClassVar[Literal["nll", "accuracy"]] = "accuracy"
    probe = PROBLEMS

    def __init__(
        self,
        problems: Sequence[tuple[str, str]],
        grading: Grading,
        tokenizer: PreTrainedTokenizerBase,
        settings: AccuracySettings,
    ):
        self.prompts, self.golds = ([problem[side] for problem in problems] for side in (0, 1))
        self.grading: Grading = grading
        self.tokenizer = tokenizer
        self.settings = settings
        self.counts = np.ones(len(problems))

    def sums(self, model: PreTrainedModel) -> Array:
        """1 where the answer is wrong, 0 where it is right, [N]."""
        answers = generate(
            model,
            self.tokenizer,
            self.prompts,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.settings.generation_batch_size,
        )
        with grader(self.grading) as judge:
            verdicts = judge.grade_many([(a.text, gold) for (a,), gold in zip(answers, self.golds, strict=True)])
        return np.array([not verdict.correct for verdict in verdicts], dtype=np.float64)


def halves(probe: Probe) -> tuple[Probe, Probe]:
    """Split a probe's sequences in turn: one half to choose or train with, the other to measure on.

    Probes hold one text a prompt, so no prompt is in both halves.

    Raises:
        DataError: there are fewer than two sequences.
    """
    if len(probe.sequences) < 2:
        raise DataError(f"probe {probe.name!r} has one sequence and cannot be halved; raise probes.sequences.")
    return Probe(probe.name, probe.sequences[0::2]), Probe(probe.name, probe.sequences[1::2])
