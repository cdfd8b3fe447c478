"""Muon in full precision: momentum whose matrices are orthogonalised before each step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_EPSILON = 1e-7
_RMS = 0.2


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov momentum, decoupled weight decay, and the update's root mean square
    matched to AdamW's (Liu et al. 2025, arXiv:2502.16982, equation 4): factor 0.2 sqrt(max(rows, columns)).

    The rule of ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``, whose orthogonalisation, however, always
    multiplies in bf16: on processors without instructions for that it is many times slower than in fp32, and results
    depend on how they emulate it. Here all is done in the dtype of the parameters, matrices all.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient is None:
                    continue
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(gradient)
                buffer = state["momentum"]
                buffer.lerp_(gradient, 1 - group["momentum"])
                update = orthogonalised(gradient.lerp(buffer, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * _RMS * max(parameter.shape) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U V' of the singular value decomposition of ``matrix`` [m, n], its singular values between 0.7 and 1.2.

    Five steps of a Newton-Schulz iteration X <- a X + (b XX' + c (XX')^2) X with the coefficients of Jordan et al.,
    from X = matrix / |matrix|. A zero matrix stays zero.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / wide.norm().clamp(min=_EPSILON)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
