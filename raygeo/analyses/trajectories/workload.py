"""How each run moved while it trained: the deltas kept on the way, against the final one and the reference run's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import ClassVar

import numpy as np

from raygeo.analyses.kept import KeptWorkload
from raygeo.geometry.weights.base import BaseWeights
from raygeo.geometry.weights.growth import LAWS
from raygeo.geometry.weights.moments import cosine
from raygeo.geometry.weights.trajectory import trajectory
from raygeo.models.delta import Delta
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task


class TrajectorySettings(Settings):
    """Trajectories have no options."""


class Trajectories(KeptWorkload):
    """The way of every run that kept deltas while training; one task a run.

    Table ``trajectories`` has one row a kept step, the final one included: norm and relative norm; cosine to the final
    delta; cosine to the reference run's delta at the same step (null for the reference run itself, where that run kept
    no such step, and between LoRA and full deltas); ``distance`` from the kept step before, from the base at the first;
    ``path_length``, the sum of the distances so far, which is a lower bound of the way travelled, as a chord is of its
    arc; ``straightness``, norm over path length; and the cosine of the last move to the one before. Whatever would be
    divided by zero is null.

    Table ``trajectory_fits`` has the laws of ``raygeo.geometry.weights.growth`` for the norm as a function of the step.

    ``steps`` is the last step of every run by name, at which its final delta stands. Memory holds what
    ``weights.trajectory`` needs of one parameter at a time.
    """

    name = "trajectories"
    tables: ClassVar = {
        "trajectories": schema(
            """One row a kept step, the last one included. `distance` is from the kept step before (from the base at
            the first), `path_length` their sum, a lower bound of the way travelled, `straightness` norm over path
            length; `cosine_previous` is between this move and the one before, `cosine_reference` to that run at the
            same step.""",
            "run: text; step: int; norm, relative_norm, cosine_final, cosine_reference, distance, path_length, "
            "straightness, cosine_previous: float",
        ),
        "trajectory_fits": schema(
            """Least squares of the norm on the step t: `law` "log" is a + b log t, "power" a t^b; null with fewer than
            4 points.""",
            "run, law: text; n: int; a, b, rss, aic: float",
        ),
    }

    def __init__(
        self, settings: TrajectorySettings, runs: Sequence[Run], base: AnyPath, steps: Mapping[str, int], reference: str
    ):
        super().__init__(settings, runs, base, steps)
        self.reference = next((run for run in runs if run.name == reference), None)

    def tasks(self) -> list[Task]:
        """One task a run that kept deltas; all cost the same."""
        reference = self.reference and [self.reference.name, self.reference.key]
        return [
            Task(self.key(self.settings, [run.name, run.key], reference), 1.0, run, f"trajectory of {run.name}")
            for run in self.runs
        ]

    def setup(self) -> BaseWeights:
        """Open the base checkpoint; it remembers norms from task to task."""
        return BaseWeights(self.base)

    def compute(self, state: BaseWeights, payload: Run) -> dict[str, Rows]:
        """Rows of one run."""
        deltas = payload.kept(self.steps[payload.name])
        rows = _way(list(deltas.values()), state)
        other = self.reference
        others = other.kept(self.steps[other.name]) if other is not None and other.name != payload.name else {}
        for (step, delta), row in zip(deltas.items(), rows, strict=True):
            row |= {"run": payload.name, "step": step, "cosine_reference": _cosine_to(others.get(step), delta)}
        return {"trajectories": rows, "trajectory_fits": _fits(payload.name, rows)}


def _way(deltas: list[Delta], base: BaseWeights) -> Rows:
    """Rows of the kept deltas of one run in order, without what concerns other runs."""
    final = deltas[-1]
    for name, entry in final.items():
        base.check(name, entry)
    size = math.hypot(*(base.norm(name) for name in final))
    columns = vars(trajectory(deltas))
    return [
        {column: None if np.isnan(values[i]) else float(values[i]) for column, values in columns.items()}
        | {"relative_norm": float(columns["norm"][i]) / size if size > 0 else None}
        for i in range(len(deltas))
    ]


def _cosine_to(other: Delta | None, delta: Delta) -> float | None:
    if other is None or other.low_rank != delta.low_rank:
        return None
    found = cosine(delta, other)
    return None if math.isnan(found) else found


def _fits(run: str, rows: Rows) -> Rows:
    t, norm = (np.array([row[column] for row in rows], dtype=np.float64) for column in ("step", "norm"))
    fits = {law: fit(t, norm) for law, fit in LAWS.items()}
    return [{"run": run, "law": law, "n": len(t)} | (asdict(fit) if fit else {}) for law, fit in fits.items()]
