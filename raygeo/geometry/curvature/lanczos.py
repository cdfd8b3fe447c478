"""Extreme eigenvalues, trace and spectral density of a symmetric operator that is known by its products alone.

``matmat`` maps [n, k] to [n, k]. Several Lanczos recurrences advance in lockstep: each step is one block product.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

MatMat = Callable[[Tensor], Tensor]


def rademacher(
    n: int,
    k: int,
    generator: torch.Generator,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Independent signs +1 or -1, [n, k], drawn on the generator's device, so that they do not depend on ``device``."""
    signs = torch.randint(0, 2, (k, n), generator=generator, device=generator.device, dtype=torch.int8)
    return (2 * signs - 1).to(device=device, dtype=dtype).T


class Lanczos:
    """One Lanczos recurrence for each column of ``start`` [n, k], with full re-orthogonalisation, done twice.

    Column c spans the Krylov space of ``start[:, c]``; in its orthonormal basis the operator is the tridiagonal matrix
    with diagonal ``alphas[c]`` and off-diagonal ``betas[c, :-1]`` (Golub & Van Loan, Matrix Computations, section 10.1;
    "twice is enough", Parlett, The Symmetric Eigenvalue Problem, section 6.9). With ``deflate`` [n, d], orthonormal
    columns U, the operator is (I - U U^T) A (I - U U^T) and the starts are projected. A column whose Krylov space is
    exhausted goes on with zeros.

    ``alphas`` and ``betas`` are [k, steps] fp64; ``basis`` is [k, steps, n] in the operator's dtype.
    """

    def __init__(self, matmat: MatMat, start: Tensor, max_steps: int, deflate: Tensor | None = None):
        n, k = start.shape
        self._matmat = matmat
        self._deflate = deflate
        self._vectors = start.new_zeros(k, max_steps + 1, n)
        rows = self._project(start.T)
        self.start_norms = rows.norm(dim=-1).double().cpu().numpy()
        self._vectors[:, 0] = rows / rows.norm(dim=-1, keepdim=True)
        self.alphas = np.zeros((k, 0))
        self.betas = np.zeros((k, 0))

    @property
    def steps(self) -> int:
        """Number of steps made."""
        return self.alphas.shape[1]

    @property
    def basis(self) -> Tensor:
        """Orthonormal Krylov bases, [k, steps, n]."""
        return self._vectors[:, : self.steps]

    @property
    def exhausted(self) -> bool:
        """Whether every recurrence has found an invariant subspace."""
        return self.steps > 0 and not self.betas[:, -1].any()

    def step(self) -> None:
        """Make one step: one product with a block of k vectors."""
        known = self._vectors[:, : self.steps + 1]
        last = known[:, -1]
        image = self._project(self._matmat(last.T).T)
        alpha = (image * last).sum(-1)
        for _ in range(2):
            image = image - torch.einsum("kmn,km->kn", known, torch.einsum("kmn,kn->km", known, image))
            image = self._project(image)
        beta = image.norm(dim=-1)
        self.alphas = np.column_stack([self.alphas, alpha.double().cpu().numpy()])
        scale = torch.as_tensor(np.abs(self.alphas).max(1) + np.abs(self.betas).max(1, initial=0.0))
        beta[beta.double().cpu() <= 100 * torch.finfo(beta.dtype).eps * scale] = 0.0
        self.betas = np.column_stack([self.betas, beta.double().cpu().numpy()])
        self._vectors[:, self.steps] = torch.where(beta[:, None] > 0, image / beta[:, None], 0.0)

    def ritz(self, column: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values of one column in ascending order, [steps], their coefficients in its basis, [steps, steps] (one
        vector a column), and their residuals ||A y - theta y|| = beta_m |last coefficient|, [steps].
        """
        values, coefficients = eigh_tridiagonal(self.alphas[column], self.betas[column, :-1])
        return values, coefficients, self.betas[column, -1] * np.abs(coefficients[-1])

    def _project(self, rows: Tensor) -> Tensor:
        return rows if self._deflate is None else rows - (rows @ self._deflate) @ self._deflate.T


@dataclass(frozen=True)
class Extremes:
    """The largest eigenvalues, in descending order, and the smallest one.

    ``values`` and ``residuals`` [k] are fp64, ``vectors`` [n, k] orthonormal in the operator's dtype. Within its
    residual of each value lies an eigenvalue of the operator; none is below the rounding of the operator's dtype.
    ``products`` counts single products.
    """

    values: np.ndarray
    residuals: np.ndarray
    vectors: Tensor
    minimum: float
    minimum_residual: float
    products: int
    converged: bool


def extreme_eigenvalues(matmat: MatMat, start: Tensor, k: int, *, max_steps: int, tolerance: float) -> Extremes:
    """Find the ``k`` algebraically largest eigenvalues and the smallest by Lanczos from ``start`` [n, 1].

    Stops when each of the k has a residual of at most ``tolerance`` times its own size and the smallest one of at most
    ``tolerance`` times the largest size, or after ``max_steps``. Fewer than k come back when the Krylov space is
    smaller. A repeated eigenvalue is found once.
    """
    n = start.shape[0]
    lanczos = Lanczos(matmat, start, min(max_steps, n))
    converged = False
    while lanczos.steps < min(max_steps, n) and not (converged or lanczos.exhausted):
        lanczos.step()
        values, coefficients, residuals = lanczos.ritz(0)
        converged = (
            lanczos.steps >= k
            and bool((residuals[-k:] <= tolerance * np.abs(values[-k:])).all())
            and bool(residuals[0] <= tolerance * np.abs(values).max())
        )
    residuals = np.maximum(residuals, torch.finfo(start.dtype).eps * np.abs(values).max())
    top = slice(None, -k - 1, -1)
    leading = torch.as_tensor(coefficients[:, top].copy()).to(start)
    return Extremes(
        values=values[top],
        residuals=residuals[top],
        vectors=lanczos.basis[0].T @ leading,
        minimum=float(values[0]),
        minimum_residual=float(residuals[0]),
        products=lanczos.steps,
        converged=converged or lanczos.exhausted,
    )


@dataclass(frozen=True)
class Spectrum:
    """Stochastic Lanczos quadrature: each probe's estimate of the spectral distribution of an [n, n] operator.

    ``nodes`` and ``weights`` are [probes, m] fp64; the weights of a probe sum to 1. ``traces`` [probes] are unbiased,
    independent estimates of the trace.
    """

    nodes: np.ndarray
    weights: np.ndarray
    traces: np.ndarray

    def trace(self) -> tuple[float, float]:
        """The trace and its standard error between probes."""
        return _mean_and_error(self.traces)

    def moment(self, power: int) -> tuple[float, float]:
        """Mean of the eigenvalues to the ``power``, and its standard error between probes."""
        return _mean_and_error((self.weights * self.nodes**power).sum(1))

    def density(self, grid: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Density on ``grid`` [g], each node smoothed by a Gaussian of standard deviation ``width``, and its standard
        error between probes, both [g], per unit of the eigenvalue.
        """
        bumps = np.exp(-0.5 * ((grid[:, None, None] - self.nodes) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        return _mean_and_error((bumps * self.weights).sum(-1).T)


def lanczos_quadrature(matmat: MatMat, probes: Tensor, steps: int, known: Extremes | None = None) -> Spectrum:
    """Estimate the spectral distribution from Rademacher ``probes`` [n, p] with ``steps`` products for each.

    Nodes are Ritz values, weights the squared first components of their coefficients (Golub & Welsch 1969; Ubaru, Chen
    & Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature"). The first step alone is Hutchinson's
    estimator of the trace. Directions in ``known`` are taken exactly and removed from the probes, which leaves the
    trace unbiased and takes out the variance the largest eigenvalues cause (the deflation of Hutch++, Meyer et al.
    2021); they must not have been found from these probes.
    """
    n, count = probes.shape
    deflated = 0 if known is None else len(known.values)
    steps = min(steps, n - deflated)
    lanczos = Lanczos(matmat, probes, steps, None if known is None else known.vectors)
    for _ in range(steps):
        lanczos.step()
    share = (n - deflated) / n
    nodes, weights = [], []
    for column in range(count):
        values, coefficients, _ = lanczos.ritz(column)
        nodes.append(values)
        weights.append(share * coefficients[0] ** 2)
    traces = lanczos.alphas[:, 0] * lanczos.start_norms**2
    if known is None:
        return Spectrum(np.stack(nodes), np.stack(weights), traces)
    atoms = np.broadcast_to(known.values, (count, deflated))
    return Spectrum(
        np.column_stack([np.stack(nodes), atoms]),
        np.column_stack([np.stack(weights), np.full_like(atoms, 1 / n)]),
        traces + known.values.sum(),
    )


def _mean_and_error(samples: np.ndarray) -> tuple:
    """Mean over the first axis and its standard error; one sample gives an error of NaN."""
    error = samples.std(0, ddof=1) / np.sqrt(len(samples)) if len(samples) > 1 else np.full(samples.shape[1:], np.nan)
    return samples.mean(0), error
