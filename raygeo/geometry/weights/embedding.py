"""A flat map of points known by their inner products alone: classical multidimensional scaling (Torgerson 1952)."""

from dataclasses import dataclass

import numpy as np

_NOWHERE = 1e-8


@dataclass(frozen=True)
class Map:
    """The plane in which N points lie best, and what it leaves out.

    ``points`` [N, 2] are coordinates in the unit of the distances. ``eigenvalues`` [N - 1], descending, are the sums of
    squares along the principal axes; ``share`` is what each is of their sum, and ``stress`` [N - 1] is what the
    distances of a map of the first 1, 2, ... axes are off: sqrt(sum (d - d')^2 / sum d^2) over all pairs (Kruskal 1964,
    stress-1, without a monotone fit). Shares and stresses are NaN where all points coincide.
    """

    points: np.ndarray
    eigenvalues: np.ndarray
    stress: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Share of each axis in the sum of squares, [N - 1]."""
        return _ratio(self.eigenvalues, self.eigenvalues.sum())


def embed(inner: np.ndarray, origin: int, towards: int) -> Map:
    """Map N >= 2 points with inner products [N, N], taken from any origin.

    The plane is turned so that point ``origin`` is at (0, 0) and point ``towards`` on the positive x axis, and mirrored
    so that the point farthest from that axis has y > 0 (the first of equals). If ``towards`` is within 1e-8 of
    ``origin``, relative to the farthest point, the farthest takes its place. Axes are turned, so x and y are not
    principal axes; where the second eigenvalue equals the third, the plane itself is arbitrary.
    """
    n = len(inner)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(centre @ inner @ centre)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    axes = (vectors * np.sqrt(values))[:, : n - 1]
    flat = np.zeros((n, 2))
    flat[:, : min(2, n - 1)] = axes[:, :2]
    return Map(_place(flat - flat[origin], towards), values[: n - 1], _stress(inner, axes))


def _stress(inner: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """What distances of a map of the first 1, 2, ... ``axes`` [N, N - 1] are off: [N - 1]."""
    i, j = np.triu_indices(len(inner), 1)
    energy = np.diag(inner)
    given = np.sqrt((energy[i] + energy[j] - 2 * inner[i, j]).clip(min=0))
    squares, off = np.zeros_like(given), []
    for axis in axes.T:
        squares += np.square(axis[i] - axis[j])
        off.append(np.square(given - np.sqrt(squares)).sum())
    return np.sqrt(_ratio(np.array(off), np.square(given).sum()))


def _place(points: np.ndarray, towards: int) -> np.ndarray:
    lengths = np.linalg.norm(points, axis=1)
    if not lengths.any():
        return points
    if lengths[towards] <= _NOWHERE * lengths.max():
        towards = int(lengths.argmax())
    x, y = points[towards] / lengths[towards]
    turned = points @ np.array([[x, -y], [y, x]])
    turned[towards, 1] = 0.0
    if turned[np.abs(turned[:, 1]).argmax(), 1] < 0:
        turned[:, 1] *= -1
    return turned + 0.0


def _ratio(above: np.ndarray, below: float) -> np.ndarray:
    return above / below if below > 0 else np.full_like(above, np.nan)
