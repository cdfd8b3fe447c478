"""Layer-wise interpolation: one part of the network at a time moves from one run to another, the rest stays.

It locates what happens between two runs: a straight line moves all parts at once, and its rise can come from one of
them, or from their interplay alone (Adilova et al., arXiv:2307.06966).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from raygeo.errors import DeltaError
from raygeo.geometry.connectivity.barriers import Array, percentiles, resampled_losses
from raygeo.geometry.connectivity.measures import Likelihood, LikelihoodSettings
from raygeo.geometry.connectivity.mixtures import Entries, Mixture, find_runs, load_mixable, mixture
from raygeo.geometry.probes import Probe
from raygeo.settings import content_key
from raygeo.store import AnyPath
from raygeo.students.delta import Entry, layer_index, module_name
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL = "all"
OUTSIDE = "outside blocks"
Kind = Literal["block", "module type"]


class LayerwiseSettings(LikelihoodSettings):
    """Between which runs parts are moved, and what a part is."""

    parts: Kind = "block"
    """``block``: a transformer block (and one part of all that is outside blocks); ``module type``: a kind of module
    over all blocks, as all ``q_proj``."""
    pairs: Literal["reference", "all"] | tuple[tuple[str, str], ...] = "reference"
    """From the reference run to every other one and to the base; every ordered pair; or these pairs (from, to)."""
    alphas: tuple[float, ...] = Field((0.5, 1.0), min_length=1)
    """How far a part is moved: 1 puts the other run's weights in its place."""


@dataclass
class _State:
    model: PreTrainedModel
    weights: MixedWeights
    measured: Likelihood
    ends: dict[Run, Array] = field(default_factory=dict)


def part_of(parameter: str, kind: Kind) -> str:
    """Name of the part a parameter belongs to."""
    if kind == "block":
        layer = layer_index(parameter)
        return OUTSIDE if layer is None else str(layer)
    return module_name(parameter).removesuffix(".bias").rpartition(".")[2]


def parts_of(deltas: Sequence[Mapping[str, Entry] | None], kind: Kind) -> dict[str, list[str]]:
    """Parameters that any delta touches, by part: blocks in order, then all the rest, in alphabetical order."""
    parts: dict[str, list[str]] = {}
    for name in sorted({name for delta in deltas if delta is not None for name in delta}):
        parts.setdefault(part_of(name, kind), []).append(name)
    return dict(sorted(parts.items(), key=lambda item: (not item[0].isdigit(), item[0].zfill(6))))


def moved(a: Mapping[str, Entry] | None, b: Mapping[str, Entry] | None, names: Sequence[str], alpha: float) -> Mixture:
    """Run a with the parameters ``names`` moved by ``alpha`` towards run b; None is the base's delta."""
    if a is None:
        return mixture() if b is None else mixture((alpha, Entries(b, names)))
    rest = Entries(a, set(a) - set(names))
    return mixture((1.0, rest), (1 - alpha, Entries(a, names)), (alpha, None if b is None else Entries(b, names)))


class Layerwise(Workload):
    """Rise of the loss over run a when one part, or all, is moved to run b by each alpha; one task an ordered pair.

    ``rise`` is L(moved) - L(a), with a paired bootstrap interval over the probe's texts; ``excess`` is L(moved) minus
    the chord (1 - alpha) L(a) + alpha L(a with the part swapped for b's): what moving a part costs on the way. The part
    "all" is the straight line, at alpha = 1 the other run itself. A task costs (parts + 1) passes for each alpha.

    Args:
        settings: pairs, parts and alphas.
        runs: the runs, the base among them.
        base: folder of the base student.
        probe: probe file.
        reference: name of the run that others are compared with.

    Raises:
        ConfigError: ``settings.pairs`` names an unknown run.
    """

    name = "layerwise"
    tables = ("layerwise",)

    def __init__(self, settings: LayerwiseSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath, reference: str):
        names = [run.name for run in runs]
        pairs: Sequence[tuple[str, str]]
        if settings.pairs == "reference":
            pairs = [(reference, name) for name in names if name != reference and reference in names]
        elif settings.pairs == "all":
            pairs = [(a, b) for a in names for b in names if a != b]
        else:
            pairs = settings.pairs
        self.settings = settings
        self.pairs = find_runs(runs, pairs, "geometry.layerwise.pairs")
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """One task an ordered pair."""
        recipe = self.settings.model_dump(mode="json", exclude={"pairs"})
        inputs = content_key(recipe, Probe.load(self.probe).key)
        return [
            Task(
                content_key(self.name, inputs, [[run.name, run.key] for run in pair]),
                1.0,
                pair,
                f"parts of {pair[1].name} in {pair[0].name}",
            )
            for pair in self.pairs
        ]

    def setup(self) -> _State:
        """Load the base student once and tokenise the probe."""
        model, tokenizer, weights = load_mixable(
            self.base, sorted({run for pair in self.pairs for run in pair}, key=str)
        )
        probe = Probe.load(self.probe)
        return _State(model, weights, Likelihood(probe.name, probe, tokenizer, self.settings.batch_size))

    def compute(self, state: _State, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Measure one ordered pair.

        Raises:
            DeltaError: a loss is not finite.
        """
        a, b = payload
        deltas = a.open(), b.open()
        counts = state.measured.counts
        start = self._end(state, a)
        parts = parts_of(deltas, self.settings.parts)
        parts[ALL] = [name for names in parts.values() for name in names]
        rows: Rows = []
        for part, names in parts.items():
            swapped = self._end(state, b) if part == ALL else self._at(state, moved(*deltas, names, 1.0))
            for alpha in self.settings.alphas:
                sums = swapped if alpha == 1 else self._at(state, moved(*deltas, names, alpha))
                if not np.isfinite(sums).all():
                    raise DeltaError(
                        f"the loss of {a.name} with {part} moved to {b.name} is not finite; a run has diverged, leave "
                        "it out."
                    )
                loss, first, last = (float(x.sum() / counts.sum()) for x in (sums, start, swapped))
                low, high = percentiles(
                    resampled_losses(
                        (sums - start)[None], counts, resamples=self.settings.bootstrap, seed=self.settings.seed
                    )
                )
                rows.append(
                    {"run_a": a.name, "run_b": b.name, "kind": self.settings.parts, "part": part, "alpha": alpha}
                    | {"loss": loss, "rise": loss - first, "rise_low": low, "rise_high": high}
                    | {"excess": loss - ((1 - alpha) * first + alpha * last), "n": len(counts)}
                )
        return {"layerwise": rows}

    def _at(self, state: _State, terms: Mixture) -> Array:
        with state.weights.mixed(terms):
            return state.measured.sums(state.model)

    def _end(self, state: _State, run: Run) -> Array:
        if run not in state.ends:
            state.ends[run] = self._at(state, run.mixture())
        return state.ends[run]
