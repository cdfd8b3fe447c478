"""Direct preference optimisation on pairs of a correct and a wrong rollout of one prompt."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygeo.losses.base import LossInputs
from raygeo.losses.pairwise import Pairwise


class DPO(Pairwise):
    """``-log sigmoid(beta d)``, ``d`` being the chosen rollout's log-ratio to the base less the rejected one's.

    Log-ratios are sums over completion tokens. Per-token coefficient: ``beta sigmoid(-beta d)`` on the chosen rollout,
    minus that on the rejected one. The loss is log 2 at the base.
    """

    title: ClassVar[str] = "DPO"
    paper: ClassVar[str] = "Rafailov et al. 2023, arXiv:2305.18290, equation 7"
    formula: ClassVar[str] = "-log sigmoid(beta [log p/p_base (chosen) - log p/p_base (rejected)])"

    type: Literal["dpo"] = "dpo"
    """Names the loss."""

    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature of the implicit reward ``beta log p / p_base``."""

    def margins(self, inputs: LossInputs) -> Tensor:
        """Beta d."""
        return self.beta * self.difference(inputs, self.log_ratios(inputs))

    def pair_losses(self, inputs: LossInputs) -> Tensor:
        """Log-loss of preferring the chosen rollout."""
        return -F.logsigmoid(self.margins(inputs))
