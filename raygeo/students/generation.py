"""Completions written by a student: greedy or sampled, batched over prompts of similar length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raygeo.errors import StudentError
from raygeo.students.encoding import length_buckets

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

_COMPACT_BELOW = 0.75  # share of unfinished rows under which dropping the finished ones repays copying the cache


@dataclass(frozen=True)
class Completion:
    """``tokens`` counts end-of-text, which ``text`` lacks; ``truncated`` says that end-of-text was never reached.

    ``logprobs`` hold each token's log-probability where it was drawn, at the sampling temperature; they are None for
    greedy completions, and where ``text`` does not tokenise back to the tokens drawn, so that they would not fit it.
    """

    text: str
    tokens: int
    truncated: bool
    logprobs: tuple[float, ...] | None = None


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int,
    seed: int = 0,
    batch_size: int = 256,
) -> list[list[Completion]]:
    """Complete every prompt ``samples`` times: one list per prompt, in the order of ``prompts``.

    Temperature 0 takes the likeliest token at each step; any other draws from softmax(logits / temperature) with a
    generator of its own, seeded by ``seed``: equal arguments give equal completions, and torch's global generators stay
    as they were. Prompts are tokenised as ``raygeo.students.encoding.encode`` does. ``batch_size`` bounds the rows
    (prompts times samples) in flight; a batch reads each of its prompts once, however often it is sampled.

    Raises:
        StudentError: a prompt is empty, or does not fit the model's context with ``max_new_tokens``, or its logits are
            not finite.
    """
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    _check_lengths(model, [len(prompt) for prompt in ids], max_new_tokens)
    rows = [prompt for prompt in range(len(prompts)) for _ in range(samples)]
    generator = torch.Generator(model.device).manual_seed(seed)
    completions: list[list[Completion]] = [[] for _ in prompts]
    training = model.training
    model.eval()
    try:
        for bucket in length_buckets([len(ids[prompt]) for prompt in rows], batch_size):
            batch = [rows[row] for row in bucket]
            unique = {prompt: place for place, prompt in enumerate(dict.fromkeys(batch))}
            input_ids, attention_mask = _pad_left([ids[prompt] for prompt in unique], tokenizer.pad_token_id)
            written, logprobs = _decode(
                model,
                input_ids.to(model.device),
                attention_mask.to(model.device),
                torch.tensor([unique[prompt] for prompt in batch], device=model.device),
                tokenizer.eos_token_id,
                temperature,
                max_new_tokens,
                generator,
            )
            drawn = logprobs.tolist() if temperature > 0 else [None] * len(batch)
            for prompt, tokens, scores in zip(batch, written.tolist(), drawn, strict=True):
                completions[prompt].append(_completion(tokenizer, tokens, scores))
    finally:
        model.train(training)
    return completions


@torch.inference_mode()
def _decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    copies: Tensor,
    eos_id: int,
    temperature: float,
    max_new_tokens: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Continue left-padded prompts [U, W]; row ``i`` of the result continues prompt ``copies[i]``.

    Returns tokens [R, max_new_tokens] int64, filled with ``eos_id`` from the first end-of-text on, and the
    log-probabilities [R, max_new_tokens] fp32 of those drawn, 0 after end-of-text.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    logits = _next_logits(model, input_ids, attention_mask, positions, cache)
    if not bool(torch.isfinite(logits).all()):
        raise StudentError("the student's logits hold NaN or infinity: its weights diverged; lower the learning rate.")
    cache.batch_select_indices(copies)
    logits, attention_mask = logits[copies], attention_mask[copies]
    positions = attention_mask.sum(-1, keepdim=True)
    written = torch.full((len(copies), max_new_tokens), eos_id, device=input_ids.device)
    logprobs = torch.zeros(written.shape, device=input_ids.device)
    rows = torch.arange(len(copies), device=input_ids.device)
    open_ = torch.ones_like(rows, dtype=torch.bool)
    for step in range(max_new_tokens):
        chosen, logprob = _choose(logits, temperature, generator)
        token = torch.where(open_, chosen, eos_id)
        written[rows, step] = token
        logprobs[rows, step] = logprob * open_
        open_ &= token != eos_id
        remaining = int(open_.sum())
        if remaining == 0 or step == max_new_tokens - 1:
            break
        if remaining < _COMPACT_BELOW * len(rows):
            kept = open_.nonzero().squeeze(-1)
            cache.batch_select_indices(kept)
            rows, open_, token = rows[kept], open_[kept], token[kept]
            attention_mask, positions = attention_mask[kept], positions[kept]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(rows), 1)], -1)
        logits = _next_logits(model, token[:, None], attention_mask, positions, cache)
        positions = positions + 1
    return written, logprobs


def _next_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a token [R] of each row of ``logits`` [R, V], and its log-probability [R], 0 for a greedy choice."""
    if temperature == 0:
        return logits.argmax(-1), logits.new_zeros(len(logits))
    logits = logits / temperature
    token = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    return token.squeeze(-1), logits.log_softmax(-1).gather(-1, token).squeeze(-1)


def _pad_left(prompts: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _completion(tokenizer: PreTrainedTokenizerBase, tokens: list[int], logprobs: list[float] | None) -> Completion:
    truncated = tokenizer.eos_token_id not in tokens
    length = len(tokens) if truncated else tokens.index(tokenizer.eos_token_id)
    text = str(tokenizer.decode(tokens[:length], skip_special_tokens=True))
    count = length if truncated else length + 1
    if logprobs is None or tokenizer(text, add_special_tokens=False).input_ids != tokens[:length]:
        return Completion(text, count, truncated)
    return Completion(text, count, truncated, tuple(logprobs[:count]))


def _check_lengths(model: PreTrainedModel, lengths: list[int], max_new_tokens: int) -> None:
    if 0 in lengths:
        raise StudentError(f"prompt {lengths.index(0)} has no token, so there is nothing to continue; remove it.")
    context = getattr(model.config, "max_position_embeddings", None)
    longest = max(lengths, default=0)
    if context is not None and longest + max_new_tokens > context:
        raise StudentError(
            f"the longest prompt has {longest} tokens; with max_new_tokens={max_new_tokens} that exceeds the student's "
            f"context of {context}. Lower max_new_tokens or drop long prompts."
        )
