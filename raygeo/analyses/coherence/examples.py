"""The examples whose gradients are compared: drawn, given what their loss needs of the base, and differentiated."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raygeo.data.behaviour import behaviour_logprobs
from raygeo.data.mismatched import mismatch
from raygeo.data.reference import ReferenceStatesFile
from raygeo.data.teacher import TeacherTopFile
from raygeo.data.tokens import RolloutTokens
from raygeo.losses.base import Example, Loss
from raygeo.losses.batches import LossData, Scored, micro_batch, micro_loss, mismatched_log_ratio
from raygeo.models.batches import collate
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.likelihood import Likelihood, completion_states, token_logprobs
from raygeo.models.loading import context_length
from raygeo.store import AnyPath


def draw_examples(losses: Sequence[Loss], rollouts: pa.Table, count: int, seed: int) -> dict[Loss, dict[str, Example]]:
    """Draw one example a prompt for each loss, of at most ``count`` prompts: loss -> prompt -> example.

    Every loss selects, and so weighs, its examples from the whole training split ``rollouts`` first. Prompts that all
    losses learn from come first, in one order for all; of a prompt each loss takes the example whose first row comes
    first in one order of all rows. So losses that select the same rows are compared on the same ones.
    """
    prompts = rollouts["prompt_id"].to_pylist()
    generator = np.random.default_rng(seed)
    rank = generator.permutation(len(prompts))
    order = generator.permutation(sorted(set(prompts))).tolist()
    found: dict[Loss, dict[str, Example]] = {}
    for loss in losses:
        chosen = found[loss] = {}
        for example in sorted(loss.select(rollouts).examples, key=lambda example: rank[example.rows[0]]):
            chosen.setdefault(prompts[example.rows[0]], example)
    shared = set.intersection(*(set(chosen) for chosen in found.values()))
    order.sort(key=lambda prompt: prompt not in shared)
    return {
        loss: {prompt: chosen[prompt] for prompt in [prompt for prompt in order if prompt in chosen][:count]}
        for loss, chosen in found.items()
    }


@dataclass(frozen=True)
class Drawn:
    """The examples of one loss, one for each of ``prompts``, with all that the loss needs of data and student."""

    loss: Loss
    prompts: list[str]
    data: LossData
    student: Likelihood


def open_examples(
    base: AnyPath,
    model: Any,
    pad_id: int,
    loss: Loss,
    chosen: Mapping[str, Example],
    rollouts: pa.Table,
    tokens: RolloutTokens,
    teacher: TeacherTopFile | None = None,
) -> Drawn:
    """What the drawn examples of one loss need, as training would open it for them alone.

    ``model`` is the one in the folder ``base``, with its own weights; ``tokens`` and a ``teacher``'s likeliest ones are
    those of all ``rollouts``.
    """
    rows = sorted({row for example in chosen.values() for row in example.rows})
    place = {row: i for i, row in enumerate(rows)}
    table, own = rollouts.take(rows), RolloutTokens.of([tokens[row] for row in rows])
    needs = loss.needs
    mismatched = None
    if "mismatched" in needs:
        foreign = mismatch(own, table["prompt_id"].to_pylist(), context_length(model.config))
        mismatched = Scored(foreign, _logprobs(model, foreign))
    data = LossData(
        rollouts=Scored(own, _logprobs(model, own) if "reference" in needs else None),
        examples=[Example(tuple(place[row] for row in e.rows), e.weights) for e in chosen.values()],
        pad_id=pad_id,
        behaviour=behaviour_logprobs(table, own) if "behaviour" in needs else None,
        states=_final_states(model, own) if "reference_logits" in needs else None,
        head=Checkpoint(base).head() if "reference_logits" in needs else None,
        mismatched=mismatched,
        teacher=None if teacher is None or "teacher" not in needs else _of_rows(teacher, tokens, rows),
    )
    terms = loss.token_terms if type(loss).token_terms is not Loss.token_terms else None
    return Drawn(loss, list(chosen), data, Likelihood(model, terms))


def example_gradients(
    every: Sequence[Drawn], parameters: Sequence[torch.nn.Parameter], seed: int
) -> Callable[[int, int], Iterator[Tensor]]:
    """Gradients of all examples at the weights the model has: ``gradients(start, end)`` gives those entries of each.

    A gradient is flat over ``parameters``, of what its example adds to a step before that is divided by its count.
    """
    ends = list(accumulate(value.numel() for value in parameters))
    device = parameters[0].device
    baselines = {drawn.loss: _kl_baseline(drawn, device) for drawn in every if "mismatched" in drawn.loss.needs}

    def gradients(start: int, end: int) -> Iterator[Tensor]:
        wanted = [i for i, last in enumerate(ends) if last > start and last - parameters[i].numel() < end]
        first = ends[wanted[0]] - parameters[wanted[0]].numel()
        for drawn in every:
            for index in range(len(drawn.prompts)):
                micro = micro_batch(drawn.data, drawn.loss, np.array([index]), seed, 0, device)
                total = micro_loss(drawn.student, drawn.loss, micro, baselines.get(drawn.loss)).total
                parts = torch.autograd.grad(total, [parameters[i] for i in wanted], materialize_grads=True)
                flat = torch.cat([part.flatten().to(device) for part in parts])
                yield flat[start - first : end - first]

    return gradients


def _kl_baseline(drawn: Drawn, device: torch.device) -> Tensor:
    """Mean over all examples' rows of log p / p_base of their mismatched completions, as in one step of them all: []"""
    examples = np.arange(len(drawn.prompts))
    total = mismatched_log_ratio(drawn.student, drawn.data, examples, device)
    return (total / len(drawn.data.rows(examples))).float()


def _of_rows(teacher: TeacherTopFile, tokens: RolloutTokens, rows: Sequence[int]) -> TeacherTopFile:
    """A teacher's likeliest tokens at the completion tokens of some rows, one behind the other."""
    return TeacherTopFile([teacher.entries(*tokens.completion_offsets[row : row + 2]) for row in rows])


@torch.no_grad()
def _logprobs(model: Any, tokens: RolloutTokens) -> np.ndarray:
    """The model's log-probabilities of all completion tokens, flat, row after row."""
    batches = (collate([tokens[row]], 0).to(model.device) for row in range(len(tokens)))
    return torch.cat([token_logprobs(model, batch)[batch.mask] for batch in batches]).cpu().numpy()


@torch.no_grad()
def _final_states(model: Any, tokens: RolloutTokens) -> ReferenceStatesFile:
    """The model's final hidden states from which completion tokens are predicted."""
    batches = (collate([tokens[row]], 0).to(model.device) for row in range(len(tokens)))
    states = torch.cat([completion_states(model, batch) for batch in batches])
    return ReferenceStatesFile([states.cpu().numpy()])
