"""Coherence of every run's own training loss, from per-example gradients made as training makes them."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import nn

from raygeo.analyses.coherence.examples import Drawn, draw_examples, example_gradients, open_examples
from raygeo.data.teacher import TOP_COLUMNS, TeacherTopFile, open_teacher_top
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import DeltaError
from raygeo.geometry.curvature.chain import checkpointed
from raygeo.geometry.representation.coherence import Array, Estimate, coherence, cut, gradient_gram
from raygeo.geometry.representation.projection import count_sketch, projected_grams, standard_error
from raygeo.losses.base import Example, Loss
from raygeo.losses.counting import units
from raygeo.models.mix import MixedWeights
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath, Store
from raygeo.tables import SCHEMAS, schema
from raygeo.workload import Rows, Task, Workload

COHERENCE = schema(
    """Of a run's own training loss, `at` the "base" or its own weights ("run"), over `n` examples: `coherence` in [0,
    n] is n |mean g|^2 / mean |g|^2, `pairwise` (coherence - 1) / (n - 1), which does not grow with n, and
    `pairwise_error` the standard error that projections add to it, null without them. `gradient_norm` is that of the
    loss as training divides it.""",
    "run, at: text; coherence, coherence_low, coherence_high, pairwise, pairwise_low, pairwise_high, pairwise_error, "
    "gradient_norm: float; n, parameters: int",
)
FEWEST = 3
"""Examples that a coherence is of."""


def _is_off(asked: bool | int | None) -> bool:
    return not asked


class CoherenceSettings(Settings):
    """Of which examples gradients are compared."""

    examples: int = Field(32, ge=3)
    """Prompts, with one example each; the same prompts for every loss as far as each loss learns from them."""
    seed: int = Field(0, ge=0)
    """Seed of the draw of prompts and examples, of losses that draw at random themselves, and of projections."""
    gradient_checkpointing: bool = Field(False, exclude_if=_is_off)
    """Keep the states between layers alone and compute each layer again for its gradients, which takes a forward pass
    more: for long texts and large students. The numbers are the same."""
    held_gradients: int = Field(2**28, ge=1)
    """Most gradient entries held at once, 1 GiB in fp32; where those of all examples are more, they are computed anew
    for each part of the weights, and at the base, where all losses' examples are compared, each part is a task."""
    projections: int | None = Field(None, ge=1024, exclude_if=_is_off)
    """Compare random projections of gradients onto so many numbers, so that each gradient is computed once and only
    one is held, and every loss is a task at the base: for many losses and large students. Inner products are then off
    by about 1 / sqrt(``projections``) of the lengths (65,536: 0.4 %), which the page shows; by default they are exact.
    """


@dataclass
class State:
    """The base student, and the examples of every loss: as they were drawn, and, once asked for, opened."""

    base: AnyPath
    model: nn.Module
    pad_id: int
    weights: MixedWeights
    parameters: dict[str, torch.nn.Parameter]
    rollouts: pa.Table
    tokens: RolloutTokens
    chosen: dict[Loss, dict[str, Example]]
    teacher: TeacherTopFile | None = None
    opened: dict[Loss, Drawn] = field(default_factory=dict)

    def examples(self, loss: Loss) -> Drawn:
        """The examples of a loss, with what the base says of them; the model must have the base's weights."""
        if loss not in self.opened:
            self.opened[loss] = open_examples(
                self.base, self.model, self.pad_id, loss, self.chosen[loss], self.rollouts, self.tokens, self.teacher
            )
        return self.opened[loss]

    @property
    def size(self) -> int:
        """Entries of a gradient."""
        return sum(value.numel() for value in self.parameters.values())


