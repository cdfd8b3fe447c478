"""Pretraining from scratch: Muon on the matrices, AdamW on the rest, batches of similar length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from raygeo.errors import StudentError
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.batches import Batch, TokenSequence, collate, length_buckets
from raygeo.models.likelihood import token_logprobs
from raygeo.models.loading import context_length
from raygeo.models.muon import Muon
from raygeo.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OnStep = Callable[[int, int, float], None]

REVISION = 2
"""Part of the content key of every student made here: another number wherever equal settings give another student."""

_WINDOW = 50  # batches sorted by length together
_CLIP = 1.0


class PretrainSettings(Settings):
    """How a model is pretrained."""

    renamed: ClassVar[dict[str, str]] = {"warmup": "warmup_steps"}

    steps: int = Field(600, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(32, ge=1)
    """Sequences per step."""
    lr: float = Field(6e-3, gt=0)
    """Peak learning rate of both optimizers; Muon's updates are scaled to the root mean square of AdamW's."""
    warmup_steps: int = Field(30, ge=0)
    """Steps of linear warm-up; the rate is then flat, and from half way on falls linearly to a tenth."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of the matrices; nothing else decays."""
    loss_on: Literal["all", "completion"] = "completion"
    """Tokens the loss is taken on: those of the completion, or the prompt's as well."""
    seed: int = 0
    """Seed of the order of the texts."""


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[tuple[str, str]],
    settings: PretrainSettings,
    on_step: OnStep | None = None,
) -> None:
    """Train ``model`` in place, on the device it is on, to continue each prompt of ``texts`` with its completion.

    The loss of a step is the mean negative log-likelihood (nats) over the batch's tokens, end-of-text included. Texts
    are visited in a seeded random order, again in another once all were seen; a batch holds texts of similar length.
    ``on_step(step, steps, loss)`` is called after each step, counted from 1. Matrices of the transformer blocks are
    trained with Muon (Jordan et al. 2024), the update scaled as in Liu et al. 2025 (arXiv:2502.16982), embeddings and
    vectors with AdamW (0.9, 0.95). With equal arguments, machine and thread count the result on a CPU is bitwise equal.

    Raises:
        StudentError: ``texts`` is empty, one exceeds the model's context, or the loss is not finite.
    """
    if not texts:
        raise StudentError("pretraining was given no texts; give at least one prompt with its completion.")
    batches = _plan(tokenizer, texts, settings)
    longest = max(len(sequence) for batch in batches for sequence in batch)
    context = context_length(model.config)
    if context is not None and longest > context:
        raise StudentError(
            f"pretraining: the longest text has {longest} tokens, more than the model's context of "
            f"{context}. Raise context or drop long texts."
        )
    optimizers = _optimizers(model, settings)
    schedules = [LambdaLR(optimizer, lambda step: _rate(step, settings)) for optimizer in optimizers]
    model.train()
    for step, sequences in enumerate(batches, start=1):
        loss = _mean_nll(model, collate(sequences, tokenizer.pad_token_id).to(model.device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        value = loss.item()
        if not math.isfinite(value):
            raise StudentError(f"pretraining diverged at step {step}: the loss is {value}. Lower lr={settings.lr}.")
        if on_step is not None:
            on_step(step, settings.steps, value)
    model.eval()


def _plan(
    tokenizer: PreTrainedTokenizerBase, texts: list[tuple[str, str]], settings: PretrainSettings
) -> list[list[TokenSequence]]:
    rng = Random(settings.seed)
    total = settings.steps * settings.batch_size
    order: list[int] = []
    while len(order) < total:
        order += rng.sample(range(len(texts)), len(texts))
    order = order[:total]
    renderer = PlainRenderer(tokenizer)
    encoded = {number: renderer.encode(*texts[number]) for number in dict.fromkeys(order)}
    if settings.loss_on == "all":
        encoded = {number: replace(sequence, prompt_length=1) for number, sequence in encoded.items()}
    batches = []
    for start in range(0, total, _WINDOW * settings.batch_size):
        window = [encoded[number] for number in order[start : start + _WINDOW * settings.batch_size]]
        buckets = length_buckets([len(sequence) for sequence in window], settings.batch_size)
        batches += [[window[place] for place in bucket] for bucket in rng.sample(buckets, len(buckets))]
    return batches


def _mean_nll(model: PreTrainedModel, batch: Batch) -> Tensor:
    # Padding is on the right, where causal attention does not look, so the mask can be full, and the fast kernel used.
    full = replace(batch, attention_mask=torch.ones_like(batch.attention_mask))
    return -token_logprobs(model, full).sum() / batch.tokens


def _optimizers(model: PreTrainedModel, settings: PretrainSettings) -> list[Optimizer]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(p) for end in ends for p in end.parameters()}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    rest = [p for p in model.parameters() if p.ndim != 2 or id(p) in embeddings]
    return [
        Muon(matrices, lr=settings.lr, weight_decay=settings.weight_decay),
        AdamW(rest, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _rate(step: int, settings: PretrainSettings) -> float:
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    progress = step / settings.steps
    return warm * min(1.0, 1.0 - 0.9 * (progress - 0.5) / 0.5)
