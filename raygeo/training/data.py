"""What a worker reads, opened once a run, and the loss inputs of one micro-batch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from raygeo.geometry.probes import Probe
from raygeo.losses.base import Example, Loss, LossInputs
from raygeo.rollouts.behaviour import behaviour_logprobs
from raygeo.rollouts.reference import ReferenceStatesFile, open_reference, open_reference_states
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.store import Store
from raygeo.students.checkpoint import Checkpoint
from raygeo.students.encoding import Batch, collate
from raygeo.training.inputs import RunInputs

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
class Data:
    """Everything one run learns from."""

    rollouts: Scored
    examples: list[Example]
    pad_id: int
    behaviour: np.ndarray | None = None
    states: ReferenceStatesFile | None = None
    head: Tensor | None = None
    mismatched: Scored | None = None
    heldout: Probe | None = None

    @property
    def tokens(self) -> RolloutTokens:
        """Tokens of the training rows."""
        return self.rollouts.tokens

    def rows(self, examples: np.ndarray) -> list[int]:
        """Rollout rows of examples, in order."""
        return [row for i in examples for row in self.examples[i].rows]

    def example_lengths(self, indices: np.ndarray) -> np.ndarray:
        """Token length of each example's longest row: [len(indices)]."""
        return np.array([max(self.tokens.lengths[r] for r in self.examples[i].rows) for i in indices])


@dataclass(frozen=True)
class MicroBatch:
    """The inputs of one forward pass and of the loss after it, on the worker's device."""

    batch: Batch
    model_inputs: dict[str, Any]
    loss_inputs: dict[str, Any]


def open_data(loss: Loss, store: Store, inputs: RunInputs) -> Data:
    """Open tokens and whatever else ``loss`` needs, and let it select its examples from the training split."""
    rollouts = store.read_unit("rollouts", inputs.rollouts)
    rollouts = rollouts.filter(pc.equal(rollouts["split"], "train"))
    tokens = RolloutTokens.open(inputs.tokens)
    needs = loss.needs
    states = inputs.reference_states if "reference_logits" in needs else None
    mismatched = None
    if "mismatched" in needs and inputs.mismatched is not None and inputs.mismatched_reference is not None:
        mismatched = Scored(RolloutTokens.open(inputs.mismatched), open_reference(inputs.mismatched_reference))
    return Data(
        rollouts=Scored(
            tokens, open_reference(inputs.reference) if "reference" in needs and inputs.reference is not None else None
        ),
        examples=loss.select(rollouts).examples,
        pad_id=inputs.pad_id,
        behaviour=behaviour_logprobs(rollouts, tokens) if "behaviour" in needs else None,
        states=None if states is None else open_reference_states(states),
        head=None if states is None else Checkpoint(inputs.student).head(),
        mismatched=mismatched,
        heldout=None if inputs.heldout is None else Probe.load(inputs.heldout),
    )


def micro_batch(data: Data, loss: Loss, examples: np.ndarray, seed: int, step: int, device: Any) -> MicroBatch:
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
    if data.states is not None and data.head is not None:
        spans = [data.tokens.completion_offsets[row : row + 2] for row in rows]
        model_inputs["reference_states"] = torch.cat([data.states.rows(*span) for span in spans]).to(device)
        model_inputs["reference_head"] = data.head.to(device, model_inputs["reference_states"].dtype)
    return MicroBatch(padded.to(device), model_inputs, loss_inputs)


def loss_inputs(micro: MicroBatch, outputs: dict[str, Tensor], kl_baseline: Tensor | None) -> LossInputs:
    """Join what the model gave (``Likelihood``) with what the data gave."""
    terms = {name: value for name, value in outputs.items() if name != "logprobs"}
    return LossInputs(logprobs=outputs["logprobs"], terms=terms, kl_baseline=kl_baseline, **micro.loss_inputs)


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


def token_keys(tokens: RolloutTokens, rows: list[int], seed: int, step: int) -> np.ndarray:
    """Name each completion token of the rows at one step: [N] int64, in row order; what its random draws come from."""
    spans = [np.arange(*tokens.completion_offsets[row : row + 2], dtype=np.uint64) for row in rows]
    with np.errstate(over="ignore"):
        offset = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + (np.uint64(step) << np.uint64(_TOKEN_BITS))
        return (np.concatenate(spans) + offset).view(np.int64)
