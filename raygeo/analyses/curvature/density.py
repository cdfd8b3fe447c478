"""The spectral density of the Hessian at every run."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pyarrow as pa

from raygeo.analyses.curvature.settings import DensitySettings
from raygeo.analyses.curvature.workload import CURVATURE, CurvatureWorkload, Place, State, columns
from raygeo.data.probes import Probe
from raygeo.geometry.curvature.quadrature import Band, Spectrum, gauss_quadrature
from raygeo.workload import Rows, Task


class SpectralDensity(CurvatureWorkload):
    """``block_size`` random vectors a task, of one run, operator and space of weights.

    Rows "ritz" hold nodes (``x``) and weights (``value``) of the quadrature, ``index`` being the random vector, rows
    "coarse ritz" those of two steps fewer. ``aggregate`` makes "density" of all of them and of the eigenvalues that
    were found one by one: standard error, 95 % band, and the smoothing as a row "density_width". Random vectors are not
    deflated, so that tasks wait for no eigenvectors; what lies along these is taken out in the end.
    """

    name = "curvature.density"
    tables: ClassVar = {"curvature": CURVATURE}
    revision = 2
    affecting = DensitySettings

    def tasks(self) -> list[Task]:
        """Slices of the random vectors at every place; none if no vectors are asked for."""
        count, size, probe = self.settings.slq_probes, self.settings.block_size, Probe.load(self.probe)
        slices = [tuple(range(first, min(first + size, count))) for first in range(0, count, size)]
        return [
            self.task(
                replace(place, vectors=vectors),
                f"density ({', '.join(map(str, vectors))})",
                self.settings.slq_steps * len(vectors),
                probe,
            )
            for place in self.places()
            for vectors in slices
        ]

    def compute(self, state: State, payload: Place) -> dict[str, Rows]:
        """The quadratures of one task's random vectors."""
        with self.operator(state, payload) as operator:
            probes = self.random_signs(operator, "density", payload.vectors)
            rules = gauss_quadrature(self.kept(payload, operator)(operator.matmat), probes, self.settings.slq_steps)
            common = columns(payload, operator)
        return {
            "curvature": [
                common | {"quantity": quantity, "index": index, "x": float(x), "value": float(w)}
                for quantity, (nodes, weights) in zip(("ritz", "coarse ritz"), rules, strict=True)
                for index, row in zip(payload.vectors, weights, strict=True)
                for x, w in zip(nodes, row, strict=True)
            ]
        }

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """The density of every run, operator and space, from four smoothing widths below to four above its spectrum."""
        found: defaultdict[tuple, defaultdict[str, Rows]] = defaultdict(lambda: defaultdict(list))
        for row in tables["curvature"].to_pylist():
            found[row["run"], row["space"], row["operator"]][row["quantity"]].append(row)
        rows: Rows = []
        for (run, space, operator), parts in found.items():
            ritz = parts["ritz"]
            if not ritz:
                continue
            common = {"run": run, "space": space, "operator": operator}
            common |= {column: ritz[0][column] for column in ("parameters", "tokens")}
            spectrum = self._assembled(parts)
            low, high = spectrum.ends
            width = max(self.settings.density_width * (high - low), spectrum.resolution(self.settings.slq_steps), 1e-30)
            grid = np.linspace(low - 4 * width, high + 4 * width, self.settings.density_points)
            rows.append(common | {"quantity": "density_width", "value": width})
            for i, (x, *band) in enumerate(zip(grid.tolist(), *spectrum.density(grid, width), strict=True)):
                numbers = dict(zip(Band._fields, map(float, band), strict=True))
                rows.append(common | {"quantity": "density", "index": i, "x": x} | numbers)
        return {"curvature": rows} if rows else {}

    def _assembled(self, parts: Mapping[str, Rows]) -> Spectrum:
        """The spectrum from rows by quantity; eigenvalues count as known where they have converged."""

        def rules(quantity: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
            found: defaultdict[int, Rows] = defaultdict(list)
            for row in parts[quantity]:
                found[row["index"]].append(row)
            return {i: (_column(each, "x"), _column(each, "value")) for i, each in found.items()}

        probes, coarser = rules("ritz"), rules("coarse ritz")
        shares: defaultdict[tuple[str, float], dict[int, float]] = defaultdict(dict)
        for row in parts["component"]:
            shares[row["name"], row["x"]][row["index"]] = row["value"]
        ends = [row for quantity in ("eigenvalue", "min_eigenvalue") for row in parts[quantity]]
        size = max((abs(row["value"]) for row in ends), default=0.0)
        known = [
            row
            for row in ends
            if row["error"] <= self.settings.tolerance * size and (row["quantity"], row["index"]) in shares
        ]
        components = [[shares[row["quantity"], row["index"]][i] for row in known] for i in probes]
        return Spectrum(
            n=parts["ritz"][0]["parameters"],
            probes=list(probes.values()),
            coarser=list(coarser.values()),
            top=_column([row for row in known if row["quantity"] == "eigenvalue"], "value"),
            bottom=_column([row for row in known if row["quantity"] == "min_eigenvalue"], "value"),
            components=np.array(components).reshape(len(probes), len(known)),
        )


def _column(rows: Rows, name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=np.float64)
