"""How sure a model is of the next token of fixed texts, and how far that is from how often it is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from raygeo.geometry.connectivity.barriers import Array
from raygeo.students.encoding import Batch
from raygeo.students.likelihood import CHUNK_LOGITS, apply_head, completion_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BINS = 15


class Calibration(NamedTuple):
    """Mean largest probability, share of tokens where its token is the text's, and expected calibration error."""

    confidence: float
    agreement: float
    ece: float


def calibration(model: PreTrainedModel, batches: Sequence[Batch]) -> Calibration:
    """Calibration over the completion tokens of ``batches``, teacher-forced, each token counted once."""
    confidence, right = token_confidences(model, batches)
    return Calibration(float(confidence.mean()), float(right.mean()), expected_calibration_error(confidence, right))


def expected_calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> float:
    """Mean over items of |share right - mean confidence| of the item's bin (Guo et al., arXiv:1706.04599, eq. 3).

    Args:
        confidence: [N] in (0, 1]; bins are (i / bins, (i + 1) / bins].
        right: [N], 1 where the prediction is right, 0 where it is not.
        bins: number of bins of equal width.
    """
    p, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    where = np.clip(np.ceil(p * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(where, weights=hit - p, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


@torch.inference_mode()
def token_confidences(model: PreTrainedModel, batches: Sequence[Batch]) -> tuple[Array, Array]:
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
            largest, guess = apply_head(model, states).softmax(-1).max(-1)
            confidences.append(largest.double().cpu())
            hits.append((guess == target).double().cpu())
    return torch.cat(confidences).numpy(), torch.cat(hits).numpy()
