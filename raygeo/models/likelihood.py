"""Log-probabilities of completion tokens under a causal language model, from logits of completion tokens alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygeo.models.attention import is_flash
from raygeo.models.batches import Batch
from raygeo.models.head import chunked, tiled_logprobs
from raygeo.models.lora import without_adapters
from raygeo.models.ulysses import SequenceGroup, Share

CHUNK_LOGITS = 2**26
"""Most logits held at once: 256 MiB in fp32, 441 tokens of a vocabulary of 152,000."""
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
_SCALES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mpt": ((), ()),  # has a setting that it does not read
    "hyperclovax": (("logits_scaling",), ()),
}
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_TILES = 8
"""Tiles of the vocabulary are that many times smaller than chunks of tokens; nothing is computed twice for them."""


class TopLogprobs(NamedTuple):
    """What is kept of next-token laws: the likeliest tokens ``ids`` [N, k] int64, the likeliest first, their
    log-probabilities ``logprobs`` [N, k], and the probability ``tail`` [N] of all other tokens, exactly 0 where k = V.
    """

    ids: Tensor
    logprobs: Tensor
    tail: Tensor


@dataclass(frozen=True)
class TokenLogits:
    """Some completion tokens of a micro-batch, in any grouping.

    ``logits`` [N, V] fp32 (fp64 for an fp64 model); ``targets`` [N] int64; ``keys`` [N] int64 name each token of each
    step, so that random draws can be a function of the token alone; ``reference_logits`` [N, V] are the base's;
    ``teacher`` is what is kept of a teacher's laws.
    """

    logits: Tensor
    targets: Tensor
    keys: Tensor | None = None
    reference_logits: Tensor | None = None
    teacher: TopLogprobs | None = None


Terms = Callable[[TokenLogits], dict[str, Tensor]]
Head = tuple[Tensor, Tensor | None]
"""A matrix [V, d] and, where there is one, a bias [V] that make logits of final hidden states."""


class Likelihood(nn.Module):
    """A student as training sees it: from a batch to log-probabilities, never more logits than ``chunk`` at once.

    The student stays in evaluation mode, also while it is trained: dropout, router jitter and whatever else a family
    does in training alone is off, so that all losses see the same function, and DPO the one its reference came from.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Terms | None = None,
        chunk: int = CHUNK_LOGITS,
        *,
        padding_free: bool = False,
        group: SequenceGroup | None = None,
        asks_base: bool = False,
    ):
        """``asks_base``: ``terms`` take the base's logits, which the student gives without its adapters."""
        super().__init__()
        self.student = student
        self.head = TokenHead(student, terms, chunk)
        self.padding_free = padding_free
        self.group = group
        self.asks_base = asks_base

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module, and leave its student in evaluation mode."""
        super().train(mode)
        self.student.eval()
        return self

    def forward(
        self,
        batch: Batch,
        keys: Tensor | None = None,
        reference_states: Tensor | None = None,
        reference_head: Head | None = None,
        embedding_mix: float = 0.0,
        teacher: TopLogprobs | None = None,
        *,
        plain: bool = False,
    ) -> dict[str, Tensor]:
        """Return ``logprobs`` and, unless ``plain``, every term, [B, T] each, zero where ``batch.mask`` is false.

        ``keys`` [N] int64, ``reference_states`` [N, d] and ``teacher`` follow the completion tokens in row order;
        ``reference_head``, or else the student's own without adapters, turns those states into the base's logits. With
        ``embedding_mix`` > 0 the input embedding of each completion token is mixed with that of the student's own
        greedy guess of it.
        """
        model = causal_lm(self.student)
        share = Share(batch, self.group) if self.group is not None and self.padding_free else None

        def find_states(embeddings: Tensor | None = None) -> Tensor:
            if share is not None:
                return shared_states(model, batch, share, embeddings)
            return (packed_states if self.padding_free else completion_states)(model, batch, embeddings)

        embeddings = None
        if embedding_mix > 0:
            with torch.no_grad():
                guesses = greedy_guesses(model, find_states(), self.head.chunk)
                guesses = guesses if share is None else share.join(guesses)
            embeddings = mixed_embeddings(model, batch, guesses, embedding_mix)
        if self.asks_base and not plain:
            with torch.no_grad(), without_adapters(self.student):
                reference_states = find_states()
        elif share is not None and reference_states is not None:
            reference_states = reference_states[share.targets]
        states = find_states(embeddings)
        targets = batch.input_ids[:, 1:][batch.mask]
        if share is not None:
            mine = share.targets
            targets, keys = targets[mine], None if keys is None else keys[mine]
            teacher = None if teacher is None else TopLogprobs(*(part[mine] for part in teacher))
        columns = self.head(states, targets, keys, reference_states, reference_head, teacher, plain=plain)
        if share is not None:
            columns = {name: share.join(column) for name, column in columns.items()}
        return {name: _scatter(column, batch.mask) for name, column in columns.items()}


class TokenHead(nn.Module):
    """From final hidden states to what is asked of every token, with at most ``chunk`` logits at once.

    Where the tokens have more, the vocabulary is walked in tiles (``tiled_logprobs``) or, for ``terms``, tokens in
    chunks whose logits are computed again in the backward pass (``chunked``); so memory does not grow with tokens times
    vocabulary. ``terms`` makes further per-token quantities of the logits. A head that is not a linear layer holds all
    logits.

    It is a module without parameters of its own, so that ZeRO-3 can gather the student's head for it
    (``borrowed``) once before the forward pass and once before the backward pass; and the head's weights stand once in
    the graph, since ZeRO takes a parameter's gradient as complete when it first sees it.
    """

    def __init__(self, student: nn.Module, terms: Terms | None, chunk: int):
        super().__init__()
        self._student = (student,)  # a tuple, lest the student be a part of its own head
        self.terms = terms
        self.chunk = chunk

    @property
    def borrowed(self) -> list[nn.Parameter]:
        """The parameters of the student that it computes with."""
        return list(causal_lm(self._student[0]).get_output_embeddings().parameters())

    def forward(
        self,
        states: Tensor,
        targets: Tensor,
        keys: Tensor | None = None,
        reference_states: Tensor | None = None,
        reference_head: Head | None = None,
        teacher: TopLogprobs | None = None,
        *,
        plain: bool = False,
    ) -> dict[str, Tensor]:
        """Return ``logprobs`` and, unless ``plain``, every term, [N] each, of final hidden ``states`` [N, d]."""
        model = causal_lm(self._student[0])
        head = model.get_output_embeddings()
        linear = type(head) is nn.Linear
        terms = None if plain else self.terms
        logits = len(targets) * _vocabulary(model)
        if terms is None and linear and head.bias is None and not _logit_cap(model) and logits > self.chunk // _TILES:
            scale, tile = _logit_scale(model), self.chunk // _TILES
            return {"logprobs": tiled_logprobs(states, head.weight, targets, scale=scale, tile=tile)}

        @torch.no_grad()
        def base_logits(base: Tensor) -> Tensor:
            if reference_head is not None:
                return _finished(model, F.linear(base, *reference_head))
            if linear:  # its weights themselves: ZeRO-3 has gathered them for this module, in the backward pass too
                return _finished(model, F.linear(base, head.weight, head.bias))
            with without_adapters(head):
                return apply_head(model, base)

        def values(
            logits: Tensor, targets: Tensor, keys: Tensor | None, base: Tensor | None, *top: Tensor
        ) -> dict[str, Tensor]:
            found = {"logprobs": -F.cross_entropy(logits, targets, reduction="none")}
            if terms is not None:
                given = None if base is None else base_logits(base)
                found |= terms(TokenLogits(logits, targets, keys, given, TopLogprobs(*top) if top else None))
            return found

        rest = (targets, keys, reference_states, *(teacher or ()))

        if not linear or logits <= self.chunk:
            return values(apply_head(model, states), *rest)

        def compute(states: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> dict[str, Tensor]:
            return values(_finished(model, F.linear(states, weight, bias)), *rest)

        size = max(1, self.chunk // _vocabulary(model))
        return chunked(compute, states, head.weight, head.bias, rest, size)


def token_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """Return log p(token t + 1 | tokens up to t) as [B, T] fp32, zero where ``batch.mask`` is false.

    Logits are computed for completion tokens alone. The log-softmax is taken in fp32 at least (fp64 stays fp64).
    Differentiable, twice where its attention is made of plain matrix products, with all logits held; without gradients
    they are not.
    """
    chunk = 2**62 if torch.is_grad_enabled() else CHUNK_LOGITS
    return Likelihood(model, chunk=chunk)(batch)["logprobs"]


def completion_states(model: Any, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
    """Return the final hidden states from which completion tokens are predicted: [N, d], in row order."""
    given = {"input_ids": batch.input_ids} if embeddings is None else {"inputs_embeds": embeddings}
    # No attention mask: padding is on the right, where no token of a causal model looks, and kernels without one are
    # faster.
    hidden = decoder(model)(**given, use_cache=False).last_hidden_state
    return hidden[:, :-1].flatten(0, 1).index_select(0, _positions(batch.mask))


def packed_states(model: Any, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
    """Return what ``completion_states`` does, of rows that lie one behind the other instead of being padded.

    Positions begin anew at every row. transformers lets no token see another row: by a mask made of the positions, or,
    for flash attention, by the rows' bounds.
    """
    real = batch.attention_mask.bool()
    lengths = real.sum(1)
    places = (batch.attention_mask.cumsum(1) - 1)[real][None]
    given: dict[str, Any] = {"position_ids": places}
    if embeddings is None:
        given["input_ids"] = batch.input_ids[real][None]
    else:
        given["inputs_embeds"] = embeddings[real][None]
    if is_flash(model.config.get_text_config()._attn_implementation):
        bounds = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        given |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds)
        given |= dict.fromkeys(("max_length_q", "max_length_k"), real.shape[1])
    hidden = decoder(model)(**given, use_cache=False).last_hidden_state[0]
    wanted = F.pad(batch.mask, (0, 1))[real]
    return hidden.index_select(0, _positions(wanted))


def shared_states(model: Any, batch: Batch, share: Share, embeddings: Tensor | None = None) -> Tensor:
    """Return this rank's share of what ``packed_states`` does: [M, d] (``Share``); collective over its group."""
    real = batch.attention_mask.bool()
    whole = {"input_ids": batch.input_ids} if embeddings is None else {"inputs_embeds": embeddings}
    given = {name: value[real][share.tokens][None] for name, value in whole.items()}
    found = decoder(model)(**given, position_ids=share.positions, use_cache=False, share=share)
    return found.last_hidden_state[0].index_select(0, share.states)


