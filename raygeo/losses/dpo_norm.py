"""Length-normalised DPO: mean log-ratios take the place of sums, so that long completions weigh no more."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from raygeo.losses.base import LossInputs
from raygeo.losses.bradley_terry import BradleyTerry
from raygeo.losses.pairwise import per_token


class NormalizedDPO(BradleyTerry):
    """``-log sigmoid(beta d)``, ``d`` being the chosen rollout's mean log-ratio to the base less the rejected one's.

    Means are over a completion's T tokens. Per-token coefficient: ``(beta / T) sigmoid(-beta d)`` on the chosen
    rollout, minus that, with its own T, on the rejected one. The loss is log 2 at the base.
    """

    title: ClassVar[str] = "DPO-norm"
    paper: ClassVar[str] = "Lambert et al. 2024 (Tulu 3), arXiv:2411.15124"
    formula: ClassVar[str] = "-log sigmoid(beta [(1/T) log p/p_base (chosen) - (1/T) log p/p_base (rejected)])"
    order: ClassVar[int] = 330

    type: Literal["dpo-norm"] = "dpo-norm"
    """Names the loss."""

    beta: float = Field(default=5.0, gt=0)
    """Inverse temperature of the reward ``(beta / T) log p / p_base``; means being small, far larger than DPO's."""

    def scores(self, inputs: LossInputs) -> Tensor:
        """Mean log-ratios."""
        return per_token(self.log_ratios(inputs), inputs)
