"""Kahneman-Tversky optimisation: single rollouts, each judged against how far the student has moved on average."""

from typing import ClassVar, Literal

import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from raygeo.errors import TrainingError
from raygeo.losses.base import Example, Loss, LossInputs, LossOutput, Need, Selection, Unit, masked_sum
from raygeo.losses.selection import group_rollouts


class KTO(Loss):
    """``lambda_D sigmoid(beta (z - R))`` on correct, ``lambda_U sigmoid(beta (R - z))`` on wrong rollouts.

    R is the log-ratio to the base summed over completion tokens. The reference point z is the mean log-ratio of
    mismatched completions, a rough estimate of KL(p, p_base), not below zero and held constant. It is taken over the
    whole step, so that it does not depend on how a batch is split; the paper and TRL take it over each micro-batch.
    The paper weighs the two sides so that desirable and undesirable examples balance; both weigh 1 here by default.

    Per-token coefficient: ``w beta s (1 - s)`` with s = sigmoid(beta (R - z)), w = lambda_D on correct and -lambda_U on
    wrong rollouts; it vanishes for rollouts far from the reference point on either side. The loss is half of the
    weight's absolute value at the base, and never exceeds it.
    """

    title: ClassVar[str] = "KTO"
    paper: ClassVar[str] = "Ethayarajh et al. 2024, arXiv:2402.01306, equation 7"
    formula: ClassVar[str] = (
        "lambda_D 1[correct] sigmoid(beta [z - log p/p_base]) + lambda_U 1[wrong] sigmoid(beta [log p/p_base - z])"
    )
    order: ClassVar[int] = 230
    variants: ClassVar = ({"desirable_weight": 1.3, "undesirable_weight": 0.6},)

    type: Literal["kto"] = "kto"
    """Names the loss."""

    prompts: Literal["all", "mixed"] = "all"
    """``mixed`` keeps only prompts with both a correct and a wrong usable rollout, the prompts DPO can learn from."""

    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature of the implicit reward ``beta log p / p_base``."""

    desirable_weight: float = Field(default=1.0, gt=0)
    """Lambda_D, weight of correct rollouts. The paper advises lambda_D n_correct / (lambda_U n_wrong) in [1, 4/3]."""

    undesirable_weight: float = Field(default=1.0, gt=0)
    """Lambda_U, weight of wrong rollouts."""

    @property
    def needs(self) -> frozenset[Need]:
        """The base's log-probabilities and the KL baseline."""
        return frozenset({"reference", "mismatched"})

    @property
    def unit(self) -> Unit:
        """Sequences."""
        return "sequence"

    def select(self, rollouts: pa.Table) -> Selection:
        """Weigh every usable rollout: ``desirable_weight`` if it is correct, else minus ``undesirable_weight``.

        Raises:
            DataError: no rollout is left.
        """
        usable = group_rollouts(rollouts)
        examples = [
            Example((row,), (self.desirable_weight if correct else -self.undesirable_weight,))
            for group in usable.groups
            if self.prompts == "all" or group.mixed
            for row, correct in zip(group.rows, group.correct, strict=True)
        ]
        return usable.select(self.title, examples)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Compute the loss of one micro-batch.

        Metrics: ``nll``; per sequence ``kl`` (the reference point z), ``desirable`` (whether the rollout is correct),
        ``desirable_logratio`` and ``undesirable_logratio``, R of correct and of wrong rollouts and 0 for others, so
        that ``desirable_logratio / desirable`` is the mean over correct rollouts.

        Raises:
            TrainingError: log-probabilities of the base or the KL baseline are missing.
        """
        if inputs.reference_logprobs is None or inputs.kl_baseline is None:
            raise TrainingError("KTO was given no log-probabilities of the base or no KL baseline.")
        log_ratios = masked_sum(inputs.logprobs - inputs.reference_logprobs, inputs.mask)
        baseline = inputs.kl_baseline.detach().clamp(min=0)
        weights = inputs.weights
        total = (weights.abs() * torch.sigmoid(self.beta * weights.sign() * (baseline - log_ratios))).sum()
        with torch.no_grad():
            desirable = ~weights.signbit()  # of a correct rollout that counts nothing, too: a wrong one's is -0
            metrics: dict[str, tuple[Tensor, Unit]] = {
                "nll": (-masked_sum(inputs.logprobs, inputs.mask).sum(), "token"),
                "kl": (baseline * len(weights), "sequence"),
                "desirable": (desirable.to(log_ratios.dtype).sum(), "sequence"),
                "desirable_logratio": (log_ratios[desirable].sum(), "sequence"),
                "undesirable_logratio": (log_ratios[~desirable].sum(), "sequence"),
            }
        return LossOutput(total, self.unit, metrics)
