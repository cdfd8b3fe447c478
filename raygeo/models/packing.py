"""Whether rows of a batch can lie one behind the other, without padding, and none see another."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from raygeo.errors import StudentError
from raygeo.models.batches import Batch
from raygeo.models.likelihood import decoder
from raygeo.models.loading import model_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedConfig

_MASKED = {"full_attention", "sliding_attention", "chunked_attention"}
_LENGTHS = (5, 9, 3)
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Largest difference of a log-probability that may be rounding; that of a text behind another one is larger."""


def check_packing(config: PreTrainedConfig) -> None:
    """Refuse a student of ``config`` whose rows a mask cannot keep apart; no weights are needed.

    Raises:
        StudentError: it carries a state from token to token, or takes positions from elsewhere than ``position_ids``.
    """
    model: Any = model_shape(config)
    text = config.get_text_config()
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _MASKED)
    reason = None
    if getattr(model, "_is_stateful", False) or others:
        kinds = f" ({', '.join(others)})" if others else ""
        reason = f"its layers{kinds} carry a state from one token to the next, which no mask stops"
    elif getattr(text, "alibi", False) or "position_ids" not in inspect.signature(decoder(model).forward).parameters:
        reason = "it does not take the positions of tokens from position_ids"
    if reason is not None:
        raise StudentError(_refusal(type(model).__name__, reason))


@torch.no_grad()
def check_packed(logprobs: Callable[[Batch, bool], Tensor], vocabulary: int, dtype: torch.dtype, family: str) -> None:
    """Refuse a student that gives rows lying one behind the other other log-probabilities than padded ones.

    ``logprobs`` computes those of a batch, padding-free or not: [B, T].

    Raises:
        StudentError: some differ by more than rounding.
    """
    width = max(_LENGTHS)
    ids = torch.randint(vocabulary, (len(_LENGTHS), width), generator=torch.Generator().manual_seed(0), device="cpu")
    real = torch.arange(width) < torch.tensor(_LENGTHS)[:, None]
    batch = Batch(ids, real.long(), real[:, 1:])
    gap = float((logprobs(batch, True) - logprobs(batch, False)).abs().max())
    if not gap <= _TOLERANCES[dtype]:
        raise StudentError(_refusal(family, f"log-probabilities of rows behind another differ by {gap:.2g} nats"))


def _refusal(family: str, reason: str) -> str:
    return f"padding_free: {family} cannot take rows one behind the other: {reason}. Leave it out."
