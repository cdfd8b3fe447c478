"""Off-policy GRPO: group-relative advantages on rollouts whose behaviour log-probabilities are known."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from raygeo.losses.advantages import GroupAdvantage
from raygeo.losses.base import LossInputs, Need, Unit, masked_sum
from raygeo.losses.ratios import clipped_ratio, is_clipped, log_ratio


class OffPolicyGRPO(GroupAdvantage):
    """Advantages A times the importance ratio of the policy to the behaviour policy mu that wrote the rollouts.

    mu is the generator's distribution at its sampling temperature. Mean and standard deviation of the rewards are mu's
    too, since the rollouts are its samples. Where p is mu, every ``ratio`` has the gradient of A log p.

    The defaults are not those of arXiv:2505.22257: the advantages' are those of ``grpo``, so that only the ratio
    differs, with a bias of 0.1 and without division by the standard deviation; the clip range is wider above than
    below. Its clipped objective has bias 0, scale_rewards true and epsilon_high equal to epsilon; its penalty of
    KL(p || base) is left out here.
    """

    title: ClassVar[str] = "Off-policy GRPO"
    paper: ClassVar[str] = (
        "Mroueh et al. 2025, arXiv:2505.22257; truncated: CISPO, arXiv:2506.13585; sequence: GSPO, arXiv:2507.18071"
    )
    formula: ClassVar[str] = "-sum_t min(A p_t/mu_t, A clip(p_t/mu_t, 1 - epsilon, 1 + epsilon_high))"
    order: ClassVar[int] = 220
    renamed: ClassVar[dict[str, str]] = GroupAdvantage.renamed | {"clip_low": "epsilon", "clip_high": "epsilon_high"}
    foreign: ClassVar[dict[str, str]] = {"delta": "dual_clip", "epsilon_low": "epsilon"}
    variants: ClassVar = (
        *GroupAdvantage.variants,
        {"ratio": "truncated"},
        {"ratio": "truncated", "cap": 1.5},
        {"ratio": "sequence"},
    )

    type: Literal["off-policy-grpo"] = "off-policy-grpo"
    """Names the loss."""

    ratio: Literal["clipped", "truncated", "sequence"] = "clipped"
    """How the ratio rho_t = p_t / mu_t enters. ``clipped``: PPO's surrogate (coefficient A rho_t, 0 where clipped).
    ``truncated``: A log p_t with the detached weight min(rho_t, cap), so that no token loses its gradient (coefficient
    A min(rho_t, cap)). ``sequence``: PPO's surrogate of the row's geometric mean ratio, at each of its tokens
    (coefficient A exp(mean log rho), 0 where clipped); its clip range is usually far narrower."""

    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """With A < 0 a ratio below 1 - ``epsilon`` is pushed no further."""

    epsilon_high: float = Field(default=0.28, gt=0)
    """With A > 0 a ratio above 1 + ``epsilon_high`` is pushed no further; more room above is DAPO's
    (arXiv:2503.14476)."""

    dual_clip: float | None = Field(default=None, gt=1)
    """With A < 0 a ratio above ``dual_clip`` counts as that much and is pushed no further (arXiv:1912.09729, which
    takes 3); null: PPO's surrogate, whose loss and gradient grow with the ratio, which is capped at exp(20) so that
    fp32 does not overflow. For ``clipped`` and ``sequence``."""

    cap: float = Field(default=5.0, gt=0)
    """Largest weight of a token in ``truncated``; 5 is ScaleRL's (arXiv:2510.13786)."""

    @property
    def needs(self) -> frozenset[Need]:
        """The rollouts' own log-probabilities."""
        return frozenset({"behaviour"})

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """The surrogate of each token."""
        ratios = self._log_ratios(inputs)
        if self.ratio == "truncated":
            return ratios.detach().exp().clamp(max=self.cap) * inputs.logprobs
        return clipped_ratio(ratios, inputs.weights, self.epsilon, self.epsilon_high, self.dual_clip)

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """What rows of negative advantage contribute; over tokens, the mean ``log_ratio`` and the share ``clipped``."""
        ratios = self._log_ratios(inputs)
        if self.ratio == "truncated":
            clipped = ratios.exp() > self.cap
        else:
            clipped = is_clipped(ratios, inputs.weights, self.epsilon, self.epsilon_high, self.dual_clip)
        return {
            **self.negative_metrics(inputs),
            "log_ratio": (masked_sum(ratios, inputs.mask).sum(), "token"),
            "clipped": (masked_sum(clipped.to(ratios.dtype), inputs.mask).sum(), "token"),
        }

    def _log_ratios(self, inputs: LossInputs) -> Tensor:
        """Return log rho_t, or its mean over the row at each token: [B, T]."""
        ratios = log_ratio(inputs, "behaviour", self.title)
        if self.ratio != "sequence":
            return ratios
        mean = masked_sum(ratios, inputs.mask) / inputs.mask.sum(-1).clamp(min=1)
        return mean[:, None].expand_as(ratios)
