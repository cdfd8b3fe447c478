"""Supervised fine-tuning with smoothed labels, against over-confident students."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from raygeo.errors import TrainingError
from raygeo.losses.base import LossInputs, Unit, masked_sum
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group
from raygeo.models.likelihood import TokenLogits


class LabelSmoothedSFT(Pointwise):
    """``-(1 - e) log p_t - e mean_v log p(v)``: cross-entropy with a label of which ``e`` is spread over all tokens.

    Gradient in the logits: p less the smoothed label. BANG tunes with smoothed labels before it averages weights, as
    averages of over-confident runs fail; its other remedy, mixing examples, and its averaging are not part of this loss
    (the analyses ``soups`` and ``wise`` average). The mean is over all rows of the head.
    """

    title: ClassVar[str] = "Label-smoothed SFT"
    paper: ClassVar[str] = (
        "Szegedy et al. 2015, arXiv:1512.00567; for weight averages Lin et al. 2023, arXiv:2309.17230"
    )
    formula: ClassVar[str] = "-sum_t (1 - label_smoothing) log p_t + label_smoothing mean_v log p(v)_t"
    order: ClassVar[int] = 185

    type: Literal["ls-sft"] = "ls-sft"
    """Names the loss."""

    label_smoothing: float = Field(default=0.1, gt=0, lt=1)
    """Share of the label that is spread evenly over the vocabulary."""

    rows: Literal["all", "correct"] = "all"
    """``all``: the data of SFT; ``correct``: the data of RFT."""

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for the rollouts ``rows`` asks for, none for others."""
        return [1.0 if correct or self.rows == "all" else None for correct in group.correct]

    def token_terms(self, tokens: TokenLogits) -> dict[str, Tensor]:
        """``spread`` [N]: the mean of log p over the vocabulary, in nats."""
        return {"spread": torch.log_softmax(tokens.logits, -1).mean(-1)}

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """The log-probability of the smoothed label."""
        return (1 - self.label_smoothing) * inputs.logprobs + self.label_smoothing * self._spread(inputs)

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """``spread``: minus the mean over tokens and vocabulary of log p; larger where the student is more certain."""
        return {"spread": (-masked_sum(self._spread(inputs), inputs.mask).sum(), "token")}

    def _spread(self, inputs: LossInputs) -> Tensor:
        if "spread" not in inputs.terms:
            raise TrainingError(f"{self.title} was given no logits; compute its token_terms with them.")
        return inputs.terms["spread"]
