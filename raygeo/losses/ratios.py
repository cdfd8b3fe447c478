"""Ratios of the policy to the base or to the behaviour policy, kept as logarithms, and PPO's way of clipping them."""

from math import log, log1p
from typing import Literal

import torch
from torch import Tensor

from raygeo.errors import TrainingError
from raygeo.losses.base import LossInputs


def log_ratio(inputs: LossInputs, to: Literal["reference", "behaviour"], title: str) -> Tensor:
    """Return log p_t less the log-probability of the base or of the behaviour policy: [B, T], with gradient.

    Raises:
        TrainingError: those log-probabilities are missing; ``title`` names the loss.
    """
    other = inputs.reference_logprobs if to == "reference" else inputs.behaviour_logprobs
    if other is None:
        whose = "the base" if to == "reference" else "the model that wrote the rollouts"
        raise TrainingError(f"{title} was given no log-probabilities of {whose}.")
    return inputs.logprobs - other


MAX_LOG_RATIO = 20.0
"""Logarithm of the largest ratio, 5e8, that a negative advantage is multiplied by without a dual clip. Sums over any
number of tokens, and squares of them in gradient norms, stay far from fp32's overflow."""


def clipped_ratio(
    log_ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None = None
) -> Tensor:
    """Return what an advantage multiplies in PPO: [B, T] from ``log_ratio`` [B, T] and ``advantages`` [B].

    Times the advantage A it is min(ratio A, clip(ratio, 1 - low, 1 + high) A), and with ``dual_clip`` c, where A < 0,
    the larger of that and c A (Ye et al. 2020, arXiv:1912.09729). For A < 0 PPO's surrogate grows with the
    ratio without bound, in fp32 to infinity; without c, ratios above exp(20) count as exp(20), without gradient.
    Clipping the logarithm leaves no overflow where a clip holds, hence no 0 * inf in the backward pass.
    """
    up = advantages[:, None] >= 0
    most = _most(dual_clip)
    return torch.where(up, log_ratio.clamp(max=log1p(high)), log_ratio.clamp(min=log1p(-low), max=most)).exp()


def is_clipped(
    log_ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None = None
) -> Tensor:
    """Return where ``clipped_ratio`` is constant: [B, T] bool."""
    down = (log_ratio < log1p(-low)) | (log_ratio > _most(dual_clip))
    return torch.where(advantages[:, None] >= 0, log_ratio > log1p(high), down)


def _most(dual_clip: float | None) -> float:
    return MAX_LOG_RATIO if dual_clip is None else min(log(dual_clip), MAX_LOG_RATIO)
