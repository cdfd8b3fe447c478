"""Extreme eigenvalues of a symmetric operator that is known by its products alone: block Lanczos.

``matmat`` maps [n, k] to [n, k]. A block of one vector is the classical method of Lanczos.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MatMat = Callable[[Tensor], Tensor]


class Lanczos:
    """The block Lanczos recurrence from the columns of ``start`` [n, b], with full re-orthogonalisation, done twice.

    After m steps the columns of ``basis`` [n, d], d <= m b, are an orthonormal basis of the block Krylov space
    span(S, AS, ..., A^(m-1) S), in which the operator is ``matrix`` [d, d], block tridiagonal (Golub & Van Loan, Matrix
    Computations, section 10.3; "twice is enough", Parlett, The Symmetric Eigenvalue Problem, section 6.9). An
    eigenvalue repeated up to b times is found as often. Directions of a new block that lie in the known space, up to
    100 roundings of the operator's size, are dropped: the block shrinks, and once it is empty the space is invariant.

    ``matrix`` and ``coupling`` are fp64; the basis has the dtype of ``start``. ``coupling`` [b', b''] holds the newest
    block, not yet multiplied, against the image of the one before: A Q_m = ... + Q_(m+1) coupling.
    """

    def __init__(self, matmat: MatMat, start: Tensor, max_steps: int):
        n, b = start.shape
        self._matmat = matmat
        self._vectors = start.new_zeros(min((max_steps + 1) * b, n + b), n)
        self._matrix = np.zeros((len(self._vectors),) * 2)
        self._done = self._known = self.steps = self.products = 0
        norm = float(start.norm())
        self.coupling = self._add(start.T, 100 * torch.finfo(start.dtype).eps * norm)

    @property
    def basis(self) -> Tensor:
        """Orthonormal basis of the Krylov space of the steps made, [n, d]."""
        return self._vectors[: self._done].T

    @property
    def matrix(self) -> np.ndarray:
        """The operator in ``basis``, [d, d]."""
        return self._matrix[: self._done, : self._done]

    @property
    def exhausted(self) -> bool:
        """Whether the Krylov space is invariant, so that another step would find nothing new."""
        return self._known == self._done

    def step(self) -> None:
        """Make one step: one product with the newest block."""
        old, new = self._done, self._known
        image = self._matmat(self._vectors[old:new].T).T.contiguous()
        alpha = (self._vectors[old:new] @ image.T).double().cpu().numpy()
        self._matrix[old:new, old:new] = (alpha + alpha.T) / 2
        self._done = new
        self.steps += 1
        self.products += new - old
        size = np.abs(self.matrix).sum(1).max()
        self.coupling = self._add(image, 100 * torch.finfo(image.dtype).eps * size)
        self._matrix[new : self._known, old:new] = self.coupling
        self._matrix[old:new, new : self._known] = self.coupling.T

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values in ascending order, [d], their coefficients in ``basis``, [d, d] (one vector a column), and their
        residuals ||A y - theta y|| = ||coupling @ coefficients of the last block||, [d].
        """
        values, coefficients = np.linalg.eigh(self.matrix)
        width = self.coupling.shape[1]
        return values, coefficients, np.linalg.norm(self.coupling @ coefficients[-width:], axis=0)

    def _add(self, rows: Tensor, smallest: float) -> np.ndarray:
        """Orthonormalise ``rows`` [b, n] against the basis and each other, keep what is longer than ``smallest`` as
        the newest block Q [b', n], and return Q against ``rows``, [b', b].
        """
        q, r = torch.linalg.qr(self._outside(self._outside(rows)).T)
        u, s, vh = torch.linalg.svd(r.double())
        keep = s > max(smallest, torch.finfo(torch.float64).tiny)
        short = (q @ u[:, keep].to(q)).T
        # What is short beside its block has lost its orthogonality to rounding; it is restored at full length.
        q, r = torch.linalg.qr(self._outside(short).T)
        count = q.shape[1]
        self._vectors[self._known : self._known + count] = q.T
        self._known += count
        return (r.double() @ (s[keep, None] * vh[keep])).cpu().numpy()

    def _outside(self, rows: Tensor) -> Tensor:
        known = self._vectors[: self._known]
        return rows - (rows @ known.T) @ known


@dataclass(frozen=True)
class Extremes:
    """Eigenvalues at one end of the spectrum or both, with what is known of them.

    ``top`` [k] are the largest, in descending order, ``bottom`` [j] the smallest, in ascending order, each with its
    residual, all fp64; ``vectors`` [n, k] those of ``top``, orthonormal, in the operator's dtype. Within its residual
    of each value lies an eigenvalue of the operator; no residual is below the rounding of the operator's dtype.
    ``basis`` [n, d] is that of the whole Krylov space, ``basis_trace`` the operator's trace in it. ``products`` counts
    single products.
    """

    top: np.ndarray
    top_residuals: np.ndarray
    vectors: Tensor
    bottom: np.ndarray
    bottom_residuals: np.ndarray
    basis: Tensor
    basis_trace: float
    products: int
    converged: bool


def extreme_eigenvalues(
    matmat: MatMat, start: Tensor, k: int, *, bottom: int = 1, max_steps: int, tolerance: float
) -> Extremes:
    """Find the ``k`` algebraically largest eigenvalues and the ``bottom`` smallest by Lanczos from ``start`` [n, b].

    Stops when each of the k has a residual of at most ``tolerance`` times its own size and each of the smallest ones of
    at most ``tolerance`` times the largest size, or after ``max_steps``. Fewer come back when the Krylov space is
    smaller. An eigenvalue repeated more than b times is found b times.
    """
    lanczos = Lanczos(matmat, start, max_steps)
    converged = False
    while lanczos.steps < max_steps and not (converged or lanczos.exhausted):
        lanczos.step()
        values, coefficients, residuals = lanczos.ritz()
        converged = (
            len(values) >= max(k, bottom)
            and bool((residuals[-k:] <= tolerance * np.abs(values[-k:])).all())
            and bool((residuals[:bottom] <= tolerance * np.abs(values).max()).all())
        )
    residuals = np.maximum(residuals, torch.finfo(start.dtype).eps * np.abs(values).max())
    top = slice(None, -k - 1, -1)
    return Extremes(
        top=values[top],
        top_residuals=residuals[top],
        vectors=lanczos.basis @ torch.as_tensor(coefficients[:, top].copy()).to(start),
        bottom=values[:bottom],
        bottom_residuals=residuals[:bottom],
        basis=lanczos.basis,
        basis_trace=float(lanczos.matrix.trace()),
        products=lanczos.products,
        converged=converged or lanczos.exhausted,
    )
