"""Coherence of every run's own training loss, from per-example gradients made as training makes them."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import Any, ClassVar

import numpy as np
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import nn

from raygeo.analyses.coherence.examples import Drawn, draw_examples, example_gradients, open_examples
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import DeltaError
from raygeo.geometry.curvature.chain import checkpointed
from raygeo.geometry.representation.coherence import Array, Estimate, coherence, cross_cosine, gradient_gram
from raygeo.losses.base import Loss
from raygeo.losses.counting import units
from raygeo.models.mix import MixedWeights
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath, Store
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

_FEWEST = 3


def _is_off(asked: bool) -> bool:
    return not asked


class CoherenceSettings(Settings):
    """Of which examples gradients are compared."""

    examples: int = Field(32, ge=3)
    """Prompts, with one example each; the same prompts for every loss as far as each loss learns from them."""
    seed: int = Field(0, ge=0)
    """Seed of the draw of prompts and examples, and of losses that draw at random themselves."""
    gradient_checkpointing: bool = Field(False, exclude_if=_is_off)
    """Keep the states between layers alone and compute each layer again for its gradients, which takes a forward pass
    more: for long texts and large students. The numbers are the same."""
    held_gradients: int = Field(2**28, ge=1)
    """Most gradient entries held at once, 1 GiB in fp32; where those of all examples are more, they are computed anew
    for each part of the weights. All losses' examples are held together at the base, so give a large model more."""


@dataclass
class _State:
    model: nn.Module
    weights: MixedWeights
    parameters: dict[str, torch.nn.Parameter]
    drawn: dict[Loss, Drawn]


