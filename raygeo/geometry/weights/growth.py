"""Two laws of growth, a + b log t and a t^b, fitted by least squares to the values themselves, so that they compare.

Both have two parameters and residuals in one unit. With Gaussian errors of unknown variance the Akaike criterion is
AIC = n log(2 pi e RSS / n) + 2 * 3 (Akaike 1974), the lower the better.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

MIN_POINTS = 4
"""With fewer points two parameters and a variance leave nothing to judge a law by."""


@dataclass(frozen=True)
class Growth:
    """A fitted law: its parameters, the residual sum of squares, and AIC, None where the fit is exact."""

    a: float
    b: float
    rss: float
    aic: float | None


def fit_log(t: np.ndarray, y: np.ndarray) -> Growth | None:
    """Fit y = a + b log t (linear regression); None for fewer than ``MIN_POINTS`` points [N], t > 0 all distinct."""
    if len(t) < MIN_POINTS:
        return None
    design = np.stack([np.ones(len(t)), np.log(t)], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, y)
    return _growth(a, b, y - design @ (a, b))


def fit_power(t: np.ndarray, y: np.ndarray) -> Growth | None:
    """Fit y = a t^b, y >= 0, by Levenberg-Marquardt from the log-log regression.

    None for fewer than ``MIN_POINTS`` points, or fewer than two above zero.
    """
    above = y > 0
    if len(t) < MIN_POINTS or above.sum() < 2:
        return None
    centre, scale = np.log(t[above]).mean(), y.max()
    u, target = np.log(t) - centre, y / scale
    slope, level = np.polyfit(u[above], np.log(target[above]), 1)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return parameters[0] * np.exp(parameters[1] * u) - target

    def jacobian(parameters: np.ndarray) -> np.ndarray:
        grown = np.exp(parameters[1] * u)
        return np.stack([grown, parameters[0] * u * grown], axis=1)

    found = least_squares(
        residuals, (math.exp(level), slope), jacobian, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    height, b = found.x
    return _growth(scale * height * math.exp(-b * centre), b, scale * found.fun)


LAWS: dict[str, Callable[[np.ndarray, np.ndarray], Growth | None]] = {"log": fit_log, "power": fit_power}


def _growth(a: float, b: float, residuals: np.ndarray) -> Growth:
    n, rss = len(residuals), float(residuals @ residuals)
    aic = n * (math.log(2 * math.pi * rss / n) + 1) + 2 * 3 if rss > 0 else None
    return Growth(float(a), float(b), rss, aic)
