"""Simple preference optimisation: mean log-probabilities as rewards, a target margin, no reference."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygeo.losses.base import LossInputs, Need, masked_sum
from raygeo.losses.bradley_terry import BradleyTerry
from raygeo.losses.pairwise import per_token


class SimPO(BradleyTerry):
    """``-log sigmoid(beta d - gamma)``, ``d`` being the chosen rollout's mean log-probability less the rejected one's.

    Means are over a completion's T tokens. Per-token coefficient: ``(beta / T) sigmoid(gamma - beta d)`` on the chosen
    rollout, minus that, with its own T, on the rejected one. With gamma = 0 it is length-normalised DPO with a uniform
    reference. The margin that metrics report is beta d.
    """

    title: ClassVar[str] = "SimPO"
    paper: ClassVar[str] = "Meng et al. 2024, arXiv:2405.14734, equation 6"
    formula: ClassVar[str] = "-log sigmoid(beta [(1/T) log p (chosen) - (1/T) log p (rejected)] - gamma)"
    order: ClassVar[int] = 360
    renamed: ClassVar[dict[str, str]] = {"gamma": "simpo_gamma"}

    type: Literal["simpo"] = "simpo"
    """Names the loss."""

    beta: float = Field(default=2.0, gt=0)
    """Inverse temperature of the reward ``(beta / T) log p``."""

    simpo_gamma: float = Field(default=0.5, ge=0)
    """Gamma, the margin by which the chosen rollout's reward should exceed the rejected one's; not divided by beta."""

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing."""
        return frozenset()

    def scores(self, inputs: LossInputs) -> Tensor:
        """Mean log-probabilities."""
        return per_token(masked_sum(inputs.logprobs, inputs.mask), inputs)

    def pair_losses(self, inputs: LossInputs) -> Tensor:
        """Log-loss of preferring the chosen rollout by more than gamma."""
        return -F.logsigmoid(self.margins(inputs) - self.simpo_gamma)
