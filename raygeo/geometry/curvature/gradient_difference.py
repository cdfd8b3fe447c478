"""Hessian-vector products from differences of gradients: two gradients a product, and no second derivative.

So they work for whatever can be differentiated once, with weights held in one process or divided over several. In the
latter each holds its part of every vector, and ``total`` sums numbers over all of them.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from raygeo.errors import WorkloadError
from raygeo.geometry.curvature import long
from raygeo.geometry.curvature.landscape import Slope

SCALES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Lengths of a step that are tried, as shares of the length of the weights."""


def _alone(numbers: Tensor) -> Tensor:
    return numbers


@dataclass(frozen=True)
class Scan:
    """A product [m] with the length of step it was made with, as a share of the length of the weights.

    ``error`` is the largest distance between the products of three neighbouring lengths, the chosen one in their
    middle, over the length of the product; ``distances`` are those of all neighbouring pairs, in the order of the
    lengths: they fall while rounding rules and rise where the third derivative does.
    """

    product: Tensor
    scale: float
    error: float
    distances: list[float]


class GradientDifference:
    """Products H v = [g(w + e v) - g(w - e v)] / 2e with the Hessian of a scalar whose gradient is g.

    The truncation error is e^2 / 6 times a third derivative of g along v, the rounding error about that of g over e,
    hence the choice of e by ``scan``.

    Args:
        slope: the weights w and the gradient near them: ``landscape.ModelLandscape`` for a model in this process. Where
            weights are divided over several processes it gives this process's part [m] of both, is called by all of
            them at once, and keeps entries that stand for no weight at zero.
        scale: the length of a step of ``matvec`` as a share of that of the weights.
        total: sums a tensor of fp64 numbers over all processes that hold a part; by default there is one process.
    """

    def __init__(self, slope: Slope, scale: float = 1e-3, total: Callable[[Tensor], Tensor] = _alone):
        self._slope = slope
        self._total = total
        self.scale = scale

    def dots(self, rows: Tensor, vector: Tensor) -> Tensor:
        """Inner products of ``rows`` [j, m] with ``vector`` [m] over all processes: [j] fp64."""
        return self._total(long.inner(rows, vector[None])[:, 0])

    def norm(self, vector: Tensor) -> float:
        """Length of a vector [m] over all processes."""
        return float(self.dots(vector[None], vector).sqrt())

    def matvec(self, vector: Tensor) -> Tensor:
        """Product with ``vector`` [m], by steps of ``scale`` times the length of the weights: [m].

        Raises:
            WorkloadError: a gradient is not finite.
        """
        return self._product(vector, self.scale)

    def matmat(self, vectors: Tensor) -> Tensor:
        """Product with each column of ``vectors`` [m, k]: [m, k], for solvers that take an operator's."""
        return torch.stack([self.matvec(column) for column in vectors.T], 1)

    def scan(self, vector: Tensor, scales: Seq[float] = SCALES) -> Scan:
        """Product with ``vector`` [m] where it depends least on the length of step, and how much it does there.

        Two gradients for each of ``scales``, which ascend, at least three.

        Raises:
            WorkloadError: a gradient is not finite.
        """
        products = [self._product(vector, scale) for scale in scales]
        near = [self.norm(b - a) for a, b in pairwise(products)]
        wide = [self.norm(b - a) for a, b in zip(products, products[2:], strict=False)]
        spreads = [max(near[i], near[i + 1], wide[i]) for i in range(len(wide))]
        best = int(np.argmin(spreads))
        product = products[best + 1]
        length = max(self.norm(product), torch.finfo(torch.float32).tiny)
        return Scan(product, scales[best + 1], spreads[best] / length, [distance / length for distance in near])

    def _product(self, vector: Tensor, scale: float) -> Tensor:
        step = scale * self.norm(self._slope.weights) / self.norm(vector)
        after, before = (self._slope.gradient(sign * step * vector) for sign in (1.0, -1.0))
        product = (after - before) / (2 * step)
        if not np.isfinite(self.norm(product)):
            raise WorkloadError("the gradient of the probe's likelihood is not finite; the run diverged, leave it out.")
        return product


def top_eigenvalues(
    operator: GradientDifference, start: Tensor, k: int, *, max_steps: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest eigenvalues, in descending order, and their residuals, [k] fp64 each.

    Lanczos from ``start`` [m] with full re-orthogonalisation, done twice, until each Ritz residual is at most
    ``tolerance`` times its eigenvalue or after ``max_steps`` products (Golub & Van Loan, Matrix Computations, section
    10.1). Each process holds its part of the basis. Along sharp directions a shorter step is right than along random
    ones; so values and residuals are taken at last from a ``scan`` along each Ritz vector y: y' H y, and
    ||H y - (y' H y) y|| plus what H y depends on the step. Within it of each value lies an eigenvalue.
    """
    basis = (start / operator.norm(start))[None]
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        image = operator.matvec(basis[-1])
        alphas.append(float(operator.dots(basis[-1:], image)))
        for _ in range(2):
            image = image - (operator.dots(basis, image).to(basis.dtype)[:, None] * basis).sum(0)
        betas.append(operator.norm(image))
        values, coefficients = eigh_tridiagonal(np.array(alphas), np.array(betas[:-1]))
        residuals = betas[-1] * np.abs(coefficients[-1])
        converged = len(values) >= k and bool((residuals[-k:] <= tolerance * np.abs(values[-k:])).all())
        exhausted = betas[-1] <= 100 * torch.finfo(basis.dtype).eps * np.abs(values).max()
        if converged or exhausted or len(alphas) >= max_steps:
            break
        basis = torch.cat([basis, (image / betas[-1])[None]])
    found = []
    for combination in coefficients.T[: -k - 1 : -1]:
        vector = torch.as_tensor(combination.copy()).to(basis) @ basis
        scan = operator.scan(vector)
        value = float(operator.dots(vector[None], scan.product))
        rest = operator.norm(scan.product - value * vector)
        found.append((value, rest + scan.error * operator.norm(scan.product)))
    found.sort(reverse=True)
    return np.array([value for value, _ in found]), np.array([residual for _, residual in found])
