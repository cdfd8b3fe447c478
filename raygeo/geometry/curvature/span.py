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
from raygeo.models.delta import Delta, Multiplied

_SMALLEST = 1e-10
_CHUNK = 1 << 22

HELD = 1 << 28
"""Most numbers of basis vectors held at once, and as many of their products: 1 GiB each in fp32."""


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

    def vectors(self, operator: Operator, block: int, held: int = HELD) -> Iterator[list[Tensor]]:
        """The basis in the operator's layout, in groups of blocks of at most ``block`` vectors [n, b].

        A group has as many whole blocks as ``held`` numbers are, one at least, and every delta is opened once for it.
        Sums are taken in fp64.
        """
        size = max(1, held // (operator.n * block)) * block
        for first in range(0, self.dimension, size):
            columns = self._combine(operator, self.mix[:, first : first + size])
            yield [torch.stack(columns[start : start + block], 1) for start in range(0, len(columns), block)]

    def project(self, operator: Operator, blocks: Sequence[Tensor]) -> np.ndarray:
        """P'V of all vectors in ``blocks``, each [n, b]: [r, sum of b] fp64; every delta is opened once."""
        rows: list[list[np.ndarray]] = [[] for _ in blocks]
        for delta in self.deltas:
            flat = operator.flatten(Multiplied(delta, operator.device)).split(_CHUNK)
            for row, vectors in zip(rows, blocks, strict=True):
                pairs = zip(flat, vectors.split(_CHUNK), strict=True)
                row.append(torch.stack([d.double() @ v.double() for d, v in pairs]).sum(0).cpu().numpy())
        return np.concatenate([self.mix.T @ np.stack(row) for row in rows], 1)

    def _combine(self, operator: Operator, mix: np.ndarray) -> list[Tensor]:
        """D ``mix`` [k, c], a vector [n] a column."""
        columns: list[dict[str, Tensor]] = [{} for _ in mix.T]
        for name in dict.fromkeys(name for delta in self.deltas for name in delta):
            totals: list[Tensor] = []
            for coefficients, delta in zip(mix.tolist(), self.deltas, strict=True):
                if name in delta:
                    value = delta[name].dense(torch.float64, operator.device)
                    terms = [coefficient * value for coefficient in coefficients]
                    totals = [a + b for a, b in zip(totals, terms, strict=True)] if totals else terms
            for column, total in zip(columns, totals, strict=True):
                column[name] = total.to(operator.dtype)
        return [operator.flatten(column) for column in columns]


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


def expand(
    operator: Operator, matmat: MatMat, basis: Span, point: np.ndarray, block: int, held: int = HELD
) -> Expansion:
    """Expand the operator's scalar in ``basis`` about its present weights, whose coordinates are ``point`` [r].

    It takes one gradient and r products, by ``matmat``, ``block`` at once. At most ``held`` numbers of vectors and as
    many of products are held, and deltas are opened twice for each such group: if all fit, twice a point.
    """
    gradient = basis.project(operator, [operator.gradient()[:, None]])[:, 0]
    columns = []
    for group in basis.vectors(operator, block, held):
        products = []
        while group:
            products.append(matmat(group.pop(0)))
        columns.append(basis.project(operator, products))
    hessian = np.concatenate(columns, 1)
    return Expansion(point, operator.nll, gradient, (hessian + hessian.T) / 2)
