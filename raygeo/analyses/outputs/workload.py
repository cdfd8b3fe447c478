"""What runs predict: divergences of their next-token distributions from each other's, confidence and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raygeo.data.probes import Probe
from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import Array, percentile_intervals, resampled_means, token_means
from raygeo.geometry.calibration import BINS, binned_gaps
from raygeo.geometry.representation.predictions import Predicted, comparison, confidence, text_sums
from raygeo.models.batches import Batch
from raygeo.models.likelihood import Terms
from raygeo.models.mix import MixedWeights
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PredictionSettings(Settings):
    """How predictions are judged and compared."""

    bins: int = Field(BINS, ge=1)
    """Bins of equal width of the calibration error."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples of texts behind each 95 % interval."""
    seed: int = 0
    """Seed of the resampling, the same for all runs."""
    batch_size: int = Field(16, ge=1)
    """Texts per forward pass; has no effect on the numbers beyond rounding."""


class OutputSettings(PredictionSettings):
    """Which runs' predictions are compared, and how."""

    pairs: Literal["base", "reference", "all"] = "reference"
    """``base`` compares every run with the base, ``reference`` also with the reference run, ``all`` every two runs."""


@dataclass
class _State:
    model: PreTrainedModel
    weights: MixedWeights
    batches: list[Batch]
    tokens: Array
    anchor: tuple[Run, Predicted] | None = None


