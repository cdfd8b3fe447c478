"""From examples to their loss: what a loss needs of their rows, and the inputs of one forward pass and the loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raygeo.data.reference import ReferenceStatesFile
from raygeo.data.teacher import TeacherTopFile
from raygeo.data.tokens import RolloutTokens
from raygeo.losses.base import Example, Loss, LossInputs, LossOutput
from raygeo.models.batches import Batch, collate
from raygeo.models.likelihood import TopLogprobs

_TOKEN_BITS = 40


@dataclass(frozen=True)
class Scored:
    """Tokens of rollout rows and the base's log-probabilities of their completions, flat, where a loss needs them."""

    tokens: RolloutTokens
    reference: np.ndarray | None

    def batch(self, rows: list[int], pad_id: int) -> tuple[Batch, Tensor | None]:
        """Pad the rows; give the base's log-probabilities as [B, T]."""
        padded = collate([self.tokens[row] for row in rows], pad_id)
        return padded, _aligned(self.reference, self.tokens, rows, padded)


@dataclass(frozen=True)
class LossData:
    """The examples of one loss and all that it needs of their rows; what it does not need is None.

    ``behaviour`` are log-probabilities of the model that wrote the completions, flat; ``states`` the base's final
    hidden states and ``head`` its head, which make its logits; ``mismatched`` the prompts with completions of others;
    ``teacher`` a teacher's likeliest tokens.
    """

    rollouts: Scored
    examples: Sequence[Example]
    pad_id: int
    behaviour: np.ndarray | None = None
    states: ReferenceStatesFile | None = None
    head: tuple[Tensor, Tensor | None] | None = None
    mismatched: Scored | None = None
    teacher: TeacherTopFile | None = None

    @property
    def tokens(self) -> RolloutTokens:
        """Tokens of the rollout rows."""
        return self.rollouts.tokens

    def rows(self, examples: np.ndarray) -> list[int]:
        """Rollout rows of examples, in order."""
        return [row for i in examples for row in self.examples[i].rows]


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one forward pass and of the loss after it, on the model's device."""

    batch: Batch
    model_inputs: Mapping[str, Any]
    loss_inputs: Mapping[str, Any]


def micro_batch(data: LossData, loss: Loss, examples: np.ndarray, seed: int, step: int, device: Any) -> MicroBatch:
    """Assemble the examples' rows, in order; a token's key depends on seed, step, row and place alone."""
    rows = data.rows(examples)
    padded, reference = data.rollouts.batch(rows, data.pad_id)
    weights = [w for i in examples for w in data.examples[i].weights]
    loss_inputs: dict[str, Any] = {
        "mask": padded.mask.to(device),
        "weights": torch.tensor(weights, dtype=torch.float32, device=device),
        "reference_logprobs": None if reference is None else reference.to(device),
    }
    if data.behaviour is not None:
        loss_inputs["behaviour_logprobs"] = _aligned(data.behaviour, data.tokens, rows, padded).to(device)
    if loss.unit == "pair":
        loss_inputs["pairs"] = torch.arange(len(rows), device=device).view(-1, 2)
    model_inputs: dict[str, Any] = {}
    if loss.embedding_mix > 0:
        model_inputs["embedding_mix"] = loss.embedding_mix
    if type(loss).token_terms is not Loss.token_terms:
        model_inputs["keys"] = torch.from_numpy(token_keys(data.tokens, rows, seed, step)).to(device)
    spans = [data.tokens.completion_offsets[row : row + 2] for row in rows]
    if data.teacher is not None:
        parts = zip(*(data.teacher.rows(*span) for span in spans), strict=True)
        model_inputs["teacher"] = TopLogprobs(*(torch.cat(part).to(device) for part in parts))
    if data.states is not None and data.head is not None:
        model_inputs["reference_states"] = torch.cat([data.states.rows(*span) for span in spans]).to(device)
        dtype = model_inputs["reference_states"].dtype
        model_inputs["reference_head"] = tuple(x if x is None else x.to(device, dtype) for x in data.head)
    given = with_prompts(padded) if loss.reads_prompts else padded
    return MicroBatch(given.to(device), model_inputs, loss_inputs)


def with_prompts(batch: Batch) -> Batch:
    """The batch with every target marked that is no padding, those of prompts too."""
    return replace(batch, mask=batch.attention_mask[:, 1:].bool())


def apart(logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Log-probabilities [B, T] of the completions that ``mask`` marks, and those of the prompts before them."""
    return {"logprobs": logprobs.masked_fill(~mask, 0.0), "prompt_logprobs": logprobs.masked_fill(mask, 0.0)}


def micro_loss(student: Any, loss: Loss, micro: MicroBatch, kl_baseline: Tensor | None) -> LossOutput:
    """The loss of one micro-batch; ``student`` is a ``Likelihood``, or an engine around one."""
    outputs = student(micro.batch, **micro.model_inputs)
    terms = {name: value for name, value in outputs.items() if name != "logprobs"}
    known: dict[str, Any] = {"logprobs": outputs["logprobs"]}
    if loss.reads_prompts:
        known = apart(outputs["logprobs"], micro.loss_inputs["mask"])
    return loss(LossInputs(terms=terms, kl_baseline=kl_baseline, **known, **micro.loss_inputs))


@torch.no_grad()
def mismatched_log_ratio(student: Any, data: LossData, examples: np.ndarray, device: Any) -> Tensor:
    """Sum over the examples' rows of log p / p_base of their mismatched completions: [] fp64."""
    assert data.mismatched is not None
    padded, reference = data.mismatched.batch(data.rows(examples), data.pad_id)
    assert reference is not None
    logprobs = student(padded.to(device), plain=True)["logprobs"]
    return (logprobs - reference.to(device)).double().sum()


def token_keys(tokens: RolloutTokens, rows: list[int], seed: int, step: int) -> np.ndarray:
    """Name each completion token of the rows at one step: [N] int64, in row order; what its random draws come from."""
    spans = [np.arange(*tokens.completion_offsets[row : row + 2], dtype=np.uint64) for row in rows]
    with np.errstate(over="ignore"):
        offset = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + (np.uint64(step) << np.uint64(_TOKEN_BITS))
        return (np.concatenate(spans) + offset).view(np.int64)


def _aligned(flat: Any, tokens: RolloutTokens, rows: list[int], padded: Batch) -> Any:
    """Numbers of the rows' completion tokens as [B, T], zero elsewhere."""
    if flat is None:
        return None
    values = torch.zeros(padded.mask.shape, dtype=torch.float32)
    for place, row in enumerate(rows):
        start, end = tokens.completion_offsets[row : row + 2]
        first = tokens.prompt_lengths[row] - 1
        values[place, first : first + end - start] = torch.from_numpy(np.array(flat[start:end]))
    return values
