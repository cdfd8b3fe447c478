"""The exponent of the power law that the largest eigenvalues of W'W follow, as WeightWatcher reports it of layers.

Maximum likelihood for a continuous power law above x_min, alpha = 1 + n / sum log(x / x_min), with the x_min among the
values whose law has the least Kolmogorov-Smirnov distance to them (Clauset, Shalizi and Newman 2009, arXiv 0706.1062,
equations 3.1 and 3.9); of eigenvalues of layers: Martin, Peng and Mahoney 2021 (arXiv 2002.06716).
"""

from dataclasses import dataclass

import numpy as np

LEAST = 20
"""Fewer values have no law: the estimate is biased, and WeightWatcher takes another one."""


@dataclass(frozen=True)
class PowerLaw:
    """A density proportional to x^-alpha above ``xmin``.

    ``error`` is the standard error (alpha - 1) / sqrt(tail) of ``alpha``, ``tail`` the number of values from ``xmin``
    on, ``distance`` the Kolmogorov-Smirnov distance between them and the law.
    """

    alpha: float
    error: float
    xmin: float
    tail: int
    distance: float


def fit_power_law(values: np.ndarray, above: float = 0.0) -> PowerLaw | None:
    """Fit the law to those of ``values`` that are larger than ``above``; None if they are fewer than ``LEAST``.

    The distance is taken at the values, to the share of them that is smaller, as WeightWatcher does. Laws are compared
    from every value but the largest, and the first of equals is taken.
    """
    x = np.sort(values[values > above].astype(np.float64))
    n = len(x)
    if n < LEAST or x[0] == x[-1]:
        return None
    logs = np.log(x)
    sizes = n - np.arange(n - 1)
    spread = logs[::-1].cumsum()[::-1][:-1] - sizes * logs[:-1]
    alphas = 1 + np.divide(sizes, spread, out=np.full(n - 1, np.inf), where=spread > 0)
    distances = np.ones(n - 1)
    for i in np.flatnonzero(np.isfinite(alphas)):
        law = -np.expm1((1 - alphas[i]) * (logs[i:] - logs[i]))
        distances[i] = np.abs(law - np.arange(n - i) / (n - i)).max()
    best = int(distances.argmin())
    alpha, tail = float(alphas[best]), n - best
    return PowerLaw(alpha, (alpha - 1) / tail**0.5, float(x[best]), tail, float(distances[best]))
