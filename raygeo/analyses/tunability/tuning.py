"""A short supervised fine-tune of a student at the weights it has, which are put back afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from raygeo.errors import DeltaError
from raygeo.models.batches import TokenSequence, collate
from raygeo.models.likelihood import Likelihood
from raygeo.models.lora import LoraSettings, attach_lora

CLIP = 1.0
"""Gradients of a larger norm are scaled down to it."""


@contextmanager
def trainable(model: Any, lora: LoraSettings | None, seed: int) -> Iterator[Any]:
    """Give the model with all weights trainable, or with fresh adapters that alone are.

    On exit adapters are gone and parameters require gradients as before; weights that were trained themselves are for
    the caller to put back (``MixedWeights``).
    """
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    adapted = None
    try:
        if lora is None:
            model.requires_grad_(True)
            yield model
        else:
            adapted = attach_lora(model, lora, seed)
            yield adapted
    finally:
        if adapted is not None:
            adapted.unload()
        for parameter, flag in before.items():
            parameter.grad = None
            parameter.requires_grad_(flag)


def tune(
    model: nn.Module,
    texts: Sequence[TokenSequence],
    *,
    pad_id: int,
    steps: int,
    lr: float,
    batch_size: int,
    micro_batch_size: int,
    seed: int,
) -> list[float]:
    """Take so many steps of AdamW down the NLL of ``texts``, and return the batch's NLL before each, nats a token.

    Each epoch goes through the texts in a random order that ``seed`` decides, ``batch_size`` at a time; a step's loss
    is the token mean over its batch, however it is cut into micro-batches. AdamW has torch's betas, no weight decay and
    a constant learning rate; gradients are clipped at norm 1. The model stays in evaluation mode.

    Raises:
        DeltaError: the loss of a step is not finite.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    likelihood = Likelihood(model).train()
    device = next(model.parameters()).device
    losses: list[float] = []
    for rows in _batches(len(texts), batch_size, steps, seed):
        chosen = [texts[row] for row in rows]
        tokens = sum(text.completion_length for text in chosen)
        total = 0.0
        for start in range(0, len(chosen), micro_batch_size):
            batch = collate(chosen[start : start + micro_batch_size], pad_id).to(device)
            with torch.enable_grad():
                loss = -likelihood(batch, plain=True)["logprobs"].sum() / tokens
                loss.backward()
            total += loss.item()
        if not np.isfinite(total):
            raise DeltaError(f"the loss of tuning is {total} at step {len(losses) + 1}; lower geometry.tunability.lr.")
        losses.append(total)
        nn.utils.clip_grad_norm_(trained, CLIP)
        adam.step()
        adam.zero_grad(set_to_none=True)
    return losses


def _batches(texts: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Rows of each step's batch; the last of an epoch may be smaller."""
    rng = np.random.default_rng(seed)
    done = 0
    while True:
        order = rng.permutation(texts).tolist()
        for start in range(0, texts, batch_size):
            if done == steps:
                return
            yield order[start : start + batch_size]
            done += 1
