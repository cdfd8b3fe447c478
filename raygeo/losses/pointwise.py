"""What all losses on single rollouts share: a weight for each row times a function of each token's log-probability."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pyarrow as pa
import torch
from torch import Tensor

from raygeo.losses.base import Example, Loss, LossInputs, LossOutput, Selection, Unit, masked_sum
from raygeo.losses.selection import Group, group_rollouts


class Pointwise(Loss):
    """Maximises ``sum_i w_i sum_t phi_it``: ``row_weights`` gives ``w_i``, ``token_objective`` gives ``phi_it``.

    The loss value of a row is ``-w_i sum_t phi_it`` under token normalisation and that over the row's length under
    sequence normalisation; weights are never renormalised by their sum.
    """

    variants: ClassVar[Sequence[Mapping[str, Any]]] = ({"normalization": "sequence"},)

    normalization: Literal["token", "sequence"] = "token"
    """``token``: sum over tokens / number of tokens: tokens count alike, long completions more than short ones.
    ``sequence``: mean over each row's tokens, then over rows: rows count alike, a token of a long completion less."""

    prompts: Literal["all", "mixed"] = "all"
    """``mixed`` keeps only prompts with both a correct and a wrong usable rollout, the prompts DPO can learn from."""

    @abstractmethod
    def row_weights(self, group: Group) -> Sequence[float | None]:
        """Weight of each rollout of one prompt; None leaves it out."""

    @abstractmethod
    def token_objective(self, inputs: LossInputs) -> Tensor:
        """Compute phi [B, T], to be maximised. Log-probabilities are 0 where ``inputs.mask`` is false."""

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """Metrics besides ``nll``, computed without gradient."""
        return {}

    def is_negative(self, weights: Tensor) -> Tensor:
        """Which rows count as negatives in metrics, from their ``weights`` [B]: [B] bool."""
        return weights < 0

    @property
    def unit(self) -> Unit:
        """Tokens or sequences, as ``normalization`` says."""
        return self.normalization

    def select(self, rollouts: pa.Table) -> Selection:
        """Weigh the usable rollouts of every prompt (truncated and ungraded ones are dropped and counted).

        Raises:
            DataError: no rollout is left.
        """
        usable = group_rollouts(rollouts)
        examples = [
            Example((row,), (weight,))
            for group in usable.groups
            if self.prompts == "all" or group.mixed
            for row, weight in zip(group.rows, self.row_weights(group), strict=True)
            if weight is not None
        ]
        return usable.select(self.title, examples)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Compute the loss of one micro-batch; ``metrics`` always hold the plain ``nll`` in token units."""
        inputs = _without_padding(inputs)
        total = self.row_losses(inputs).sum()
        with torch.no_grad():
            nll: tuple[Tensor, Unit] = (-masked_sum(inputs.logprobs, inputs.mask).sum(), "token")
            return LossOutput(total, self.unit, {"nll": nll, **self.metrics(inputs)})

    def row_losses(self, inputs: LossInputs) -> Tensor:
        """Compute what each row adds to the total: [B]."""
        losses = -inputs.weights * masked_sum(self.token_objective(inputs), inputs.mask)
        return losses / inputs.mask.sum(-1).clamp(min=1) if self.normalization == "sequence" else losses

    def coefficients(self, inputs: LossInputs) -> Tensor:
        """Compute a_it = -d total / d log p_it, what multiplies each token's score vector: [B, T], detached.

        0 in losses that do not look at the label.
        """
        with torch.enable_grad():
            logprobs = inputs.logprobs.detach().requires_grad_()
            total = self.row_losses(_without_padding(replace(inputs, logprobs=logprobs))).sum()
            if not total.requires_grad:
                return torch.zeros_like(logprobs).detach()
            return -torch.autograd.grad(total, logprobs, materialize_grads=True)[0]

    def negative_metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """What the negative rows add to the objective and to the sum of coefficients' absolute values.

        ``negative_mass / mass`` stands in for the negatives' share of the gradient norm: it would equal it if the
        score vectors of all tokens were equally long and parallel.
        """
        negative = self.is_negative(inputs.weights)
        mass = self.coefficients(inputs).abs().sum(-1)
        none = torch.zeros_like(mass)
        return {
            "negative_objective": (torch.where(negative, self.row_losses(inputs), none).sum(), self.unit),
            "negative_mass": (torch.where(negative, mass, none).sum(), self.unit),
            "mass": (mass.sum(), self.unit),
        }


def _without_padding(inputs: LossInputs) -> LossInputs:
    def masked(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.masked_fill(~inputs.mask, 0.0)

    return replace(
        inputs,
        logprobs=inputs.logprobs.masked_fill(~inputs.mask, 0.0),
        reference_logprobs=masked(inputs.reference_logprobs),
        behaviour_logprobs=masked(inputs.behaviour_logprobs),
    )
