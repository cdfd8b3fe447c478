"""Log-probabilities of completion tokens under a causal language model, from logits of completion tokens alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from raygeo.students.encoding import Batch
from raygeo.students.head import tiled_logprobs

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
    """A student as training sees it: from a batch to log-probabilities, never more logits than ``chunk`` at once.

    Where the completion tokens have more, the vocabulary is walked in tiles (``tiled_logprobs``) or, for ``terms`` and
    for heads that are no plain matrix, tokens in chunks whose logits are computed again in the backward pass; so memory
    does not grow with tokens times vocabulary. ``terms`` makes further per-token quantities of the logits.
    """

    def __init__(self, student: nn.Module, terms: Terms | None = None, chunk: int = CHUNK_LOGITS):
        super().__init__()
        self.student = student
        self.terms = terms
        self.chunk = chunk

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
            embeddings = mixed_embeddings(model, batch, embedding_mix, self.chunk)
        states = completion_states(model, batch, embeddings)
        targets = batch.input_ids[:, 1:][batch.mask]
        terms = None if plain else self.terms
        if terms is None and len(targets) * _vocabulary(model) > self.chunk // _TILES and _plain_head(model):
            weight = model.get_output_embeddings().weight
            scale, tile = _logit_scale(model), self.chunk // _TILES
            return {"logprobs": _scatter(tiled_logprobs(states, weight, targets, scale=scale, tile=tile), batch.mask)}

        def compute(states: Tensor, targets: Tensor, keys: Tensor | None, base: Tensor | None) -> tuple[Tensor, ...]:
            logits = apply_head(model, states)
            values = {"logprobs": -F.cross_entropy(logits, targets, reduction="none")}
            if terms is not None:
                base_logits = None if base is None or reference_head is None else _wide(F.linear(base, reference_head))
                values |= terms(TokenLogits(logits, targets, keys, finish_logits(model, base_logits)))
            self._names = tuple(values)
            return tuple(values.values())

        parts = []
        size = max(1, self.chunk // _vocabulary(model))
        for start in range(0, len(targets), size):
            part: list[Any] = [
                None if x is None else x[start : start + size] for x in (states, targets, keys, reference_states)
            ]
            if torch.is_grad_enabled() and len(targets) > size:
                # The older, reentrant kind: ZeRO-3 gathers and frees the head's weights anew at each computation.
                parts.append(checkpoint(compute, *part, use_reentrant=True))
            else:
                parts.append(compute(*part))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        return {name: _scatter(column, batch.mask) for name, column in zip(self._names, columns, strict=True)}


def token_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """Return log p(token t + 1 | tokens up to t) as [B, T] fp32, zero where ``batch.mask`` is false.

    Logits are computed for completion tokens alone. The log-softmax is taken in fp32 at least (fp64 stays fp64).
    Differentiable, twice where its attention is made of plain matrix products, with all logits held; without gradients they are not.
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
    logits = finish_logits(model, _wide(model.get_output_embeddings()(states)))
    assert logits is not None
    return logits


def finish_logits(model: Any, logits: Tensor | None) -> Tensor | None:
    """Scale and cap raw logits as the model's family does (Gemma caps; Cohere multiplies; Granite divides)."""
    if logits is None:
        return None
    scale, cap = _logit_scale(model), _logit_cap(model)
    logits = logits if scale == 1.0 else logits * scale
    return torch.tanh(logits / cap) * cap if cap else logits


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


def _plain_head(model: Any) -> bool:
    """Whether logits are states times a matrix that is whole on this worker, but for a scale."""
    head = model.get_output_embeddings()
    return type(head) is nn.Linear and head.bias is None and not hasattr(head.weight, "ds_id") and not _logit_cap(model)


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    empty = torch.zeros(mask.numel(), dtype=values.dtype, device=values.device)
    return empty.index_copy(0, _positions(mask), values).view(mask.shape)


def _positions(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().squeeze(-1)
