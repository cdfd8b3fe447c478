"""Importance-weighted supervised fine-tuning: log-likelihood weighted by how far the model has moved from its data."""

from collections.abc import Sequence
from math import inf, log
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from raygeo.losses.base import LossInputs, Need, Unit, masked_sum
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.ratios import log_ratio
from raygeo.losses.selection import Group

BOUNDS = {"sequence": (0.0, 16.0), "token": (0.2, 1.8)}
"""Least and largest weight in the authors' code."""


class IWSFT(Pointwise):
    """``-w log p_t``, ``w`` being a power of the likelihood ratio to the proposal q, clamped and detached.

    On correct rollouts this bounds the reward from below more tightly than RFT does, which is w = 1. Where p is still q
    the two are equal; as the model fits its rollouts w grows, so the objective may rise while ``nll`` falls. Per-token
    coefficient: w.
    """

    title: ClassVar[str] = "iw-SFT"
    paper: ClassVar[str] = "Qin and Springenberg 2025, arXiv:2507.12856"
    formula: ClassVar[str] = "-sg(clamp(exp(tau mean_t log p_t/q_t))) sum_t log p_t"
    order: ClassVar[int] = 150
    variants: ClassVar = (
        *Pointwise.variants,
        {"level": "token"},
        {"proposal": "behaviour"},
        {"proposal": "behaviour", "tau": 2.0, "bounds": (0.5, 3.0)},
    )

    type: Literal["iw-sft"] = "iw-sft"
    """Names the loss."""

    proposal: Literal["base", "behaviour"] = "base"
    """What q is: the base, or the model that wrote the rollouts (whose log-probabilities they must hold)."""

    level: Literal["sequence", "token"] = "sequence"
    """``sequence``: one weight a row, of the mean log-ratio over its tokens; ``token``: a weight for each token."""

    tau: float = Field(default=1.0, gt=0)
    """Power of the ratio: 1 as in the authors' trainer (their loss by itself defaults to 2)."""

    bounds: tuple[float, float] | None = None
    """Least and largest weight; None: those of the authors, 0 and 16 for sequences, 0.2 and 1.8 for tokens."""

    rows: Literal["all", "correct"] = "correct"
    """``correct``: the data of RFT, on which the bound holds; ``all``: the data of SFT."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "IWSFT":
        if self.bounds is not None and not 0 <= self.bounds[0] < self.bounds[1]:
            raise ValueError("bounds must be two weights, the least first and not below 0")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        """Log-probabilities of the proposal."""
        return frozenset({"reference" if self.proposal == "base" else "behaviour"})

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for the rollouts ``rows`` asks for, none for others."""
        return [1.0 if correct or self.rows == "all" else None for correct in group.correct]

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """Log-probabilities times their weights."""
        return self._importance(inputs) * inputs.logprobs

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """``weight``: the mean of the weights, over sequences or tokens as ``level`` says."""
        weights = self._importance(inputs)
        total = weights.sum() if self.level == "sequence" else masked_sum(weights, inputs.mask).sum()
        return {"weight": (total, self.level)}

    def _importance(self, inputs: LossInputs) -> Tensor:
        """Weights [B, 1] of sequences or [B, T] of tokens, detached; clamped as logarithms, so that none overflows."""
        ratios = log_ratio(inputs, "reference" if self.proposal == "base" else "behaviour", self.title).detach()
        if self.level == "sequence":
            ratios = masked_sum(ratios, inputs.mask)[:, None] / inputs.mask.sum(-1, keepdim=True).clamp(min=1)
        low, high = self.bounds or BOUNDS[self.level]
        return torch.clamp(self.tau * ratios, log(low) if low > 0 else -inf, log(high)).exp()
