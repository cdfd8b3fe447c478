"""What losses on a teacher's next-token law share: the teacher's likeliest tokens, and one bucket for all others."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raygeo.data.validation import LEAST_TAIL
from raygeo.errors import TrainingError
from raygeo.losses.base import LossInputs, Need, Unit, masked_sum
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.selection import Group
from raygeo.models.likelihood import TokenLogits


class Distillation(Pointwise):
    """Minimises a divergence between the next-token laws of teacher and student, at each token of the rollouts.

    Both are taken over the teacher's k likeliest tokens and one bucket, the tail, that holds all others. The student's
    tail is summed over its own logits, exactly. The bucket is compared as one token: its mass is taught, how the
    student divides it over its tokens is not, and its gradient spreads over them as the student's own probabilities
    do. A divergence of such sums is never larger than that of the whole laws, grows with k, and is theirs where k is
    the size of the vocabulary, without a bucket. The label itself plays no part.
    """

    in_groups: ClassVar[bool] = False

    rows: Literal["all", "correct"] = "all"
    """``all``: the tokens of every rollout; ``correct``: of the correct ones."""

    @abstractmethod
    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Compute the divergence of laws whose logarithms are ``teacher`` and ``student`` [N, m], in nats: [N]."""

    @property
    def needs(self) -> frozenset[Need]:
        """The teacher's likeliest tokens."""
        return frozenset({"teacher"})

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for the rollouts ``rows`` asks for, none for others."""
        return [1.0 if correct or self.rows == "all" else None for correct in group.correct]

    def token_terms(self, tokens: TokenLogits) -> dict[str, Tensor]:
        """``divergence`` [N], in nats.

        Raises:
            TrainingError: the teacher's likeliest tokens are missing.
        """
        return {"divergence": self.divergence(*bucketed(tokens, self.title))}

    def token_objective(self, inputs: LossInputs) -> Tensor:
        """The divergence, less than zero."""
        return -self._divergence(inputs)

    def metrics(self, inputs: LossInputs) -> dict[str, tuple[Tensor, Unit]]:
        """``divergence``: its mean over tokens."""
        return {"divergence": (masked_sum(self._divergence(inputs), inputs.mask).sum(), "token")}

    def _divergence(self, inputs: LossInputs) -> Tensor:
        if "divergence" not in inputs.terms:
            raise TrainingError(f"{self.title} was given no divergence; compute its token_terms with the logits.")
        return inputs.terms["divergence"]


def bucketed(tokens: TokenLogits, title: str) -> tuple[Tensor, Tensor]:
    """Logarithms of the teacher's and the student's law over the teacher's k likeliest tokens and the tail: [N, k + 1].

    Where k is the whole vocabulary there is no tail: [N, k]. In the dtype of the logits; gradients reach the student's.

    Raises:
        TrainingError: the teacher's likeliest tokens are missing; ``title`` names the loss.
    """
    if tokens.teacher is None:
        raise TrainingError(f"{title} was given no likeliest tokens of a teacher.")
    ids, teacher, tail = tokens.teacher
    logprobs = torch.log_softmax(tokens.logits, -1)
    teacher, student = teacher.to(logprobs.dtype), logprobs.gather(-1, ids)
    if ids.shape[-1] == logprobs.shape[-1]:
        return teacher, student
    others = logprobs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    tail = tail.clamp(min=LEAST_TAIL).to(logprobs.dtype).log()[:, None]
    return torch.cat([teacher, tail], -1), torch.cat([student, others], -1)
