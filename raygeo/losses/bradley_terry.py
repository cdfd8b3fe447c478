"""What DPO and its relatives share: the log-loss of preferring the chosen rollout in the model of Bradley and Terry."""

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygeo.losses.base import LossInputs
from raygeo.losses.pairwise import Pairwise


class BradleyTerry(Pairwise):
    """``-log sigmoid(beta d)``, ``d`` being the chosen rollout's score less the rejected one's, ``beta`` times a score
    the reward.
    """

    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature of the implicit reward ``beta log p / p_base``."""

    def margins(self, inputs: LossInputs) -> Tensor:
        """Beta d: [P]."""
        return self.beta * super().margins(inputs)

    def pair_losses(self, inputs: LossInputs) -> Tensor:
        """Log-loss of preferring the chosen rollout: [P]."""
        return -F.logsigmoid(self.margins(inputs))
