"""Supervised fine-tuning on every rollout, right or wrong."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from raygeo.losses.imitation import Imitation
from raygeo.losses.selection import Group


class SFT(Imitation):
    """Negative log-likelihood of all rollouts, wrong ones too. Per-token coefficient: 1."""

    title: ClassVar[str] = "SFT"
    paper: ClassVar[str] = "Nikolich et al. 2026, arXiv:2606.23740"
    formula: ClassVar[str] = "-sum_t log p_t"
    order: ClassVar[int] = 100
    variants: ClassVar = (
        *Imitation.variants,
        {"prompt_loss_weight": 0.3},
        {"prompt_loss_weight": 0.3, "normalization": "sequence"},
    )

    type: Literal["sft"] = "sft"
    """Names the loss."""

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for every rollout."""
        return [1.0] * len(group.rows)
