"""Rejection-sampling fine-tuning: supervised fine-tuning on the correct rollouts alone."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from raygeo.losses.imitation import Imitation
from raygeo.losses.selection import Group


class RFT(Imitation):
    """Negative log-likelihood of the correct rollouts. Per-token coefficient: 1 on correct rows.

    arXiv:2308.01825 keeps of each prompt's correct solutions one for each distinct list of equations, and trains on
    them together with the solutions of the original data. Here all correct rollouts count, like ones as often as they
    stand in the file (``max_per_prompt`` bounds their number, not their likeness), and nothing is added to them.
    """

    title: ClassVar[str] = "RFT"
    paper: ClassVar[str] = "Yuan et al. 2023, arXiv:2308.01825"
    formula: ClassVar[str] = "-1[correct] sum_t log p_t"
    order: ClassVar[int] = 110
    variants: ClassVar = (*Imitation.variants, {"max_per_prompt": 2})

    type: Literal["rft"] = "rft"
    """Names the loss."""

    max_per_prompt: int | None = Field(default=None, ge=1)
    """Keep only the first so many correct rollouts of a prompt in table order, so that easy prompts do not dominate."""

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for correct rollouts up to ``max_per_prompt``, none for others."""
        kept = [row for row, correct in zip(group.rows, group.correct, strict=True) if correct][: self.max_per_prompt]
        return [1.0 if row in kept else None for row in group.rows]
