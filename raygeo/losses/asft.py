"""Anchored supervised fine-tuning: dynamic fine-tuning held near the base by a divergence over the vocabulary."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygeo.errors import TrainingError
from raygeo.losses.base import LossInputs, Need, Unit, masked_sum
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group
from raygeo.models.likelihood import TokenLogits


class ASFT(Pointwise):
    """``-sg(p_t) log p_t + kl_weight KL_t``: DFT and, at every token, the divergence from the base's next-token law.

    The divergence is exact, over the whole vocabulary. Per-token coefficient: p_t, as in DFT; the divergence adds
    ``-kl_weight (p - p_base)`` to the descent direction in the logits (``forward``), nothing at the base. The paper
    trains on demonstrations; here, by default, wrong rollouts are imitated too.
    """

    title: ClassVar[str] = "ASFT"
    paper: ClassVar[str] = "Zhu et al. 2025, arXiv:2509.23753"
    formula: ClassVar[str] = "-sum_t sg(p_t) log p_t + kl_weight sum_t KL(p_base || p)_t"
    order: ClassVar[int] = 130
    variants: ClassVar = (*Pointwise.variants, {"direction": "reverse"})

    type: Literal["asft"] = "asft"
    """Names the loss."""

    kl_weight: float = Field(default=0.05, gt=0)
    """Weight of the divergence; 0.05 in the authors' README, 0.1 by default in their code."""

    direction: Literal["forward", "reverse"] = "forward"
    """``forward``: KL(base || student), the method; ``reverse``: KL(student || base), the authors' ablation."""

    rows: Literal["all", "correct"] = "all"
    """``all``: the data of SFT; ``correct``: the data of RFT."""

    @property
    def needs(self) -> frozenset[Need]:
        """The base's logits."""
        return frozenset({"reference_logits"})

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for the rollouts ``rows`` asks for, none for others."""
        return [1.0 if correct or self.rows == "all" else None for correct in group.correct]

    def token_terms(self, tokens: TokenLogits) -> dict[str, Tensor]:
        """``kl`` [N], in nats, not weighted.

        Raises:
            TrainingError: the base's logits are missing.
        """
        if tokens.reference_logits is None:
            raise TrainingError("ASFT was given no logits of the base.")
        student = F.log_softmax(tokens.logits, -1)
        base = F.log_softmax(tokens.reference_logits.detach(), -1)
        of, to = (base, student) if self.direction == "forward" else (student, base)
        return {"kl": F.kl_div(to, of, reduction="none", log_target=True).sum(-1)}

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """Log-probabilities weighted by detached probabilities, less the weighted divergence."""
        return inputs.logprobs.detach().exp() * inputs.logprobs - self.kl_weight * self._kl(inputs)

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """Means over tokens of the divergence, ``kl``, and of p_t, ``probability``."""
        return {
            "kl": (masked_sum(self._kl(inputs), inputs.mask).sum(), "token"),
            "probability": (masked_sum(inputs.logprobs.exp(), inputs.mask).sum(), "token"),
        }

    def _kl(self, inputs: LossInputs) -> Tensor:
        if "kl" not in inputs.terms:
            raise TrainingError("ASFT was given no divergence from the base; compute its token_terms with the logits.")
        return inputs.terms["kl"]
