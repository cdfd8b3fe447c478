"""Intuitive fine-tuning: inputs mixed with the model's own guesses, losses weighted by those of what follows."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygeo.losses.base import LossInputs
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group


class IFT(Pointwise):
    """``w_t l_t``, ``l_t = -log p_t`` being computed on mixed inputs and ``w`` the discounted sum of what follows.

    ``w_t = sum_(s >= t) gamma^(s - t) l_s``, divided by its mean over the row. As in the authors' code the gradient
    also passes through ``w``, and gamma = 0 sets w = 1 (the limit gamma -> 0 is l_t over its mean instead). With
    lam = 0 as well this is SFT. ``nll``, too, is that on the mixed inputs.

    Per-token coefficient, with T tokens, G_ts = gamma^(s - t) for s >= t, N = l'Gl and D = 1'Gl:
    ``T [(G + G') l / D - (N / D^2) G'1]``, which is negative where lowering a loss would raise the others' weights.
    """

    title: ClassVar[str] = "IFT"
    paper: ClassVar[str] = "Hua et al. 2024, arXiv:2405.11870"
    formula: ClassVar[str] = "sum_t w_t l_t, w_t ~ sum_(s >= t) gamma^(s - t) l_s with mean 1, on mixed inputs"
    order: ClassVar[int] = 160
    variants: ClassVar = (*Pointwise.variants, {"gamma": 0.0})

    type: Literal["ift"] = "ift"
    """Names the loss."""

    lam: float = Field(default=0.2, ge=0, le=1)
    """Share of the model's own greedy guess in the input embedding of each completion token."""

    gamma: float = Field(default=0.95, ge=0, le=1)
    """Discount of later tokens' losses in the weight of an earlier one; 0 weighs all alike."""

    @property
    def embedding_mix(self) -> float:
        """``lam``."""
        return self.lam

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for every rollout."""
        return [1.0] * len(group.rows)

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """Log-probabilities times their weights, which have mean 1 over each row and carry gradient."""
        if self.gamma == 0:
            return inputs.logprobs
        tails = torch.where(inputs.mask, _discounted_tails(-inputs.logprobs, self.gamma), 0.0)
        mean = tails.sum(-1, keepdim=True) / inputs.mask.sum(-1, keepdim=True).clamp(min=1)
        return inputs.logprobs * tails / mean.clamp(min=torch.finfo(mean.dtype).tiny)


def _discounted_tails(values: Tensor, gamma: float) -> Tensor:
    """Return sum_(s >= t) gamma^(s - t) values_s along the last axis, summing twice as many terms at each step."""
    reach = 1
    while reach < values.shape[-1]:
        values = values + gamma**reach * F.pad(values[..., reach:], (0, reach))
        reach *= 2
    return values
