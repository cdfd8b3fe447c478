"""Offline GRPO: group-relative advantages computed once from a fixed rollout file."""

from collections.abc import Sequence
from math import log1p
from statistics import fmean, stdev
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from raygeo.errors import DataError, TrainingError
from raygeo.losses.base import LossInputs, Need, Unit, masked_sum
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group

STD_EPSILON = 1e-4


class OfflineGRPO(Pointwise):
    """Each rollout weighs its advantage ``A = r - mean(r) + bias``, the mean being over its prompt's usable rollouts.

    The defaults are those of arXiv:2606.23740. Prompts with equal rewards and no bias, which give no gradient, are left
    out. A bias on every row adds ``bias`` times SFT, wrong rollouts included.
    """

    title: ClassVar[str] = "Offline GRPO"
    paper: ClassVar[str] = "Shao et al. 2024, arXiv:2402.03300; offline form: Nikolich et al. 2026, arXiv:2606.23740"
    formula: ClassVar[str] = "-(r - mean r + bias) sum_t log p_t"

    type: Literal["grpo"] = "grpo"
    """Names the loss."""

    bias: float = 0.1
    """Added to advantages, after scaling by the standard deviation if that is asked for."""

    bias_on: Literal["all", "all_correct"] = "all"
    """``all``: every rollout (arXiv:2606.23740); ``all_correct``: only prompts without a wrong one (KRAFTON)."""

    scale_by_std: bool = False
    """Divide centred rewards by their sample standard deviation + 1e-4 (arXiv:2402.03300); off as in Dr. GRPO."""

    surrogate: Literal["logp", "p", "ppo"] = "logp"
    """What an advantage multiplies. ``logp``: log p_t (coefficient A), which has no lower bound where A < 0. ``p``: p_t
    (coefficient A p_t), bounded, as in KRAFTON's Offline-GRPO. ``ppo``: the ratio of p_t to the base's, which stands in
    for the unknown behaviour policy, clipped as in PPO (coefficient A ratio, 0 where clipped)."""

    clip: float = Field(default=0.2, gt=0, lt=1)
    """Clip range of the ratio in ``ppo``."""

    @property
    def needs(self) -> frozenset[Need]:
        """Only the ``ppo`` surrogate compares with the base."""
        return frozenset({"reference"} if self.surrogate == "ppo" else ())

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """Advantages from rewards, or from verdicts (1 and 0) where a prompt has no reward at all.

        Raises:
            DataError: only some rollouts of the prompt have a finite reward.
        """
        rewards = [reward for reward in group.rewards if reward is not None]
        if not rewards:
            rewards = [float(correct) for correct in group.correct]
        elif len(rewards) < len(group.rows):
            missing = [row for row, reward in zip(group.rows, group.rewards, strict=True) if reward is None]
            raise DataError(
                f"rollout rows {missing[:3]} have no finite reward while others of the same prompt have one. "
                "Give every rollout of a prompt a reward, or none (then the verdicts count as 1 and 0)."
            )
        bias = self.bias if self.bias_on == "all" or all(group.correct) else 0.0
        if len(set(rewards)) == 1:
            return [bias or None] * len(rewards)
        mean = fmean(rewards)
        scale = stdev(rewards) + STD_EPSILON if self.scale_by_std else 1.0
        return [(reward - mean) / scale + bias for reward in rewards]

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """The surrogate of each token."""
        if self.surrogate == "logp":
            return inputs.logprobs
        if self.surrogate == "p":
            return inputs.logprobs.exp()
        log_ratio = self._log_ratio(inputs)
        # min(ratio A, clip(ratio) A) taken on logarithms: no overflow where the clip holds, hence no 0 * inf backward.
        return torch.where(
            inputs.weights[:, None] >= 0,
            log_ratio.clamp(max=log1p(self.clip)),
            log_ratio.clamp(min=log1p(-self.clip)),
        ).exp()

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """What rows of negative advantage contribute; for ``ppo`` also the share of tokens ``clipped``."""
        metrics = self.negative_metrics(inputs)
        if self.surrogate == "ppo":
            log_ratio, up = self._log_ratio(inputs), inputs.weights[:, None] >= 0
            clipped = torch.where(up, log_ratio > log1p(self.clip), log_ratio < log1p(-self.clip))
            metrics["clipped"] = (masked_sum(clipped.to(log_ratio.dtype), inputs.mask).sum(), "token")
        return metrics

    def _log_ratio(self, inputs: LossInputs) -> Tensor:
        if inputs.reference_logprobs is None:
            raise TrainingError(f"{self.title} with surrogate 'ppo' was given no log-probabilities of the base.")
        return inputs.logprobs - inputs.reference_logprobs
