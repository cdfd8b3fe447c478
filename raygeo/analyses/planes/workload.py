"""The NLL on two-dimensional planes through the weights of three runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from raygeo.analyses.between import find_runs
from raygeo.data.probes import Probe
from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import Array
from raygeo.geometry.connectivity.measures import ProbeNLL
from raygeo.geometry.connectivity.mixtures import delta_gram, mixture
from raygeo.geometry.connectivity.planes import Plane
from raygeo.models.resident import Measured, ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

Corners = tuple[Run, ...]


class GridSettings(Settings):
    """How finely and how far planes are measured."""

    points: int = Field(21, ge=2)
    """Points along each axis."""
    margin: float = Field(0.25, ge=0)
    """How far the grid reaches past the three runs, relative to their extent along each axis."""
    batch_size: int = Field(16, ge=1)
    """Sequences per forward pass."""


class PlanesSettings(GridSettings):
    """Which planes are measured, on what, and how finely."""

    planes: Literal["reference"] | tuple[tuple[str, str, str], ...] = "reference"
    """Planes through the base, the reference run and each other run; or through these triples of names."""
    sequences: int = Field(128, ge=1)
    """At most so many texts of the probe, the first ones."""


@dataclass
class _State:
    student: ResidentStudent
    runs: Sequence[Run]
    texts: int
    nll: Measured[float]
    planes: dict[Corners, Plane] = field(default_factory=dict)

    @cached_property
    def gram(self) -> Array:
        """Inner products of all runs' deltas."""
        return delta_gram([run.open() for run in self.runs])


class Planes(Workload):
    """Token-mean NLL of the probe on a grid over each plane; one task a row of the grid, and one for the runs.

    A task costs ``points`` mixtures and as many passes over the texts.

    Args:
        settings: planes and grid.
        runs: the runs, the base among them.
        base: folder of the base student.
        probe: probe file.
        reference: name of the run that others are compared with.

    Raises:
        ConfigError: ``settings.planes`` names an unknown run.
    """

    name = "planes"
    tables: ClassVar = {
        "planes": schema(
            """Grid points of the plane through three runs, the first its origin, `x` along the second less the first;
            both are Euclidean distances between weights. `nll` (nats a token) is null where it is not finite.""",
            "run_a, run_b, run_c: text; x, y, nll: float; n: int",
        ),
        "plane_runs": schema(
            """Every run at its projection onto a plane: `residual` is its distance from the plane, `nll` its own, which
            is the plane's at the three corners alone.""",
            "run_a, run_b, run_c, run: text; x, y, residual, nll: float; n: int",
        ),
    }
    batch_settings: ClassVar = ("batch_size",)

    def __init__(self, settings: PlanesSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath, reference: str):
        names = [run.name for run in runs]
        bases = [run.name for run in runs if run.delta is None]
        planes: Sequence[tuple[str, ...]]
        if settings.planes == "reference":
            others = [name for name in names if name not in (reference, *bases)]
            planes = [(start, reference, name) for start in bases for name in others if reference in names]
        else:
            planes = settings.planes
        self.settings = settings
        self.runs = list(runs)
        self.planes = find_runs(runs, planes, "geometry.planes.planes")
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """Rows of every plane's grid, then the runs in it."""
        recipe, probe = GridSettings.of(self.settings), self._texts().key
        every = [[run.name, run.key] for run in self.runs]
        tasks = []
        for corners in self.planes:
            names = [[run.name, run.key] for run in corners]
            label = f"plane through {', '.join(run.name for run in corners)}"
            tasks += [
                Task(
                    self.key(recipe, probe, names, row), float(self.settings.points), (corners, row), f"{label}: {row}"
                )
                for row in range(self.settings.points)
            ]
            key = self.key(self.settings.batch_size, probe, names, "runs", every)
            tasks.append(Task(key, float(len(self.runs)), (corners, None), f"{label}: runs"))
        return tasks

    def setup(self) -> _State:
        """Load the base student once and tokenise the probe."""
        student = ResidentStudent.load(self.base, self.runs)
        measured = ProbeNLL(self._texts(), self.settings.batch_size, student.pad_id)
        return _State(student, self.runs, len(measured.counts), Measured(student, measured.mean))

    def compute(self, state: _State, payload: tuple[Corners, int | None]) -> dict[str, Rows]:
        """Measure one row of a grid, or project all runs.

        Raises:
            DeltaError: the three runs span no plane, or a run's own NLL is not finite.
        """
        corners, row = payload
        labels = {f"run_{side}": run.name for side, run in zip("abc", corners, strict=True)} | {"n": state.texts}
        if row is None:
            return {"plane_runs": [labels | found for found in self._projected(state, corners)]}
        plane = self._plane(state, corners)
        xs, ys = plane.axes(self.settings.points, self.settings.margin)
        deltas, y = [run.open() for run in corners], float(ys[row])
        points = []
        for x in xs.tolist():
            nll = state.nll.at(mixture(*zip(plane.coefficients(x, y), deltas, strict=True)))
            points.append(labels | {"x": x, "y": y, "nll": nll if np.isfinite(nll) else None})
        return {"planes": points}

    def _projected(self, state: _State, corners: Corners) -> list[dict[str, Any]]:
        others = [run for run in self.runs if run not in corners]
        places_of = {run.name: i for i, run in enumerate(self.runs)}
        plane, order = self._plane(state, corners), [places_of[run.name] for run in (*corners, *others)]
        known = np.column_stack([plane.corners, np.zeros(3)])
        places = np.vstack([known, plane.project(state.gram[np.ix_(order, order)])])
        rows = []
        for run, (x, y, residual) in zip((*corners, *others), places.tolist(), strict=True):
            nll = state.nll.at_run(run)
            if not np.isfinite(nll):
                raise DeltaError(f"the NLL of {run.name} is {nll}; the run has diverged, leave it out.")
            rows.append({"run": run.name, "x": x, "y": y, "residual": residual, "nll": nll})
        return rows

    def _texts(self) -> Probe:
        probe = Probe.load(self.probe)
        return Probe(probe.name, probe.sequences[: self.settings.sequences])

    def _plane(self, state: _State, corners: Corners) -> Plane:
        if corners not in state.planes:
            state.planes[corners] = Plane.of(delta_gram([run.open() for run in corners]))
        return state.planes[corners]
