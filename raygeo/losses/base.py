"""The contract of a loss: the rows it learns from, their weights, and a sum over tokens, sequences or pairs.

Shapes: ``B`` sequences, ``T`` target positions (position ``t`` predicts token ``t + 1`` of the input), ``P`` pairs.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pyarrow as pa
import torch
from torch import Tensor

from raygeo.models.likelihood import TokenLogits
from raygeo.settings import Settings

Unit = Literal["token", "sequence", "pair"]
Need = Literal["reference", "reference_logits", "behaviour", "mismatched", "teacher"]
FROM_BASE: frozenset[Need] = frozenset({"reference", "reference_logits", "mismatched"})
"""Needs that the base model meets, so in the precision of the runs."""


@dataclass(frozen=True)
class Example:
    """What one step of the loss indivisibly consumes: one rollout row, or two for a pair (chosen first).

    ``rows`` index the rollout table; ``weights`` hold one number per row: what the loss makes of it (1, a reward, a
    group advantage) times what it was given to count.
    """

    rows: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Selection:
    """The examples a loss learns from and every count a reader should know (rows dropped, pairs made)."""

    examples: list[Example]
    counts: dict[str, int]


@dataclass(frozen=True)
class LossInputs:
    """One micro-batch. Prompt and padding positions are 0 in ``mask``.

    ``logprobs`` [B, T] fp32, with gradient; ``mask`` [B, T] bool; ``weights`` [B] fp32; ``pairs`` [P, 2] int64, rows of
    the batch, chosen first. Present when the loss needs them, fp32 and without gradient: ``reference_logprobs`` [B, T]
    of the base, ``behaviour_logprobs`` [B, T] of the model that wrote the rollouts, ``kl_baseline`` [], the mean over
    the whole step's examples of log p / p_base of their mismatched completions. ``terms`` hold what the loss's own
    ``token_terms`` made of the logits, [B, T] each, with gradient; ``prompt_logprobs`` [B, T] fp32, with gradient,
    those of prompt tokens, 0 elsewhere, where the loss reads prompts.
    """

    logprobs: Tensor
    mask: Tensor
    weights: Tensor
    reference_logprobs: Tensor | None = None
    pairs: Tensor | None = None
    behaviour_logprobs: Tensor | None = None
    kl_baseline: Tensor | None = None
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    prompt_logprobs: Tensor | None = None


@dataclass(frozen=True)
class LossOutput:
    """``total`` [] is a sum in ``unit`` units over the micro-batch; the trainer divides by their global count.

    ``metrics`` are sums too, each with its own unit, divided in the same way: name -> (sum [], unit).
    """

    total: Tensor
    unit: Unit
    metrics: dict[str, tuple[Tensor, Unit]] = field(default_factory=dict)


class Loss(Settings):
    """A loss is its settings: a frozen model with a ``type`` literal, a selection rule and a formula.

    ``title``, ``paper`` and ``formula`` are for people; every option has a default.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]
    order: ClassVar[int] = 1000
    """Where the loss stands among all: those with smaller numbers come first, then by type."""
    revision: ClassVar[int] = 1
    """Part of the key of every run with the loss: raise it with any change to what the loss computes or selects."""
    in_groups: ClassVar[bool] = True
    """Whether ``loss: all`` and its like hold it; not where it needs what most studies have not."""
    variants: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Options, besides the defaults, that tests should go through."""

    type: str = ""
    """Names the loss; empty in classes that several losses share, or that studies name as ``module:class``."""

    @property
    def label(self) -> str:
        """What runs with it are called after: its type, without the module that this may name."""
        return self.type.rpartition(":")[2]

    @property
    def needs(self) -> frozenset[Need]:
        """What must be given besides the rollouts' tokens and verdicts; may depend on the settings.

        ``reference``: log-probabilities of the base; ``reference_logits``: the base's logits over the vocabulary, for
        ``token_terms``; ``behaviour``: log-probabilities of the model that wrote the rollouts, recorded with them;
        ``mismatched``: the KL baseline, from each prompt with a completion of another prompt (with ``reference``);
        ``teacher``: what is kept of a teacher's next-token laws at completion tokens, for ``token_terms``.
        """
        return frozenset()

    @property
    def embedding_mix(self) -> float:
        """Share of the model's own greedy guess in the input embedding of each completion token; 0 leaves inputs be."""
        return 0.0

    @property
    def kept_share(self) -> float:
        """Share of each step's examples, all single rows, that is learned from; below 1 ``choose`` says which."""
        return 1.0

    def sketches(self, targets: Tensor, logprobs: Tensor, mask: Tensor) -> Tensor:
        """What ``choose`` is told of each row: [B, D] fp64, made of its targets and their log-probabilities, [B, T]."""
        raise NotImplementedError

    def choose(self, sketches: Tensor, count: int) -> list[int]:
        """Choose ``count`` of a step's rows by their ``sketches`` [N, D]: their places, in order."""
        raise NotImplementedError

    @property
    def reads_prompts(self) -> bool:
        """Whether ``prompt_logprobs`` are asked for, which no loss with ``token_terms`` can."""
        return False

    def token_terms(self, tokens: TokenLogits) -> dict[str, Tensor]:
        """Compute per-token quantities that need whole logits: name -> [N], with gradient; none by default.

        Called on chunks of a micro-batch's completion tokens, so a token's value may depend on that token alone. The
        results are in ``LossInputs.terms``, and must not depend on how tokens are grouped.
        """
        return {}

    @property
    @abstractmethod
    def unit(self) -> Unit:
        """The unit by whose global count the trainer divides ``LossOutput.total``."""

    @abstractmethod
    def select(self, rollouts: pa.Table) -> Selection:
        """Choose examples from the training split of the rollout table (``raygeo.tables.SCHEMAS['rollouts']``).

        Deterministic; examples come in the order of their first row.
        """

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Compute the loss of one micro-batch."""


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum ``values`` [B, T] where ``mask`` [B, T] is true: [B]. Masked positions may hold anything, NaN included."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum(-1)
