"""Reverse Kullback-Leibler distillation: the student keeps to what its teacher finds likely, and may leave some out."""

from typing import ClassVar, Literal

from torch import Tensor

from raygeo.losses.distillation import Distillation


class KDReverse(Distillation):
    """``KL(p || p_teacher)`` at every token, an exact sum over the student's law, not an estimate from its samples.

    Gradient in the logits: p times [log p / p_teacher less its mean under p], with the tail as one token (see
    ``Distillation``). It is GKD's divergence at beta = 1 on given rollouts; MiniLLM (arXiv:2306.08543) takes it over
    whole sequences that the student samples, which is not done here.
    """

    title: ClassVar[str] = "KD reverse"
    paper: ClassVar[str] = "Agarwal et al. 2023 (GKD), arXiv:2306.13649, at beta = 1"
    formula: ClassVar[str] = "sum_t sum_v p(v) [log p(v) - log p_teacher(v)], v: top k and tail"
    order: ClassVar[int] = 241

    type: Literal["kd-reverse"] = "kd-reverse"
    """Names the loss."""

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """``KL(student || teacher)``: [N]."""
        return (student.exp() * (student - teacher)).sum(-1)
