"""The span of all runs' deltas: a space so small that the whole Hessian in it is known, and every path with it."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.geometry.curvature.lanczos import MatMat
from raygeo.geometry.curvature.operators import Operator
from raygeo.geometry.weights import linalg
from raygeo.models.delta import Delta

_SMALLEST = 1e-10
_CHUNK = 1 << 22

HELD = 1 << 28
"""Most numbers of basis vectors held at once: 1 GiB in fp32."""


@dataclass
class Span:
    """An orthonormal basis P = D ``mix`` [n, r] of the span of k deltas D [n, k], known by its coefficients.

    ``mix`` [k, r] and ``coordinates`` [r, k], the deltas in the basis, P'D, are fp64. The basis is that of the Gram
    matrix's eigenvectors after every delta is scaled to unit length, so that short deltas count as much as long ones;
    directions with less than 1e-10 of the largest eigenvalue are dropped as no direction of their own.

    Its vectors are kept for operators of one layout, once made, where they are at most ``held`` numbers; else they are
    made of the deltas whenever they are needed, at most so many numbers at once, or one block.
    """

    deltas: Sequence[Delta]
    mix: np.ndarray
    coordinates: np.ndarray
    held: int = HELD
    _kept: tuple[Hashable, Tensor] | None = field(default=None, init=False, repr=False)

    @property
    def dimension(self) -> int:
        """Dimension r of the span."""
        return self.mix.shape[1]

    @property
    def norms(self) -> np.ndarray:
        """Norm of each delta, [k]."""
        return np.linalg.norm(self.coordinates, axis=0)

    def blocks(self, operator: Operator, size: int) -> Iterator[list[Tensor]]:
        """The basis in the operator's layout, in groups of blocks of at most ``size`` vectors [n, b].

        All are one group where they are kept; else every delta is read once a group.
        """
        whole = self._whole(operator)
        if whole is not None:
            yield [block.T for block in whole.split(size)]
            return
        together = max(1, self.held // (operator.n * size)) * size
        for first in range(0, self.dimension, together):
            vectors = self._vectors(operator, self.mix[:, first : first + together])
            yield [block.T for block in vectors.split(size)]

    def project(self, operator: Operator, blocks: Sequence[Tensor]) -> np.ndarray:
        """P'V of all vectors in ``blocks``, each [n, b]: [r, sum of b] fp64, summed in fp64.

        Deltas are read once, and not at all where the basis is kept.
        """
        whole = self._whole(operator)
        rows = self.dimension if whole is not None else len(self.deltas)
        totals = [block.new_zeros(rows, block.shape[1], dtype=torch.float64) for block in blocks]
        for place, here, piece in self._pieces(operator) if whole is None else _cut(whole):
            for total, block in zip(totals, blocks, strict=True):
                total[here] += piece @ block[place].double()
        products = torch.cat(totals, 1).cpu().numpy()
        return products if whole is not None else self.mix.T @ products

    def _whole(self, operator: Operator) -> Tensor | None:
        """All vectors [r, n], if they may be kept."""
        if self.dimension * operator.n > self.held:
            return None
        layout = operator.dtype, operator.device, tuple(operator.parameters)
        if self._kept is None or self._kept[0] != layout:
            self._kept = layout, self._vectors(operator, self.mix)
        return self._kept[1]

    def _vectors(self, operator: Operator, mix: np.ndarray) -> Tensor:
        """(D ``mix``)' [c, n] of ``mix`` [k, c], summed in fp64."""
        coefficients = torch.from_numpy(mix).to(operator.device)
        vectors = torch.zeros(mix.shape[1], operator.n, dtype=operator.dtype, device=operator.device)
        for place, here, piece in self._pieces(operator):
            vectors[:, place] = (coefficients[here].T @ piece).to(operator.dtype)
        return vectors

    def _pieces(self, operator: Operator) -> Iterator[tuple[slice, list[int], Tensor]]:
        """The deltas side by side in the operator's layout, a piece after the other: where it lies in a vector, the
        deltas that have it, and their values [deltas, entries], fp64.
        """
        start = 0
        for name, value in operator.parameters.items():
            here = [i for i, delta in enumerate(self.deltas) if name in delta]
            if here:
                place = start
                for piece in linalg.side_by_side([self.deltas[i][name] for i in here], operator.device):
                    yield slice(place, place + piece.shape[1]), here, piece
                    place += piece.shape[1]
            start += value.numel()


def _cut(whole: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """A basis [r, n] as ``Span._pieces`` are."""
    for start in range(0, whole.shape[1], step := max(1, _CHUNK // len(whole))):
        place = slice(start, start + step)
        yield place, slice(None), whole[:, place].double()


def span(deltas: Sequence[Delta], held: int = HELD) -> Span:
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
    return Span(deltas, mix, mix.T @ gram, held)


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

    It takes one gradient and r products, by ``matmat``, ``block`` at once.
    """
    gradient = basis.project(operator, [operator.gradient()[:, None]])[:, 0]
    groups = basis.blocks(operator, block)
    hessian = np.concatenate([basis.project(operator, [matmat(v) for v in group]) for group in groups], 1)
    return Expansion(point, operator.nll, gradient, (hessian + hessian.T) / 2)
