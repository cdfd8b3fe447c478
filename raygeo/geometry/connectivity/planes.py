"""Planes through the weights of three runs (Garipov et al., arXiv:1802.10026, appendix A).

A plane is given by an origin and orthonormal axes u and v. Everything about it follows from the inner products of the
three deltas: points are mixtures of whole deltas, and no vector over all weights is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import Array
from raygeo.geometry.connectivity.mixtures import distance


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
