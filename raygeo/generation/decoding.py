"""Completions of a batch of prompts, token by token, with a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raygeo.errors import StudentError
from raygeo.models.cached import next_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPACT_BELOW = 0.75  # share of unfinished rows under which dropping the finished ones repays copying the cache


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    copies: Tensor,
    ends: tuple[int, ...],
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Continue left-padded prompts [U, W]; row ``i`` of the result continues prompt ``copies[i]`` ([R] int64).

    Returns tokens [R, max_new_tokens] int64, filled with the first of ``ends`` behind the one that was drawn, and the
    log-probabilities [R, max_new_tokens] fp32 of those drawn, 0 behind the end and for greedy choices.

    Raises:
        StudentError: the logits of a prompt are not finite.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    selectable = all(hasattr(layer, "batch_select_indices") for layer in cache.layers)
    if not selectable:  # the states of linear attention: each copy reads its prompt itself, and all stay to the end
        input_ids, attention_mask = input_ids[copies], attention_mask[copies]
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    logits = next_logits(model, input_ids, attention_mask, positions, cache)
    if not bool(torch.isfinite(logits).all()):
        raise StudentError("the student's logits hold NaN or infinity: its weights diverged; lower the learning rate.")
    if selectable:
        cache.batch_select_indices(copies)
        logits, attention_mask = logits[copies], attention_mask[copies]
    positions = attention_mask.sum(-1, keepdim=True)
    written = torch.full((len(copies), max_new_tokens), ends[0], device=input_ids.device)
    logprobs = torch.zeros(written.shape, device=input_ids.device)
    stops = torch.tensor(ends, device=input_ids.device)
    rows = torch.arange(len(copies), device=input_ids.device)
    open_ = torch.ones_like(rows, dtype=torch.bool)
    for step in range(max_new_tokens):
        chosen, logprob = _choose(logits, temperature, generator)
        token = torch.where(open_, chosen, ends[0])
        written[rows, step] = token
        logprobs[rows, step] = logprob * open_
        open_ &= ~torch.isin(token, stops)
        remaining = int(open_.sum())
        if remaining == 0 or step == max_new_tokens - 1:
            break
        if selectable and remaining < _COMPACT_BELOW * len(rows):
            kept = open_.nonzero().squeeze(-1)
            cache.batch_select_indices(kept)
            rows, open_, token = rows[kept], open_[kept], token[kept]
            attention_mask, positions = attention_mask[kept], positions[kept]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], -1)
        logits = next_logits(model, token[:, None], attention_mask, positions, cache)
        positions = positions + 1
    return written, logprobs


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a token [R] of each row of ``logits`` [R, V], and its log-probability [R], 0 for a greedy choice."""
    if temperature == 0:
        return logits.argmax(-1), logits.new_zeros(len(logits))
    logits = logits / temperature
    token = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    return token.squeeze(-1), logits.log_softmax(-1).gather(-1, token).squeeze(-1)
