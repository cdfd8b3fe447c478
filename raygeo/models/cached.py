"""The logits of the next token, from a cache of what a model has read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache as remembered
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


def next_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Logits of the token after ``ids`` [B, S], which follow what ``cache`` holds: [B, V] fp32.

    ``mask`` [B, cached + S] is 0 at padding, ``positions`` [B, S] are those of ``ids``; families that take no positions
    make them of the mask, and those that keep states instead of keys take a mask for the first call alone.
    """
    known = _arguments(type(model).forward)
    recurrent = cache.layers and not any(hasattr(layer, "keys") for layer in cache.layers)
    given = {"position_ids": positions, "logits_to_keep": 1, "cache": cache, "past_key_values": cache}
    output = model(
        input_ids=ids,
        attention_mask=None if recurrent and mask.shape[1] > ids.shape[1] else mask,
        use_cache=True,
        **{name: value for name, value in given.items() if name in known},
    )
    return output.logits[:, -1].float()


@remembered
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
