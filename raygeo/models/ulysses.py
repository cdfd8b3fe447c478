"""Sequence parallelism: ranks share the tokens of long rows, and in attention the heads (DeepSpeed Ulysses, Jacobs et
al. 2023, arXiv:2309.14509).

Every rank of a group holds an equal slice of the tokens. For attention each gives away its tokens' heads and gets all
tokens of its own heads, and back. Gradients of weights are those of the rank's tokens; their sum over ranks is whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from raygeo.errors import StudentError
from raygeo.models.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ATTENTION = "ulysses"
"""What transformers knows this attention by, once it is registered."""
_MASKED = {"full_attention", "sliding_attention"}
_ROPES_OF_LENGTH = {"dynamic", "longrope"}
_OTHERS = ("softcap", "s_aux", "position_bias")


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share sequences: ``size`` of them, this one the ``rank``-th."""

    group: Any
    size: int
    rank: int

    @classmethod
    def of(cls, size: int) -> Self:
        """The group of ``size`` neighbouring ranks that this process is in; collective over all processes."""
        return cls(_neighbours(dist.group.WORLD, size), size, dist.get_rank() % size)

    def exchange(self, parts: Tensor) -> Tensor:
        """Send ``parts`` [size, ...] each to its rank, and get theirs; differentiable once."""
        return _Exchange.apply(parts, self.group)

    def join(self, mine: Tensor, counts: list[int]) -> Tensor:
        """All ranks' numbers one behind the other, of rank r the first ``counts[r]``; gradient flows to ``mine`` alone.

        ``mine`` has the same shape [M, ...] on all ranks.
        """
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine.detach().contiguous(), group=self.group)
        parts[self.rank] = mine
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@cache
def _neighbours(world: Any, size: int) -> Any:
    ranks = range(dist.get_world_size(world))
    groups = [dist.new_group(ranks[first : first + size]) for first in ranks[::size]]
    return groups[dist.get_rank(world) // size]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_to_all(parts, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(gradient, ctx.group), None


def _all_to_all(parts: Tensor, group: Any) -> Tensor:
    found = torch.empty_like(parts, memory_format=torch.contiguous_format)
    dist.all_to_all_single(found, parts.contiguous(), group=group)
    return found


class Share:
    """A rank's part of the rows of a batch that lie one behind the other, L tokens, N of them of completions.

    ``tokens`` [S] are the places of its tokens among the L, the last one again and again where ranks have more than
    there are; ``positions`` [1, S] their places in their rows. ``states`` [M] are those of its tokens from which
    completion tokens are predicted, and ``targets`` [M] the places of these among the N. M is the same on all ranks,
    so that all of them take the same path through the head; ``join`` leaves out what is too much.
    """

    def __init__(self, batch: Batch, group: SequenceGroup):
        real = batch.attention_mask.bool()
        lengths = real.sum(1).tolist()
        total = sum(lengths)
        size = math.ceil(total / group.size)
        device = real.device
        mine = torch.arange(group.rank * size, (group.rank + 1) * size, device=device)
        self.group = group
        self.tokens = mine.clamp(max=total - 1)
        places = torch.cat([torch.arange(length, device=device) for length in lengths])
        self.positions = torch.where(mine < total, places[self.tokens], 0)[None]
        wanted = F.pad(F.pad(batch.mask, (0, 1))[real], (0, group.size * size - total)).view(group.size, size)
        self.counts: list[int] = wanted.sum(1).tolist()
        most, before = max(self.counts), sum(self.counts[: group.rank])
        own = wanted[group.rank].nonzero().squeeze(-1)
        self.states = F.pad(own, (0, most - len(own)))
        self.targets = torch.arange(before, before + most, device=device).clamp(max=sum(self.counts) - 1)
        self.rows = [*lengths, *([group.size * size - total] if group.size * size > total else [])]

    def join(self, column: Tensor) -> Tensor:
        """What all ranks found of their completion tokens, [M], as [N]; gradient flows to this rank's alone."""
        return self.group.join(column, self.counts)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    share: Share | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention of tokens that ranks share, [1, H, S, d] on each: [1, S, H, d]. transformers calls it in layers.

    Each row attends to itself alone, by SDPA without a mask, unless ``sliding_window`` is shorter than it. Key-value
    heads are repeated where ranks cannot have equally many.

    Raises:
        StudentError: the family attends otherwise, or does not hand on to its layers what it was called with.
    """
    used = [name for name in _OTHERS if others.get(name) is not None]
    if share is None or attention_mask is not None or dropout or used or not getattr(module, "is_causal", True):
        raise StudentError(
            _refusal(type(module).__name__, f"its layers attend otherwise ({', '.join(used) or 'mask'})")
        )
    if sliding_window is None and _slides(module):
        raise StudentError(_refusal(type(module).__name__, "its layers do not name their sliding window"))
    size = share.group.size
    repeats = math.lcm(key.shape[1], size) // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    query, key, value = (_whole_rows(x, share.group) for x in (query, key, value))
    gqa = query.shape[1] != key.shape[1]
    parts = []
    for q, k, v in zip(*(x.split(share.rows, 2) for x in (query, key, value)), strict=True):
        mask = _window(q.shape[2], sliding_window, q.device)
        parts.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa
            )
        )
    found = torch.cat(parts, 2)[0]  # [H / size, size S, d]
    found = found.unflatten(1, (size, -1)).transpose(0, 1)
    return share.group.exchange(found).flatten(0, 1).transpose(0, 1)[None].contiguous(), None


def _whole_rows(x: Tensor, group: SequenceGroup) -> Tensor:
    """From the rank's tokens of all heads [1, H, S, d] to all tokens of the rank's heads [1, H / size, size S, d]."""
    parts = group.exchange(x[0].unflatten(0, (group.size, -1)))
    return parts.transpose(0, 1).flatten(1, 2)[None]


def _slides(module: Any) -> bool:
    kinds = getattr(getattr(module, "config", None), "layer_types", None) or ()
    slides = len(kinds) > 0 and kinds[module.layer_idx] == "sliding_attention"
    return slides or getattr(module, "sliding_window", None) is not None


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    if window is None or length <= window:
        return None
    behind = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (behind >= 0) & (behind < window)


def register() -> str:
    """Let transformers know this attention, and return its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)
    return ATTENTION


