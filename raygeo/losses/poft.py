"""Preference-oriented fine-tuning: prefer oneself to an aligned model on every rollout, measured by mean likelihood."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygeo.losses.base import LossInputs, Need, Unit, masked_sum
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.ratios import log_ratio
from raygeo.losses.selection import Group


class PoFT(Pointwise):
    """``-log sigmoid(m)``, the margin ``m = beta (mean log p - mean log p_base) + gamma`` being over a row's T tokens.

    The base stands for the aligned models whose scores the paper averages. Per-token coefficient:
    ``(beta / T) sigmoid(-m)``, SFT with a gate that closes on rollouts the model already finds likelier than the base
    does. A row's value is log 2 at the base with gamma = 0.
    """

    title: ClassVar[str] = "PoFT"
    paper: ClassVar[str] = "Fan et al. 2024, arXiv:2412.12865, with the base as the aligned model"
    formula: ClassVar[str] = "-log sigmoid(beta [mean_t log p_t - mean_t log p_base,t] + gamma)"
    order: ClassVar[int] = 170
    variants: ClassVar = ({"normalization": "token"}, {"normalization": "token", "beta": 2.0, "gamma": 0.5})

    type: Literal["poft"] = "poft"
    """Names the loss."""

    normalization: Literal["token", "sequence"] = "sequence"
    """``sequence``: rows count alike, as in the paper; ``token``: by their number of tokens."""

    beta: float = Field(default=1.0, gt=0)
    """Scale of the difference of mean log-probabilities."""

    gamma: float = 0.0
    """Added to the margin."""

    @property
    def needs(self) -> frozenset[Need]:
        """The base's log-probabilities."""
        return frozenset({"reference"})

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for every rollout."""
        return [1.0] * len(group.rows)

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """The log-likelihood of being preferred, at each token of the row, whose mean it therefore is."""
        return F.logsigmoid(self._margins(inputs))[:, None].expand_as(inputs.logprobs)

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """Means over rows of ``margin`` and of ``gate``, sigmoid(-margin)."""
        margins = self._margins(inputs)
        return {"margin": (margins.sum(), "sequence"), "gate": ((-margins).sigmoid().sum(), "sequence")}

    def _margins(self, inputs: LossInputs) -> Tensor:
        ratios = masked_sum(log_ratio(inputs, "reference", self.title), inputs.mask)
        return self.beta * ratios / inputs.mask.sum(-1).clamp(min=1) + self.gamma
