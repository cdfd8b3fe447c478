"""Layer-wise interpolation: one part of the network at a time moves from one run to another, the rest stays.

It locates what happens between two runs: a straight line moves all parts at once, and its rise can come from one of
them, or from their interplay alone (Adilova et al., arXiv:2307.06966).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from raygeo.analyses.between import LikelihoodSettings, find_runs
from raygeo.data.probes import Probe
from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import Array, percentile_interval, resampled_means
from raygeo.geometry.connectivity.measures import ProbeNLL
from raygeo.geometry.connectivity.parts import Kind, moved, parts_of
from raygeo.models.resident import Measured, ResidentStudent
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

ALL = "all"


class PartSettings(LikelihoodSettings):
    """What a part is, and how far it is moved."""

    parts: Kind = "block"
    """``block``: a transformer block (and one part of all that is outside blocks); ``module type``: a kind of module
    over all blocks, as all ``q_proj``."""
    alphas: tuple[float, ...] = Field((0.5, 1.0), min_length=1)
    """How far a part is moved: 1 puts the other run's weights in its place."""


class LayerwiseSettings(PartSettings):
    """Between which runs parts are moved, and what a part is."""

    pairs: Literal["reference", "all"] | tuple[tuple[str, str], ...] = "reference"
    """From the reference run to every other one and to the base; every ordered pair; or these pairs (from, to)."""


@dataclass(frozen=True)
class _State:
    student: ResidentStudent
    counts: Array
    sums: Measured[Array]


class Layerwise(Workload):
    """Rise of the NLL over run a when one part, or all, is moved to run b by each alpha; one task an ordered pair.

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
    tables: ClassVar = {
        "layerwise": schema(
            """Run a with one `part` ("all": every part) moved by `alpha` to run b; `kind` is "block" or "module type".
            `rise` is over the NLL of run a, with a 95 % paired bootstrap interval; `excess` over the chord to run a
            with the part swapped.""",
            "run_a, run_b, kind, part: text; alpha, nll, rise, rise_low, rise_high, excess: float; n: int",
        )
    }
    batch_settings: ClassVar = ("batch_size",)

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
        recipe, probe = PartSettings.of(self.settings), Probe.load(self.probe).key
        return [
            Task(
                self.key(recipe, probe, [[run.name, run.key] for run in pair]),
                1.0,
                pair,
                f"parts of {pair[1].name} in {pair[0].name}",
            )
            for pair in self.pairs
        ]

    def setup(self) -> _State:
        """Load the base student once and tokenise the probe."""
        student = ResidentStudent.load(self.base, list(dict.fromkeys(run for pair in self.pairs for run in pair)))
        measured = ProbeNLL(Probe.load(self.probe), self.settings.batch_size, student.pad_id)
        return _State(student, measured.counts, Measured(student, measured.sums))

    def compute(self, state: _State, payload: tuple[Run, Run]) -> dict[str, Rows]:
        """Measure one ordered pair.

        Raises:
            DeltaError: a loss is not finite.
        """
        a, b = payload
        deltas, counts = (a.open(), b.open()), state.counts
        options = {"resamples": self.settings.bootstrap, "seed": self.settings.seed}
        start = state.sums.at_run(a)
        parts = parts_of(deltas, self.settings.parts)
        parts[ALL] = [name for names in parts.values() for name in names]
        rows: Rows = []
        for part, names in parts.items():
            swapped = state.sums.at_run(b) if part == ALL else state.sums.at(moved(*deltas, names, 1.0))
            for alpha in self.settings.alphas:
                sums = swapped if alpha == 1 else state.sums.at(moved(*deltas, names, alpha))
                if not np.isfinite(sums).all():
                    raise DeltaError(
                        f"the NLL of {a.name} with {part} moved to {b.name} is not finite; a run has diverged, leave "
                        "it out."
                    )
                nll, first, last = (float(x.sum() / counts.sum()) for x in (sums, start, swapped))
                low, high = percentile_interval(resampled_means(sums - start, counts, **options))
                rows.append(
                    {"run_a": a.name, "run_b": b.name, "kind": self.settings.parts, "part": part, "alpha": alpha}
                    | {"nll": nll, "rise": nll - first, "rise_low": low, "rise_high": high}
                    | {"excess": nll - ((1 - alpha) * first + alpha * last), "n": len(counts)}
                )
        return {"layerwise": rows}