class Outputs(Workload):
    """Predictions for the completion tokens of a probe, teacher-forced: one task a run, and one a pair.

    A run has token means of entropy (nats), largest probability and top-1 accuracy, and the expected calibration error
    of its top guess, in ``outputs``. A pair (a, b) has token means of KL(a || b) and KL(b || a) over the whole
    vocabulary, in nats, and the share of tokens for which both have the same top guess, in ``divergences``. Intervals
    are percentiles over resampled texts; that of a calibration error, a sum of absolute values, is biased upwards.

    Logits are made a few tokens at a time. Of the other side of a pair an actor keeps its final hidden states,
    ``4 tokens d`` bytes, and its head; log-softmax in the model's dtype, fp32 at least, sums in fp64.

    Args:
        settings: pairs and sizes.
        runs: the runs, the base (without delta) among them.
        base: folder of the base student.
        probe: probe file.
        reference: name of the run that others are compared with besides the base.
    """

    name = "outputs"
    tables: ClassVar = {
        "outputs": schema(
            """`quantity`: entropy (nats a token), max_probability, top1_accuracy, ece (expected calibration error).""",
            "run, quantity: text; value, low, high: float; n, tokens: int",
        ),
        "divergences": schema(
            """`quantity`: kl_ab, KL(a || b) in nats a token; kl_ba, KL(b || a); agreement, the share of equal top
            guesses.""",
            "run_a, run_b, quantity: text; value, low, high: float; n, tokens: int",
        ),
    }
    batch_settings: ClassVar = ("batch_size",)
    revision = 2

    def __init__(self, settings: OutputSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath, reference: str):
        self.settings = settings
        self.runs = sorted(runs, key=lambda run: (run.delta is not None, run.name != reference))
        self.base = base
        self.probe = probe
        self.reference = reference

    def tasks(self) -> list[Task]:
        """Pairs by their first run, whose predictions are kept for the next one, then runs."""
        probe = Probe.load(self.probe)
        inputs = PredictionSettings.of(self.settings), probe.key
        found = [
            Task(
                self.key(*inputs, [[run.name, run.key] for run in pair]),
                2.0 * probe.tokens,
                pair,
                f"divergence of {pair[1].name} from {pair[0].name}",
            )
            for pair in self._pairs()
        ]
        return found + [
            Task(
                self.key(*inputs, run.name, run.key),
                float(probe.tokens),
                (run,),
                f"confidence of {run.name}",
            )
            for run in self.runs
        ]

    def _pairs(self) -> Iterator[tuple[Run, Run]]:
        for place, a in enumerate(self.runs):
            first = a.delta is None or (self.settings.pairs == "reference" and a.name == self.reference)
            if first or self.settings.pairs == "all":
                yield from ((a, b) for b in self.runs[place + 1 :])

    def setup(self) -> _State:
        """Load the base student and tokenised texts once."""
        student = ResidentStudent.load(self.base, self.runs)
        batches = Probe.load(self.probe).batches(student.pad_id, self.settings.batch_size)
        batches = [batch.to(student.model.device) for batch in batches]
        tokens = torch.cat([batch.mask.sum(-1) for batch in batches]).cpu().double().numpy()
        return _State(student.model, student.weights, batches, tokens)

    @torch.inference_mode()
    def compute(self, state: _State, payload: tuple[Run, ...]) -> dict[str, Rows]:
        """Measure one run, or compare one pair.

        Raises:
            DeltaError: the predictions are not finite.
        """
        *other, run = payload
        labels: dict[str, Any] = {"n": len(state.tokens), "tokens": int(state.tokens.sum())}
        if not other:
            own = {"run": run.name} | labels
            return {"outputs": [own | row for row in self._confidence(state, run)]}
        pair = {"run_a": other[0].name, "run_b": run.name} | labels
        return {"divergences": [pair | row for row in self._comparison(state, other[0], run)]}

    def _comparison(self, state: _State, a: Run, b: Run) -> Rows:
        if state.anchor is None or state.anchor[0] != a:
            with state.weights.mixed(a.mixture()):
                state.anchor = a, Predicted.by(state.model, state.batches)
        [_, other] = state.anchor
        sums = _text_sums(state, b, comparison, lambda part: torch.stack(list(part.values()), -1).sum(1), other)
        names = ("kl_ab", "kl_ba", "agreement")
        return _rows(names, token_means(sums, state.tokens), self._resampled(sums, state.tokens), len(state.tokens))

    def _confidence(self, state: _State, run: Run) -> Rows:
        names, bins = ("entropy", "max_probability", "top1_accuracy"), self.settings.bins

        def reduce(part: dict[str, Tensor]) -> Tensor:
            means = torch.stack([part[name] for name in names], -1).sum(1)
            return torch.cat([means, binned_gaps(part["max_probability"], part["top1_accuracy"], bins)], -1)

        sums = _text_sums(state, run, confidence, reduce)
        means, resampled = token_means(sums, state.tokens), self._resampled(sums, state.tokens)

        def with_error(columns: Array) -> Array:
            return np.concatenate([columns[..., :3], np.abs(columns[..., 3:]).sum(-1, keepdims=True)], -1)

        return _rows((*names, "ece"), with_error(means), with_error(resampled), len(state.tokens))

    def _resampled(self, sums: Array, tokens: Array) -> Array:
        return resampled_means(sums, tokens, resamples=self.settings.bootstrap, seed=self.settings.seed)


def _text_sums(
    state: _State,
    run: Run,
    terms: Terms,
    reduce: Callable[[dict[str, Tensor]], Tensor],
    other: Predicted | None = None,
) -> Array:
    """What ``reduce`` makes of each text's ``terms`` [B, T] at the weights of ``run``: [N, k] fp64."""

    def finite(values: dict[str, Tensor]) -> Tensor:
        if not all(bool(torch.isfinite(value).all()) for value in values.values()):
            raise DeltaError(f"the predictions of {run.name} are not finite; it diverged, leave it out.")
        return reduce(values)

    with state.weights.mixed(run.mixture()):
        return text_sums(state.model, state.batches, terms, finite, other)


def _rows(names: Sequence[str], means: Array, resampled: Array, texts: int) -> Rows:
    return [
        {"quantity": name, "value": value, "low": interval.low, "high": interval.high}
        for name, value, interval in zip(names, means.tolist(), percentile_intervals(resampled, texts), strict=True)
    ]
