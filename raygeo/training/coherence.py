"""Coherence of every run's own training loss, from per-example gradients made as training makes them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.geometry.representation.coherence import (
    Array,
    CoherenceSettings,
    Estimate,
    coherence,
    cross_cosine,
    gradient_gram,
)
from raygeo.losses.base import Example, Loss, Unit
from raygeo.losses.counting import units
from raygeo.rollouts.behaviour import behaviour_logprobs
from raygeo.rollouts.mismatched import mismatch
from raygeo.rollouts.reference import ReferenceStatesFile
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.settings import content_key
from raygeo.store import AnyPath, Store
from raygeo.students.checkpoint import Checkpoint
from raygeo.students.encoding import collate
from raygeo.students.likelihood import Likelihood, completion_states, token_logprobs
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.training.data import Data, Scored
from raygeo.training.loop import micro_step, mismatched_kl
from raygeo.workload import Rows, Task, Workload

_ONE: dict[Unit, int] = {"token": 1, "sequence": 1, "pair": 1}
_FEWEST = 3


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


class _Student(Likelihood):
    """A student that says where it is, as a training engine does."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


@dataclass(frozen=True)
class _Drawn:
    """The examples of one loss, one for each of ``prompts``, with all that the loss needs of data and student."""

    loss: Loss
    prompts: list[str]
    data: Data
    student: _Student


@dataclass
class _State:
    weights: MixedWeights
    parameters: dict[str, torch.nn.Parameter]
    drawn: dict[Loss, _Drawn]


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
    tables = ("coherence", "gradient_cosines")

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
        losses = [loss.model_dump(mode="json") for loss in self._distinct()]
        inputs = content_key(self.settings, self.rollouts, losses, self._touched())
        named = [[run.name, run.key] for run in self.runs]
        tasks = [Task(content_key(self.name, "base", inputs, named), len(losses), None, "coherence at the base")]
        return tasks + [
            Task(
                content_key(self.name, "run", inputs, run.name, run.key, self.losses[run.name]),
                1.0,
                run,
                f"coherence of {run.name}",
            )
            for run in self.runs
        ]

    def setup(self) -> _State:
        """Load the base student once, draw every loss's examples, and let the base say of them what losses need."""
        model, tokenizer = load_student(self.base, device=default_device())
        touched = self._touched()
        weights = MixedWeights(model, touched)
        rollouts = self.store.read_unit("rollouts", self.rollouts)
        rollouts = rollouts.filter(pc.equal(rollouts["split"], "train"))
        tokens = RolloutTokens.open(self.tokens)
        drawn = draw_examples(self._distinct(), rollouts, self.settings.examples, self.settings.seed)
        own = dict(model.named_parameters())
        return _State(
            weights,
            {name: own[name] for name in touched},
            {
                loss: _Drawn(
                    loss,
                    list(chosen),
                    self._data(model, tokenizer, loss, chosen, rollouts, tokens),
                    _Student(model, loss.token_terms if type(loss).token_terms is not Loss.token_terms else None),
                )
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

    def _data(
        self,
        model: Any,
        tokenizer: Any,
        loss: Loss,
        chosen: Mapping[str, Example],
        rollouts: pa.Table,
        tokens: RolloutTokens,
    ) -> Data:
        """What the drawn examples of one loss need, as training would open it for them alone."""
        rows = sorted({row for example in chosen.values() for row in example.rows})
        place = {row: i for i, row in enumerate(rows)}
        table, own = rollouts.take(rows), RolloutTokens.of([tokens[row] for row in rows])
        needs = loss.needs
        mismatched = None
        if "mismatched" in needs:
            foreign = mismatch(own, table["prompt_id"].to_pylist(), int(model.config.max_position_embeddings))
            mismatched = Scored(foreign, _base_logprobs(model, foreign))
        return Data(
            rollouts=Scored(own, _base_logprobs(model, own) if "reference" in needs else None),
            examples=[Example(tuple(place[row] for row in e.rows), e.weights) for e in chosen.values()],
            pad_id=tokenizer.pad_token_id,
            behaviour=behaviour_logprobs(table, own) if "behaviour" in needs else None,
            states=_base_states(model, own) if "reference_logits" in needs else None,
            head=Checkpoint(self.base).head() if "reference_logits" in needs else None,
            mismatched=mismatched,
        )

    def _gram(self, state: _State, every: Sequence[_Drawn], name: str) -> Array:
        """Gram matrix of all examples' gradients at the weights the model has.

        Raises:
            DeltaError: a gradient is not finite.
        """
        rows = sum(len(drawn.prompts) for drawn in every)
        size = sum(value.numel() for value in state.parameters.values())
        gram = gradient_gram(self._gradients(state, every), rows, size, self.settings.held_gradients)
        if not np.isfinite(gram).all():
            raise DeltaError(f"gradients at the weights of {name} are not finite; it diverged, leave it out.")
        return gram

    def _gradients(self, state: _State, every: Sequence[_Drawn]) -> Callable[[int, int], Iterator[Tensor]]:
        values = list(state.parameters.values())
        ends = list(accumulate(value.numel() for value in values))
        seed = self.settings.seed
        baselines = {}
        for drawn in every:
            if "mismatched" in drawn.loss.needs:
                whole = np.arange(len(drawn.prompts))
                baselines[drawn.loss] = mismatched_kl(drawn.student, drawn.data, whole, [whole])

        def gradients(start: int, end: int) -> Iterator[Tensor]:
            wanted = [i for i, last in enumerate(ends) if last > start and last - values[i].numel() < end]
            first = ends[wanted[0]] - values[wanted[0]].numel()
            for drawn in every:
                for index in range(len(drawn.prompts)):
                    one = np.array([index])
                    total, _ = micro_step(
                        drawn.student, drawn.loss, drawn.data, one, one, _ONE, seed, 0, baselines.get(drawn.loss)
                    )
                    parts = torch.autograd.grad(total, [values[i] for i in wanted], materialize_grads=True)
                    flat = torch.cat([part.flatten() for part in parts])
                    yield flat[start - first : end - first]

        return gradients


def _base_logprobs(model: Any, tokens: RolloutTokens) -> np.ndarray:
    """The model's log-probabilities of all completion tokens, flat, row after row."""
    with torch.no_grad():
        batches = (collate([tokens[row]], 0).to(model.device) for row in range(len(tokens)))
        return torch.cat([token_logprobs(model, batch)[batch.mask] for batch in batches]).cpu().numpy()


def _base_states(model: Any, tokens: RolloutTokens) -> ReferenceStatesFile:
    """The model's final hidden states from which completion tokens are predicted."""
    with torch.no_grad():
        batches = (collate([tokens[row]], 0).to(model.device) for row in range(len(tokens)))
        states = torch.cat([completion_states(model, batch) for batch in batches])
    return ReferenceStatesFile([states.cpu().numpy()])


def _row(state: _State, run: str, at: str, drawn: _Drawn, gram: Array) -> dict[str, Any]:
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


def _cosine_row(a: _Drawn, b: _Drawn, places: Mapping[Loss, np.ndarray], gram: Array) -> dict[str, Any]:
    shared = [prompt for prompt in a.prompts if prompt in b.prompts]
    if len(shared) < _FEWEST:
        return {"n": len(shared)}
    i, j = (places[drawn.loss][[drawn.prompts.index(prompt) for prompt in shared]] for drawn in (a, b))
    cosine, expected = cross_cosine(gram[np.ix_(i, i)], gram[np.ix_(j, j)], gram[np.ix_(i, j)])
    return {"n": len(shared)} | _columns("cosine", cosine) | _columns("expected", expected)


def _columns(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
