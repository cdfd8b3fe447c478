"""Robust DPO: an unbiased estimate, from labels flipped at a known rate, of DPO's loss under the true labels."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygeo.losses.base import LossInputs
from raygeo.losses.bradley_terry import BradleyTerry


class RobustDPO(BradleyTerry):
    """With m = beta d as in DPO, the combination of both labels' log-losses whose mean over flips is DPO's loss.

    Per-token coefficient: ``beta (sigmoid(-m) + epsilon / (1 - 2 epsilon))`` on the chosen rollout, minus that on the
    rejected one: it never vanishes and the loss has no lower bound, opposite to cDPO. Log 2 at the base; DPO for
    epsilon = 0.
    """

    title: ClassVar[str] = "Robust DPO"
    paper: ClassVar[str] = "Chowdhury et al. 2024, arXiv:2403.00409"
    formula: ClassVar[str] = (
        "[-(1 - epsilon) log sigmoid(m) + epsilon log sigmoid(-m)] / (1 - 2 epsilon), m = beta d of DPO"
    )
    order: ClassVar[int] = 320
    renamed: ClassVar[dict[str, str]] = {"flip_rate": "label_smoothing"}

    type: Literal["robust-dpo"] = "robust-dpo"
    """Names the loss."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """Epsilon, the probability that a pair's label was flipped."""

    def pair_losses(self, inputs: LossInputs) -> Tensor:
        """Log-loss of the given label less what flips are expected to add to it."""
        margins, epsilon = self.margins(inputs), self.label_smoothing
        return (-(1 - epsilon) * F.logsigmoid(margins) + epsilon * F.logsigmoid(-margins)) / (1 - 2 * epsilon)
