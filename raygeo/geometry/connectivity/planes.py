"""The loss on two-dimensional planes through the weights of three runs (Garipov et al., arXiv:1802.10026, appendix A).

A plane is given by an origin and orthonormal axes u and v. Everything about it follows from the inner products of the
three deltas: points are mixtures of whole deltas, and no vector over all weights is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from raygeo.errors import DeltaError
from raygeo.geometry.connectivity.barriers import Array
from raygeo.geometry.connectivity.measures import Likelihood
from raygeo.geometry.connectivity.mixtures import Mixture, delta_gram, distance, find_runs, load_mixable, mixture
from raygeo.geometry.probes import Probe
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Corners = tuple[Run, ...]


class PlanesSettings(Settings):
    """Which planes are measured, and how finely."""

    planes: Literal["reference"] | tuple[tuple[str, str, str], ...] = "reference"
    """Planes through the base, the reference run and each other run; or through these triples of names."""
    points: int = Field(21, ge=2)
    """Points along each axis."""
    margin: float = Field(0.25, ge=0)
    """How far the grid reaches past the three runs, relative to their extent along each axis."""
    sequences: int = Field(128, ge=1)
    """At most so many texts of the probe, the first ones."""
    batch_size: int = Field(16, ge=1)
    """Sequences per forward pass."""


@dataclass(frozen=True)
class Plane:
    """The plane through points a, b and c: origin a, u along b - a, v along what is left of c - a.

    ``base`` is |b - a|, ``slant`` and ``height`` are the coordinates of c. The corners are (0, 0), (base, 0) and
    (slant, height).
    """

    base: float
    slant: float
    height: float

    @classmethod
    def of(cls, gram: Array) -> Plane:
        """Make it of the inner products [3, 3] of a, b and c.

        Raises:
            DeltaError: two of them are equal, or all three lie on one line, as far as fp64 inner products tell.
        """
        base = distance(gram, 0, 1)
        side = distance(gram, 0, 2)
        slant = float(gram[1, 2] - gram[0, 1] - gram[0, 2] + gram[0, 0]) / base
        square = (side - slant) * (side + slant)
        if square <= 1e-12 * side**2:
            raise DeltaError("three runs lie on one line, so no plane is given by them; name other runs.")
        return cls(base, slant, float(np.sqrt(square)))

    @property
    def corners(self) -> Array:
        """Coordinates of the three corners, [3, 2]."""
        return np.array([[0.0, 0.0], [self.base, 0.0], [self.slant, self.height]])

    def coefficients(self, x: float, y: float) -> tuple[float, float, float]:
        """Coefficients of a, b and c at a point of the plane; they sum to 1."""
        c = y / self.height
        b = (x - c * self.slant) / self.base
        return 1 - b - c, b, c

    def project(self, gram: Array) -> Array:
        """Coordinates of the orthogonal projections of any points and their distances from the plane, [N - 3, 3].

        ``gram`` [N, N] holds inner products, a, b and c first. A distance below about 1e-8 of that from a is rounding.
        """
        from_a = gram - gram[:1] - gram[:, :1] + gram[0, 0]
        x = from_a[3:, 1] / self.base
        y = (from_a[3:, 2] - x * self.slant) / self.height
        residual = np.sqrt((np.diag(from_a)[3:] - x**2 - y**2).clip(min=0))
        return np.column_stack([x, y, residual])

    def axes(self, points: int, margin: float) -> tuple[Array, Array]:
        """Evenly spaced x and y over the corners' bounding box, widened on each side by ``margin`` of its extent."""
        low, high = self.corners.min(0), self.corners.max(0)
        edge = margin * (high - low)
        x, y = np.linspace(low - edge, high + edge, points).T
        return x, y


@dataclass
class _State:
    model: PreTrainedModel
    weights: MixedWeights
    measured: Likelihood
    planes: dict[Corners, Plane] = field(default_factory=dict)


