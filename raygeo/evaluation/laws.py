"""Curves a x + b x^2 through the origin from one number of each run to another, and how well they foretell it.

The form is that of Shenfeld et al. (arXiv:2509.04259) for forgetting; fits, intervals and comparisons are ours.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raygeo.geometry.bootstrap import LEVEL, Array

FEWEST_RUNS, FEWEST_GROUPS = 3, 5
"""Runs that a curve is fitted to, and configurations of them that intervals are made of, at least."""


class Value(NamedTuple):
    """A number with the ends of its interval; None where it, or they, cannot be had."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Law(NamedTuple):
    """One predictor's curve.

    ``a`` and ``b`` are its coefficients; ``r2`` is 1 - SSE / SST about the mean of y, below zero where the mean does
    better; ``held_out_r2`` is the same for predictions of each configuration from the others alone, against the mean of
    these others. ``behind`` is the first predictor's ``held_out_r2`` less this one's, with an interval that holds for
    all of them together (Bonferroni); None of the first itself.
    """

    a: Value
    b: Value
    r2: Value
    held_out_r2: Value
    behind: Value | None


def fit_laws(
    predictors: Mapping[str, ArrayLike], y: ArrayLike, groups: Sequence[int], *, resamples: int, seed: int
) -> dict[str, Law]:
    """Fit y = a x + b x^2 by ordinary least squares for each x [N] of ``predictors``, over the same N runs.

    Runs are not weighted by how well their y is known: what a curve misses differs between runs by far more than their
    y's are uncertain, and these share the base's own error. Runs of one configuration (``groups`` [N]) are not
    independent, so intervals are percentiles over resamples of whole configurations, equal ones for all predictors, and
    a configuration is left out whole. Where x takes one value alone, a and b cannot be told apart: they are None and
    the fit is that of least norm. There are no intervals below ``FEWEST_GROUPS`` configurations.

    Raises:
        ValueError: there are fewer than ``FEWEST_RUNS`` runs, or shapes differ.
    """
    target, places = np.asarray(y, dtype=np.float64), np.unique(groups, return_inverse=True)[1]
    if len(target) < FEWEST_RUNS or len(places) != len(target):
        raise ValueError(f"a curve of two coefficients needs {FEWEST_RUNS} runs or more, got {len(target)}")
    count = int(places.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    times = np.vstack([np.ones(count), drawn]) if count >= FEWEST_GROUPS else np.ones((1, count))
    found = {
        name: _fit(np.asarray(x, dtype=np.float64), target, places, times.astype(np.float64))
        for name, x in predictors.items()
    }
    first = next(iter(found), None)
    laws = {}
    for name, (a, b, r2, held_out) in found.items():
        behind = None
        if name != first and first is not None:
            behind = _value(found[first][3] - held_out, 1 - (1 - LEVEL) / max(1, len(found) - 1))
        laws[name] = Law(_value(a, LEVEL), _value(b, LEVEL), _value(r2, LEVEL), _value(held_out, LEVEL), behind)
    return laws


def _fit(x: Array, y: Array, places: NDArray[np.intp], times: Array) -> tuple[Array, Array, Array, Array]:
    """a, b, R^2 and held-out R^2 of each row of ``times`` [R, C], how often each configuration counts: [R] each."""
    scale = float(np.abs(x).max()) or 1.0
    u = x / scale
    # Sums over the runs of each configuration [C] of all products that the fits are made of.
    products = {"uu": u**2, "uuu": u**3, "uuuu": u**4, "uy": u * y, "uuy": u**2 * y, "y": y, "yy": y**2}
    products["n"] = np.ones_like(y)
    sums = {name: np.bincount(places, values, times.shape[1]) for name, values in products.items()}
    total = {name: times @ values for name, values in sums.items()}
    a, b, whole = _solve(total)
    sse = total["yy"] - 2 * (a * total["uy"] + b * total["uuy"])
    sse += a**2 * total["uu"] + 2 * a * b * total["uuu"] + b**2 * total["uuuu"]
    sst = total["yy"] - total["y"] ** 2 / total["n"]
    rest = {name: total[name][:, None] - times * values for name, values in sums.items()}
    c, d, _ = _solve(rest)
    missed = sums["yy"] - 2 * (c * sums["uy"] + d * sums["uuy"])
    missed = missed + c**2 * sums["uu"] + 2 * c * d * sums["uuu"] + d**2 * sums["uuuu"]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = rest["y"] / rest["n"]
        null = sums["yy"] - 2 * mean * sums["y"] + mean**2 * sums["n"]
        counted = times > 0
        held_out = 1 - np.where(counted, times * missed, 0).sum(1) / np.where(counted, times * null, 0).sum(1)
        r2 = 1 - sse / sst
    none = np.full_like(a, np.nan)
    return np.where(whole, a / scale, none), np.where(whole, b / scale**2, none), r2, held_out


def _solve(sums: Mapping[str, Array]) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Least squares of y on u and u^2, of least norm where these are proportional, and where they are not."""
    p, q, r, s, t = (sums[name] for name in ("uu", "uuu", "uuuu", "uy", "uuy"))
    determinant, trace = p * r - q * q, p + r
    whole = determinant > 1e-10 * p * r
    with np.errstate(invalid="ignore", divide="ignore"):
        a = np.where(whole, (r * s - q * t) / determinant, np.where(trace > 0, s / trace, 0.0))
        b = np.where(whole, (p * t - q * s) / determinant, np.where(trace > 0, t / trace, 0.0))
    return a, b, whole


def _value(column: Array, level: float) -> Value:
    """The first entry, and percentiles of the others, unless one in ten cannot be had."""
    value = float(column[0]) if np.isfinite(column[0]) else None
    known = column[1:][np.isfinite(column[1:])]
    if value is None or not len(known) or len(known) < 0.9 * (len(column) - 1):
        return Value(value)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Value(value, low, high)
