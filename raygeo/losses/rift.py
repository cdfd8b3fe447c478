"""Reward-informed fine-tuning: imitate correct rollouts, push bounded probabilities of wrong ones down."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from raygeo.errors import DataError
from raygeo.losses.base import LossInputs, Selection, Unit, masked_sum
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group


class RIFT(Pointwise):
    """``-log p`` on correct rollouts (reward 1), ``negative_weight * p`` on wrong ones (reward ``-negative_weight``).

    A wrong rollout's term is bounded where ``log p`` would not be. What ``p`` of a whole completion of T tokens is has
    several readings, ``negative``, of which ``sequence`` takes the formula of arXiv:2601.09253 by the letter and
    ``token``, the default, does not: the product of long completions is 0, and so is its gradient. With coefficients of
    log p_t on wrong rows:

    * ``token``: the sum of p_t; ``-negative_weight p_t``.
    * ``sequence``: their product pi; ``-negative_weight pi`` at every token, vanishing for long completions.
    * ``geometric``: T times their geometric mean g; ``-negative_weight g`` at every token.
    * ``paper``: ``-(1 - lam r) log p`` with r in {0, 1}, as printed in arXiv:2606.23740; it imitates wrong rollouts
      fully and correct ones less.
    """

    title: ClassVar[str] = "RIFT"
    paper: ClassVar[str] = "arXiv:2601.09253 (negative: token, sequence, geometric); arXiv:2606.23740 (paper)"
    formula: ClassVar[str] = "-1[correct] sum_t log p_t + negative_weight 1[wrong] sum_t p_t"
    order: ClassVar[int] = 200
    variants: ClassVar = (
        *Pointwise.variants,
        {"negative": "sequence"},
        {"negative": "geometric"},
        {"negative": "paper"},
    )

    type: Literal["rift"] = "rift"
    """Names the loss."""

    negative: Literal["token", "sequence", "geometric", "paper"] = "token"
    """What is done to a wrong rollout, see above."""

    negative_weight: float = Field(default=0.2, gt=0)
    """Minus the reward of a wrong rollout; unused by ``paper``."""

    lam: float = Field(default=0.5, gt=0, lt=1)
    """Discount on correct rollouts in ``paper``, unused otherwise. The paper gives no value."""

    def select(self, rollouts: pa.Table) -> Selection:
        """Weigh the usable rollouts of every prompt.

        Raises:
            DataError: no rollout is left; or ``negative`` is ``paper``, which tells verdicts apart by their weights,
                and rollouts were given weights of their own.
        """
        weights = rollouts.column("weight").drop_null() if "weight" in rollouts.column_names else []
        if self.negative == "paper" and any(weight.as_py() != 1 for weight in weights):
            raise DataError(
                "RIFT with negative: paper tells wrong rollouts by their weights, so it takes none that come with the "
                "rollouts; leave out the field weight, or choose another negative."
            )
        return super().select(rollouts)

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """Rewards 1 and ``-negative_weight``; in ``paper`` 1 - lam r."""
        if self.negative == "paper":
            return [1 - self.lam if correct else 1.0 for correct in group.correct]
        return [1.0 if correct else -self.negative_weight for correct in group.correct]

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """Log-probabilities on rows of positive weight, the chosen probability, spread over tokens, on others."""
        logprobs = inputs.logprobs
        if self.negative == "paper":
            return logprobs
        if self.negative == "token":
            probabilities = logprobs.exp()
        else:
            length = inputs.mask.sum(-1).clamp(min=1)
            sequence = masked_sum(logprobs, inputs.mask)
            row = sequence.exp() / length if self.negative == "sequence" else (sequence / length).exp()
            probabilities = row[:, None].expand_as(logprobs)
        return torch.where(self.is_negative(inputs.weights)[:, None], probabilities, logprobs)

    def is_negative(self, weights: Tensor) -> Tensor:
        """Which rows are wrong rollouts; in ``paper`` they are the ones with the larger weight."""
        return weights > 1 - self.lam / 2 if self.negative == "paper" else weights < 0

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """What wrong rollouts contribute."""
        return self.negative_metrics(inputs)
