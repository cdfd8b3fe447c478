"""Nonlinear mode connectivity: curves of low loss trained between runs that a straight line does not join.

Garipov et al., arXiv:1802.10026. A curve from a to b has one free point, the bend. Written as midpoint plus x, the
quadratic Bezier curve (their eq. 4) and the polygonal chain (eq. 3) are both the straight line plus a bump of x:

    theta(t) = base + (1 - t) delta_a + t delta_b + w(t) x,    w = 2 t (1 - t)  or  w = 1 - |1 - 2 t|.

So the ends stay fixed whatever x is, and x = 0 is the line itself. Where both deltas are LoRA factors, x is one more
adapter with free factors; elsewhere it is a free difference of the parameter's own shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from raygeo.errors import DeltaError
from raygeo.geometry.connectivity.barriers import Array, barrier, barrier_intervals, percentiles, resampled_losses
from raygeo.geometry.connectivity.measures import Likelihood, LikelihoodSettings, halves
from raygeo.geometry.connectivity.mixtures import (
    Entries,
    Mixture,
    delta_gram,
    distance,
    find_runs,
    load_mixable,
    mixture,
)
from raygeo.geometry.probes import Probe
from raygeo.settings import content_key
from raygeo.store import AnyPath
from raygeo.students.delta import Dense, Entry, LowRank
from raygeo.students.encoding import collate
from raygeo.students.likelihood import token_logprobs
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Shape = Literal["bezier", "chain"]
LINE = "line"


class CurvesSettings(LikelihoodSettings):
    """Between which runs curves are trained, and how."""

    shape: Shape = "bezier"
    """``bezier``, quadratic, or ``chain``, two straight pieces; each has one bend."""
    pairs: Literal["barrier", "all"] | tuple[tuple[str, str], ...] = "barrier"
    """Pairs whose straight line has a barrier on the probe ``solutions`` by ``geometry.paths`` (none without it), all
    pairs, or these pairs of run names."""
    threshold: float = Field(0.01, ge=0)
    """For ``barrier``: least value (nats) of the lower end of the interval of the barrier over the chord."""
    points: int = Field(21, ge=3)
    """Evenly spaced values of t from 0 to 1 where curve and line are measured."""
    steps: int = Field(200, ge=1)
    """Steps of Adam, each on ``batch_size`` texts at one t drawn evenly from [0, 1]."""
    lr: float = Field(0.01, gt=0)
    """First step of Adam, relative to the distance of the two runs (a root mean square over parameters); it falls
    linearly to zero."""


@dataclass
class _State:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights: MixedWeights
    train: Probe
    measured: Likelihood


def bump(shape: Shape, t: float) -> float:
    """Height w(t) of the bend's share of a curve, 0 at both ends."""
    return 2 * t * (1 - t) if shape == "bezier" else 1 - abs(1 - 2 * t)


def curve_mixture(
    shape: Shape, t: float, a: Mapping[str, Entry] | None, b: Mapping[str, Entry] | None, bend: Mapping[str, Entry]
) -> Mixture:
    """The point theta(t) as a mixture; exactly an end's own where t is 0 or 1. ``bend`` is x, None the base's delta."""
    return mixture((1 - t, a), (t, b), (bump(shape, t), Entries(bend)))


def new_bend(a: Mapping[str, Entry] | None, b: Mapping[str, Entry] | None, rms: float, seed: int) -> dict[str, Entry]:
    """A bend x of zero that can be trained, fp32, for every parameter that either delta touches.

    Where no delta is dense, it is ``LowRank`` of the larger of their ranks: A standard normal, B zero, and a scale that
    makes B A, with entries of B of order 1, as large as ``rms`` an entry. Elsewhere it is ``Dense``.
    """
    generator = torch.Generator().manual_seed(seed)
    bend: dict[str, Entry] = {}
    deltas = [delta for delta in (a, b) if delta is not None]
    for name in sorted({name for delta in deltas for name in delta}):
        entries = [delta[name] for delta in deltas if name in delta]
        factors = [entry for entry in entries if isinstance(entry, LowRank)]
        shape = entries[0].shape
        if len(factors) < len(entries):
            bend[name] = Dense(torch.zeros(shape))
        else:
            rank = max(len(entry.a) for entry in factors)
            free = torch.randn(rank, shape[1], generator=generator)
            bend[name] = LowRank(torch.zeros(shape[0], rank), free, rms / math.sqrt(rank))
    return bend


