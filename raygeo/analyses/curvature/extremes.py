"""Extreme eigenvalues and the trace of the Hessian at every run, and how much of a delta lies in the top eigenspace."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from raygeo.analyses.curvature.settings import ExtremesSettings
from raygeo.analyses.curvature.workload import CURVATURE, CurvatureWorkload, Place, State, columns
from raygeo.data.probes import Probe
from raygeo.geometry.curvature import long
from raygeo.geometry.curvature.difference_operator import DifferenceHessian
from raygeo.geometry.curvature.lanczos import Extremes, MatMat, extreme_eigenvalues, rayleigh
from raygeo.geometry.curvature.operators import Hessian, Operator
from raygeo.geometry.curvature.trace import hutch_plus_plus
from raygeo.models.delta import Multiplied
from raygeo.models.run import Run
from raygeo.workload import Rows, Task

_ROUNDINGS = 100
"""Without a check in fp64, errors are at least so many roundings of the largest eigenvalue: products of small students
were up to 55 off.
"""


class ExtremeEigenvalues(CurvatureWorkload):
    """One task a run, operator and space of weights.

    * ``eigenvalue`` and ``min_eigenvalue``: Rayleigh quotients of the vectors found by products in fp64, ``error``
      being the residual of those, within which an eigenvalue of the exact operator lies; and the rows "component", how
      much of each of the density's random vectors lies along their vectors.
    * ``trace``, by Hutch++ over the Krylov basis that found the eigenvalues, with its standard error and Student's 95 %
      interval between random vectors.
    * ``overlap`` of the delta ``name``: how much of it lies among the top eigenvectors, |V'd|^2 / |d|^2, with ``x`` =
      k/n, which a random direction has in the mean. At the base that is every delta, so that its tasks change with
      them; at a run its own. Each is restricted to the space.
    * ``nll`` there, and ``gradient_norm``.
    * ``product_error``, where products are differences of gradients: their relative error along the vector of the first
      eigenvalue. Without the check in fp64 it is how much the product depends on the step, and eigenvalues and errors
      come from such scans.

    On the Hessian of a student of 0.15 M weights (505 tokens, trace 690) one random vector has a standard deviation of
    208 without a basis, 120 outside the 5 top eigenvectors, 122 outside a random sketch of 8 (16 further products) and
    85 outside the Krylov basis of 25 steps, which is why the trace is taken there.
    """

    name = "curvature.extremes"
    tables: ClassVar = {"curvature": CURVATURE}
    revision = 2
    affecting = ExtremesSettings

    def tasks(self) -> list[Task]:
        """One task a place."""
        settings, probe = self.settings, Probe.load(self.probe)
        checked = settings.top_k + settings.bottom_k if settings.fp64_check else 0
        products = settings.max_steps * settings.block_size + settings.trace_probes + 2 * checked
        return [
            self.task(place, "extreme eigenvalues", products, probe, [[r.name, r.key] for r in self._compared(place)])
            for place in self.places()
        ]

    def compute(self, state: State, payload: Place) -> dict[str, Rows]:
        """Compute one task at its run's weights, then put the base back."""
        with self.operator(state, payload) as operator:
            kept = self.kept(payload, operator)
            rows = self._rows(payload, operator, kept(operator.matmat), kept(operator.exact))
            common = columns(payload, operator)
        return {"curvature": [common | row for row in rows]}

    def _compared(self, place: Place) -> list[Run]:
        """The runs whose deltas are compared with the eigenvectors at a place."""
        if place.space == "lora":
            return []
        return self.directions if place.run.delta is None else [place.run]

    def _rows(self, place: Place, operator: Operator, matmat: MatMat, exact: MatMat) -> Rows:
        settings = self.settings
        found = extreme_eigenvalues(
            matmat,
            self.random_signs(operator, "lanczos", range(settings.block_size)),
            settings.top_k,
            bottom=settings.bottom_k,
            max_steps=settings.max_steps,
            tolerance=settings.tolerance,
            max_basis=settings.max_basis,
        )
        probes = (self.random_signs(operator, "trace", block) for block in settings.probe_blocks)
        trace = hutch_plus_plus(matmat, found.basis, found.basis_trace, probes)
        rows: Rows = [{"quantity": "trace", **trace._asdict()}, *self._overlaps(place, operator, found)]
        if place.operator == Hessian.name:
            rows += [
                {"operator": None, "quantity": "nll", "value": operator.nll},
                {"operator": None, "quantity": "gradient_norm", "value": long.norm(operator.gradient())},
            ]
        ends = {
            "eigenvalue": (found.top, found.top_residuals),
            "min_eigenvalue": (found.bottom, found.bottom_residuals),
        }
        both, different = [found.vectors, found.bottom_vectors], found.basis.shape[1]
        del found  # the basis takes more memory than the check
        vectors = torch.cat(both, 1)
        del both
        return self._checked(operator, matmat, exact, ends, vectors, different) + rows

    def _overlaps(self, place: Place, operator: Operator, found: Extremes) -> Rows:
        rows: Rows = []
        k = found.vectors.shape[1]
        for run in self._compared(place):
            delta = run.open()
            assert delta is not None
            named = Multiplied(delta, operator.device, operator.parameters)
            direction = operator.flatten(named).to(found.vectors.device)
            energy = long.norm(direction) ** 2
            if energy > 0:
                inside = float(long.inner(found.vectors.T, direction[None]).square().sum()) / energy
                rows.append({"quantity": "overlap", "name": run.name, "index": k, "x": k / operator.n, "value": inside})
        return rows

    def _checked(
        self,
        operator: Operator,
        matmat: MatMat,
        exact: MatMat,
        ends: Mapping[str, tuple[np.ndarray, np.ndarray]],
        vectors: Tensor,
        different: int,
    ) -> Rows:
        """Rows of the eigenvalues of both ends after the check of their ``vectors`` [n, k] in fp64, and what share of
        the density's random vectors lies along each; only the first ``different`` vectors are, as the ends of a small
        space meet.
        """
        values, errors = (np.concatenate(parts) for parts in zip(*ends.values(), strict=True))
        rows: Rows = []
        if self.settings.fp64_check:
            images = exact(vectors.double())
            values, errors = rayleigh(partial(_known, images), vectors.double())
            if isinstance(operator, DifferenceHessian):
                apart = long.norm(matmat(vectors[:, :1])[:, 0].double() - images[:, 0])
                off = apart / max(long.norm(images[:, 0]), torch.finfo(torch.float32).tiny)
                rows.append({"quantity": "product_error", "x": operator.scale, "value": off})
        elif isinstance(operator, DifferenceHessian):
            values, errors, rows = _scanned(operator, vectors)
        else:
            errors = np.maximum(errors, _ROUNDINGS * torch.finfo(operator.dtype).eps * np.abs(values).max())
        drawn = (self.random_signs(operator, "density", [i]) for i in range(self.settings.slq_probes))
        shares = [(long.inner(vectors.T, signs.T).square() / operator.n)[:, 0].tolist() for signs in drawn]
        first = 0
        for quantity, (before, _) in ends.items():
            places = np.arange(first, first + len(before))
            first += len(before)
            descending = quantity == "eigenvalue"
            places = places[np.argsort(-values[places] if descending else values[places], kind="stable")]
            for index, place in enumerate(places.tolist()):
                rows.append(
                    {"quantity": quantity, "index": index, "value": float(values[place]), "error": float(errors[place])}
                )
                if place < different:
                    rows += [
                        {
                            "quantity": "component",
                            "name": quantity,
                            "x": float(index),
                            "index": i,
                            "value": share[place],
                        }
                        for i, share in enumerate(shares)
                    ]
        return rows


def _scanned(operator: DifferenceHessian, vectors: Tensor) -> tuple[np.ndarray, np.ndarray, Rows]:
    """Rayleigh quotients of ``vectors`` [n, k] from the products that depend least on the step, their residuals with
    what those depend on it, and the first one's error as a row.
    """
    values, errors, rows = [], [], []
    for column in vectors.T:
        vector = column.to(operator.device)
        scan = operator.scan(vector)
        [value], [residual] = rayleigh(partial(_known, scan.product[:, None]), vector[:, None])
        values.append(float(value))
        errors.append(float(residual) + scan.error * long.norm(scan.product))
        rows.append({"quantity": "product_error", "name": "step", "x": scan.scale, "value": scan.error})
    return np.array(values), np.array(errors), rows[:1]


def _known(image: Tensor, vectors: Tensor) -> Tensor:
    return image
