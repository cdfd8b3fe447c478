"""The span of all runs' deltas: a space so small that the whole Hessian in it is known, and every path with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.geometry.curvature.lanczos import MatMat
from raygeo.geometry.curvature.operators import Operator
from raygeo.geometry.weights import linalg
from raygeo.students.delta import Delta

_SMALLEST = 1e-10
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Span:
    """An orthonormal basis P = D ``mix`` [n, r] of the span of k deltas D [n, k], known by its coefficients alone.

    ``mix`` [k, r] and ``coordinates`` [r, k], the deltas in the basis, P'D, are fp64. The basis is that of the Gram
    matrix's eigenvectors after every delta is scaled to unit length, so that short deltas count as much as long ones;
    directions with less than 1e-10 of the largest eigenvalue are dropped as no direction of their own.
    """

    deltas: Sequence[Delta]
    mix: np.ndarray
    coordinates: np.ndarray

    @property
    def dimension(self) -> int:
        """Dimension r of the span."""
        return self.mix.shape[1]

    @property
    def norms(self) -> np.ndarray:
        """Norm of each delta, [k]."""
        return np.linalg.norm(self.coordinates, axis=0)

    def vectors(self, operator: Operator, block: int) -> Iterator[Tensor]:
        """The basis in the operator's layout, at most ``block`` vectors [n, b] at once; sums are taken in fp64."""
        for start in range(0, self.dimension, block):
            columns = [
                operator.flatten(self._combine(self.mix[:, j]))
                for j in range(start, min(start + block, self.dimension))
            ]
            yield torch.stack(columns, 1)

    def project(self, operator: Operator, vectors: Tensor) -> np.ndarray:
        """P'V of vectors [n, b], [r, b] fp64."""
        rows = []
        for delta in self.deltas:
            flat = operator.flatten({name: entry.dense() for name, entry in delta.items()})
            pairs = zip(flat.split(_CHUNK), vectors.split(_CHUNK), strict=True)
            rows.append(torch.stack([d.double() @ v.double() for d, v in pairs]).sum(0).cpu().numpy())
        return self.mix.T @ np.stack(rows)

    def _combine(self, coefficients: np.ndarray) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for coefficient, delta in zip(coefficients.tolist(), self.deltas, strict=True):
            for name, entry in delta.items():
                value = coefficient * entry.dense(torch.float64)
                total[name] = total[name] + value if name in total else value
        return total


def span(deltas: Sequence[Delta]) -> Span:
    """The span of ``deltas``, from their Gram matrix; LoRA factors are not multiplied out for it.

    Raises:
        DeltaError: a delta is zero or not finite, or two have a parameter in different shapes.
    """
    gram = np.zeros((len(deltas),) * 2)
    for name in sorted({name for delta in deltas for name in delta}):
        here = [i for i, delta in enumerate(deltas) if name in delta]
        gram[np.ix_(here, here)] += linalg.gram([deltas[i][name] for i in here]).numpy()
    norms = np.sqrt(np.diag(gram))
    if not norms.all():
        raise DeltaError(f"{deltas[int(norms.argmin())].folder} holds a delta that is zero; leave its run out.")
    values, vectors = np.linalg.eigh(gram / np.outer(norms, norms))
    keep = values > _SMALLEST * values[-1]
    mix = vectors[:, keep] / np.sqrt(values[keep]) / norms[:, None]
    return Span(deltas, mix, mix.T @ gram)


@dataclass(frozen=True)
class Expansion:
    """The scalar to second order about a point of the span: ``value``, ``gradient`` [r], ``hessian`` [r, r], fp64.

    ``point`` [r] are the coordinates of the point, zero for the base.
    """

    point: np.ndarray
    value: float
    gradient: np.ndarray
    hessian: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """The quadratic at ``points`` [..., r]: [...]. It is exact where the scalar is a quadratic."""
        step = points - self.point
        return self.value + step @ self.gradient + 0.5 * np.einsum("...i,ij,...j->...", step, self.hessian, step)


def expand(operator: Operator, matmat: MatMat, basis: Span, point: np.ndarray, block: int) -> Expansion:
    """Expand the operator's scalar in ``basis`` about its present weights, whose coordinates are ``point`` [r].

    It takes one gradient and r products, by ``matmat``, ``block`` at once; no other vectors of n are held.
    """
    gradient = basis.project(operator, operator.gradient()[:, None])[:, 0]
    columns = [basis.project(operator, matmat(vectors)) for vectors in basis.vectors(operator, block)]
    hessian = np.concatenate(columns, 1)
    return Expansion(point, operator.nll, gradient, (hessian + hessian.T) / 2)
