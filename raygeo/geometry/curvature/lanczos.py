"""Extreme eigenvalues of a symmetric operator that is known by its products alone: block Lanczos.

``matmat`` maps [n, k] to [n, k]. A block of one vector is the classical method of Lanczos.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raygeo.geometry.curvature import long

MatMat = Callable[[Tensor], Tensor]


class Lanczos:
    """The block Lanczos recurrence from the columns of ``start`` [n, b], with full re-orthogonalisation, done twice.

    After m steps the columns of ``basis`` [n, d], d <= m b, are an orthonormal basis of the block Krylov space
    span(S, AS, ..., A^(m-1) S), in which the operator is ``matrix`` [d, d], block tridiagonal (Golub & Van Loan, Matrix
    Computations, section 10.3; "twice is enough", Parlett, The Symmetric Eigenvalue Problem, section 6.9). An
    eigenvalue repeated up to b times is found as often. Directions of a new block that lie in the known space, up to
    100 roundings of the operator's size, are dropped: the block shrinks, and once it is empty the space is invariant.

    ``matrix`` and ``coupling`` are fp64, as are all sums over n (``long``); the basis has the dtype of ``start``.
    ``coupling`` [b', b''] holds the newest block, not yet multiplied, against the image of the one before:
    A Q_m = ... + Q_(m+1) coupling.

    ``room`` bounds the vectors that are held, the newest block among them. Once there are so many (``full``),
    ``restart`` keeps Ritz vectors of both ends in place of all (Wu & Simon 2000, "Thick-restart Lanczos method for
    large symmetric eigenvalue problems", https://doi.org/10.1137/S0895479898334605). The space is a Krylov space still,
    ``matrix`` the operator in its basis, and ``ritz`` tells residuals as before; ``matrix`` has an arrow's head.
    """

    def __init__(self, matmat: MatMat, start: Tensor, max_steps: int, room: int | None = None):
        n, b = start.shape
        self._matmat = matmat
        self._block = b
        self._vectors = start.new_zeros(min((max_steps + 1) * b, n + b, room or n + b), n)
        self._matrix = np.zeros((len(self._vectors),) * 2)
        self._done = self._known = self.steps = self.products = 0
        size = float(long.dots(start.T, start.T).sum().sqrt())
        self.coupling = self._add(start.T, 100 * torch.finfo(start.dtype).eps * size)

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

    @property
    def full(self) -> bool:
        """Whether there is no room for another block beside the newest."""
        return self._known + self._block > len(self._vectors)

    def restart(self, top: int, bottom: int) -> None:
        """Go on with the Ritz vectors of the ``top`` largest values and the ``bottom`` smallest, and the newest block.

        With A V = V matrix + Q coupling [0 ... I], the Ritz vectors Y = V c have A Y = Y diag(values) + Q coupling c',
        c' being the last rows of c.
        """
        values, coefficients, _ = self.ritz()
        kept = np.r_[:bottom, len(values) - top : len(values)] if top + bottom < len(values) else np.arange(len(values))
        width = self.coupling.shape[1]
        beside = self.coupling @ coefficients[-width:, kept]
        newest = self._vectors[self._done : self._known].clone()
        turn = torch.as_tensor(coefficients[:, kept].T.copy(), device=self._vectors.device)
        long.replace(self._vectors[: self._done], turn)
        self._done, self._known = len(kept), len(kept) + len(newest)
        self._vectors[self._done : self._known] = newest
        self._matrix[:] = 0
        self._matrix[: self._done, : self._done] = np.diag(values[kept])
        self._matrix[self._done : self._known, : self._done] = beside
        self._matrix[: self._done, self._done : self._known] = beside.T

    def step(self) -> None:
        """Make one step: one product with the newest block."""
        old, new = self._done, self._known
        image = self._matmat(self._vectors[old:new].T).T
        alpha = long.inner(self._vectors[old:new], image).cpu().numpy()
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
        rows = rows.clone(memory_format=torch.contiguous_format)
        known = self._vectors[: self._known]
        for _ in range(2):
            long.remove(rows, known)
        _, s, vh = torch.linalg.svd(long.triangle(rows))
        keep = s > max(smallest, torch.finfo(torch.float64).tiny)
        # What is short beside its block has lost its orthogonality to rounding; it is restored at full length.
        short = long.remove(long.combine(vh[keep] / s[keep, None], rows), known)
        inverse = torch.linalg.solve_triangular(long.triangle(short).T, torch.eye(len(short)).to(vh), upper=False)
        block = self._vectors[self._known : self._known + len(short)]
        block.copy_(long.combine(inverse, short))
        self._known += len(short)
        return long.inner(block, rows).cpu().numpy()


@dataclass(frozen=True)
class Extremes:
    """Eigenvalues at one end of the spectrum or both, with what is known of them.

    ``top`` [k] are the largest, in descending order, ``bottom`` [j] the smallest, in ascending order, each with its
    residual, all fp64; ``vectors`` [n, k] and ``bottom_vectors`` [n, j] are theirs, orthonormal, in the operator's
    dtype. Within its residual of each value lies an eigenvalue of the operator as its products are made: their own
    rounding is not seen (``rayleigh`` with other products shows it), and no residual is below that of their dtype.
    ``basis`` [n, d] is that of the whole Krylov space, ``basis_trace`` the operator's trace in it. ``products`` counts
    single products.
    """

    top: np.ndarray
    top_residuals: np.ndarray
    vectors: Tensor
    bottom: np.ndarray
    bottom_residuals: np.ndarray
    bottom_vectors: Tensor
    basis: Tensor
    basis_trace: float
    products: int
    converged: bool


def extreme_eigenvalues(
    matmat: MatMat,
    start: Tensor,
    k: int,
    *,
    bottom: int = 1,
    max_steps: int = 40,
    tolerance: float = 1e-2,
    max_basis: int | None = None,
) -> Extremes:
    """Find the ``k`` algebraically largest eigenvalues and the ``bottom`` smallest by Lanczos from ``start`` [n, b].

    Stops when each of the k has a residual of at most ``tolerance`` times its own size and each of the smallest ones of
    at most ``tolerance`` times the largest size, or after ``max_steps``. Fewer come back when the Krylov space is
    smaller. An eigenvalue repeated more than b times is found b times. ``start`` is best random
    (``draws.random_signs``).

    ``max_basis`` bounds the vectors of n that are held; where more would be, the search is restarted from half of them,
    those of the ends (``Lanczos.restart``), which takes more steps. It is at least ``fewest_vectors(k, bottom, b)``.
    """
    lanczos = Lanczos(matmat, start, max_steps, max_basis)
    converged = False
    while lanczos.steps < max_steps and not (converged or lanczos.exhausted):
        if lanczos.full:
            assert max_basis is not None
            more = (max_basis - start.shape[1] - k - bottom) // 2
            lanczos.restart(k + more - more // 3, bottom + more // 3)
        lanczos.step()
        values, coefficients, residuals = lanczos.ritz()
        converged = (
            len(values) >= max(k, bottom)
            and bool((residuals[-k:] <= tolerance * np.abs(values[-k:])).all())
            and bool((residuals[:bottom] <= tolerance * np.abs(values).max()).all())
        )
    residuals = np.maximum(residuals, torch.finfo(start.dtype).eps * np.abs(values).max())
    top = slice(None, -k - 1, -1)

    def vectors(chosen: slice) -> Tensor:
        columns = torch.as_tensor(coefficients[:, chosen].copy(), device=start.device)
        return long.combine(columns.T, lanczos.basis.T).T

    return Extremes(
        top=values[top],
        top_residuals=residuals[top],
        vectors=vectors(top),
        bottom=values[:bottom],
        bottom_residuals=residuals[:bottom],
        bottom_vectors=vectors(slice(bottom)),
        basis=lanczos.basis,
        basis_trace=float(lanczos.matrix.trace()),
        products=lanczos.products,
        converged=converged or lanczos.exhausted,
    )


def fewest_vectors(k: int, bottom: int, block: int) -> int:
    """The least room in which ``k`` largest and ``bottom`` smallest eigenvalues can be sought: those, and three blocks,
    of which one is newest, one is being made, and one is what a restart has beyond what is sought.
    """
    return k + bottom + 3 * block


def rayleigh(matmat: MatMat, vectors: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rayleigh quotients of ``vectors`` [n, k], q = y'Ay / y'y, and their residuals |Ay - q y| / |y|, [k] fp64 each.

    Within its residual of each quotient lies an eigenvalue of A (Parlett, The Symmetric Eigenvalue Problem, theorem
    4.5.1); beside a gap in the spectrum the quotient is closer, by the square of the residual over the gap.
    """
    y, image = vectors.T, matmat(vectors).T
    energy = long.dots(y, y)
    values = long.dots(y, image) / energy
    rest = image.double() - values[:, None] * y
    residuals = (long.dots(rest, rest) / energy).sqrt()
    return values.cpu().numpy(), residuals.cpu().numpy()