class Coherence(Workload):
    """How much examples' gradients of every run's own training loss agree with each other, and with other losses'.

    One task at the base: the m-coherence of every loss there and the cosines between losses. One task a run: the
    m-coherence of its loss at its own weights. An example's gradient is what it adds to a step before the trainer
    divides by the step's count: a sum over tokens under token normalisation, so long completions weigh more. Gradients
    are of the merged weights that any run's delta touches, never of LoRA factors, in fp32; references are computed in
    fp32 too, whatever precision runs were trained in.

    A task takes a forward and a backward pass an example, again for each part the weights are cut into (see
    ``CoherenceSettings.held_gradients``), and the task at the base as much for every loss.

    Args:
        settings: examples and sizes.
        runs: the runs; the base among them has no loss.
        base: folder of the base student.
        losses: the loss of every run by its name.
        store: where the rollouts are.
        rollouts: unit key of the rollout table.
        tokens: folder of the tokens of its training split.
    """

    name = "coherence"
    tables: ClassVar = {
        "coherence": schema(
            """Of a run's own training loss, `at` the "base" or its own weights ("run"), over `n` examples: `coherence`
            in [0, n] is n |mean g|^2 / mean |g|^2, `pairwise` (coherence - 1) / (n - 1), which does not grow with n.
            `gradient_norm` is that of the loss as training divides it.""",
            "run, at: text; coherence, coherence_low, coherence_high, pairwise, pairwise_low, pairwise_high, "
            "gradient_norm: float; n, parameters: int",
        ),
        "gradient_cosines": schema(
            """Cosine of two losses' mean gradients at the base over the same `n` prompts, each loss under its first
            run; `expected` estimates that of their expectations, from pairs of different prompts alone.""",
            "run_a, run_b: text; cosine, cosine_low, cosine_high, expected, expected_low, expected_high: float; n: int",
        ),
    }

    def __init__(
        self,
        settings: CoherenceSettings,
        runs: Sequence[Run],
        base: AnyPath,
        losses: Mapping[str, Loss],
        store: Store,
        rollouts: str,
        tokens: AnyPath,
    ):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base
        self.losses = {run.name: losses[run.name] for run in self.runs}
        self.store = store
        self.rollouts = rollouts
        self.tokens = tokens

    def tasks(self) -> list[Task]:
        """The base first, the longest task; a new loss may change the prompts and so all keys."""
        losses = [[loss.revision, loss.model_dump(mode="json")] for loss in self._distinct()]
        inputs = self.settings, self.rollouts, losses, self._touched()
        named = [[run.name, run.key] for run in self.runs]
        tasks = [Task(self.key("base", *inputs, named), len(losses), None, "coherence at the base")]
        return tasks + [
            Task(
                self.key("run", *inputs, run.name, run.key, self.losses[run.name]), 1.0, run, f"coherence of {run.name}"
            )
            for run in self.runs
        ]

    def setup(self) -> _State:
        """Load the base student once, draw every loss's examples, and let the base say of them what losses need."""
        student = ResidentStudent.load(self.base, self.runs, dtype=torch.float32)
        model, tokenizer = student.model, student.tokenizer
        touched = self._touched()
        rollouts = self.store.read_unit("rollouts", self.rollouts)
        rollouts = rollouts.filter(pc.equal(rollouts["split"], "train"))
        tokens = RolloutTokens.open(self.tokens)
        drawn = draw_examples(self._distinct(), rollouts, self.settings.examples, self.settings.seed)
        own = dict(model.named_parameters())
        return _State(
            model,
            student.weights,
            {name: own[name] for name in touched},
            {
                loss: open_examples(self.base, model, tokenizer.pad_token_id, loss, chosen, rollouts, tokens)
                for loss, chosen in drawn.items()
            },
        )

    def compute(self, state: _State, payload: Run | None) -> dict[str, Rows]:
        """Measure all losses at the base, or one run's at its own weights."""
        if payload is not None:
            drawn = state.drawn[self.losses[payload.name]]
            with state.weights.mixed(payload.mixture()):
                gram = self._gram(state, [drawn], payload.name)
            return {"coherence": [_row(state, payload.name, "run", drawn, gram)]}
        every = list(state.drawn.values())
        gram = self._gram(state, every, "the base")
        ends = list(accumulate(len(drawn.prompts) for drawn in every))
        places = {drawn.loss: np.arange(end - len(drawn.prompts), end) for drawn, end in zip(every, ends, strict=True)}
        rows: dict[str, Rows] = {"coherence": [], "gradient_cosines": []}
        for run in self.runs:
            own = places[self.losses[run.name]]
            drawn = state.drawn[self.losses[run.name]]
            rows["coherence"].append(_row(state, run.name, "base", drawn, gram[np.ix_(own, own)]))
        first = {loss: name for name, loss in reversed(self.losses.items())}
        for a, b in combinations(every, 2):
            labels = {"run_a": first[a.loss], "run_b": first[b.loss]}
            rows["gradient_cosines"].append(labels | _cosine_row(a, b, places, gram))
        return rows

    def _distinct(self) -> list[Loss]:
        return list(dict.fromkeys(self.losses.values()))

    def _touched(self) -> list[str]:
        return sorted({name for run in self.runs for name in run.open() or ()})

    def _gram(self, state: _State, every: Sequence[Drawn], name: str) -> Array:
        """Gram matrix of all examples' gradients at the weights the model has.

        Raises:
            DeltaError: a gradient is not finite.
        """
        rows = sum(len(drawn.prompts) for drawn in every)
        parameters = list(state.parameters.values())
        gradients = example_gradients(every, parameters, self.settings.seed)
        size = sum(value.numel() for value in parameters)
        checkpoints = checkpointed(state.model) if self.settings.gradient_checkpointing else nullcontext()
        with checkpoints:
            gram = gradient_gram(gradients, rows, size, self.settings.held_gradients)
        if not np.isfinite(gram).all():
            raise DeltaError(f"gradients at the weights of {name} are not finite; it diverged, leave it out.")
        return gram


def _row(state: _State, run: str, at: str, drawn: Drawn, gram: Array) -> dict[str, Any]:
    n = len(drawn.prompts)
    row: dict[str, Any] = {"run": run, "at": at, "n": n}
    if n < _FEWEST:
        return row
    count = units(drawn.data.examples, drawn.data.tokens.completion_lengths)[drawn.loss.unit]
    whole, pairwise = coherence(gram)
    return (
        row
        | _columns("coherence", whole)
        | _columns("pairwise", pairwise)
        | {
            "gradient_norm": float(np.sqrt(max(gram.sum(), 0.0))) / count,
            "parameters": sum(value.numel() for value in state.parameters.values()),
        }
    )


def _cosine_row(a: Drawn, b: Drawn, places: Mapping[Loss, np.ndarray], gram: Array) -> dict[str, Any]:
    shared = [prompt for prompt in a.prompts if prompt in b.prompts]
    if len(shared) < _FEWEST:
        return {"n": len(shared)}
    i, j = (places[drawn.loss][[drawn.prompts.index(prompt) for prompt in shared]] for drawn in (a, b))
    cosine, expected = cross_cosine(gram[np.ix_(i, i)], gram[np.ix_(j, j)], gram[np.ix_(i, j)])
    return {"n": len(shared)} | _columns("cosine", cosine) | _columns("expected", expected)


def _columns(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
