"""What runs predict: divergences of their next-token distributions from each other's, confidence and calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raygeo.errors import DeltaError, StudentError
from raygeo.geometry.probes import Probe
from raygeo.geometry.representation.bootstrap import Array, percentiles, resampled_means, token_means
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.encoding import Batch
from raygeo.students.likelihood import Likelihood, Terms, TokenLogits, completion_states
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK = 2**24
"""Most logits of one model held at once; about eight tensors of their size live at a time, 512 MiB in fp32."""


class OutputSettings(Settings):
    """Which runs' predictions are compared, and how."""

    pairs: Literal["base", "reference", "all"] = "reference"
    """``base`` compares every run with the base, ``reference`` also with the reference run, ``all`` every two runs."""
    bins: int = Field(15, ge=1)
    """Bins of equal width of the calibration error."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples of texts behind each 95 % interval."""
    seed: int = 0
    """Seed of the resampling, the same for all runs."""
    batch_size: int = Field(16, ge=1)
    """Texts per forward pass; has no effect on the numbers beyond rounding."""


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats of log-probabilities ``p`` and ``q`` [..., V]: [...] fp64.

    The sum over v of ``p (log p/q) - p + q``, which adds nothing where both sum to 1. Every term is non-negative, and
    errors of the normalisation cancel to first order, so that divergences far below fp32's rounding of a
    log-probability come out right. Where |log p/q| < 1 the term is ``p (r + expm1(-r))``, r = log p/q.
    """
    ratio, weight = p - q, p.exp()
    near = weight * (ratio + torch.expm1(-ratio))
    far = weight * ratio - weight + q.exp()
    return torch.where(ratio.abs() < 1, near, far).sum(-1, dtype=torch.float64)


def comparison(tokens: TokenLogits) -> dict[str, Tensor]:
    """Compare a model b with another a, whose logits are ``reference_logits``: divergences and agreement, [N] fp64."""
    assert tokens.reference_logits is not None
    own, other = tokens.logits.log_softmax(-1), tokens.reference_logits.log_softmax(-1)
    return {
        "kl_ab": kl_divergence(other, own),
        "kl_ba": kl_divergence(own, other),
        "agreement": (own.argmax(-1) == other.argmax(-1)).double(),
    }


def confidence(tokens: TokenLogits) -> dict[str, Tensor]:
    """Entropy in nats, largest probability, and whether that is of the token that comes: [N] fp64 each."""
    own = tokens.logits.log_softmax(-1)
    top, guess = own.max(-1)
    return {
        "entropy": -(own.exp() * own).sum(-1, dtype=torch.float64),
        "max_probability": top.double().exp(),
        "top1_accuracy": (guess == tokens.targets).double(),
    }


def binned_gaps(probabilities: Tensor, correct: Tensor, bins: int) -> Tensor:
    """Sum confidence minus correctness over the last axis, apart in ``bins`` of equal width: [..., T] to [..., bins].

    Their absolute values, added up and divided by the number of tokens, are the expected calibration error (Guo et al.,
    arXiv:1706.04599, eq. 3). Positions where ``probabilities`` is 0 add nothing.
    """
    places = (probabilities * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(*probabilities.shape[:-1], bins, dtype=torch.float64, device=probabilities.device)
    return gaps.scatter_add(-1, places, (probabilities - correct).double())


@dataclass(frozen=True)
class _Anchor:
    """What the other side of comparisons predicts: final hidden states of each batch [N, d], and the head [V, d]."""

    run: Run
    states: list[Tensor]
    head: Tensor


@dataclass
class _State:
    model: PreTrainedModel
    weights: MixedWeights
    batches: list[Batch]
    tokens: Array
    anchor: _Anchor | None = None


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
    tables = ("outputs", "divergences")

    def __init__(self, settings: OutputSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath, reference: str):
        self.settings = settings
        self.runs = sorted(runs, key=lambda run: (run.delta is not None, run.name != reference))
        self.base = base
        self.probe = probe
        self.reference = reference

    def tasks(self) -> list[Task]:
        """Pairs by their first run, whose predictions are kept for the next one, then runs."""
        probe = Probe.load(self.probe)
        inputs = content_key(self.settings.model_dump(exclude={"pairs"}), probe.key)
        found = [
            Task(
                content_key(self.name, inputs, [[run.name, run.key] for run in pair]),
                2.0 * probe.tokens,
                pair,
                f"divergence of {pair[1].name} from {pair[0].name}",
            )
            for pair in self._pairs()
        ]
        return found + [
            Task(
                content_key(self.name, inputs, run.name, run.key),
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
        """Load the base student and tokenised texts once.

        Raises:
            StudentError: the head is no plain matrix.
        """
        model, tokenizer = load_student(self.base, device=default_device())
        if model.get_output_embeddings().bias is not None:
            raise StudentError(f"student {self.base}: its head has a bias, for which outputs are not measured.")
        opened = [delta for run in self.runs if (delta := run.open()) is not None]
        batches = Probe.load(self.probe).batches(tokenizer.pad_token_id, self.settings.batch_size)
        batches = [batch.to(model.device) for batch in batches]
        tokens = torch.cat([batch.mask.sum(-1) for batch in batches]).cpu().double().numpy()
        return _State(model, MixedWeights(model, {name for delta in opened for name in delta}), batches, tokens)

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
        if state.anchor is None or state.anchor.run != a:
            with state.weights.mixed(a.mixture()) as model:
                states = [completion_states(model, batch) for batch in state.batches]
                state.anchor = _Anchor(a, states, state.model.get_output_embeddings().weight.clone())
        anchor = state.anchor
        sums = _text_sums(state, b, comparison, lambda part: torch.stack(list(part.values()), -1).sum(1), anchor)
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
    anchor: _Anchor | None = None,
) -> Array:
    """What ``reduce`` makes of each text's ``terms`` [B, T] at the weights of ``run``: [N, k] fp64."""
    parts = []
    with state.weights.mixed(run.mixture()) as model:
        likelihood = Likelihood(model, terms, chunk=_CHUNK)
        for place, batch in enumerate(state.batches):
            other = (anchor.states[place], anchor.head) if anchor else (None, None)
            values = likelihood(batch, reference_states=other[0], reference_head=other[1])
            del values["logprobs"]
            if not all(bool(torch.isfinite(value).all()) for value in values.values()):
                raise DeltaError(f"the predictions of {run.name} are not finite; it diverged, leave it out.")
            parts.append(reduce(values).cpu())
    return torch.cat(parts).numpy()


def _rows(names: Sequence[str], means: Array, resampled: Array, texts: int) -> Rows:
    return [
        {"quantity": name, "value": value, "low": interval.low, "high": interval.high}
        for name, value, interval in zip(names, means.tolist(), percentiles(resampled, texts), strict=True)
    ]
