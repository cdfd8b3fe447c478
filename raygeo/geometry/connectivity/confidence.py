"""How sure a model is of the next token of fixed texts, and how far that is from how often it is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from raygeo.geometry.calibration import expected_calibration_error, top_confidence
from raygeo.models.batches import Batch
from raygeo.models.likelihood import CHUNK_LOGITS, apply_head, completion_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REVISION = 2
"""Counts the ways these numbers have been computed, so that no two meet under one key."""


class Calibration(NamedTuple):
    """Mean largest probability, share of tokens where its token is the text's, and expected calibration error."""

    confidence: float
    agreement: float
    ece: float


def calibration(model: PreTrainedModel, batches: Sequence[Batch]) -> Calibration:
    """Calibration over the completion tokens of ``batches``, teacher-forced, each token counted once."""
    confidence, right = token_confidences(model, batches)
    return Calibration(float(confidence.mean()), float(right.mean()), expected_calibration_error(confidence, right))


@torch.inference_mode()
def token_confidences(model: PreTrainedModel, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Largest probability at each completion token and whether the likeliest token is the text's, [tokens] fp64 each.

    Tokens stand in the order of ``batches``. The softmax is taken in fp32 at least; never more logits than
    ``likelihood.CHUNK_LOGITS`` are held. The model is put in eval mode.
    """
    model.eval()
    size = max(1, CHUNK_LOGITS // int(model.config.get_text_config().vocab_size))
    confidences, hits = [], []
    for batch in (batch.to(next(model.parameters()).device) for batch in batches):
        targets = batch.input_ids[:, 1:][batch.mask]
        for states, target in zip(completion_states(model, batch).split(size), targets.split(size), strict=True):
            largest, right = top_confidence(apply_head(model, states), target)
            confidences.append(largest.cpu())
            hits.append(right.cpu())
    return torch.cat(confidences), torch.cat(hits)