def pull_back(entry: Entry, gradient: Tensor) -> list[Tensor]:
    """Gradient for the free tensors of a bend's entry (B and A, or the value) from that for its product [out, in]."""
    if isinstance(entry, Dense):
        return [gradient]
    return [entry.scale * gradient @ entry.a.T, entry.scale * entry.b.T @ gradient]


def free_tensors(entry: Entry) -> list[Tensor]:
    """The tensors of a bend's entry that are trained, in the order of ``pull_back``."""
    return [entry.value] if isinstance(entry, Dense) else [entry.b, entry.a]


class Curves(Workload):
    """Train a curve between each chosen pair and measure it beside the straight line; one task a pair.

    The probe is halved: one half trains the bend, the other measures, on the same t for curve and line. A step draws t
    and texts with the settings' seed and moves x down the gradient of the token mean (estimated without bias: the sum
    over the drawn texts over their share of all tokens). Gradients are taken at the merged weights, one parameter's at
    a time, and pulled back to the free factors.

    Rows of ``curve_barriers`` hold the largest loss and the barrier over the chord of curve and line, and for the curve
    ``below``: by how much its largest loss is lower than the line's, all with intervals from the same resamples.
    ``bend`` is the norm of x relative to the distance of the two runs.

    Args:
        settings: pairs, shape and effort.
        runs: the runs that may be ends, the base among them.
        base: folder of the base student.
        probe: probe file.
        barriers: lower ends of the intervals of straight-line barriers over the chord, by names of pairs.

    Raises:
        ConfigError: ``settings.pairs`` names an unknown run.
    """

    name = "curves"
    tables = ("curve_paths", "curve_barriers")

    def __init__(
        self,
        settings: CurvesSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probe: AnyPath,
        barriers: Mapping[tuple[str, str], float],
    ):
        ordered = sorted(runs, key=lambda run: run.delta is not None)
        every = [(a.name, b.name) for i, a in enumerate(ordered) for b in ordered[i + 1 :]]
        chosen: Sequence[tuple[str, str]]
        if settings.pairs == "barrier":
            chosen = [pair for pair in every if barriers.get(pair, -math.inf) > settings.threshold]
        else:
            chosen = every if settings.pairs == "all" else settings.pairs
        self.settings = settings
        self.pairs = find_runs(ordered, chosen, "geometry.curves.pairs")
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """One task a pair; a pair's key does not depend on why it was chosen."""
        recipe = self.settings.model_dump(mode="json", exclude={"pairs", "threshold"})
        inputs = content_key(recipe, Probe.load(self.probe).key)
        return [
            Task(
                content_key(self.name, inputs, [[run.name, run.key] for run in pair]),
                1.0,
                pair,
                f"curve from {pair[0].name} to {pair[1].name}",
            )
            for pair in self.pairs
        ]

    def setup(self) -> _State:
        """Load the base student once and halve the probe."""
        model, tokenizer, weights = load_mixable(
            self.base, sorted({run for pair in self.pairs for run in pair}, key=str)
        )
        probe = Probe.load(self.probe)
        train, measured = halves(probe)
        return _State(
            model, tokenizer, weights, train, Likelihood(probe.name, measured, tokenizer, self.settings.batch_size)
        )

    def compute(self, state: _State, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Train and measure one curve.

        Raises:
            DeltaError: the two runs are equal, or the loss of a step is not finite.
        """
        a, b = payload
        apart = distance(delta_gram([a.open(), b.open()]), 0, 1)
        bend = self._train(state, a, b, apart)
        size = math.sqrt(delta_gram([Entries(bend)])[0, 0]) / apart
        ts = np.linspace(0, 1, self.settings.points)
        counts = state.measured.counts
        measured = {LINE: self._measure(state, a, b, ts, {}), self.settings.shape: self._measure(state, a, b, ts, bend)}
        options = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
        resampled = {kind: resampled_losses(sums, counts, **options) for kind, sums in measured.items()}
        rows: dict[str, Rows] = {"curve_paths": [], "curve_barriers": []}
        for kind, sums in measured.items():
            labels: dict[str, Any] = {"run_a": a.name, "run_b": b.name, "shape": kind}
            losses = sums.sum(1) / counts.sum()
            rows["curve_paths"] += [
                {**labels, "t": t, "loss": loss, "n": len(counts)}
                for t, loss in zip(ts.tolist(), losses.tolist(), strict=True)
            ]
            found = barrier(ts, losses)
            spread = barrier_intervals(ts, sums, counts, **options)
            low, high = percentiles(resampled[kind].max(1))
            row = labels | {
                "max_loss": float(losses.max()),
                "max_t": float(ts[losses.argmax()]),
                "max_low": low,
                "max_high": high,
                "chord": found.chord,
                "chord_t": found.chord_alpha,
                "chord_low": spread.chord[0],
                "chord_high": spread.chord[1],
                "n": len(counts),
            }
            if kind != LINE:
                less = resampled[LINE].max(1) - resampled[kind].max(1)
                row |= dict(zip(("below_low", "below_high"), percentiles(less), strict=True))
                row |= {"below": rows["curve_barriers"][0]["max_loss"] - row["max_loss"], "bend": size}
            rows["curve_barriers"].append(row)
        return rows

    def _measure(self, state: _State, a: Run, b: Run, ts: Array, bend: Mapping[str, Entry]) -> Array:
        """Loss sums [T, N] at each t."""
        deltas = a.open(), b.open()
        sums = []
        for t in ts.tolist():
            with state.weights.mixed(curve_mixture(self.settings.shape, t, *deltas, bend)):
                sums.append(state.measured.sums(state.model))
        return np.stack(sums)

    def _train(self, state: _State, a: Run, b: Run, apart: float) -> dict[str, Entry]:
        """Train x by Adam on the expected loss over t."""
        settings, deltas = self.settings, (a.open(), b.open())
        own = dict(state.model.named_parameters())
        touched = {name for delta in deltas if delta is not None for name in delta}
        rms = apart / math.sqrt(sum(own[name].numel() for name in touched))
        bend = new_bend(*deltas, rms, settings.seed)
        dense, factors = (
            [tensor for entry in bend.values() if isinstance(entry, kind) for tensor in free_tensors(entry)]
            for kind in (Dense, LowRank)
        )
        groups = [{"params": dense, "lr": settings.lr * rms}, {"params": factors, "lr": settings.lr}]
        adam = torch.optim.Adam([group for group in groups if group["params"]])
        schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, settings.steps)
        rng = np.random.default_rng(settings.seed)
        texts, batch_size = state.train.sequences, min(settings.batch_size, len(state.train.sequences))
        share = batch_size / len(texts) * state.train.tokens
        for step in range(settings.steps):
            t = float(rng.uniform())
            drawn = rng.choice(len(texts), batch_size, replace=False)
            batch = collate([texts[i] for i in drawn], state.tokenizer.pad_token_id).to(state.model.device)
            height = bump(settings.shape, t)

            def receive(name: str, gradient: Tensor, height: float = height) -> None:
                parts = pull_back(bend[name], height * gradient.float().cpu())
                for tensor, part in zip(free_tensors(bend[name]), parts, strict=True):
                    tensor.grad = part

            with (
                state.weights.mixed(curve_mixture(settings.shape, t, *deltas, bend)),
                gradients(state.model, touched, receive),
            ):
                loss = -token_logprobs(state.model, batch).sum() / share
                if not bool(torch.isfinite(loss)):
                    raise DeltaError(
                        f"the loss on the curve from {a.name} to {b.name} is {loss.item()} at step {step + 1}; lower "
                        "geometry.curves.lr."
                    )
                loss.backward()
            adam.step()
            schedule.step()
        return bend


@contextmanager
def gradients(model: nn.Module, names: set[str], receive: Any) -> Iterator[None]:
    """Hand each parameter's gradient to ``receive(name, gradient)`` as soon as it is known, and free it at once.

    Within, only the parameters ``names`` require gradients; on exit all do or do not as before.
    """
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    def hook(name: str) -> Any:
        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            receive(name, parameter.grad)
            parameter.grad = None

        return take

    handles = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name in names:
            handles.append(parameter.register_post_accumulate_grad_hook(hook(name)))
    try:
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