def check_sequence_parallel(config: PreTrainedConfig, size: int) -> None:
    """Refuse a student of ``config`` whose sequences ``size`` ranks cannot share; no weights are needed.

    Raises:
        StudentError: its heads cannot be divided among them, or it does not attend through transformers' interface, or
            otherwise than causally over rows or windows, or turns positions by angles that depend on a row's length.
    """
    from transformers import AutoModelForCausalLM

    family: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    text: Any = config.get_text_config()
    name = config.model_type if family is None else family.__name__
    heads = getattr(text, "num_attention_heads", None)
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _MASKED)
    reason = None
    if family is None or not (family._supports_attention_backend and family._supports_sdpa):
        reason = "it does not compute attention through transformers' interface with SDPA"
    elif not isinstance(heads, int) or heads % size:
        reason = f"its {heads} attention heads cannot be divided among {size} workers"
    elif others:
        reason = f"it has layers of {', '.join(others)}"
    elif ropes := sorted(set(_rope_types(getattr(text, "rope_parameters", None))) & _ROPES_OF_LENGTH):
        reason = f"its rotary angles ({', '.join(ropes)}) depend on the length of the longest row"
    if reason is not None:
        raise StudentError(_refusal(name, reason))


def _rope_types(parameters: Any) -> Iterator[str]:
    if isinstance(parameters, Mapping):
        if isinstance(kind := parameters.get("rope_type"), str):
            yield kind
        for value in parameters.values():
            yield from _rope_types(value)


def _refusal(family: str, reason: str) -> str:
    return f"sequence_parallel_size: {family} cannot share sequences among workers: {reason}. Leave it out."
