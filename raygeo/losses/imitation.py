"""What losses share that imitate whole rollouts: log-likelihood of completions and, if wanted, of their prompts."""

from pydantic import Field
from torch import Tensor

from raygeo.errors import TrainingError
from raygeo.losses.base import LossInputs
from raygeo.losses.pointwise import Pointwise


def _is_zero(weight: float) -> bool:
    return weight == 0


class Imitation(Pointwise):
    """``-log p_t`` of completion tokens, and ``prompt_loss_weight`` times that of prompt tokens."""

    prompt_loss_weight: float = Field(default=0.0, ge=0, exclude_if=_is_zero)
    """Weight of a prompt token beside a completion token's 1 (arXiv:2401.13586); the prompt's first token, which
    nothing predicts, has none. Sums are divided by the number of completion tokens alone, whatever it is, so that the
    completions' part stays what it is at 0."""

    @property
    def reads_prompts(self) -> bool:
        """Whether prompts have a weight."""
        return self.prompt_loss_weight > 0

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """Log-probabilities themselves."""
        return inputs.logprobs

    def row_losses(self, inputs: LossInputs) -> Tensor:
        """Compute what each row adds to the total, its prompt included: [B].

        Raises:
            TrainingError: prompts have a weight, and their log-probabilities are missing.
        """
        losses = super().row_losses(inputs)
        if not self.reads_prompts:
            return losses
        if inputs.prompt_logprobs is None:
            raise TrainingError(f"{self.title} was given no log-probabilities of prompts.")
        prompts = -self.prompt_loss_weight * inputs.weights * inputs.prompt_logprobs.sum(-1)
        return losses + (prompts / inputs.mask.sum(-1).clamp(min=1) if self.normalization == "sequence" else prompts)
