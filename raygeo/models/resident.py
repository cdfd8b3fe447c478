"""The base student, loaded once, whose weights are set to those of runs and of mixtures of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from raygeo.models.loading import Loading
from raygeo.models.mix import MixedWeights, Mixture
from raygeo.models.run import Run
from raygeo.store import AnyPath

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Value = TypeVar("Value")


@dataclass(frozen=True)
class ResidentStudent:
    """A student, its tokenizer, and its weights, which can be set to any mixture of the deltas it was loaded for."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights: MixedWeights

    @property
    def pad_id(self) -> int:
        """The token that batches are padded with."""
        return int(self.tokenizer.pad_token_id)

    @classmethod
    def load(cls, base: AnyPath, runs: Sequence[Run], *, dtype: torch.dtype | None = None) -> ResidentStudent:
        """Load the student in folder ``base`` with room for the deltas of ``runs``, and held as these say.

        ``dtype`` is what weights are held in whatever runs say: fp32 for what is differentiated.

        Raises:
            StudentError: there is no usable student in ``base``.
            DeltaError: a delta cannot be opened, or names a parameter that the student lacks.
        """
        loading = runs[0].loading if runs else Loading()
        model, tokenizer = loading.load(base, dtype=dtype)
        deltas = [delta for run in runs if (delta := run.open()) is not None]
        return cls(model, tokenizer, MixedWeights(model, {name for delta in deltas for name in delta}))


class Measured(Generic[Value]):
    """A function of a student's weights: at mixtures, and at runs, where it is computed once and remembered.

    Args:
        student: the student.
        measure: what is computed of its model; it leaves the weights alone.
    """

    def __init__(self, student: ResidentStudent, measure: Callable[[PreTrainedModel], Value]):
        self._student, self._measure = student, measure
        self._known: dict[tuple[Run, float], Value] = {}

    def at(self, terms: Mixture) -> Value:
        """The value at base + sum of coefficient * delta."""
        with self._student.weights.mixed(terms):
            return self._measure(self._student.model)

    def at_run(self, run: Run, scale: float = 1.0) -> Value:
        """The value at base + scale * the run's delta."""
        if (run, scale) not in self._known:
            self._known[run, scale] = self.at(run.mixture(scale))
        return self._known[run, scale]
