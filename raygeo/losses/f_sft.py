"""Supervised fine-tuning as learning of an implicit reward, under other f-divergences than SFT's."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from raygeo.losses.base import LossInputs, Need, Unit, masked_sum
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.ratios import log_ratio
from raygeo.losses.selection import Group

HELLINGER_START = -0.5
"""Implicit reward below which the Hellinger objective continues along its tangent, before its pole at -1."""


class FSFT(Pointwise):
    """``f*(-R) / beta`` for each row, ``R = beta log p / p_base`` being its implicit reward, summed over its tokens.

    A derivation of our own from the abstract of arXiv:2507.00018, not that paper's objective: SFT keeps of the implicit
    reward only the linear term, other convex conjugates f* keep what bounds it; terms of the normaliser are dropped.
    Dividing by ``beta`` makes every variant SFT at the base, where R = 0. Per-token coefficients:

    * ``chi2``: f* (-R) = -R + R^2 / 4; 1 - R / 2, which unlearns beyond R = 2.
    * ``hellinger``: f* (-R) = -R / (1 + R); 1 / (1 + R)^2, and 4 below R = -1/2, where the tangent takes over.
    * ``tv``: f* (-R) = -R, taken for all R; 1, hence SFT's gradient, with a value shifted by the base's.
    """

    title: ClassVar[str] = "f-SFT"
    paper: ClassVar[str] = "our derivation, after Wang et al. 2025, arXiv:2507.00018"
    formula: ClassVar[str] = "f*(-R) / beta, R = beta sum_t log p_t/p_base,t"
    order: ClassVar[int] = 180
    variants: ClassVar = (*Pointwise.variants, {"divergence": "hellinger"}, {"divergence": "tv"})

    type: Literal["f-sft"] = "f-sft"
    """Names the loss."""

    divergence: Literal["chi2", "hellinger", "tv"] = "chi2"
    """Whose conjugate f* is: Pearson's chi-squared, the squared Hellinger distance, or total variation."""

    beta: float = Field(default=0.1, gt=0)
    """Scale of the implicit reward; smaller values stay near SFT for longer."""

    @property
    def needs(self) -> frozenset[Need]:
        """The base's log-probabilities."""
        return frozenset({"reference"})

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for every rollout."""
        return [1.0] * len(group.rows)

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """``-f*(-R) / beta``, spread evenly over the row's tokens."""
        reward = self._rewards(inputs)
        if self.divergence == "chi2":
            row = reward - reward**2 / 4
        elif self.divergence == "hellinger":
            inside = reward.clamp(min=HELLINGER_START)
            row = inside / (1 + inside) + (reward - inside) / (1 + HELLINGER_START) ** 2
        else:
            row = reward
        length = inputs.mask.sum(-1).clamp(min=1)
        return (row / self.beta / length)[:, None].expand_as(inputs.logprobs)

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """``reward``: the mean of R over rows."""
        return {"reward": (self._rewards(inputs).sum(), "sequence")}

    def _rewards(self, inputs: LossInputs) -> Tensor:
        return self.beta * masked_sum(log_ratio(inputs, "reference", self.title), inputs.mask)
