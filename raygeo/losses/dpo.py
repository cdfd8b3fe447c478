"""Direct preference optimisation on pairs of a correct and a wrong rollout of one prompt."""

from collections.abc import Iterator
from itertools import islice
from math import lcm
from typing import ClassVar, Literal

import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygeo.errors import TrainingError
from raygeo.losses.base import Example, Loss, LossInputs, LossOutput, Need, Selection, Unit, masked_sum
from raygeo.losses.selection import Group, group_rollouts


class DPO(Loss):
    """``-log sigmoid(beta d)``, ``d`` being the chosen rollout's log-ratio to the base less the rejected one's.

    Log-ratios are sums over completion tokens. Per-token coefficient: ``beta sigmoid(-beta d)`` on the chosen rollout,
    minus that on the rejected one. The loss is log 2 at the base.
    """

    title: ClassVar[str] = "DPO"
    paper: ClassVar[str] = "Rafailov et al. 2023, arXiv:2305.18290, equation 7"
    formula: ClassVar[str] = "-log sigmoid(beta [log p/p_base (chosen) - log p/p_base (rejected)])"

    type: Literal["dpo"] = "dpo"
    """Names the loss."""

    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature of the implicit reward ``beta log p / p_base``."""

    pairs_per_prompt: int | None = Field(default=2, ge=1)
    """At most this many pairs of a prompt; None makes all of them."""

    @property
    def needs(self) -> frozenset[Need]:
        """The base's log-probabilities."""
        return frozenset({"reference"})

    @property
    def unit(self) -> Unit:
        """Pairs."""
        return "pair"

    def select(self, rollouts: pa.Table) -> Selection:
        """Pair correct and wrong usable rollouts of each mixed prompt, round-robin in table order.

        Pair k takes the next correct and the next wrong rollout, each list starting over at its end; when a pair would
        come back, the wrong ones move on by one. No pair comes twice and rows are used as evenly as possible.

        Raises:
            DataError: no prompt has both a correct and a wrong usable rollout.
        """
        usable = group_rollouts(rollouts)
        examples = [
            Example(pair, (1.0, 1.0))
            for group in usable.groups
            for pair in islice(_pairs(group), self.pairs_per_prompt)
        ]
        selection = usable.select(self.title, examples)
        return Selection(selection.examples, selection.counts | {"pairs": len(examples)})

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Compute the loss of one micro-batch of pairs.

        Metrics: ``nll`` over the tokens of both rollouts of every pair; per pair ``margin`` (beta d), ``accuracy``
        (d > 0), ``chosen_logratio`` and ``rejected_logratio`` (sums over tokens of log p / p_base).

        Raises:
            TrainingError: pairs or log-probabilities of the base are missing.
        """
        if inputs.reference_logprobs is None or inputs.pairs is None:
            raise TrainingError("DPO was given no pairs or no log-probabilities of the base.")
        chosen, rejected = inputs.pairs.unbind(-1)
        log_ratios = masked_sum(inputs.logprobs - inputs.reference_logprobs, inputs.mask)
        margin = self.beta * (log_ratios[chosen] - log_ratios[rejected])
        total = -F.logsigmoid(margin).sum()
        with torch.no_grad():
            nll = -masked_sum(inputs.logprobs, inputs.mask)[inputs.pairs].sum()
            metrics: dict[str, tuple[Tensor, Unit]] = {
                "nll": (nll, "token"),
                "margin": (margin.sum(), "pair"),
                "accuracy": ((margin > 0).to(margin.dtype).sum(), "pair"),
                "chosen_logratio": (log_ratios[chosen].sum(), "pair"),
                "rejected_logratio": (log_ratios[rejected].sum(), "pair"),
            }
        return LossOutput(total, self.unit, metrics)


def _pairs(group: Group) -> Iterator[tuple[int, int]]:
    correct = [row for row, ok in zip(group.rows, group.correct, strict=True) if ok]
    wrong = [row for row, ok in zip(group.rows, group.correct, strict=True) if not ok]
    for k in range(len(correct) * len(wrong)):
        yield correct[k % len(correct)], wrong[(k + k // lcm(len(correct), len(wrong))) % len(wrong)]