class GradientWorkload(Workload):
    """What tasks at the base and at runs share: the examples, and their gradients.

    An example's gradient is what it adds to a step before the trainer divides by the step's count: a sum over tokens
    under token normalisation, so long completions weigh more. Gradients are of the merged weights that any run's delta
    touches, never of LoRA factors, in fp32; references are computed in fp32 too, whatever precision runs were trained
    in.

    Args:
        settings: examples and sizes.
        runs: the runs; the base among them has no loss.
        base: folder of the base student.
        losses: the loss of every run by its name.
        store: where the rollouts are.
        rollouts: unit key of the rollout table.
        tokens: folder of the tokens of its training split.
        teacher: folder of a teacher's likeliest tokens at these, None where no loss learns from one.
        teacher_key: key of the teacher, None where its likeliest tokens came with the rollouts.
    """

    def __init__(
        self,
        settings: CoherenceSettings,
        runs: Sequence[Run],
        base: AnyPath,
        losses: Mapping[str, Loss],
        store: Store,
        rollouts: str,
        tokens: AnyPath,
        teacher: AnyPath | None = None,
        teacher_key: str | None = None,
    ):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base
        self.losses = {run.name: losses[run.name] for run in self.runs}
        self.store = store
        self.rollouts = rollouts
        self.tokens = tokens
        self.teacher, self.teacher_key = teacher, teacher_key

    def setup(self) -> State:
        """Load the base student once, and draw every loss's examples."""
        student = ResidentStudent.load(self.base, self.runs, dtype=torch.float32)
        columns = [name for name in SCHEMAS["rollouts"].names if name not in TOP_COLUMNS]
        rollouts = self.store.read_columns(SCHEMAS["rollouts"], "rollouts", self.rollouts, columns)
        rollouts = rollouts.filter(pc.equal(rollouts["split"], "train"))
        own = dict(student.model.named_parameters())
        return State(
            self.base,
            student.model,
            student.pad_id,
            student.weights,
            {name: own[name] for name in self.touched()},
            rollouts,
            RolloutTokens.open(self.tokens),
            draw_examples(self.distinct(), rollouts, self.settings.examples, self.settings.seed),
            teacher=None if self.teacher is None else open_teacher_top(self.teacher),
        )

    def distinct(self) -> list[Loss]:
        """The losses, each once."""
        return list(dict.fromkeys(self.losses.values()))

    def touched(self) -> list[str]:
        """The parameters that any run's delta changes, sorted."""
        return sorted({name for run in self.runs for name in run.open() or ()})

    def inputs(self) -> tuple[Any, ...]:
        """What all numbers depend on; a new loss may change the prompts."""
        losses = [[loss.revision, loss.model_dump(mode="json")] for loss in self.distinct()]
        taught = any("teacher" in loss.needs for loss in self.distinct())
        teacher = [self.teacher_key] if taught and self.teacher_key is not None else []
        return self.settings, self.rollouts, losses, self.touched(), *teacher

    def gram(self, state: State, every: Sequence[Drawn], parts: Sequence[tuple[int, int]], name: str) -> Array:
        """Gram matrix of all examples' gradients over parts of their entries, at the weights the model has.

        Raises:
            DeltaError: a gradient is not finite.
        """
        rows = sum(len(drawn.prompts) for drawn in every)
        gradients = example_gradients(every, list(state.parameters.values()), self.settings.seed)
        with self._checkpoints(state):
            gram = gradient_gram(gradients, rows, parts)
        return _finite(gram, name)

    def projected(self, state: State, drawn: Drawn, name: str) -> tuple[Array, Array]:
        """Projections [m, ``projections``] and squared lengths [m] of one loss's gradients, at the weights it has.

        Raises:
            DeltaError: a gradient is not finite.
        """
        size = self.settings.projections
        assert size is not None
        gradients = example_gradients([drawn], list(state.parameters.values()), self.settings.seed)
        projections, squares = [], []
        with self._checkpoints(state):
            for gradient in gradients(0, state.size):
                projections.append(count_sketch(gradient, size, self.settings.seed).cpu().numpy())
                squares.append(torch.linalg.vector_norm(gradient, dtype=torch.float64).square().item())
        return _finite(np.stack(projections), name), np.array(squares)

    def _checkpoints(self, state: State) -> Any:
        return checkpointed(state.model) if self.settings.gradient_checkpointing else nullcontext()


class Coherence(GradientWorkload):
    """How much examples' gradients of every run's own training loss agree with each other at its own weights.

    A task a run, which takes a forward and a backward pass an example; without projections again for each part that the
    weights are cut into (see ``CoherenceSettings.held_gradients``).
    """

    name = "coherence"
    tables: ClassVar = {"coherence": COHERENCE}

    def tasks(self) -> list[Task]:
        """One task a run; all cost the same."""
        inputs = self.inputs()
        return [
            Task(
                self.key("run", *inputs, run.name, run.key, self.losses[run.name]), 1.0, run, f"coherence of {run.name}"
            )
            for run in self.runs
        ]

    def compute(self, state: State, payload: Run) -> dict[str, Rows]:
        """Measure one run at its own weights."""
        drawn = state.examples(self.losses[payload.name])
        rows = len(drawn.prompts)
        with state.weights.mixed(payload.mixture()):
            if self.settings.projections is None:
                parts = cut(rows, state.size, self.settings.held_gradients)
                grams = [self.gram(state, [drawn], parts, payload.name)]
            else:
                grams = projected_grams(*self.projected(state, drawn, payload.name))
        return {"coherence": [coherence_row(payload.name, "run", divisor(drawn), state.size, grams)]}


def divisor(drawn: Drawn) -> int:
    """What training divides the sum of these examples by."""
    return units(drawn.data.examples, drawn.data.tokens.completion_lengths)[drawn.loss.unit]


def coherence_row(run: str, at: str, count: int, parameters: int, grams: Sequence[Array]) -> dict[str, Any]:
    """The row of a run from its gradients' Gram matrix, the first of ``grams``; more tell the error of projections.

    ``count`` is what training divides the sum of the examples by.
    """
    gram, *without = grams
    row: dict[str, Any] = {"run": run, "at": at, "n": len(gram)}
    if len(gram) < FEWEST:
        return row
    whole, pairwise = coherence(gram)
    return (
        row
        | columns("coherence", whole)
        | columns("pairwise", pairwise)
        | {
            "pairwise_error": standard_error([coherence(each)[1].value for each in without]),
            "gradient_norm": float(np.sqrt(max(gram.sum(), 0.0))) / count,
            "parameters": parameters,
        }
    )


def columns(name: str, estimate: Estimate) -> dict[str, float | None]:
    """An estimate as a table has it."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _finite(numbers: Array, name: str) -> Array:
    if not np.isfinite(numbers).all():
        raise DeltaError(f"gradients at the weights of {name} are not finite; it diverged, leave it out.")
    return numbers