class Planes(Workload):
    """Token-mean NLL of the probe on a grid over each plane; one task a row of the grid, and one for the runs.

    Rows of ``planes`` are grid points, their loss null where it is not finite. Rows of ``plane_runs`` are all runs at
    their projections, with their distance from the plane and their own loss, which is the plane's at the three corners
    alone. A task costs ``points`` mixtures and as many passes over the texts. Coordinates are Euclidean distances
    between weights.

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
    tables = ("planes", "plane_runs")

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
        probe = self._texts()
        recipe = self.settings.model_dump(mode="json", exclude={"planes"})
        tasks = []
        for corners in self.planes:
            inputs = content_key(recipe, probe.key, [[run.name, run.key] for run in corners])
            label = f"plane through {', '.join(run.name for run in corners)}"
            tasks += [
                Task(
                    content_key(self.name, inputs, row), float(self.settings.points), (corners, row), f"{label}: {row}"
                )
                for row in range(self.settings.points)
            ]
            every = [[run.name, run.key] for run in self.runs]
            key = content_key(self.name, inputs, "runs", every)
            tasks.append(Task(key, float(len(self.runs)), (corners, None), f"{label}: runs"))
        return tasks

    def setup(self) -> _State:
        """Load the base student once and tokenise the probe."""
        model, tokenizer, weights = load_mixable(self.base, self.runs)
        probe = self._texts()
        return _State(model, weights, Likelihood(probe.name, probe, tokenizer, self.settings.batch_size))

    def compute(self, state: _State, payload: tuple[Corners, int | None]) -> dict[str, Rows]:
        """Measure one row of a grid, or project all runs.

        Raises:
            DeltaError: the three runs span no plane, or a run's own loss is not finite.
        """
        corners, row = payload
        labels = {f"run_{side}": run.name for side, run in zip("abc", corners, strict=True)}
        if row is None:
            return {"plane_runs": [labels | found for found in self._projected(state, corners)]}
        plane = self._plane(state, corners)
        xs, ys = plane.axes(self.settings.points, self.settings.margin)
        deltas = [run.open() for run in corners]
        n, y = len(state.measured.counts), float(ys[row])
        return {
            "planes": [
                labels
                | {"x": x, "y": y, "n": n}
                | {"loss": _finite(self._loss(state, mixture(*zip(plane.coefficients(x, y), deltas, strict=True))))}
                for x in xs.tolist()
            ]
        }

    def _projected(self, state: _State, corners: Corners) -> list[dict[str, Any]]:
        others = [run for run in self.runs if run not in corners]
        gram = delta_gram([run.open() for run in (*corners, *others)])
        plane = self._plane(state, corners)
        places = np.vstack([np.column_stack([plane.corners, np.zeros(3)]), plane.project(gram)])
        rows = []
        for run, (x, y, residual) in zip((*corners, *others), places.tolist(), strict=True):
            loss = self._loss(state, run.mixture())
            if not np.isfinite(loss):
                raise DeltaError(f"the loss of {run.name} is {loss}; the run has diverged, leave it out.")
            rows.append({"run": run.name, "x": x, "y": y, "residual": residual, "loss": loss})
        return [row | {"n": len(state.measured.counts)} for row in rows]

    def _texts(self) -> Probe:
        probe = Probe.load(self.probe)
        return Probe(probe.name, probe.sequences[: self.settings.sequences])

    def _plane(self, state: _State, corners: Corners) -> Plane:
        if corners not in state.planes:
            state.planes[corners] = Plane.of(delta_gram([run.open() for run in corners]))
        return state.planes[corners]

    def _loss(self, state: _State, terms: Mixture) -> float:
        with state.weights.mixed(terms):
            return float(state.measured.sums(state.model).sum() / state.measured.counts.sum())


def _finite(loss: float) -> float | None:
    return loss if np.isfinite(loss) else None
