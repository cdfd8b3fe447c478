"""The spectral density of a symmetric operator by stochastic Lanczos quadrature (SLQ)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raygeo.geometry.curvature import long
from raygeo.geometry.curvature.lanczos import Extremes, Lanczos, MatMat
from raygeo.geometry.curvature.trace import estimate


class Rule(NamedTuple):
    """Nodes [m] of a quadrature, and weights for each of p probes, [p, m]; a probe's weights sum to 1."""

    nodes: np.ndarray
    weights: np.ndarray


def gauss_quadrature(matmat: MatMat, probes: Tensor, steps: int) -> tuple[Rule, Rule]:
    """A quadrature of the spectrum of A for each of ``probes`` [n, p], and the one that two steps fewer give, fp64.

    For the columns z of ``probes``, weights @ f(nodes) approximates z' f(A) z / z' z, exactly where f is a polynomial
    of degree below 2 ``steps``. Nodes are Ritz values, weights the squared components of the probe along Ritz vectors
    (Golub & Welsch 1969; for several probes, which then share a Krylov space, Golub & Meurant 2010, "Matrices, Moments
    and Quadrature", section 6.6). Over Rademacher probes the mean of z' f(A) z is the trace of f(A) (Ubaru, Chen & Saad
    2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature"; for Hessians of networks Ghorbani et al.
    2019, arXiv:1901.10159). Where the Krylov space is invariant earlier, both are exact.
    """
    lanczos = Lanczos(matmat, probes, steps)
    first, sizes = lanczos.coupling, []
    while lanczos.steps < steps and not lanczos.exhausted:
        lanczos.step()
        sizes.append(len(lanczos.matrix))

    def rule(size: int) -> Rule:
        nodes, coefficients = np.linalg.eigh(lanczos.matrix[:size, :size])
        weights = (first.T @ coefficients[: len(first)]) ** 2
        return Rule(nodes, weights / weights.sum(1, keepdims=True))

    return rule(sizes[-1]), rule(sizes[-1] if lanczos.exhausted else sizes[max(0, len(sizes) - 3)])


class Band(NamedTuple):
    """A density with its standard error between probes and the ends of its 95 % band, [g] each."""

    value: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Spectrum:
    """What is known of the n eigenvalues: quadratures of p probes, and some of the eigenvalues themselves.

    ``probes`` hold each probe's nodes and weights, ``coarser`` those of fewer steps. ``top`` [k] and ``bottom`` [j] are
    known eigenvalues, the largest and the smallest, ``components`` [p, k + j] what share of each probe's square lies
    along their eigenvectors, 1/n in the mean.
    """

    n: int
    probes: Sequence[tuple[np.ndarray, np.ndarray]]
    coarser: Sequence[tuple[np.ndarray, np.ndarray]]
    top: np.ndarray
    bottom: np.ndarray
    components: np.ndarray

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest eigenvalue or node."""
        every = np.concatenate([self.top, self.bottom, *(nodes for nodes, _ in self.probes)])
        return float(every.min()), float(every.max())

    def resolution(self, steps: int) -> float:
        """The range between the known eigenvalues of both ends over ``steps``, the mean spacing of so many nodes.

        Polynomials of degree 2 ``steps``, for which a quadrature is exact, approximate a Gaussian with this standard
        deviation to 1e-3 of its height wherever in that range it stands.
        """
        low, high = self.ends
        return max(0.0, self.top.min(initial=high) - self.bottom.max(initial=low)) / steps

    def density(self, grid: np.ndarray, width: float) -> Band:
        """The density of all eigenvalues on ``grid`` [g], per unit, each smoothed to a Gaussian of s.d. ``width``.

        A known eigenvalue counts as what it is, 1/n, and its share of each probe is taken out of the estimate (a
        control variate). The band holds Student's t interval between probes; what two steps fewer change, for the error
        of the quadrature; and the height of a single eigenvalue, which random vectors may miss. It is meant for the
        smoothed density, at the width given, point by point. The integral is 1 in the mean over probes; where there is
        hardly any density the estimate may be below 0, though the band is not.
        """
        known = _bells(grid, np.concatenate([self.top, self.bottom]), width)

        def estimates(rules: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
            sampled = np.stack([_bells(grid, nodes, width) @ weights for nodes, weights in rules])
            return sampled - self.components @ known.T + known.sum(1) / self.n

        fine = estimate(estimates(self.probes))
        blur = np.abs(fine.value - estimates(self.coarser).mean(0)) + single(self.n, width)
        low, high = (ends.clip(min=0) for ends in (fine.low - blur, fine.high + blur))
        return Band(fine.value, fine.error, low, high)


def estimate_spectrum(
    matmat: MatMat, probes: Tensor, steps: int, known: Extremes | None = None, tolerance: float = 1e-2
) -> Spectrum:
    """The spectrum of A from Rademacher ``probes`` [n, p], each with a Krylov space of ``steps`` products of its own.

    ``known`` are eigenvalues at the ends that were found before, with their vectors; those that the small Krylov space
    of a small A has at both ends count once, and those whose residual is above ``tolerance`` times the largest size
    not at all.
    """
    n = len(probes)
    rules = [gauss_quadrature(matmat, probe, steps) for probe in probes.split(1, 1)]
    fine, coarser = ([(rule.nodes, rule.weights[0]) for rule in side] for side in zip(*rules, strict=True))
    if known is None:
        return Spectrum(n, fine, coarser, np.zeros(0), np.zeros(0), np.zeros((len(fine), 0)))
    vectors = torch.cat([known.vectors, known.bottom_vectors], 1)[:, : known.basis.shape[1]]
    components = long.inner(probes.T, vectors.T).square().cpu().numpy() / n
    top = len(known.top)
    values = np.concatenate([known.top, known.bottom])[: vectors.shape[1]]
    residuals = np.concatenate([known.top_residuals, known.bottom_residuals])[: vectors.shape[1]]
    kept = residuals <= tolerance * np.abs(values).max()
    ends = values[:top][kept[:top]], values[top:][kept[top:]]
    return Spectrum(n, fine, coarser, *ends, components[:, kept])


def single(n: int, width: float) -> float:
    """Largest density of one of ``n`` eigenvalues, smoothed to ``width``."""
    return 1 / (n * width * np.sqrt(2 * np.pi))


def _bells(grid: np.ndarray, centres: np.ndarray, width: float) -> np.ndarray:
    """Gaussians about ``centres`` [m] on ``grid`` [g]: [g, m], each of integral 1."""
    return np.exp(-0.5 * ((grid[:, None] - centres) / width) ** 2) / (width * np.sqrt(2 * np.pi))