def apply_head(model: Any, states: Tensor) -> Tensor:
    """Return the model's logits of final hidden states [N, d]: [N, V], fp32 at least."""
    return _finished(model, model.get_output_embeddings()(states))


def copied_head(model: Any) -> Head:
    """A copy of the model's output head as it is now."""
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    return head.weight.detach().clone(), None if bias is None else bias.detach().clone()


def finish_logits(model: Any, logits: Tensor) -> Tensor:
    """Scale and cap raw logits as the model's family does (Gemma caps; Cohere multiplies; Granite divides).

    ``soundness`` holds what this gives to the family's own logits.
    """
    scale, cap = _logit_scale(model), _logit_cap(model)
    logits = logits if scale == 1.0 else logits * scale
    return torch.tanh(logits / cap) * cap if cap else logits


def _finished(model: Any, logits: Tensor) -> Tensor:
    return finish_logits(model, _wide(logits))


@torch.no_grad()
def top_logprobs(
    model: Any,
    states: Tensor,
    count: int,
    *,
    temperature: float = 1.0,
    width: int | None = None,
    chunk: int = CHUNK_LOGITS,
) -> TopLogprobs:
    """The ``count`` likeliest tokens of softmax(logits / ``temperature``), of final hidden ``states`` [N, d].

    The law is over the first ``width`` tokens of the vocabulary, by default all of them; there are as many likeliest
    ones as it has, if these are fewer. The tail is summed itself, in fp32 at least, not taken as what the others leave
    of 1; it is never rounded to 0 where a token is left.
    """
    parts = [
        _top(apply_head(model, part)[:, :width] / temperature, count)
        for part in states.split(max(1, chunk // _vocabulary(model)))
    ]
    return TopLogprobs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _top(logits: Tensor, count: int) -> TopLogprobs:
    logprobs = logits.log_softmax(-1)
    top, ids = logprobs.topk(min(count, logits.shape[-1]), dim=-1)
    if ids.shape[-1] == logits.shape[-1]:
        return TopLogprobs(ids, top, torch.zeros_like(top[:, 0]))
    tail = logprobs.scatter(-1, ids, -torch.inf).exp().sum(-1)
    return TopLogprobs(ids, top, tail.clamp(min=torch.finfo(tail.dtype).tiny))


@torch.no_grad()
def greedy_guesses(model: Any, states: Tensor, chunk: int = CHUNK_LOGITS) -> Tensor:
    """The tokens with the largest logits, [N] int64, of final hidden ``states`` [N, d]."""
    size = max(1, chunk // _vocabulary(model))
    return torch.cat([apply_head(model, part).argmax(-1) for part in states.split(size)])


def mixed_embeddings(model: Any, batch: Batch, guesses: Tensor, share: float) -> Tensor:
    """Mix the input embedding of each completion token with that of the model's guess of it: [B, T + 1, d].

    The embedding is ``(1 - share) e(token) + share e(guess)``; ``guesses`` [N] are in row order (``greedy_guesses``).
    """
    guessed = batch.input_ids.clone()
    guessed[:, 1:][batch.mask] = guesses
    embed = model.get_input_embeddings()
    weights = torch.zeros(guessed.shape, dtype=torch.float32, device=guessed.device)
    weights[:, 1:][batch.mask] = share
    own = embed(batch.input_ids)
    return torch.lerp(own, embed(guessed), weights.to(own.dtype)[..., None])


def causal_lm(student: Any) -> Any:
    """The causal language model itself, without PEFT around it."""
    return student.get_base_model() if hasattr(student, "peft_config") else student


def decoder(model: Any) -> Any:
    """The part of a causal language model that makes final states of token ids."""
    from transformers import PreTrainedModel

    named = model.get_decoder()
    parts = (named, getattr(model, "base_model", None), getattr(model, "model", None))
    return next((part for part in parts if isinstance(part, PreTrainedModel) and part is not model), named)


def _logit_scale(model: Any) -> float:
    config = model.config.get_text_config()
    factors, divisors = _SCALES.get(getattr(config, "model_type", ""), (_FACTORS, _DIVISORS))
    product = math.prod(getattr(config, name, None) or 1.0 for name in factors)
    return product / math.prod(getattr(config, name, None) or 1.0 for name in divisors)


def _logit_cap(model: Any) -> float | None:
    config = model.config.get_text_config()
    return next((cap for name in _CAPS if (cap := getattr(config, name, None)) is not None), None)


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    empty = torch.zeros(mask.numel(), dtype=values.dtype, device=values.device)
    return empty.index_copy(0, _positions(mask), values).view(mask.shape)


def _positions(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().squeeze(-1)
