"""What training did to each attention head, and what the NLL loses without it or gains by it alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field
from torch import Tensor

from raygeo.analyses.between import LikelihoodSettings
from raygeo.data.probes import Probe
from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import Array, percentile_intervals, resampled_means
from raygeo.geometry.connectivity.measures import ProbeNLL
from raygeo.geometry.connectivity.mixtures import Entries
from raygeo.geometry.curvature.draws import named_generator
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.heads import Head, Layout, head_norms, only, without
from raygeo.models.delta import Delta
from raygeo.models.loading import model_shape, read_config
from raygeo.models.resident import Measured, ResidentStudent
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

LARGEST, RANDOM, CONTROL = "largest", "random", "control"
_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")


class HeadSettings(LikelihoodSettings):
    """Which heads of each run are switched off and on."""

    largest: int = Field(4, ge=0)
    """How many heads of each run, those whose updates are largest, are measured."""
    random: int = Field(4, ge=0)
    """How many others, drawn at random, the same for all runs as far as they are not among the largest."""
    controls: int = Field(1, ge=0)
    """How many groups of random rows and columns, as many as a head has, are measured in each attention module that a
    measured head is in, one group for each kind of head."""
    head_seed: int = 0
    """Seed of the random heads, rows and columns."""


class Measurement(NamedTuple):
    """A head or a group of random rows and columns whose update is switched off and on."""

    head: Head
    chosen: str
    draw: int
    places: Mapping[str, Tensor]


@dataclass(frozen=True)
class _State:
    student: ResidentStudent
    counts: Array
    sums: Measured[Array]


class Heads(Workload):
    """Norms of all heads' updates, and the effect of some on the NLL; one task a run.

    A task costs two passes for each head and each control, and two more. Runs that leave attention alone have none.

    Args:
        settings: which heads are measured.
        runs: the runs, the base among them or not.
        base: folder of the base student.
        probe: probe file.
    """

    name = "heads"
    tables: ClassVar = {
        "heads": schema(
            """Frobenius norms of the part of each run's delta that belongs to an attention head: rows of `q`, `k` and
            `v` (with their biases), columns of `o`; `norm` is that of all it owns, `share` its share of the squared
            norm of the whole delta. `kind` is head, or under grouped queries query and key-value, which are counted
            apart. `random_norm` is that of as many rows and columns dealt at random within each matrix.""",
            "run, module: text; layer: int; kind: text; head: int; q, k, v, o, norm, share, random_norm: float",
        ),
        "head_effects": schema(
            """What some heads' updates do. `chosen` is largest or random, or control: as many rows and columns of the
            same matrices, drawn at random (`head` is null). `removed` is the rise of the run's NLL when the update is
            taken out of the run, `added` the fall of the base's NLL when it alone is added to the base, nats a token,
            with 95 % paired bootstrap intervals; `gain` is the fall from base to run.""",
            "run, module: text; layer: int; kind: text; head: int; chosen: text; draw: int; norm, removed, "
            "removed_low, removed_high, added, added_low, added_high, gain: float; n: int",
        ),
    }
    batch_settings: ClassVar = ("batch_size",)

    def __init__(self, settings: HeadSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """One task a run that changes attention; all cost the same.

        Raises:
            StudentError: the heads of the base's attention cannot be told apart.
        """
        layout, probe = self._layout(), Probe.load(self.probe).key
        return [
            Task(self.key(self.settings, probe, run.name, run.key), 1.0, run, f"heads of {run.name}")
            for run in self.runs
            if layout.heads(run.open() or ())
        ]

    def setup(self) -> _State:
        """Load the base student once and tokenise the probe."""
        student = ResidentStudent.load(self.base, self.runs)
        measured = ProbeNLL(Probe.load(self.probe), self.settings.batch_size, student.pad_id)
        return _State(student, measured.counts, Measured(student, measured.sums))

    def compute(self, state: _State, payload: Run) -> dict[str, Rows]:
        """Measure one run.

        Raises:
            DeltaError: a likelihood is not finite.
        """
        delta, layout = payload.open(), self._layout()
        assert delta is not None
        norms = head_norms(layout, delta)
        dealt = head_norms(layout, delta, named_generator("heads dealt", self.settings.head_seed))
        total = sum(linalg.norm(entry) ** 2 for entry in delta.values())
        sizes = {head: _together(of) for head, of in norms.items()}
        rows: Rows = []
        for head, of in norms.items():
            row = {"run": payload.name, **_named(head), **{name[0]: of.get(name) for name in _MATRICES}}
            row |= {"norm": sizes[head], "share": sizes[head] ** 2 / total if total else None}
            rows.append(row | {"random_norm": _together(dealt[head])})
        chosen = list(self._chosen(layout, sizes))
        return {"heads": rows, "head_effects": [self._effect(payload, delta, each, state) for each in chosen]}

    def _layout(self) -> Layout:
        config = read_config(self.base)
        return Layout.of(config, {name: tuple(value.shape) for name, value in model_shape(config).named_parameters()})

    def _chosen(self, layout: Layout, sizes: Mapping[Head, float]) -> Iterator[Measurement]:
        """The largest heads, random others, and the controls of their modules, each once."""
        settings = self.settings
        largest = sorted(sizes, key=lambda head: -sizes[head])[: settings.largest]
        order = np.random.default_rng(settings.head_seed).permutation(len(sizes))
        heads = list(sizes)
        others = [heads[i] for i in order if heads[i] not in largest][: settings.random]
        for name, group in ((LARGEST, largest), (RANDOM, others)):
            for head in group:
                yield Measurement(head, name, 0, layout.places(head))
        for head in dict.fromkeys(head._replace(number=0) for head in (*largest, *others)):
            for draw in range(settings.controls):
                generator = named_generator("head control", settings.head_seed, draw, head.module, head.kind)
                yield Measurement(head, CONTROL, draw, layout.random_places(head, generator))

    def _effect(self, run: Run, delta: Delta, measured: Measurement, state: _State) -> dict[str, Any]:
        part = only(delta, measured.places)
        rest = [(1.0, Entries(delta, set(delta) - set(part))), (1.0, without(delta, measured.places))]
        ends = [state.sums.at_run(each) for each in (_BASE, run)]
        removed, added = state.sums.at(rest) - ends[1], ends[0] - state.sums.at([(1.0, part)])
        if not np.isfinite(removed + added).all():
            raise DeltaError(f"the NLL of {run.name} is not finite; it has diverged, leave it out.")
        row = {"run": run.name, **_named(measured.head), "chosen": measured.chosen, "draw": measured.draw}
        if measured.chosen == CONTROL:
            row["head"] = None
        row["norm"] = sum(linalg.norm(entry) ** 2 for entry in part.values()) ** 0.5
        for name, change in (("removed", removed), ("added", added)):
            options = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
            drawn = resampled_means(change[:, None], state.counts, **options)
            [(low, high)] = percentile_intervals(drawn, len(state.counts))
            row |= {name: float(change.sum() / state.counts.sum()), f"{name}_low": low, f"{name}_high": high}
        return row | {"gain": float((ends[0] - ends[1]).sum() / state.counts.sum()), "n": len(state.counts)}


def _named(head: Head) -> dict[str, Any]:
    return {"module": head.module, "layer": head.layer, "kind": head.kind, "head": head.number}


def _together(norms: Mapping[str, float]) -> float:
    return float(sum(norm**2 for norm in norms.values()) ** 0.5)


_BASE = Run("", "", None)
