"""Offline GRPO: group-relative advantages on rollouts whose behaviour policy is not known."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from raygeo.losses.advantages import GroupAdvantage
from raygeo.losses.base import LossInputs, Need, Unit, masked_sum
from raygeo.losses.ratios import clipped_ratio, is_clipped, log_ratio


class OfflineGRPO(GroupAdvantage):
    """An advantage times what stands for the likelihood of each token; ``off-policy-grpo`` knows the true ratio.

    Per-token coefficient: the advantage A times the derivative of the ``surrogate`` by log p_t.

    The defaults are those of arXiv:2606.23740. GRPO itself (arXiv:2402.03300) divides advantages by their standard
    deviation (``scale_rewards``), has no bias, multiplies them by a clipped ratio to the policy that sampled, which
    here is not known, averages over each row's tokens before rows (``normalization: sequence``), and adds a penalty of
    KL(p || base), which no setting brings back.
    """

    title: ClassVar[str] = "Offline GRPO"
    paper: ClassVar[str] = "Shao et al. 2024, arXiv:2402.03300; offline form: Nikolich et al. 2026, arXiv:2606.23740"
    formula: ClassVar[str] = "-(r - mean r + bias) sum_t log p_t"
    order: ClassVar[int] = 210
    renamed: ClassVar[dict[str, str]] = GroupAdvantage.renamed | {"clip": "epsilon"}
    foreign: ClassVar[dict[str, str]] = {"delta": "dual_clip"}
    variants: ClassVar = (*GroupAdvantage.variants, {"surrogate": "p"}, {"surrogate": "shaped"}, {"surrogate": "ppo"})

    type: Literal["grpo"] = "grpo"
    """Names the loss."""

    surrogate: Literal["logp", "p", "shaped", "ppo"] = "logp"
    """What an advantage multiplies. ``logp``: log p_t (coefficient A), which has no lower bound where A < 0. ``p``: p_t
    (coefficient A p_t), bounded, as in KRAFTON's Offline-GRPO. ``shaped``: p_t / (p_t + shaping), as in LUFFY
    (arXiv:2504.14945; coefficient A shaping p_t / (p_t + shaping)^2), which gives unlikely tokens more of the gradient
    than ``p`` does. ``ppo``: the ratio of p_t to the base's, which stands in for the unknown behaviour policy, clipped
    as in PPO (coefficient A ratio, 0 where clipped)."""

    shaping: float = Field(default=0.1, gt=0)
    """The probability at which ``shaped`` is one half."""

    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """Clip range of the ratio in ``ppo``."""

    dual_clip: float | None = Field(default=None, gt=1)
    """In ``ppo``, with A < 0, a ratio above ``dual_clip`` counts as that much and is pushed no further
    (arXiv:1912.09729, which takes 3); null: loss and gradient grow with the ratio, which is capped at exp(20)
    so that fp32 does not overflow."""

    @property
    def needs(self) -> frozenset[Need]:
        """Only the ``ppo`` surrogate compares with the base."""
        return frozenset({"reference"} if self.surrogate == "ppo" else ())

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """The surrogate of each token."""
        if self.surrogate == "logp":
            return inputs.logprobs
        if self.surrogate == "ppo":
            return clipped_ratio(self._log_ratio(inputs), inputs.weights, self.epsilon, self.epsilon, self.dual_clip)
        probabilities = inputs.logprobs.exp()
        return probabilities if self.surrogate == "p" else probabilities / (probabilities + self.shaping)

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """What rows of negative advantage contribute; for ``ppo`` also the share of tokens ``clipped``."""
        metrics = self.negative_metrics(inputs)
        if self.surrogate == "ppo":
            clipped = is_clipped(self._log_ratio(inputs), inputs.weights, self.epsilon, self.epsilon, self.dual_clip)
            metrics["clipped"] = (masked_sum(clipped.to(inputs.logprobs.dtype), inputs.mask).sum(), "token")
        return metrics

    def _log_ratio(self, inputs: LossInputs) -> Tensor:
        return log_ratio(inputs, "reference", f"{self.title} with surrogate 'ppo'")
