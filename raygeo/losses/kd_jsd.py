"""Distillation by the generalised Jensen-Shannon divergence, between forward and reverse."""

from math import log, log1p
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from raygeo.losses.distillation import Distillation


class KDJSD(Distillation):
    """``beta KL(p_teacher || m) + (1 - beta) KL(p || m)`` at every token, ``m = beta p_teacher + (1 - beta) p``.

    Bounded, by the entropy of (beta, 1 - beta). Divided by beta it tends to ``kd-forward`` as beta goes to 0, divided
    by 1 - beta to ``kd-reverse`` as it goes to 1; it is not divided here, so its gradients are smaller than theirs, at
    beta = 0.5 near the teacher a quarter.
    """

    title: ClassVar[str] = "KD JSD"
    paper: ClassVar[str] = "Agarwal et al. 2023 (GKD), arXiv:2306.13649, equation 1"
    formula: ClassVar[str] = "sum_t beta KL(p_teacher || m) + (1 - beta) KL(p || m), m = beta p_teacher + (1 - beta) p"
    order: ClassVar[int] = 242
    variants: ClassVar = (*Distillation.variants, {"beta": 0.1, "rows": "correct"})

    type: Literal["kd-jsd"] = "kd-jsd"
    """Names the loss."""

    beta: float = Field(default=0.5, gt=0, lt=1)
    """Share of the teacher in the mixture."""

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The generalised Jensen-Shannon divergence: [N]."""
        mixture = torch.logaddexp(teacher + log(self.beta), student + log1p(-self.beta))
        from_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)
        from_student = (student.exp() * (student - mixture)).sum(-1)
        return self.beta * from_teacher + (1 - self.beta) * from_student
