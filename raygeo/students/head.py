"""Log-probabilities straight from final hidden states, through a large vocabulary, without ever holding its logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def tiled_logprobs(states: Tensor, weight: Tensor, targets: Tensor, *, scale: float = 1.0, tile: int) -> Tensor:
    """Compute ``log softmax(scale * states @ weight.T)`` at ``targets``: [N], fp32 (fp64 for fp64 states).

    ``states`` [N, d], ``weight`` [V, d], ``targets`` [N] int64. The vocabulary is walked in slices of about ``tile``
    logits, with a running log-sum-exp (Milakov and Gimelshein 2018, arXiv:1805.02867); the backward pass makes each
    slice again. Memory is that of a slice and of the results, the work one product of states and weight more than
    holding all logits, and the traffic less. Differentiable once.
    """
    return _TiledLogprobs.apply(states, weight, targets, scale, tile)


class _TiledLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, scale: float, tile: int) -> Tensor:
        entries = max(1, tile // max(1, len(states)))
        wide = torch.promote_types(states.dtype, torch.float32)
        top = torch.full((len(states),), -torch.inf, dtype=wide, device=states.device)
        total = torch.zeros_like(top)
        found = torch.zeros_like(top)
        for start in range(0, len(weight), entries):
            logits = _logits(states, weight[start : start + entries], scale, wide)
            here = (targets >= start) & (targets < start + entries)
            place = (targets - start).clamp(0, logits.shape[1] - 1)
            found = torch.where(here, logits.gather(1, place[:, None])[:, 0], found)
            higher = torch.maximum(top, logits.amax(1))
            total = total * (top - higher).exp() + logits.sub_(higher[:, None]).exp_().sum(1)
            top = higher
        normalizer = top + total.log()
        ctx.save_for_backward(states, weight, targets, normalizer)
        ctx.scale, ctx.entries = scale, entries
        return found - normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, targets, normalizer = ctx.saved_tensors
        wants_states, wants_weight = ctx.needs_input_grad[:2]
        for_states = torch.zeros_like(states, dtype=gradient.dtype) if wants_states else None
        for_weight = torch.empty_like(weight) if wants_weight else None
        coefficient = (gradient * ctx.scale)[:, None]
        for start in range(0, len(weight), ctx.entries):
            part = weight[start : start + ctx.entries]
            # d log p / d logits = onehot - softmax, times the gradient and the scale
            slope = _logits(states, part, ctx.scale, gradient.dtype).sub_(normalizer[:, None]).exp_().mul_(-coefficient)
            here = ((targets >= start) & (targets < start + ctx.entries)).nonzero()[:, 0]
            slope.index_put_((here, targets[here] - start), coefficient[here, 0], accumulate=True)
            slope = slope.to(states.dtype)
            if for_states is not None:
                for_states += slope @ part
            if for_weight is not None:
                torch.mm(slope.T, states, out=for_weight[start : start + ctx.entries])
        return None if for_states is None else for_states.to(states.dtype), for_weight, None, None, None


def _logits(states: Tensor, weight: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    logits = (states @ weight.T).to(dtype)
    return logits if scale == 1.0 else logits.mul_(scale)
