"""Log-probabilities of completion tokens under a causal language model, from logits of completion tokens alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygeo.students.encoding import Batch
from raygeo.students.head import chunked, tiled_logprobs

CHUNK_LOGITS = 2**26
"""Most logits held at once: 256 MiB in fp32, 441 tokens of a vocabulary of 152,000."""
_TILES = 8
"""Tiles of the vocabulary are that many times smaller than chunks of tokens; nothing is computed twice for them."""


@dataclass(frozen=True)
class TokenLogits:
    """Some completion tokens of a micro-batch, in any grouping.

    ``logits`` [N, V] fp32 (fp64 for an fp64 model); ``targets`` [N] int64; ``keys`` [N] int64 name each token of each
    step, so that random draws can be a function of the token alone; ``reference_logits`` [N, V] are the base's.
    """

    logits: Tensor
    targets: Tensor
    keys: Tensor | None = None
    reference_logits: Tensor | None = None


Terms = Callable[[TokenLogits], dict[str, Tensor]]


class Likelihood(nn.Module):
    """A student as training sees it: from a batch to log-probabilities, never more logits than ``chunk`` at once."""

    def __init__(self, student: nn.Module, terms: Terms | None = None, chunk: int = CHUNK_LOGITS):
        super().__init__()
        self.student = student
        self.head = TokenHead(student, terms, chunk)

    def forward(
        self,
        batch: Batch,
        keys: Tensor | None = None,
        reference_states: Tensor | None = None,
        reference_head: Tensor | None = None,
        embedding_mix: float = 0.0,
        *,
        plain: bool = False,
    ) -> dict[str, Tensor]:
        """Return ``logprobs`` and, unless ``plain``, every term, [B, T] each, zero where ``batch.mask`` is false.

        ``keys`` [N] int64 and ``reference_states`` [N, d] follow the completion tokens in row order;
        ``reference_head`` [V, d] turns those states into the base's logits. With ``embedding_mix`` > 0 the input
        embedding of each completion token is mixed with that of the student's own greedy guess of it.
        """
        model = _causal_lm(self.student)
        embeddings = None
        if embedding_mix > 0:
            embeddings = mixed_embeddings(model, batch, embedding_mix, self.head.chunk)
        states = completion_states(model, batch, embeddings)
        targets = batch.input_ids[:, 1:][batch.mask]
        columns = self.head(states, targets, keys, reference_states, reference_head, plain=plain)
        return {name: _scatter(column, batch.mask) for name, column in columns.items()}


class TokenHead(nn.Module):
    """From final hidden states to what is asked of every token, with at most ``chunk`` logits at once.

    Where the tokens have more, the vocabulary is walked in tiles (``tiled_logprobs``) or, for ``terms``, tokens in
    chunks whose logits are computed again in the backward pass (``chunked``); so memory does not grow with tokens times
    vocabulary. ``terms`` makes further per-token quantities of the logits. A head that is no linear layer holds all
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
        return list(_causal_lm(self._student[0]).get_output_embeddings().parameters())

    def forward(
        self,
        states: Tensor,
        targets: Tensor,
        keys: Tensor | None = None,
        reference_states: Tensor | None = None,
        reference_head: Tensor | None = None,
        *,
        plain: bool = False,
    ) -> dict[str, Tensor]:
        """Return ``logprobs`` and, unless ``plain``, every term, [N] each, of final hidden ``states`` [N, d]."""
        model = _causal_lm(self._student[0])
        head = model.get_output_embeddings()
        linear = type(head) is nn.Linear
        terms = None if plain else self.terms
        logits = len(targets) * _vocabulary(model)
        if terms is None and linear and head.bias is None and not _logit_cap(model) and logits > self.chunk // _TILES:
            scale, tile = _logit_scale(model), self.chunk // _TILES
            return {"logprobs": tiled_logprobs(states, head.weight, targets, scale=scale, tile=tile)}

        def values(logits: Tensor, targets: Tensor, keys: Tensor | None, base: Tensor | None) -> dict[str, Tensor]:
            found = {"logprobs": -F.cross_entropy(logits, targets, reduction="none")}
            if terms is not None:
                base_logits = None if base is None or reference_head is None else _wide(F.linear(base, reference_head))
                found |= terms(TokenLogits(logits, targets, keys, finish_logits(model, base_logits)))
            return found

        if not linear or logits <= self.chunk:
            return values(apply_head(model, states), targets, keys, reference_states)

        def compute(states: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> dict[str, Tensor]:
            return values(_finished(model, F.linear(states, weight, bias)), *rest)

        size = max(1, self.chunk // _vocabulary(model))
        return chunked(compute, states, head.weight, head.bias, (targets, keys, reference_states), size)


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
    hidden = model.get_decoder()(**given, use_cache=False).last_hidden_state
    return hidden[:, :-1].flatten(0, 1).index_select(0, _positions(batch.mask))


def apply_head(model: Any, states: Tensor) -> Tensor:
    """Return the model's logits of final hidden states [N, d]: [N, V], fp32 at least."""
    return _finished(model, model.get_output_embeddings()(states))


def finish_logits(model: Any, logits: Tensor | None) -> Tensor | None:
    """Scale and cap raw logits as the model's family does (Gemma caps; Cohere multiplies; Granite divides)."""
    if logits is None:
        return None
    scale, cap = _logit_scale(model), _logit_cap(model)
    logits = logits if scale == 1.0 else logits * scale
    return torch.tanh(logits / cap) * cap if cap else logits


def _finished(model: Any, logits: Tensor) -> Tensor:
    finished = finish_logits(model, _wide(logits))
    assert finished is not None
    return finished


def mixed_embeddings(model: Any, batch: Batch, share: float, chunk: int = CHUNK_LOGITS) -> Tensor:
    """Mix the input embedding of each completion token with that of the model's greedy guess of it: [B, T + 1, d].

    The embedding is ``(1 - share) e(token) + share e(guess)``; guesses are made teacher-forced, without gradient.
    """
    with torch.no_grad():
        states = completion_states(model, batch)
        size = max(1, chunk // _vocabulary(model))
        guesses = torch.cat([apply_head(model, part).argmax(-1) for part in states.split(size)])
    guessed = batch.input_ids.clone()
    guessed[:, 1:][batch.mask] = guesses
    embed = model.get_input_embeddings()
    weights = torch.zeros(guessed.shape, dtype=torch.float32, device=guessed.device)
    weights[:, 1:][batch.mask] = share
    own = embed(batch.input_ids)
    return torch.lerp(own, embed(guessed), weights.to(own.dtype)[..., None])


def _causal_lm(student: Any) -> Any:
    return student.get_base_model() if hasattr(student, "peft_config") else student


def _logit_scale(model: Any) -> float:
    config = model.config.get_text_config()
    return (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)


def _logit_cap(model: Any) -> float | None:
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    empty = torch.zeros(mask.numel(), dtype=values.dtype, device=values.device)
    return empty.index_copy(0, _positions(mask), values).view(mask.shape)


def _positions(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().squeeze(-1)
