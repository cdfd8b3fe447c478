"""Dynamic fine-tuning: each token's log-likelihood weighted by its own detached probability."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from raygeo.losses.base import LossInputs, Unit, masked_sum
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group


class DFT(Pointwise):
    """``-sg(p_t) log p_t``, whose gradient is that of ``-p_t``. Per-token coefficient: p_t.

    Gradient and loss value both vanish on tokens the model finds unlikely, so the ``probability`` metric, the mean of
    p_t it maximises, says more than the objective. The paper trains on demonstrations; here, by default, wrong
    rollouts are imitated too.
    """

    title: ClassVar[str] = "DFT"
    paper: ClassVar[str] = "Wu et al. 2025, arXiv:2508.05629, equation 9"
    formula: ClassVar[str] = "-sum_t sg(p_t) log p_t"
    order: ClassVar[int] = 120

    type: Literal["dft"] = "dft"
    """Names the loss."""

    rows: Literal["all", "correct"] = "all"
    """``all``: the data of SFT, as in arXiv:2606.23740, so only the formula differs; ``correct``: the data of RFT."""

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for the rollouts ``rows`` asks for, none for others."""
        return [1.0 if correct or self.rows == "all" else None for correct in group.correct]

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """Log-probabilities weighted by detached probabilities."""
        return inputs.logprobs.detach().exp() * inputs.logprobs

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """``probability``: the mean of p_t over tokens."""
        return {"probability": (masked_sum(inputs.logprobs.exp(), inputs.mask).sum(), "token")}
