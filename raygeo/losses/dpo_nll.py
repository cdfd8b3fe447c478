"""DPO plus the likelihood of the chosen rollout, which under DPO alone may fall while the margin rises."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from raygeo.losses.base import LossInputs, Unit, masked_sum
from raygeo.losses.bradley_terry import BradleyTerry
from raygeo.losses.pairwise import per_token


class DPOWithNLL(BradleyTerry):
    """DPO's loss plus ``alpha`` times the chosen rollout's negative log-likelihood a token.

    Per-token coefficient, with d as in DPO: ``beta sigmoid(-beta d) + alpha / T`` on the chosen rollout of T tokens,
    ``-beta sigmoid(-beta d)`` on the rejected one. Each pair's likelihood is divided by its own length, as in the paper
    (TRL's ``sigmoid`` with ``sft`` divides the micro-batch's sum by its tokens). DPO for alpha = 0.
    """

    title: ClassVar[str] = "DPO+NLL"
    paper: ClassVar[str] = "Pang et al. 2024 (iterative RPO), arXiv:2404.19733, equation 1"
    formula: ClassVar[str] = "-log sigmoid(beta d of DPO) - (alpha/T) log p (chosen)"
    order: ClassVar[int] = 340
    foreign: ClassVar[dict[str, str]] = {"rpo_alpha": "alpha"}
    variants: ClassVar = ({"alpha": 0.7},)

    type: Literal["dpo-nll"] = "dpo-nll"
    """Names the loss."""

    alpha: float = Field(default=1.0, ge=0)
    """Weight of the likelihood."""

    def pair_losses(self, inputs: LossInputs) -> Tensor:
        """Log-loss of preferring the chosen rollout, and its weighted NLL."""
        return super().pair_losses(inputs) + self.alpha * self.chosen_nll(inputs)

    def chosen_nll(self, inputs: LossInputs) -> Tensor:
        """Compute each chosen rollout's mean negative log-likelihood a token: [P]."""
        chosen, _ = self.sides(inputs, -per_token(masked_sum(inputs.logprobs, inputs.mask), inputs))
        return chosen

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """The second term before weighting."""
        return {"chosen_nll": (self.chosen_nll(inputs).sum(), "pair")}
