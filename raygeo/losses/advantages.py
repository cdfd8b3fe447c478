"""Group-relative advantages, computed once from a fixed rollout file."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, ClassVar, Literal

from raygeo.errors import DataError
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group

STD_EPSILON = 1e-4


class GroupAdvantage(Pointwise):
    """Each rollout weighs its advantage ``A = r - mean(r) + bias``, the mean being over its prompt's usable rollouts.

    The defaults are those of arXiv:2606.23740. Prompts with equal rewards and no bias, which give no gradient, are left
    out. A bias on every row adds ``bias`` times SFT, wrong rollouts included.
    """

    renamed: ClassVar[dict[str, str]] = {"scale_by_std": "scale_rewards"}
    variants: ClassVar[Sequence[Mapping[str, Any]]] = (
        *Pointwise.variants,
        {"bias_on": "all_correct"},
        {"scale_rewards": True},
    )

    bias: float = 0.1
    """Added to advantages, after scaling by the standard deviation if that is asked for."""

    bias_on: Literal["all", "all_correct"] = "all"
    """``all``: every rollout (arXiv:2606.23740); ``all_correct``: only prompts without a wrong one (KRAFTON)."""

    scale_rewards: bool = False
    """Divide centred rewards by their sample standard deviation + 1e-4 (arXiv:2402.03300); off as in Dr. GRPO."""

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """Advantages of one prompt's rollouts; None where all are equal and unbiased.

        Raises:
            DataError: only some rollouts of the prompt have a finite reward.
        """
        rewards = group_rewards(group)
        bias = self.bias if self.bias_on == "all" or all(group.correct) else 0.0
        if len(set(rewards)) == 1:
            return [bias or None] * len(rewards)
        mean = fmean(rewards)
        scale = stdev(rewards) + STD_EPSILON if self.scale_rewards else 1.0
        return [(reward - mean) / scale + bias for reward in rewards]


def group_rewards(group: Group) -> list[float]:
    """Return the rewards of one prompt's rollouts, or their verdicts as 1 and 0 where none has a reward.

    Raises:
        DataError: only some rollouts of the prompt have a finite reward.
    """
    rewards = [reward for reward in group.rewards if reward is not None]
    if not rewards:
        return [float(correct) for correct in group.correct]
    if len(rewards) < len(group.rows):
        missing = [row for row, reward in zip(group.rows, group.rewards, strict=True) if reward is None]
        raise DataError(
            f"rollout rows {missing[:3]} have no finite reward while others of the same prompt have one. "
            "Give every rollout of a prompt a reward, or none (then the verdicts count as 1 and 0)."
        )
    return rewards
