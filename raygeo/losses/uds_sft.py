"""Supervised fine-tuning on the part of each step's rollouts that teaches most and repeats least."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from raygeo.losses.imitation import Imitation
from raygeo.losses.selection import Group
from raygeo.losses.uniforms import splitmix64

BUCKETS = 256
"""Entries of a sketch; an inner product of two is off by about 1/16 of their lengths."""


class UDSSFT(Imitation):
    """Negative log-likelihood of the ``keep`` of each step's rollouts that are chosen by utility and diversity.

    A choice of our own in the manner of UDS, not that paper's: before each step every rollout drawn for it is read once
    without gradients. Its vector is the mean over its tokens of ``(1 - p_t) e(y_t)``, the labels' part of the gradient
    in the output bias, sketched to 256 signed buckets. Utility is the vector's length, likeness the cosine to the
    nearest one chosen before, not below 0; rollouts are chosen one by one, each the largest in utility times (1 -
    likeness), the first of equals. UDS takes nuclear norms of logits for utility, and distances to projected logits of
    earlier steps for diversity. What is not chosen counts in no sum and no divisor; a pass over the data is as many
    steps as for SFT, each of ``batch_size`` rollouts drawn.
    """

    title: ClassVar[str] = "UDS-like SFT"
    paper: ClassVar[str] = "our choice, after Utility-Diversity Sampling, arXiv:2510.16882"
    formula: ClassVar[str] = "-1[chosen of the step] sum_t log p_t"
    order: ClassVar[int] = 195

    type: Literal["uds-sft"] = "uds-sft"
    """Names the loss."""

    keep: float = Field(default=0.5, gt=0, lt=1)
    """Share of each step's rollouts that is learned from, rounded up."""

    rows: Literal["all", "correct"] = "all"
    """``all``: the data of SFT; ``correct``: the data of RFT."""

    @property
    def kept_share(self) -> float:
        """What is learned from of each step."""
        return self.keep

    def row_weights(self, group: Group) -> list[float | None]:
        """One for the rollouts ``rows`` asks for, none for others."""
        return [1.0 if correct or self.rows == "all" else None for correct in group.correct]

    def sketches(self, targets: Tensor, logprobs: Tensor, mask: Tensor) -> Tensor:
        """Sketch the vector of each row: [B, 256] fp64, of ``targets`` [B, T] int64 and their log-probabilities."""
        bits = splitmix64(targets.flatten(), 1)[:, 0].view(targets.shape)
        bucket, sign = (bits >> 1) % BUCKETS, 1 - 2 * (bits & 1)
        missing = torch.where(mask, -torch.expm1(logprobs.double()), torch.zeros((), dtype=torch.float64))
        found = missing.new_zeros(len(targets), BUCKETS).scatter_add(1, bucket, missing * sign)
        return found / mask.sum(-1, keepdim=True).clamp(min=1)

    def choose(self, sketches: Tensor, count: int) -> list[int]:
        """Choose ``count`` of the rows with these ``sketches`` [N, 256]: their places, in order."""
        utility = sketches.norm(dim=1)
        directions = sketches / utility.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
        likeness = torch.zeros_like(utility)
        chosen: list[int] = []
        for _ in range(count):
            score = utility * (1 - likeness)
            score[chosen] = -torch.inf
            chosen.append(int(score.argmax()))
            likeness = torch.maximum(likeness, directions @ directions[chosen[-1]])
        return sorted(chosen)
