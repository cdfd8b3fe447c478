"""Identity preference optimisation: regression of the log-ratio margin on a finite target."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from raygeo.losses.base import LossInputs
from raygeo.losses.pairwise import Pairwise, per_token


class IPO(Pairwise):
    """``(d - 1 / (2 beta))^2``, ``d`` being the chosen rollout's mean log-ratio to the base less the rejected one's.

    The paper sums log-ratios over a completion; here they are means over its T tokens, so that the target does not
    depend on length (TRL does the same, as agreed with the paper's authors). Per-token coefficient:
    ``(2 / T) (1 / (2 beta) - d)`` on the chosen rollout, minus that, with its own T, on the rejected one. The loss is
    (1 / (2 beta))^2 at the base.
    """

    title: ClassVar[str] = "IPO"
    paper: ClassVar[str] = "Azar et al. 2023, arXiv:2310.12036, equation 17, with mean log-ratios"
    formula: ClassVar[str] = "[(1/T) log p/p_base (chosen) - (1/T) log p/p_base (rejected) - 1 / (2 beta)]^2"
    order: ClassVar[int] = 350
    renamed: ClassVar[dict[str, str]] = {"tau": "beta"}

    type: Literal["ipo"] = "ipo"
    """Names the loss."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the regularisation towards the base, tau in the paper: d, in nats a token, goes to 1 / (2 beta)."""

    def scores(self, inputs: LossInputs) -> Tensor:
        """Mean log-ratios."""
        return per_token(self.log_ratios(inputs), inputs)

    def pair_losses(self, inputs: LossInputs) -> Tensor:
        """Squared distance of the margin from its target."""
        return (self.margins(inputs) - 1 / (2 * self.beta)).square()
