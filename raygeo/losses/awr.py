"""Advantage- and reward-weighted regression: log-likelihood weighted by the exponential of a reward."""

from collections.abc import Sequence
from math import exp, log
from statistics import fmean
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from raygeo.losses.advantages import group_rewards
from raygeo.losses.base import LossInputs
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group


class AWR(Pointwise):
    """``-w log p_t`` with ``w = min(exp((r - V) / beta), max_weight)``. Per-token coefficient: w.

    Every weight is positive, so nothing is unlearned. Large ``beta`` gives SFT. As ``beta`` goes to 0, rollouts better
    than V weigh ``max_weight``, those worse nothing: ``max_weight`` times RFT on the mixed prompts, while prompts whose
    rewards are all equal keep w = 1 under ``group_mean``. In the paper V is a learned value function and rollouts are
    drawn anew as the policy moves; here V is the mean of the prompt's rewards and rollouts are fixed.
    """

    title: ClassVar[str] = "AWR"
    paper: ClassVar[str] = "Peng et al. 2019, arXiv:1910.00177; without baseline: Peters and Schaal 2007 (RWR)"
    formula: ClassVar[str] = "-min(exp((r - V) / beta), max_weight) sum_t log p_t"
    order: ClassVar[int] = 190
    variants: ClassVar = (
        *Pointwise.variants,
        {"baseline": "none"},
        {"baseline": "none", "beta": 0.4, "max_weight": 5.0},
    )

    type: Literal["awr"] = "awr"
    """Names the loss."""

    baseline: Literal["group_mean", "none"] = "group_mean"
    """What V is. ``group_mean``: the mean reward of the prompt's usable rollouts (AWR). ``none``: 0 (RWR); verdicts are
    rewards 1 and 0, so wrong rollouts weigh 1 and right ones more. Give rewards 0 and -1 for weights of 1 and less."""

    beta: float = Field(default=1.0, gt=0)
    """Temperature, in units of the reward."""

    max_weight: float = Field(default=20.0, gt=0)
    """Largest weight."""

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """Exponential weights from rewards, or from verdicts (1 and 0) where a prompt has no reward at all.

        Raises:
            DataError: only some rollouts of the prompt have a finite reward.
        """
        rewards = group_rewards(group)
        baseline = fmean(rewards) if self.baseline == "group_mean" else 0.0
        return [exp(min((reward - baseline) / self.beta, log(self.max_weight))) for reward in rewards]

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """Log-probabilities themselves."""
        return inputs.logprobs
