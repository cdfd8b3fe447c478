"""Whether a model is one that can be trained, measured and asked here, tried on a few tokens before anything starts.

Families differ in more than their weights. What the rest relies on is held to the model's own forward pass: logits are
its output embedding applied to its final states; no token depends on a later one; dropout is off; an answer written
with a cache beside longer prompts is the one written alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raygeo.errors import StudentError
from raygeo.models.batches import Batch
from raygeo.models.cached import next_logits
from raygeo.models.likelihood import apply_head, completion_states
from raygeo.models.loading import load_student
from raygeo.store import AnyPath

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTHS = (7, 4)
_DRAWS = 3
_TOLERANCE = 1e-3


def check_student(path: AnyPath) -> PreTrainedModel:
    """Load the student under ``path``, in fp32 on the CPU, and refuse it where it cannot be used.

    Raises:
        StudentError: it cannot be loaded, a weight is not finite, or its family does something that raygeo cannot
            follow, with the reason.
    """
    model, tokenizer = load_student(path)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise StudentError(f"student {str(path)!r}: {name} holds NaN or infinity; fetch or save the model again.")
    reason = unsupported(model, int(tokenizer.pad_token_id))
    if reason is not None:
        raise StudentError(f"student {str(path)!r}: {type(model).__name__} is not supported: {reason}.")
    return model


@torch.no_grad()
def unsupported(model: PreTrainedModel, pad_id: int) -> str | None:
    """Why models of this family cannot be used, or None; ``model`` has its weights and is in evaluation mode."""
    if model.config.is_encoder_decoder:
        return "it is an encoder with a decoder"
    if model.get_input_embeddings() is None or model.get_output_embeddings() is None:
        return "it has no input or output embeddings of its own"
    # Where two experts are all but equally wanted, rounding chooses between them: what holds for some texts counts.
    first = None
    for seed in range(_DRAWS):
        reason = _differs(model, pad_id, seed)
        if reason is None:
            return None
        first = first or reason
    return first


def _differs(model: PreTrainedModel, pad_id: int, seed: int) -> str | None:
    """What two random texts show to be unlike what the rest relies on, or None."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    generator = torch.Generator().manual_seed(seed)
    long, short = (
        torch.randint(vocabulary, (1, length), generator=generator, device="cpu").to(model.device)
        for length in _LENGTHS
    )
    try:
        own, own_short = _logits(model, long), _logits(model, short)
        for what, failing in (
            ("its logits are not its output embedding applied to its final states", lambda: _ours(model, long, own)),
            ("a token depends on later ones", lambda: _causal(model, long, own, vocabulary)),
            ("padding behind a text changes it", lambda: _right_padded(model, short, own_short, pad_id)),
            (
                "with a cache, beside longer prompts, it does not answer as it does alone",
                lambda: _decoded(model, long, short, own, own_short, pad_id),
            ),
        ):
            if not failing():
                return what
    except Exception as error:  # each family's own
        return f"a forward pass fails ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
    return None


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits.float()


def _alike(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max().clamp(min=1e-6))


def _ours(model: Any, ids: Tensor, own: Tensor) -> bool:
    every = torch.ones_like(ids[:, 1:], dtype=torch.bool)
    states = completion_states(model, Batch(ids, torch.ones_like(ids), every))
    return _alike(apply_head(model, states), own[0, :-1])


def _causal(model: Any, ids: Tensor, own: Tensor, vocabulary: int) -> bool:
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % vocabulary
    return _alike(_logits(model, changed)[:, :-1], own[:, :-1])


def _right_padded(model: Any, ids: Tensor, own: Tensor, pad_id: int) -> bool:
    padded = torch.cat([ids, torch.full_like(ids[:, :2], pad_id)], 1)
    return _alike(_logits(model, padded)[:, : ids.shape[1]], own)


def _decoded(model: Any, long: Tensor, short: Tensor, own: Tensor, own_short: Tensor, pad_id: int) -> bool:
    """Both texts but their last tokens as a batch, padded on the left, then the last tokens with what is cached."""
    from transformers import DynamicCache

    width, gap = long.shape[1] - 1, long.shape[1] - short.shape[1]
    ids = torch.cat([long, torch.cat([torch.full_like(long[:, :gap], pad_id), short], 1)])
    mask = torch.ones_like(ids)
    mask[1, :gap] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    first = next_logits(model, ids[:, :width], mask[:, :width], positions[:, :width], cache)
    second = next_logits(model, ids[:, width:], mask, positions[:, width:], cache)
    expected_first = torch.cat([own[:, -2], own_short[:, -2]])
    expected_second = torch.cat([own[:, -1], own_short[:, -1]])
    return _alike(first, expected_first) and _alike(second, expected_second)
