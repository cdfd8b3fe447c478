"""What a worker reads, opened once a run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raygeo.data.probes import Probe
from raygeo.data.reference import open_reference, open_reference_states
from raygeo.data.teacher import open_teacher_top
from raygeo.data.tokens import RolloutTokens
from raygeo.losses.base import Example, Loss, Need
from raygeo.losses.batches import LossData, Scored
from raygeo.models.checkpoint import Checkpoint
from raygeo.store import Store
from raygeo.training.engine import rank_0_first
from raygeo.training.inputs import RunInputs
from raygeo.training.selections import open_behaviour, open_selection


@dataclass(frozen=True)
class Data(LossData):
    """Everything one run learns from, and the probe whose NLL is measured on the way, if there is one."""

    heldout: Probe | None = None

    def example_lengths(self, indices: np.ndarray) -> np.ndarray:
        """Token length of each example's longest row: [len(indices)]."""
        return np.array([max(self.tokens.lengths[r] for r in self.examples[i].rows) for i in indices])

    def example_tokens(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of all rows of each example, or of their mismatched ones if these are more: [len(indices)]."""
        lengths = self.tokens.lengths
        if self.mismatched is not None:
            lengths = np.maximum(lengths, self.mismatched.tokens.lengths)
        return np.array([sum(lengths[r] for r in self.examples[i].rows) for i in indices])


def open_data(loss: Loss, store: Store, inputs: RunInputs, needs: frozenset[Need] | None = None) -> Data:
    """Map tokens, the examples that ``loss`` selects of the training split, and what else it ``needs`` into memory.

    ``needs`` are by default all of the loss's. What is not in the store yet is made by rank 0.
    """
    tokens = RolloutTokens.open(inputs.tokens)
    needs = loss.needs if needs is None else needs

    def examples() -> Sequence[Example]:
        return open_selection(store, loss, inputs.rollouts)

    def behaviour() -> np.ndarray | None:
        return open_behaviour(store, inputs.rollouts, inputs.tokens, tokens) if "behaviour" in needs else None

    states = inputs.reference_states if "reference_logits" in needs else None
    mismatched = None
    if "mismatched" in needs and inputs.mismatched is not None and inputs.mismatched_reference is not None:
        mismatched = Scored(RolloutTokens.open(inputs.mismatched), open_reference(inputs.mismatched_reference))
    return Data(
        rollouts=Scored(
            tokens, open_reference(inputs.reference) if "reference" in needs and inputs.reference is not None else None
        ),
        examples=rank_0_first(examples),
        pad_id=inputs.pad_id,
        behaviour=rank_0_first(behaviour),
        states=None if states is None else open_reference_states(states),
        head=None if states is None else Checkpoint(inputs.referred or inputs.student).head(),
        mismatched=mismatched,
        teacher=open_teacher_top(inputs.teacher) if "teacher" in needs and inputs.teacher is not None else None,
        heldout=None if inputs.heldout is None else Probe.load(inputs.heldout),
    )
