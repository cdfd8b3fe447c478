"""What all losses on pairs share: a correct and a wrong rollout of one prompt, and how far the first is preferred."""

from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from math import lcm

import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from raygeo.errors import TrainingError
from raygeo.losses.base import Example, Loss, LossInputs, LossOutput, Need, Selection, Unit, masked_sum
from raygeo.losses.selection import Group, group_rollouts


class Pairwise(Loss):
    """Sums ``pair_losses`` over pairs of a correct (chosen) and a wrong (rejected) rollout of one prompt."""

    pairs_per_prompt: int | None = Field(default=2, ge=1)
    """At most this many pairs are made of a prompt; None makes all of them. Of a prompt whose rollouts were given in
    pairs (chosen and rejected), those are taken, all of them, and no others made."""

    def scores(self, inputs: LossInputs) -> Tensor:
        """Compute what rollouts are compared by, here the sums of log p / p_base over completion tokens: [B]."""
        return self.log_ratios(inputs)

    def margins(self, inputs: LossInputs) -> Tensor:
        """Compute by how much each pair's chosen rollout is preferred, in the loss's own measure: [P]."""
        chosen, rejected = self.sides(inputs, self.scores(inputs))
        return chosen - rejected

    @abstractmethod
    def pair_losses(self, inputs: LossInputs) -> Tensor:
        """Compute what each pair adds to the total: [P]."""

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """Metrics besides those all losses on pairs have, computed without gradient."""
        return {}

    @property
    def needs(self) -> frozenset[Need]:
        """The base's log-probabilities."""
        return frozenset({"reference"})

    @property
    def unit(self) -> Unit:
        """Pairs."""
        return "pair"

    def select(self, rollouts: pa.Table) -> Selection:
        """Take the pairs that a prompt's rollouts were given in, or pair its usable ones, round-robin in table order.

        Pair k takes the next correct and the next wrong rollout, each list starting over at its end; when a pair would
        come back, the wrong ones move on by one. No pair comes twice and rows are used as evenly as possible.

        Raises:
            DataError: no prompt has both a correct and a wrong usable rollout.
        """
        usable = group_rollouts(rollouts)
        examples = [
            Example(pair, (1.0, 1.0))
            for group in usable.groups
            for pair in (islice(_pairs(group), self.pairs_per_prompt) if group.pairs is None else group.pairs)
        ]
        selection = usable.select(self.title, examples)
        return Selection(selection.examples, selection.counts | {"pairs": len(examples)})

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Compute the loss of one micro-batch of pairs, each times its weight, that of its rows.

        Metrics: ``nll`` over the tokens of both rollouts of every pair; per pair ``margin``, ``rewards/accuracies``
        (whether the margin is positive; TRL's name, because it says nothing of the accuracy of answers),
        ``chosen_logratio`` and ``rejected_logratio``, sums over tokens of log p / p_base. A loss without a reference
        has ``chosen_logprob`` and ``rejected_logprob`` instead, sums over tokens of log p.

        Raises:
            TrainingError: pairs are missing, or log-probabilities of the base that the loss needs.
        """
        total = (self.pair_losses(inputs) * self.sides(inputs, inputs.weights)[0]).sum()
        with torch.no_grad():
            margins = self.margins(inputs)
            logprobs = masked_sum(inputs.logprobs, inputs.mask)
            kind, rows = ("logratio", self.log_ratios(inputs)) if "reference" in self.needs else ("logprob", logprobs)
            nll = -torch.cat(self.sides(inputs, logprobs)).sum()
            metrics: dict[str, tuple[Tensor, Unit]] = {
                "nll": (nll, "token"),
                "margin": (margins.sum(), "pair"),
                "rewards/accuracies": ((margins > 0).to(margins.dtype).sum(), "pair"),
            }
            for side, values in zip(("chosen", "rejected"), self.sides(inputs, rows), strict=True):
                metrics[f"{side}_{kind}"] = (values.sum(), "pair")
            return LossOutput(total, self.unit, metrics | self.metrics(inputs))

    def log_ratios(self, inputs: LossInputs) -> Tensor:
        """Sum log p / p_base over each row's completion tokens: [B].

        Raises:
            TrainingError: there are no log-probabilities of the base.
        """
        if inputs.reference_logprobs is None:
            raise TrainingError(f"{self.title} was given no log-probabilities of the base.")
        return masked_sum(inputs.logprobs - inputs.reference_logprobs, inputs.mask)

    def sides(self, inputs: LossInputs, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give the values of ``rows`` [B] that belong to each pair's chosen and rejected rollout: [P] each.

        Raises:
            TrainingError: there are no pairs.
        """
        if inputs.pairs is None:
            raise TrainingError(f"{self.title} was given no pairs.")
        chosen, rejected = rows[inputs.pairs].unbind(-1)
        return chosen, rejected


def per_token(rows: Tensor, inputs: LossInputs) -> Tensor:
    """Divide sums over completion tokens by their number: [B]."""
    return rows / inputs.mask.sum(-1).clamp(min=1)


def _pairs(group: Group) -> Iterator[tuple[int, int]]:
    correct = [row for row, ok in zip(group.rows, group.correct, strict=True) if ok]
    wrong = [row for row, ok in zip(group.rows, group.correct, strict=True) if not ok]
    for k in range(len(correct) * len(wrong)):
        yield correct[k % len(correct)], wrong[(k + k // lcm(len(correct), len(wrong))) % len(wrong)]
