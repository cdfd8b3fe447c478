"""Conservative DPO: labels are believed only up to a share, so that margins stay finite."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygeo.losses.base import LossInputs
from raygeo.losses.bradley_terry import BradleyTerry


class ConservativeDPO(BradleyTerry):
    """Cross-entropy of preferring the chosen rollout, ``sigmoid(m)`` with m = beta d as in DPO, to 1 - epsilon.

    Per-token coefficient: ``beta (sigmoid(-m) - epsilon)`` on the chosen rollout, minus that on the rejected one; it
    changes sign at m = log((1 - epsilon) / epsilon), where learning stops. Log 2 at the base; DPO for epsilon = 0.
    """

    title: ClassVar[str] = "cDPO"
    paper: ClassVar[str] = "Mitchell 2023, A note on DPO with noisy preferences (not on arXiv); DPO: arXiv:2305.18290"
    formula: ClassVar[str] = "-(1 - epsilon) log sigmoid(m) - epsilon log sigmoid(-m), m = beta d of DPO"
    order: ClassVar[int] = 310

    type: Literal["cdpo"] = "cdpo"
    """Names the loss."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """Epsilon, the probability that a pair's label is wrong."""

    def pair_losses(self, inputs: LossInputs) -> Tensor:
        """Log-loss of preferring the chosen rollout with probability 1 - epsilon."""
        margins, epsilon = self.margins(inputs), self.label_smoothing
        return -(1 - epsilon) * F.logsigmoid(margins) - epsilon * F.logsigmoid(-margins)
