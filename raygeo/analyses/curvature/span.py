"""The whole Hessian in the span of all deltas at every run: curvature along each, and every path predicted from it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raygeo.analyses.curvature.settings import SpanSettings
from raygeo.analyses.curvature.workload import CURVATURE, EXPANSIONS, CurvatureWorkload, Place, State, columns
from raygeo.analyses.pairs import pairs_key
from raygeo.data.probes import Probe
from raygeo.geometry.curvature.spaces import SPAN
from raygeo.geometry.curvature.span import Expansion, Span, expand, span
from raygeo.workload import Rows, Task


@dataclass
class SpanState(State):
    """With the basis of the span, once a task has needed it."""

    basis: Span | None = None


class SpanCurvature(CurvatureWorkload):
    """One task a run and operator, which changes with every delta.

    It gives the eigenvalues and the trace; along each delta d, ``directional`` d'Hd / d'd, named after d's run; and in
    table ``expansions`` the NLL to second order about the run (``at``) of every path that it is an end of, and about
    the base of all paths.
    """

    name = "curvature.span"
    tables: ClassVar = {"curvature": CURVATURE, "expansions": EXPANSIONS}
    affecting = SpanSettings

    def tasks(self) -> list[Task]:
        """One task a run and operator; none if the span is not asked for, or empty."""
        count, probe = len(self.directions), Probe.load(self.probe)
        if "span" not in self.settings.spaces or not count:
            return []
        runs = [[run.name, run.key] for run in self.runs]
        pairs = pairs_key(self.chosen, (run.name for run in self.runs))
        return [
            self.task(Place(run, "span", SPAN, operator), "Hessian in the span", float(count), probe, runs, *pairs)
            for run in self.runs
            for operator in self.operators
        ]

    def setup(self) -> SpanState:
        """Load the base student and the probe's batches."""
        return SpanState(**vars(super().setup()))

    def compute(self, state: SpanState, payload: Place) -> dict[str, Rows]:
        """Expand the NLL in the span at one run's weights, then put the base back."""
        if state.basis is None:
            state.basis = span([delta for run in self.directions if (delta := run.open()) is not None])
        basis = state.basis
        points = dict(zip([run.name for run in self.directions], basis.coordinates.T, strict=True))
        origin = np.zeros(basis.dimension)
        with self.operator(state, payload) as operator:
            matmat = self.kept(payload, operator)(operator.matmat)
            point = points.get(payload.run.name, origin)
            around = expand(operator, matmat, basis, point, self.settings.block_size)
            common = columns(payload, operator)
        common["parameters"] = basis.dimension
        return {
            "curvature": [common | row for row in _rows(around, basis, points)],
            "expansions": self._predicted(payload, around, points, origin, common["tokens"]),
        }

    def _predicted(
        self, place: Place, around: Expansion, points: dict[str, np.ndarray], origin: np.ndarray, tokens: int
    ) -> Rows:
        alphas = np.linspace(0, 1, self.settings.path_points)
        rows: Rows = []
        for a, b in self.paths:
            if place.run in (a, b) or place.run.delta is None:
                start, end = points.get(a.name, origin), points.get(b.name, origin)
                path = np.outer(1 - alphas, start) + np.outer(alphas, end)
                rows += [
                    {"run_a": a.name, "run_b": b.name, "at": place.run.name, "operator": place.operator}
                    | {"alpha": float(alpha), "nll": float(value), "tokens": tokens}
                    for alpha, value in zip(alphas, around.at(path), strict=True)
                ]
        return rows


def _rows(around: Expansion, basis: Span, points: dict[str, np.ndarray]) -> Rows:
    values = np.linalg.eigvalsh(around.hessian)[::-1]
    rows: Rows = [{"quantity": "eigenvalue", "index": i, "value": float(value)} for i, value in enumerate(values)]
    rows.append({"quantity": "trace", "value": float(values.sum())})
    for (name, d), norm in zip(points.items(), basis.norms, strict=True):
        rows.append({"quantity": "directional", "name": name, "value": float(d @ around.hessian @ d / norm**2)})
    return rows
