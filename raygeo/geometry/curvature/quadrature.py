"""The spectral density of a symmetric operator by stochastic Lanczos quadrature (SLQ)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from raygeo.geometry.curvature.lanczos import Lanczos, MatMat
from raygeo.geometry.curvature.trace import mean_and_error


def gauss_quadrature(matmat: MatMat, probes: Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes [m] and weights [p, m], fp64, of a quadrature of the spectrum of A for each probe.

    For the columns z of ``probes`` [n, p], weights @ f(nodes) approximates z' f(A) z / z' z, exactly where f is a
    polynomial of degree below 2 ``steps``; the weights of a probe sum to 1. Nodes are Ritz values, weights the squared
    components of the probe along Ritz vectors (Golub & Welsch 1969; for several probes, which then share a Krylov
    space, Golub & Meurant 2010, "Matrices, Moments and Quadrature", section 6.6). Over Rademacher probes the mean of
    z' f(A) z is the trace of f(A) (Ubaru, Chen & Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos
    quadrature"; for Hessians of networks Ghorbani et al. 2019, arXiv:1901.10159).
    """
    lanczos = Lanczos(matmat, probes, steps)
    first = lanczos.coupling
    while lanczos.steps < steps and not lanczos.exhausted:
        lanczos.step()
    nodes, coefficients, _ = lanczos.ritz()
    weights = (first.T @ coefficients[: len(first)]) ** 2
    return nodes, weights / weights.sum(1, keepdims=True)


@dataclass(frozen=True)
class Spectrum:
    """Each probe's estimate of the distribution of eigenvalues: its nodes and its weights, which sum to 1, both [m].

    Probes may differ in m.
    """

    nodes: Sequence[np.ndarray]
    weights: Sequence[np.ndarray]

    def moment(self, power: int) -> tuple[float, float]:
        """Mean of the eigenvalues to the ``power``, and its standard error between probes (NaN for one probe)."""
        return mean_and_error(np.array([(w * x**power).sum() for x, w in zip(self.nodes, self.weights, strict=True)]))

    def density(self, grid: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Density on ``grid`` [g], each node smoothed by a Gaussian of standard deviation ``width``, and its standard
        error between probes, both [g], per unit of the eigenvalue.
        """
        scale = width * np.sqrt(2 * np.pi)
        return mean_and_error(
            np.stack(
                [
                    np.exp(-0.5 * ((grid[:, None] - x) / width) ** 2) @ w / scale
                    for x, w in zip(self.nodes, self.weights, strict=True)
                ]
            )
        )
