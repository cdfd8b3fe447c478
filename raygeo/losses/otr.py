"""One-token rollout: a policy gradient on next tokens drawn from the student, rewarded for hitting the label."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from raygeo.errors import TrainingError
from raygeo.losses.base import LossInputs, Unit, masked_sum
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group
from raygeo.losses.uniforms import uniforms
from raygeo.models.likelihood import TokenLogits


class OTR(Pointwise):
    """``-(1/K) sum_j R_j log p(a_j)`` over K tokens a_j drawn at every position; R is 1 on the label.

    Draws are made from the student at ``temperature``, log p(a_j) is taken at temperature 1, and the draws carry no
    gradient. Per-token coefficient: the share of draws that hit the label. Since E[grad log p(a)] = 0 under p, the
    expected gradient at temperature 1 is ``1 - wrong_reward`` times that of DFT; other temperatures weigh the label and
    the wrong tokens by the tempered law, and finite K adds noise. Draws are a function of each token's key alone. The
    paper trains on demonstrations; here, by default, wrong rollouts are imitated too.
    """

    title: ClassVar[str] = "OTR"
    paper: ClassVar[str] = "Ming et al. 2025, arXiv:2509.26313"
    formula: ClassVar[str] = "-sum_t 1/K sum_j (1[a_j = y_t] + wrong_reward 1[a_j != y_t]) log p(a_j)"
    order: ClassVar[int] = 140
    variants: ClassVar = (
        *Pointwise.variants,
        {"samples": 2},
        {"samples": 2, "temperature": 1.0, "normalization": "sequence"},
    )

    type: Literal["otr"] = "otr"
    """Names the loss."""

    samples: int = Field(default=256, ge=1)
    """Tokens drawn at each position, K; 256 in the paper."""

    temperature: float = Field(default=1.3, gt=0)
    """Temperature of the draws. The paper draws above 1; this value is quoted from memory."""

    wrong_reward: float = Field(default=-0.1, lt=1)
    """Reward of a token that is not the label. The paper's is slightly negative; this value is quoted from memory."""

    rows: Literal["all", "correct"] = "all"
    """``all``: the data of SFT; ``correct``: the data of RFT."""

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for the rollouts ``rows`` asks for, none for others."""
        return [1.0 if correct or self.rows == "all" else None for correct in group.correct]

    def token_terms(self, tokens: TokenLogits) -> dict[str, Tensor]:
        """``hits`` [N], the share of draws that are the label, and ``misses`` [N], 1/K of the others' summed log p.

        Raises:
            TrainingError: the tokens have no keys.
        """
        if tokens.keys is None:
            raise TrainingError("OTR was given no keys of tokens, which its draws are a function of.")
        draws = draw_tokens(tokens.logits, tokens.keys, self.samples, self.temperature)
        wrong = draws != tokens.targets[:, None]
        logprobs = torch.log_softmax(tokens.logits, -1).gather(-1, draws)
        return {
            "hits": 1 - wrong.to(logprobs.dtype).mean(-1),
            "misses": torch.where(wrong, logprobs, torch.zeros_like(logprobs)).mean(-1),
        }

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """Mean over draws of reward times log-probability."""
        hits, misses = self._draws(inputs)
        return hits * inputs.logprobs + self.wrong_reward * misses

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """``hits``: the share of draws that are the label."""
        return {"hits": (masked_sum(self._draws(inputs)[0], inputs.mask).sum(), "token")}

    def _draws(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        if not inputs.terms.keys() >= {"hits", "misses"}:
            raise TrainingError("OTR was given no draws; compute its token_terms with the logits.")
        return inputs.terms["hits"], inputs.terms["misses"]


@torch.no_grad()
def draw_tokens(logits: Tensor, keys: Tensor, count: int, temperature: float = 1.0) -> Tensor:
    """Draw ``count`` tokens for each row of ``logits`` [N, V]: [N, count] int64.

    The cumulative law is inverted in fp64 at uniforms that ``keys`` [N] int64 determine; equal logits and keys give
    equal draws. A token of probability 0 is never drawn.
    """
    cumulative = torch.softmax(logits / temperature, -1).cumsum(-1, dtype=torch.float64)
    thresholds = uniforms(keys, count) * cumulative[:, -1:]
    # Logits that are not finite would end one past the vocabulary.
    return torch.searchsorted(cumulative, thresholds, right=True).clamp(max=logits.shape[-1] - 1)
