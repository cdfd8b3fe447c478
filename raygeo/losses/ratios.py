"""Ratios of the policy to the base or to the behaviour policy, kept as logarithms, and PPO's way of clipping them."""

from math import log1p
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


def clipped_ratio(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return what an advantage multiplies in PPO: [B, T] from ``log_ratio`` [B, T] and ``advantages`` [B].

    Times the advantage A it is min(ratio A, clip(ratio, 1 - low, 1 + high) A). Clipping the logarithm leaves no
    overflow where the clip holds, hence no 0 * inf in the backward pass.
    """
    up = advantages[:, None] >= 0
    return torch.where(up, log_ratio.clamp(max=log1p(high)), log_ratio.clamp(min=log1p(-low))).exp()


def is_clipped(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return where ``clipped_ratio`` is constant: [B, T] bool."""
    return torch.where(advantages[:, None] >= 0, log_ratio > log1p(high), log_ratio < log1p(-low))
