"""From final hidden states through a large vocabulary without ever holding all logits, the weights used once."""

from collections.abc import Callable, Iterator, Sequence
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


Compute = Callable[..., dict[str, Tensor]]


def chunked(
    compute: Compute, states: Tensor, weight: Tensor, bias: Tensor | None, rest: tuple[Tensor | None, ...], size: int
) -> dict[str, Tensor]:
    """Apply ``compute(states, weight, bias, *rest)`` to ``size`` tokens at a time and join its columns, [N] each.

    ``states`` [N, d] and the tensors of ``rest`` [N, ...] are split, ``weight`` [V, d] and ``bias`` [V] are not. Chunks
    are not kept: the backward pass computes them again, so ``compute`` must give the same values twice. Gradients flow
    to states, weight and bias; those of weight and bias are added up over chunks in fp32 at least and handed on
    once. Differentiable once.
    """
    names: list[str] = []

    def columns(*given: Any) -> tuple[Tensor, ...]:
        found = compute(*given)
        names[:] = found
        return tuple(found.values())

    joined = _Chunked.apply(columns, size, states, weight, bias, *rest)
    return dict(zip(names, joined, strict=True))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Any, size: int, states: Tensor, *others: Any) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(states, *others)
        ctx.columns, ctx.size = columns, size
        weight, bias, *rest = others
        parts = [columns(states[here], weight, bias, *_at(here, rest)) for here in _chunks(states, size)]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        states, weight, bias, *rest = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:5]
        totals = [
            torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) if wants else None
            for x, wants in zip((states, weight, bias), wanted, strict=True)
        ]
        for here in _chunks(states, ctx.size):
            leaves = [
                x if x is None else x.detach().requires_grad_(wants)
                for x, wants in zip((states[here], weight, bias), wanted, strict=True)
            ]
            with torch.enable_grad():
                found = ctx.columns(*leaves, *_at(here, rest))
            pairs = [
                (x, g) for x, g in zip(found, _at(here, gradients), strict=True) if g is not None and x.requires_grad
            ]
            asked = [leaf for leaf, wants in zip(leaves, wanted, strict=True) if wants and leaf is not None]
            if pairs and asked:
                slopes = torch.autograd.grad([x for x, _ in pairs], asked, [g for _, g in pairs])
                places = [x if x is None or number else x[here] for number, x in enumerate(totals)]
                sums = [place for place in places if place is not None]
                for total, slope in zip(sums, slopes, strict=True):
                    total += slope
        given = (None if x is None else x.to(y.dtype) for x, y in zip(totals, (states, weight, bias), strict=True))
        return None, None, *given, *(None for _ in rest)


def _chunks(states: Tensor, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, len(states), size))


def _at(here: slice, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [x if x is None else x[here] for x in tensors]
