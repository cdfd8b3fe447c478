"""Supervised fine-tuning on every rollout, right or wrong."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from raygeo.losses.base import LossInputs
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group


class SFT(Pointwise):
    """Negative log-likelihood of all rollouts, wrong ones too. Per-token coefficient: 1."""

    title: ClassVar[str] = "SFT"
    paper: ClassVar[str] = "Nikolich et al. 2026, arXiv:2606.23740"
    formula: ClassVar[str] = "-sum_t log p_t"
    order: ClassVar[int] = 100

    type: Literal["sft"] = "sft"
    """Names the loss."""

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for every rollout."""
        return [1.0] * len(group.rows)

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """Log-probabilities themselves."""
        return inputs.logprobs
