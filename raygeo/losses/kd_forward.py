"""Forward Kullback-Leibler distillation: the student covers all that its teacher finds likely."""

from typing import ClassVar, Literal

from torch import Tensor

from raygeo.losses.distillation import Distillation


class KDForward(Distillation):
    """``KL(p_teacher || p)`` at every token: cross-entropy with the teacher's law as a soft label, less its entropy.

    Gradient in the logits: p less p_teacher, with the tail as one token (see ``Distillation``); so it is SFT in
    expectation over the teacher's samples, with less variance. It is GKD's divergence at beta = 0 on given rollouts.
    """

    title: ClassVar[str] = "KD forward"
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531; Agarwal et al. 2023 (GKD), arXiv:2306.13649"
    formula: ClassVar[str] = "sum_t sum_v p_teacher(v) [log p_teacher(v) - log p(v)], v: top k and tail"
    order: ClassVar[int] = 240

    type: Literal["kd-forward"] = "kd-forward"
    """Names the loss."""

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """``KL(teacher || student)``: [N]."""
        return (teacher.exp() * (teacher - student)).sum(-1)
