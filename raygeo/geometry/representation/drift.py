"""Drift of representations: how far hidden states moved from another model's, token by token."""

from collections.abc import Sequence

import torch
from torch import Tensor


def token_drift(states: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine with the base's and relative change |h - h_base| / |h_base| of hidden states [..., d]: [...] fp64 each.

    Not finite where a state is zero, which has no direction.
    """
    h, b = states.double(), base.double()
    norms = h.norm(dim=-1), b.norm(dim=-1)
    return (h * b).sum(-1) / (norms[0] * norms[1]), (h - b).norm(dim=-1) / norms[1]


def text_drift(states: Sequence[Tensor], base: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Sums of both measures of ``token_drift`` over each text's completion tokens: [B, L + 1, 2] fp64 on the CPU.

    ``states`` and ``base`` are the L + 1 layers that ``features.hidden_states`` gives, [B, T + 1, d] each; ``mask``
    [B, T] marks the completion tokens, position t standing for token t + 1. Divide by their number for means.
    """
    completion = torch.nn.functional.pad(mask, (1, 0)).to(states[0].device)
    layers = []
    for h, b in zip(states, base, strict=True):
        measures = torch.stack(token_drift(h, b), -1)
        layers.append(torch.where(completion[..., None], measures, torch.zeros_like(measures)).sum(1))
    return torch.stack(layers, 1).cpu()
